"""The wire: every message, its limits and error codes (PROTOCOL.md says it for people), and the sans-IO server side.

One WebSocket binary message holds one MessagePack map whose `type` names the message.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

VERSION = 1
MAX_MESSAGE_BYTES = 64 * 1024  # client to server; explicit poses are the largest
MAX_POSES = 256  # in one message
MAX_QUEUED_POSES = 1024  # waiting in a session
MAX_PROMPT_CHARS = 500

Seq = Annotated[int, Meta(ge=1, le=2**32 - 1)]
Index = Annotated[int, Meta(ge=0, le=2**53 - 1)]
Axis = Annotated[float, Meta(ge=-1.0, le=1.0)]
Degrees = Annotated[float, Meta(ge=-360.0, le=360.0)]
Milliseconds = Annotated[float, Meta(ge=0.0, le=1e15)]
ShortText = Annotated[str, Meta(min_length=1, max_length=64)]
PromptText = Annotated[str, Meta(max_length=MAX_PROMPT_CHARS)]


class Message(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", forbid_unknown_fields=True, omit_defaults=True):
    pass


# Client to server.


class Hello(Message, tag="hello"):
    version: int
    name: Annotated[str, Meta(min_length=1, max_length=32)] = "player"
    codecs: Annotated[tuple[Literal["h264", "jpeg"], ...], Meta(min_length=1, max_length=4)] = ("h264",)  # preferred first
    control: Literal["axes", "poses"] = "axes"
    scene: ShortText | None = None
    prompt: PromptText | None = None
    seed: Index | None = None
    token: ShortText | None = None  # of an earlier welcome: continue that session
    intrinsics: tuple[float, float, float, float] | None = None  # fx, fy, cx, cy in pixels of the stream's picture
    scale: Annotated[float, Meta(gt=0.0, le=1e6)] | None = None  # pose units that count as 1


class Control(Message, tag="control"):
    """Axes held from now on, and how far the mouse looked since the last control."""

    seq: Seq  # increasing
    t_ms: Milliseconds  # the client's clock, never going back: measures how long a tap lasted
    axes: tuple[Axis, Axis, Axis, Axis]  # forward, right, turn (right is positive), pitch (up is positive)
    look: tuple[Degrees, Degrees] = (0.0, 0.0)  # turn right, pitch up


class Poses(Message, tag="poses"):
    """Camera poses for the next video frames, appended to the session's queue."""

    seq: Seq
    poses: bytes  # little-endian float32 [n, 4, 4], row-major, camera-to-world, OpenCV axes, one a video frame


class SetPrompt(Message, tag="prompt"):
    text: PromptText


class Ack(Message, tag="ack"):
    """Every packet up to this one was decoded (or given up)."""

    packet: Index
    hidden: bool = False  # the page is not visible: send less
    slack_ms: Annotated[float, Meta(ge=-60_000.0, le=60_000.0)] | None = None  # how early a chunk's first frame came


class WantKeyframe(Message, tag="keyframe"):
    pass


class Ping(Message, tag="ping"):
    t_ms: Milliseconds


class Bye(Message, tag="bye"):
    pass


ClientMessage = Hello | Control | Poses | SetPrompt | Ack | WantKeyframe | Ping | Bye


# Server to client.


class Welcome(Message, tag="welcome"):
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
    codec: Literal["h264", "jpeg"]
    control: Literal["axes", "poses"]
    players: int
    capacity: int


class Frame(Message, tag="frame"):
    packet: int  # counts what was sent on this connection: a gap is a loss
    frame: int  # index in the stream; frames skipped before encoding leave a gap here, not in `packet`
    chunk: int
    key: bool
    control_seq: int  # the last control folded into this chunk, 0 if none
    pose: bytes  # little-endian float32 [4, 4]: the camera this frame was made for
    data: bytes  # H.264 Annex B access unit, or a JPEG file


class Prompted(Message, tag="prompted"):
    """A prompt took hold."""

    text: str
    chunk: int


class Stats(Message, tag="stats"):
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


class Pong(Message, tag="pong"):
    t_ms: float  # the ping's


class Error(Message, tag="error"):
    code: str  # one of ERRORS
    message: str
    fatal: bool  # the connection closes after this


ServerMessage = Welcome | Frame | Prompted | Stats | Pong | Error

# code -> (fatal, what it means)
ERRORS: dict[str, tuple[bool, str]] = {
    "bad_message": (True, "not a MessagePack map of a known message with fields of the right types and ranges"),
    "too_large": (True, "a message over the size limit"),
    "too_fast": (True, "more messages or control frames a second than the limit"),
    "unsupported_version": (True, "the hello's version is not spoken here"),
    "out_of_order": (True, "a message that this state does not allow, or a sequence number or clock going back"),
    "full": (True, "every slot is taken"),
    "not_ready": (True, "the world is still warming up"),
    "unknown_scene": (True, "no start scene of that id"),
    "bad_prompt": (False, "the prompt cannot be encoded"),
    "bad_pose": (False, "not n x 16 finite floats, or not rigid camera-to-world matrices"),
    "pose_queue_full": (False, "more poses waiting than the limit; the message was dropped whole"),
    "replaced": (True, "another connection continued this session with its token"),
    "slow_client": (True, "no packet was acknowledged for five seconds"),
    "shutting_down": (True, "the server is going down"),
    "internal": (True, "a fault of the server; it is in its log"),
}
