"""The wire: every message, its limits, its bytes and the error codes (PROTOCOL.md says it for people).

One WebSocket binary message holds one MessagePack map whose `type` names the message. Which message may come when is
`gameserver.wire`.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

VERSION = 1
MAX_MESSAGE_BYTES = 64 * 1024  # client to server, after the hello; explicit poses are the largest
MAX_TRANSPORT_BYTES = 256 * 1024  # a hello, which may bring a picture; the WebSocket reads no more of any message
MAX_IMAGE_BYTES = 192 * 1024
MAX_IMAGE_PIXELS = 2048 * 2048
MESSAGES_PER_S = 200.0
MESSAGES_BURST = 400.0
MAX_POSES = 256  # in one message
MAX_QUEUED_POSES = 1024  # waiting in a session
MAX_QUEUED_CONTROLS = 16  # waiting in a session in lockstep
MAX_PROMPT_CHARS = 500

Seq = Annotated[int, Meta(ge=1, le=2**32 - 1)]
Index = Annotated[int, Meta(ge=0, le=2**53 - 1)]
# Every float has a range, and a range refuses NaN and infinities.
Axis = Annotated[float, Meta(ge=-1.0, le=1.0)]
Degrees = Annotated[float, Meta(ge=-360.0, le=360.0)]
Milliseconds = Annotated[float, Meta(ge=0.0, le=1e15)]
Focal = Annotated[float, Meta(ge=1.0, le=1e6)]
Pixels = Annotated[float, Meta(ge=-1e6, le=1e6)]
Scale = Annotated[float, Meta(ge=1e-6, le=1e6)]
Codecs = Annotated[tuple[Literal["h264", "jpeg", "raw"], ...], Meta(min_length=1, max_length=4)]
Name = Annotated[str, Meta(min_length=1, max_length=32, pattern=r"^[^\x00-\x1f\x7f]*$")]
ShortText = Annotated[str, Meta(min_length=1, max_length=64)]
PromptText = Annotated[str, Meta(max_length=MAX_PROMPT_CHARS)]
SaveId = Annotated[str, Meta(min_length=41, max_length=41, pattern=r"^[0-9a-f]{8}-[0-9a-f]{32}$")]


class Message(
    msgspec.Struct, frozen=True, kw_only=True, tag_field="type", forbid_unknown_fields=True, omit_defaults=True
):
    pass


# Client to server.


class Hello(Message, frozen=True, tag="hello"):
    version: int
    name: Name = "player"
    codecs: Codecs = ("h264",)  # preferred first
    control: Literal["axes", "poses"] = "axes"
    scene: ShortText | None = None
    prompt: PromptText | None = None
    seed: Index | None = None
    token: ShortText | None = None  # of an earlier welcome: continue that session
    intrinsics: tuple[Focal, Focal, Pixels, Pixels] | None = None  # fx, fy, cx, cy, pixels of the stream's picture
    scale: Scale | None = None  # pose units that count as 1
    image: bytes | None = None  # a JPEG or PNG file to start from (checked by `gameserver.upload`)
    lockstep: bool = False  # a chunk begins when its steering is here
    watch: ShortText | None = None  # the code of a shared session: watch it instead of playing
    save: SaveId | None = None  # begin where this save left off: a new session, whoever made the save


class Control(Message, frozen=True, tag="control"):
    """Axes held from now on, and how far the mouse looked since the last control."""

    seq: Seq  # increasing
    t_ms: Milliseconds  # the client's clock, never going back: measures how long a tap lasted
    axes: tuple[Axis, Axis, Axis, Axis]  # forward, right, turn (right is positive), pitch (up is positive)
    look: tuple[Degrees, Degrees] = (0.0, 0.0)  # turn right, pitch up


class Poses(Message, frozen=True, tag="poses"):
    """Camera poses for the next video frames, appended to the session's queue (checked by `gameserver.wire`)."""

    seq: Seq
    poses: bytes  # little-endian float32 [n, 4, 4], row-major, camera-to-world, OpenCV axes, one a video frame


class SetPrompt(Message, frozen=True, tag="prompt"):
    text: PromptText


class Ack(Message, frozen=True, tag="ack"):
    """Every packet up to this one was taken in, or given up; held back while the decoder is behind."""

    packet: Index
    hidden: bool = False  # the page is not visible: send less
    slack_ms: Annotated[float, Meta(ge=-60_000.0, le=60_000.0)] | None = None  # how early a chunk's first frame came


class WantKeyframe(Message, frozen=True, tag="keyframe"):
    pass


class Ping(Message, frozen=True, tag="ping"):
    t_ms: Milliseconds


class Share(Message, frozen=True, tag="share"):
    """Whether others may watch this session."""

    on: bool = True


class Bye(Message, frozen=True, tag="bye"):
    pass


class SaveGame(Message, frozen=True, tag="save"):
    """Keep all of the session as it is when no chunk of it is under way; `saved` answers."""


class LoadGame(Message, frozen=True, tag="load"):
    """Go back to a save of this session; `loaded` says where that is."""

    save: SaveId


ClientMessage = Hello | Control | Poses | SetPrompt | Ack | WantKeyframe | Ping | Share | SaveGame | LoadGame | Bye


# Server to client.


class Welcome(Message, frozen=True, tag="welcome"):
    version: int
    session: str
    token: str
    resumed: bool
    world: str
    scene: str
    prompt: str
    seed: int
    width: int
    height: int
    fps: int
    chunk_frames: int  # video frames in a chunk
    first_chunk_frames: int
    codec: Literal["h264", "jpeg", "raw"]
    control: Literal["axes", "poses"]
    players: int
    capacity: int
    watching: bool = False  # somebody else's session, which cannot be steered from here
    chunk: int = 0  # the first one that may come
    control_seq: int = 0  # of a resumed session: the last control that is in a chunk, by the count before


class Frame(Message, frozen=True, tag="frame"):
    packet: int  # counts what was sent on this connection: a gap is a loss
    frame: int  # index in the stream; frames skipped before encoding leave a gap here, not in `packet`
    chunk: int
    key: bool
    control_seq: int  # the last control folded into this chunk, 0 if none
    pose: bytes  # little-endian float32 [4, 4]: the camera this frame was made for
    data: bytes  # H.264 Annex B access unit, a JPEG file, or RGB8 [height, width, 3]


class Prompted(Message, frozen=True, tag="prompted"):
    """A prompt took hold."""

    text: str
    chunk: int


class Saved(Message, frozen=True, tag="saved"):
    save: str
    chunk: int  # the first one after it


class Loaded(Message, frozen=True, tag="loaded"):
    """The frames that follow go on from a save."""

    save: str
    chunk: int  # the next one
    prompt: str  # in force


class Stats(Message, frozen=True, tag="stats"):
    """Once a second."""

    players: int
    capacity: int
    fps: float  # frames a second this player was sent
    chunk_ms: float  # start of the last chunk's first step to its frames
    rows: float  # mean rows in a forward
    speed: float  # 1 is real time; 0.7: the world runs at 70 %
    kbps: float
    bitrate_kbps: int  # the encoder's present target
    skipped: int  # frames skipped before encoding, in all
    poses_queued: int


class Pong(Message, frozen=True, tag="pong"):
    t_ms: float  # the ping's


class Shared(Message, frozen=True, tag="shared"):
    """The answer to `share`."""

    code: str  # for the `watch` of a hello; empty: nobody may watch


class Error(Message, frozen=True, tag="error"):
    code: str  # one of ERRORS
    message: str
    fatal: bool  # the connection closes after this


ServerMessage = Welcome | Frame | Prompted | Saved | Loaded | Stats | Pong | Shared | Error

# code -> (fatal, what it means)
ERRORS: dict[str, tuple[bool, str]] = {
    "bad_message": (True, "not a MessagePack map of a known message with fields of the right types and ranges"),
    "too_large": (True, "a message over the size limit"),
    "too_fast": (True, "more messages or control frames a second than the limit"),
    "unsupported_version": (True, "the hello's version is not spoken here"),
    "out_of_order": (True, "a message this state or kind of control does not allow, or a number or clock going back"),
    "full": (True, "every slot is taken by somebody who plays, or others wait for one"),
    "not_real_time": (True, "with one more player the world would run slower than real time"),
    "not_ready": (True, "the world is still warming up"),
    "unknown_scene": (True, "no start scene of that id"),
    "bad_image": (True, "not a still picture, JPEG or PNG, that can be decoded whole and within the limits"),
    "bad_prompt": (False, "the prompt cannot be encoded"),
    "bad_pose": (False, "not n x 16 finite floats, or not rigid camera-to-world matrices"),
    "pose_queue_full": (False, "more poses waiting than the limit; the message was dropped whole"),
    "control_queue_full": (False, "in lockstep, more controls waiting than the limit; this one was dropped"),
    "idle": (True, "in lockstep, nothing was steered for ten minutes"),
    "no_saves": (False, "this server keeps no saves"),
    "too_many_saves": (False, "no more saves of this session, or of anybody, are kept"),
    "saves_full": (False, "there is no room for the bytes of another save"),
    "save_failed": (False, "the disk did not take the save"),
    "unknown_save": (False, "no such save is kept, or it is not of this session; fatal in answer to a hello"),
    "bad_save": (False, "the save is damaged, or of another world; fatal in answer to a hello"),
    "replaced": (True, "another connection continued this session with its token"),
    "slow_client": (True, "no packet was acknowledged for five seconds"),
    "not_shared": (True, "no session can be watched by that code, or it cannot any more"),
    "other_codec": (True, "the watched session is sent in a codec that the hello did not offer"),
    "shutting_down": (True, "the server is going down"),
    "internal": (True, "a fault of the server; it is in its log"),
}

# a session whose client earned one of these ends with its connection, and its slot is free at once
EXPELLED = frozenset({"bad_message", "too_large", "too_fast", "out_of_order"})

# code -> WebSocket close code, sent with the error code as the reason; every other fatal error closes with 1008
CLOSE_CODES: dict[str, int] = {
    "bad_message": 1007,
    "too_large": 1009,
    "full": 1013,
    "not_real_time": 1013,
    "not_ready": 1013,
    "shutting_down": 1001,
    "internal": 1011,
}


class ProtocolError(Exception):
    """A client broke the protocol; `code` is one of ERRORS."""

    def __init__(self, code: str, message: str, fatal: bool = False) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.fatal = fatal or ERRORS[code][0]

    @property
    def close_code(self) -> int:
        return CLOSE_CODES.get(self.code, 1008)

    def to_message(self) -> Error:
        return Error(code=self.code, message=self.message, fatal=self.fatal)


class _AnyHello(msgspec.Struct, tag_field="type", tag="hello"):
    """What is left of a hello when its version, and so its fields, are unknown."""

    version: int


# A decoder keeps no state between calls, so these are constants.
_decoder = msgspec.msgpack.Decoder(ClientMessage)
_any_hello_decoder = msgspec.msgpack.Decoder(_AnyHello)
_encoder = msgspec.msgpack.Encoder()


def encode(message: Message) -> bytes:
    return _encoder.encode(message)


def decode_client(data: bytes | str, max_bytes: int = MAX_MESSAGE_BYTES) -> ClientMessage:
    """One client message, checked field by field. Raises ProtocolError whatever the bytes are."""
    if isinstance(data, str):
        raise ProtocolError("bad_message", "messages are binary, this one is text")
    if len(data) > max_bytes:
        raise ProtocolError("too_large", f"{len(data)} bytes in a message, at most {max_bytes} are allowed")
    try:
        message: ClientMessage = _decoder.decode(data)
    except msgspec.MsgspecError as error:
        _refuse_other_version(data)
        raise ProtocolError("bad_message", str(error)) from None
    except UnicodeDecodeError:
        raise ProtocolError("bad_message", "text is not UTF-8") from None
    except RecursionError:
        raise ProtocolError("bad_message", "nested too deeply") from None
    if isinstance(message, Hello) and message.version != VERSION:
        raise _unsupported(message.version)
    return message


def _refuse_other_version(data: bytes) -> None:
    """A hello of another version may have other fields: say that, and not that a field is unknown."""
    try:
        version = _any_hello_decoder.decode(data).version
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return
    if version != VERSION:
        raise _unsupported(version) from None


def _unsupported(version: int) -> ProtocolError:
    return ProtocolError("unsupported_version", f"this server speaks version {VERSION}, the hello says {version}")
