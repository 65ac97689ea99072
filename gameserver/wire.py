"""The server's side of one connection without IO: which message may come when, how often, and what is in it."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import assert_never

import numpy as np
from numpy.typing import NDArray

from gameserver.protocol import (
    MAX_MESSAGE_BYTES,
    MAX_POSES,
    MAX_TRANSPORT_BYTES,
    MESSAGES_BURST,
    MESSAGES_PER_S,
    Ack,
    Bye,
    Control,
    Hello,
    LoadGame,
    Ping,
    Poses,
    ProtocolError,
    SaveGame,
    SetPrompt,
    Share,
    WantKeyframe,
    decode_client,
)

POSE_BYTES = 64  # float32 [4, 4]
MAX_POSITION = 1e6  # pose units from the origin: far, and safe to square in float32
RIGID_TOLERANCE = 1e-3  # on R @ R.T = 1: recorded poses are float32 and were interpolated


@dataclass(frozen=True, slots=True, eq=False)
class PoseBatch:
    """A poses message whose matrices are finite and rigid."""

    seq: int
    poses: NDArray[np.float32]  # [n, 4, 4] camera-to-world, one a video frame


Event = Hello | Control | PoseBatch | SetPrompt | Ack | WantKeyframe | Ping | Share | SaveGame | LoadGame | Bye


class State(Enum):
    EXPECT_HELLO = "waiting for a hello"
    PREPARING = "preparing the session"
    PLAYING = "playing"
    WATCHING = "watching"
    CLOSED = "closed"


# (state, message) -> next state; anything else is out of order. `welcomed` is the step from PREPARING on.
TRANSITIONS: dict[tuple[State, type], State] = {
    (State.EXPECT_HELLO, Hello): State.PREPARING,
    (State.PREPARING, Ping): State.PREPARING,
    (State.PREPARING, Bye): State.CLOSED,
    (State.PLAYING, Control): State.PLAYING,
    (State.PLAYING, Poses): State.PLAYING,
    (State.PLAYING, SetPrompt): State.PLAYING,
    (State.PLAYING, Ack): State.PLAYING,
    (State.PLAYING, WantKeyframe): State.PLAYING,
    (State.PLAYING, Ping): State.PLAYING,
    (State.PLAYING, Share): State.PLAYING,
    (State.PLAYING, SaveGame): State.PLAYING,
    (State.PLAYING, LoadGame): State.PLAYING,
    (State.PLAYING, Bye): State.CLOSED,
    (State.WATCHING, Ack): State.WATCHING,
    (State.WATCHING, WantKeyframe): State.WATCHING,
    (State.WATCHING, Ping): State.WATCHING,
    (State.WATCHING, Bye): State.CLOSED,
}


@dataclass(slots=True)
class TokenBucket:
    """At most `burst` at once and `rate_per_s` for long."""

    rate_per_s: float
    burst: float
    tokens: float = field(init=False)
    filled_s: float | None = None  # when `tokens` was last brought up to date

    def __post_init__(self) -> None:
        self.tokens = self.burst

    def take(self, now_s: float) -> bool:
        """Whether one more may pass now."""
        if self.filled_s is not None:
            self.tokens = min(self.burst, self.tokens + max(0.0, now_s - self.filled_s) * self.rate_per_s)
        self.filled_s = now_s
        if self.tokens < 1.0:
            return False
        self.tokens -= 1.0
        return True


class ServerProtocol:
    """Feed it what arrives; a fatal ProtocolError leaves it closed, any other drops the one message."""

    def __init__(self) -> None:
        self.state = State.EXPECT_HELLO
        self._poses_control = False
        self._watches = False
        self._seq = 0
        self._t_ms = 0.0
        self._bucket = TokenBucket(MESSAGES_PER_S, MESSAGES_BURST)

    def receive(self, data: bytes | str, now_s: float) -> Event:
        """One message in, one event out. Raises ProtocolError."""
        try:
            return self._receive(data, now_s)
        except ProtocolError as error:
            if error.fatal:
                self.close()
            raise

    def welcomed(self) -> None:
        """The welcome is on its way: the session plays, or is watched, from here."""
        if self.state is State.PREPARING:
            self.state = State.WATCHING if self._watches else State.PLAYING

    def close(self) -> None:
        self.state = State.CLOSED

    def _receive(self, data: bytes | str, now_s: float) -> Event:
        if not self._bucket.take(now_s):
            raise ProtocolError("too_fast", f"more than {MESSAGES_PER_S:.0f} messages a second")
        greeting = self.state is State.EXPECT_HELLO
        message = decode_client(data, MAX_TRANSPORT_BYTES if greeting else MAX_MESSAGE_BYTES)
        following = TRANSITIONS.get((self.state, type(message)))
        if following is None:
            raise ProtocolError("out_of_order", f"{type(message).__struct_config__.tag} while {self.state.value}")
        self.state = following
        match message:
            case Hello():
                self._poses_control, self._watches = message.control == "poses", message.watch is not None
                return message
            case Control():
                self._check_control("axes", message.seq)
                if message.t_ms < self._t_ms:
                    raise ProtocolError("out_of_order", f"t_ms went back from {self._t_ms:.3f} to {message.t_ms:.3f}")
                self._t_ms = message.t_ms
                return message
            case Poses():
                self._check_control("poses", message.seq)
                return PoseBatch(message.seq, read_poses(message.poses))
            case SetPrompt() | Ack() | WantKeyframe() | Ping() | Share() | SaveGame() | LoadGame() | Bye():
                return message
            case _:
                assert_never(message)

    def _check_control(self, kind: str, seq: int) -> None:
        if (kind == "poses") is not self._poses_control:
            raise ProtocolError("out_of_order", f"the hello asked for another kind of control than {kind}")
        if seq <= self._seq:
            raise ProtocolError("out_of_order", f"seq {seq} after {self._seq}")
        self._seq = seq


def read_poses(data: bytes) -> NDArray[np.float32]:
    """[n, 4, 4] from the bytes of a poses message. Raises ProtocolError bad_pose unless every one is rigid."""
    count, rest = divmod(len(data), POSE_BYTES)
    if rest or not 1 <= count <= MAX_POSES:
        raise ProtocolError("bad_pose", f"{len(data)} bytes are not 1 to {MAX_POSES} poses of {POSE_BYTES} bytes")
    poses = np.frombuffer(data, "<f4").reshape(count, 4, 4).astype(np.float32)
    if not np.isfinite(poses).all() or (np.abs(poses[:, :3, 3]) > MAX_POSITION).any():
        raise ProtocolError("bad_pose", f"a number is not finite, or a position is over {MAX_POSITION:.0f}")
    if (np.abs(poses[:, :3, :3]) > 2.0).any() or (poses[:, 3] != (0.0, 0.0, 0.0, 1.0)).any():
        raise ProtocolError("bad_pose", "not a camera-to-world matrix: its last row must be 0, 0, 0, 1")
    rotations = poses[:, :3, :3].astype(np.float64)
    error = np.abs(rotations @ rotations.transpose(0, 2, 1) - np.eye(3)).max()
    if error > RIGID_TOLERANCE or (np.linalg.det(rotations) < 0).any():
        raise ProtocolError("bad_pose", "a rotation is scaled, skewed or mirrored")
    return poses
