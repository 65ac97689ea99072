// The page: puts screen, input, game and HUD together and says which state it is in.

import { Card } from './card.js';
import { offer } from './decoders.js';
import { Game } from './game.js';
import { Hud, announce, copy } from './hud.js';
import { Input } from './input.js';
import { Menu } from './menu.js';
import { MARGIN_MS } from './pacing.js';
import { Screen } from './screen.js';
import { linkTo, loadSettings, parseAddress, saveSettings, watchLink } from './settings.js';
import { StartScreen } from './start.js';
import { STATES, errorText } from './texts.js';

const $ = (id) => document.getElementById(id);
const TICK_MS = 250;
const HOUSE_MS = 3000;
const SESSION_KEY = 'manyworlds.session'; // of this tab: what a reload continues

const asked = parseAddress(location.search);
const settings = loadSettings(localStorage, asked);
const offered = await offer(asked.codec);
const screen = new Screen($('picture'), $('glow'), settings.scaling, asked.renderer);
const hud = new Hud();
const card = new Card({ primary: cardPrimary, secondary: () => game.leave('start') });
const start = new StartScreen(asked, {
  play: (choice) => game.enter(choice),
  again: () => game.enter(session()),
  share: (choice) => {
    const link = linkTo(location.href, choice);
    const copied = choice.image ? 'Link copied. Your picture stays with you.' : 'Link copied.';
    copy(link).then(() => start.say(copied), () => start.say(link));
  },
});
const menu = new Menu(settings, {
  closed: () => {
    steer();
    if (game.state === 'playing' && !game.watching && matchMedia('(pointer: fine)').matches) input.lock();
  },
  changed: () => {
    saveSettings(localStorage, settings);
    screen.setMode(settings.scaling);
    if (game.player) game.player.pacer.baseMarginMs = MARGIN_MS[settings.quality];
  },
  share: () => copy(shareLink()).then(() => hud.toast('Link copied'), () => hud.toast(shareLink())),
  save: () => { if (!game.save()) hud.toast('The line is closed just now.'); },
  load: () => { if (!game.load()) hud.toast('The line is closed just now.'); },
  watch: () => { if (!game.share()) hud.toast('The line is closed just now.'); },
  fresh: () => game.leave('start'),
  leave: () => game.leave('ended'),
});
const socketUrl = new URL('play', location.href);
socketUrl.protocol = location.protocol === 'https:' ? 'wss:' : 'ws:';
socketUrl.search = socketUrl.hash = '';
const game = new Game({
  screen, settings, offer: offered, fetchWorld, socketUrl: socketUrl.href,
  view: {
    state: showState, welcomed, warming: (progress) => card.progress(progress), house: showHouse,
    prompted, saved, loaded, shared, note,
  },
});
const input = new Input($('stage'), settings, {
  emit: (messages) => game.control(messages),
  changed: (codes, thumb) => hud.held(codes, thumb),
});

function session() {
  try { return JSON.parse(sessionStorage.getItem(SESSION_KEY)); } catch { return null; }
}

function keepSession(choice) {
  try {
    if (choice) sessionStorage.setItem(SESSION_KEY, JSON.stringify(choice));
    else sessionStorage.removeItem(SESSION_KEY);
  } catch { /* then a reload starts anew */ }
}

async function fetchWorld() {
  try {
    const answer = await fetch('world.json', { cache: 'no-store', signal: AbortSignal.timeout(5000) });
    return answer.ok ? await answer.json() : null;
  } catch { return null; }
}

function showState(state, { error, known = true } = {}) {
  document.body.dataset.state = state;
  if (state === 'error') document.body.dataset.error = error.code;
  else delete document.body.dataset.error;
  if (state === 'playing') { card.hide(); announce(game.watching ? 'Watching' : 'Playing'); document.activeElement?.blur(); }
  else if (state === 'start') { card.hide(); visitHouse(); announce('Manyworlds. Choose where to start.'); }
  else {
    let text = state === 'error' ? errorText(error.code) : STATES[state];
    if (!known) text = STATES.unreachable;
    card.show(text, error?.message);
  }
  if (state === 'ended' || state === 'start') {
    if (state === 'ended') keepSession(null);
    start.offerAgain(session() !== null);
  }
  if (state !== 'playing') { input.unlock(); menu.close(); whisper(false); hud.badges([]); }
  steer();
}

function steer() {
  input.enable(game.state === 'playing' && !game.watching && !menu.open && $('whisper').hidden);
}

function cardPrimary() {
  const { reload } = game.state === 'error' ? errorText(document.body.dataset.error) : {};
  if (reload) location.reload();
  else if (['unknown_scene', 'bad_image', 'not_shared', 'other_codec'].includes(document.body.dataset.error)) game.leave('start');
  else game.again();
}

function welcomed(message, surprising) {
  document.body.classList.toggle('watching', message.watching === true);
  $('load').disabled = game.saveId === null;
  if (message.watching) { announce('Watching'); return; }
  steerAgain();
  const { token, scene, seed, resumed } = message;
  const prompt = resumed ? session()?.prompt : message.prompt; // the one it grew from, not the one in force
  keepSession({ token, scene, seed, prompt });
  if (surprising) hud.toast('Your world was not kept. This one grew from the same seed.');
  else if (offered.why && message.codec === 'jpeg' && asked.codec !== 'jpeg') hud.toast(offered.why);
}

// The server knows nothing of what is held just now.
function steerAgain() {
  input.stream.repeat(performance.now());
  input.pump();
}

function saved() {
  $('load').disabled = false;
  hud.toast('Saved. The menu leads back here.');
}

function loaded() {
  steerAgain();
  hud.toast('Back at the save.');
}

function showHouse({ players, capacity }) {
  card.countdown(`${players} of ${capacity} in. Asking again every few seconds.`);
}

function prompted({ text }) { hud.toast(`The world heard: ${text}`); }

function shared({ code }) {
  const link = watchLink(location.href, code);
  copy(link).then(() => hud.toast('Watch link copied'), () => hud.toast(link));
}

function note(text) { hud.toast(text); }

function whisper(open) {
  if ($('whisper').hidden === !open) return;
  $('whisper').hidden = !open;
  if (open) { $('words').value = ''; $('words').focus(); } else $('words').blur();
  steer();
}

function shareLink() {
  const { scene, prompt, seed } = session() ?? game.welcome ?? {};
  return linkTo(location.href, { scene, prompt, seed });
}

$('whisper').addEventListener('submit', (event) => {
  event.preventDefault();
  const words = $('words').value.trim();
  if (words) hud.toast(game.say(words) ? 'Said. It takes hold in a moment.' : 'The line is closed just now.');
  whisper(false);
});
$('words').addEventListener('blur', () => whisper(false));
$('whisper').querySelector('button').addEventListener('pointerdown', (event) => event.preventDefault()); // keep the focus
$('ask-prompt').addEventListener('click', () => whisper(true));
$('open-menu').addEventListener('click', () => { menu.show(); steer(); });
$('pill').addEventListener('click', (event) => { if (event.detail) $('pill').blur(); });

addEventListener('keydown', (event) => {
  if (event.key === 'F3') { event.preventDefault(); if (game.state === 'playing') hud.togglePanel(); return; }
  if (game.state !== 'playing' || menu.open) return;
  if (event.key === 'Escape') {
    event.preventDefault();
    if (!$('whisper').hidden) whisper(false);
    else { menu.show(); steer(); }
  } else if (event.key === 'Enter' && !game.watching && !event.target.closest('button, input, summary')) {
    event.preventDefault();
    whisper(true);
  }
});

document.addEventListener('pointerlockchange', () => { // the browser keeps Escape to itself while it holds the mouse
  if (input.locked && game.state !== 'playing') input.unlock(); // granted too late
  if (input.locked || game.state !== 'playing' || menu.open) return;
  if (!$('whisper').hidden) whisper(false);
  else { menu.show(); steer(); }
});

function facts() {
  const { welcome, player } = game;
  if (!welcome) return [];
  return [
    ['Decoder', player?.decoder.name ?? '–'], ...(offered.why ? [['Why JPEG', offered.why]] : []),
    ['Screen', screen.renderer],
    ['Players', `${game.stats?.players ?? welcome.players} of ${welcome.capacity}`],
    ['Session', welcome.session, true], ['Seed', String(welcome.seed), true],
  ];
}

let ticks = 0;
setInterval(() => {
  ticks += 1;
  const waitMs = game.retryAtMs === null ? null : game.retryAtMs - performance.now();
  if (game.state === 'reconnecting' || game.state === 'going_down') {
    card.countdown(waitMs === null ? 'Trying now' : `Trying again in ${Math.max(1, Math.ceil(waitMs / 1000))} s`);
  }
  if (game.state !== 'playing') return;
  const stats = game.measure(performance.now());
  const { badges } = game.health;
  hud.pill(stats, badges.length ? 'slow' : 'well');
  hud.badges(badges);
  if (ticks % 4 === 0) hud.sample(stats, facts());
}, TICK_MS);

async function visitHouse() {
  if (game.state !== 'start' || document.hidden) return;
  start.show(await fetchWorld());
}
setInterval(visitHouse, HOUSE_MS);
document.addEventListener('visibilitychange', visitHouse);

// For tests and the curious: a look, never a handle.
window.manyworlds = Object.freeze({
  get state() { return game.state; },
  get painted() { return game.painted && { ...game.painted }; },
  get stats() { return game.measure(performance.now()); },
  get session() { return game.welcome && { ...game.welcome }; },
  get decoder() { return game.player?.decoder.name ?? null; },
  get renderer() { return screen.renderer; },
  get codecs() { return [...offered.codecs]; },
});

start.note(offered.why);
start.offerAgain(session() !== null);
if (asked.watch) game.enter({ watch: asked.watch });
else if (asked.play) game.enter(start.choice());
else visitHouse();
