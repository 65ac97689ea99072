"""Who watches a session: everybody gets the packets that its player's encoder made, one encode for all.

A spectator joins at a key frame, and one that is too slow loses packets until the next one. The player's encoder is
asked for one at most every KEY_EVERY_S, however many wait for it, and never waits for a spectator.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from gameserver.encoder import Codec
from gameserver.notes import Frames
from gameserver.protocol import Frame, Message, ProtocolError

MAX_WATCHING = 16  # of one session
KEY_EVERY_S = 1.0


class Source(Protocol):
    """The outbox of the player's present connection."""

    key_wanted: bool


class Spectator(Protocol):
    """The outbox of a connection that watches. Nothing here may block."""

    @property
    def needs_key(self) -> bool: ...

    def relay(self, frame: Frame) -> None: ...

    def reply(self, message: Message) -> None: ...

    def heard(self, frames: Frames, fps: int) -> None: ...


EndSoon = Callable[[ProtocolError], None]


class Audience:
    """Of one session, whoever plays it. Belongs to the event loop."""

    def __init__(self) -> None:
        self.code = ""  # to watch by; empty: nobody may
        self.codec: Codec | None = None  # of the packets, once there are some
        self._source: Source | None = None
        self._spectators: dict[Spectator, EndSoon] = {}
        self._asked_s = float("-inf")  # for a key frame

    def __len__(self) -> int:
        return len(self._spectators)

    def follow(self, source: Source, codec: Codec) -> None:
        """Packets come from this connection of the player from now on; its first one is a key frame."""
        if codec != self.codec:
            self.end(ProtocolError("other_codec", f"this session is sent as {codec} now"))
        self._source, self.codec = source, codec

    def join(self, spectator: Spectator, end_soon: EndSoon) -> None:
        """ProtocolError `full`."""
        if len(self) >= MAX_WATCHING:
            raise ProtocolError("full", f"all {MAX_WATCHING} places to watch from are taken")
        self._spectators[spectator] = end_soon

    def leave(self, spectator: Spectator) -> None:
        self._spectators.pop(spectator, None)

    def end(self, error: ProtocolError) -> None:
        """Everybody who watches is told why, and goes."""
        spectators, self._spectators = self._spectators, {}
        for end_soon in spectators.values():
            end_soon(error)

    def publish(self, source: Source, frame: Frame, now_s: float) -> None:
        """A packet that was encoded for the player."""
        if source is not self._source:  # of a connection that another has replaced
            return
        for spectator in self._spectators:
            spectator.relay(frame)
        waited_for = any(spectator.needs_key for spectator in self._spectators)
        if waited_for and now_s - self._asked_s >= KEY_EVERY_S:
            self._asked_s = now_s
            source.key_wanted = True

    def tell(self, message: Message) -> None:
        for spectator in self._spectators:
            spectator.reply(message)

    def heard(self, frames: Frames, fps: int) -> None:
        """How a chunk came about, for what spectators are told of it once a second."""
        for spectator in self._spectators:
            spectator.heard(frames, fps)
