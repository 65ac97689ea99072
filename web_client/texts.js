// What the page says when something is not simply playing: for the player, and for whoever runs the server.

export const STATES = {
  connecting: { title: 'Opening the door', text: 'Asking the server for a place.', secondary: 'Back' },
  warming: {
    title: 'The world is waking up',
    text: 'You go in by yourself as soon as it is ready.',
    secondary: 'Back',
  },
  full: {
    title: 'Every place is taken',
    text: 'There is no line here: the next free place goes to whoever asks first, and this page keeps asking for you.',
    primary: 'Ask now', secondary: 'Back',
    operator: 'The session count reached what `serve --players` set, or what `--realtime-only` allows.',
  },
  reconnecting: {
    title: 'The line broke', text: 'Your world is kept for a while. This page keeps trying to get you back in.',
    primary: 'Try now', secondary: 'Leave',
    operator: 'The WebSocket closed without an error message, or went silent: a stopped server, a proxy, or the network.',
  },
  unreachable: {
    title: 'Nobody answers', text: 'The server is not there, or the network is not. This page keeps trying.',
    primary: 'Try now', secondary: 'Back',
    operator: 'No WebSocket could be opened on /play: a stopped server, a proxy that does not upgrade, or the network.',
  },
  going_down: {
    title: 'The server is going down', text: 'It said so itself. If it comes back, you are let in again.',
    primary: 'Try now', secondary: 'Leave',
    operator: 'Error code shutting_down: the process was asked to stop.',
  },
  replaced: {
    title: 'You are playing in another tab', text: 'This world can be steered from one place at a time.',
    primary: 'Play here instead', secondary: 'Back',
    operator: 'Error code replaced: another connection presented this session’s token.',
  },
  ended: {
    title: 'You left this world', text: 'It will not wait, but the same seed grows the same place again.',
    primary: 'Walk there again', secondary: 'Choose another',
  },
};

const again = { primary: 'Play again', secondary: 'Back' };

// By the protocol's error codes. `state` names the state that shows it; without one it is the state "error".
export const ERRORS = {
  bad_message: {
    ...again, title: 'The server did not understand this page',
    text: 'Something between you and the server is out of step. Reloading the page usually helps.',
    operator: 'A message was not a map of the protocol. Page and server may be of different versions.',
  },
  too_large: {
    ...again, title: 'That was too much at once', text: 'The page sent more than the server takes in one message.',
    operator: 'A client message went over the size limit.',
  },
  too_fast: {
    ...again, title: 'Slow hands win', text: 'More input arrived than the server takes in a second.',
    operator: 'The message rate limit of one connection was passed; a proxy that bunches messages can cause it.',
  },
  unsupported_version: {
    ...again, title: 'This page is of another age', text: 'The server has been updated. Reload the page to play.',
    primary: 'Reload', reload: true, operator: 'The hello asked for a protocol version that this server does not speak.',
  },
  out_of_order: {
    ...again, title: 'Something came in the wrong order', text: 'The page and the server lost step. A fresh start helps.',
    operator: 'A message that the session’s state does not allow, or a sequence number or clock that went back.',
  },
  full: { state: 'full' },
  not_real_time: { state: 'full' },
  not_ready: { state: 'warming' },
  unknown_scene: {
    title: 'That place is not on this map', text: 'The start scene in the link is not one of this server’s.',
    primary: 'Choose another', secondary: 'Back', operator: 'The hello named a scene that the served world does not have.',
  },
  bad_image: {
    title: 'That picture cannot be walked into', text: 'The server could not read it. Another picture may do.',
    primary: 'Choose another', secondary: 'Back',
    operator: 'The hello brought an image that is no whole still JPEG or PNG file within the limits.',
  },
  bad_prompt: { toast: 'The world did not understand these words.' },
  bad_pose: { toast: 'The server did not accept a camera pose.' },
  pose_queue_full: { toast: 'More camera poses are waiting than the server holds.' },
  control_queue_full: { toast: 'More controls are waiting than the server holds.' },
  idle: {
    ...again, title: 'Nobody steered', text: 'This world waited for its agent for a long time, and then let go.',
    operator: 'In lockstep nothing was steered for ten minutes.',
  },
  no_saves: { toast: 'This server keeps no saves.' },
  too_many_saves: { toast: 'No more saves are kept: you have as many as there may be.' },
  saves_full: { toast: 'There is no room for another save.' },
  save_failed: { toast: 'The server could not write the save.' },
  unknown_save: { toast: 'That save is not there any more.' },
  bad_save: { toast: 'That save cannot be used any more.' },
  replaced: { state: 'replaced' },
  slow_client: {
    ...again, title: 'Your network fell behind', text: 'Pictures were not arriving any more, so the server let go.',
    operator: 'No packet was acknowledged for five seconds.',
  },
  not_shared: {
    title: 'There is nothing to watch', text: 'Whoever played here has left, or does not share this world any more.',
    primary: 'Play yourself', secondary: 'Back', operator: 'No session is shared by the code of this link.',
  },
  other_codec: {
    title: 'This browser cannot show it', text: 'That world is sent in a format which this browser does not decode.',
    primary: 'Play yourself', secondary: 'Back',
    operator: 'Spectators get the packets encoded for the player, in the codec which that one chose.',
  },
  shutting_down: { state: 'going_down' },
  internal: {
    ...again, title: 'The world stumbled', text: 'A fault of the server, not of yours. You can try again.',
    operator: 'An internal fault; its traceback is in the server’s log.',
  },
};

export const errorText = (code) => ERRORS[code] ?? {
  ...again, title: 'The server said no', text: `It gave a reason that this page does not know: ${code}.`,
  operator: 'The server is newer than this page.',
};
