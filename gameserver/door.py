"""What all connections share on the event loop: the engine's two ends, the seats, the pools and the counters."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from gameserver.backpressure import Limits
from gameserver.counts import Counts
from gameserver.engine import Engine, LoadWorld, Phase
from gameserver.journal import Keep
from gameserver.lobby import Lobby, Seat
from gameserver.mailbox import Leave, Mailbox, Presence
from gameserver.notes import Ended, Frames, Joined, Note, Refused
from gameserver.preparation import Preparation
from gameserver.protocol import ProtocolError
from gameserver.recorder import Recorder
from sessions.trajectory import ControlKind
from world.chunk import World

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Settings:
    host: str = "127.0.0.1"
    port: int = 8000
    capacity: int = 8
    grace_s: float = 30.0  # a seat waits so long for its player to come back
    hello_s: float = 10.0  # from opening a socket to its hello
    stats_s: float = 1.0
    limits: Limits = field(default_factory=Limits)
    record: Keep | None = None  # None: sessions are not recorded


class Door:
    def __init__(self, settings: Settings, load: LoadWorld) -> None:
        self.settings = settings
        self.counts = Counts()
        self.lobby = Lobby(settings.capacity)
        self.mailbox = Mailbox(settings.capacity)
        self.recorder = None if settings.record is None else Recorder(settings.record, self._post)
        self.engine = Engine(load, self._post, self.mailbox, recorder=self.recorder)
        self.encoders = ThreadPoolExecutor(4, "encode")
        self.closing = False
        self.settled = asyncio.Event()  # the engine is ready, or has failed
        self._preparers = ThreadPoolExecutor(2, "prepare")
        self._preparation: Preparation | None = None
        self._loop = asyncio.get_running_loop()
        self._notes: deque[Note] = deque()

    @property
    def world(self) -> World:
        """Once the engine is ready."""
        assert self.engine.world is not None
        return self.engine.world

    @property
    def preparation(self) -> Preparation:
        if self._preparation is None:
            self._preparation = Preparation(self.world, self._preparers)
        return self._preparation

    def check_open(self) -> None:
        """ProtocolError if nobody can come in now."""
        if self.closing:
            raise ProtocolError("shutting_down", "the server is going down")
        if self.engine.phase in (Phase.FAILED, Phase.STOPPED):
            raise ProtocolError("internal", "the world has stopped")
        if self.engine.phase is not Phase.READY:
            progress = self.engine.progress
            raise ProtocolError("not_ready", f"the world is still warming up: {progress.stage} {progress.share:.0%}")

    def reserve(self, control: ControlKind, scene_id: str, prompt: str, seed: int | None) -> Seat:
        """A seat with a fresh session and token. ProtocolError `full`."""
        seed = secrets.randbelow(2**32) if seed is None else seed
        joined: asyncio.Future[None] = self._loop.create_future()
        seat = Seat(secrets.token_hex(4), secrets.token_urlsafe(18), control, scene_id, prompt, seed, joined, None)
        self.lobby.add(seat)
        return seat

    def occupied(self, seat: Seat) -> None:
        if seat.expiry is not None:
            seat.expiry.cancel()
            seat.expiry = None

    def vacated(self, seat: Seat) -> None:
        """The connection is gone: keep the seat for a while."""
        seat.occupant = None
        self.mailbox.put(Presence(seat.session_id, False))
        seat.expiry = self._loop.call_later(self.settings.grace_s, self.release, seat)

    def release(self, seat: Seat) -> None:
        """The session is over."""
        self.occupied(seat)
        if not seat.joined.cancel() and not seat.joined.cancelled():
            seat.joined.exception()  # nobody may be left to look at it
        seat.audience.end(ProtocolError("not_shared", "the session that was watched is over"))
        if self.lobby.remove(seat):
            self.mailbox.put(Leave(seat.session_id))

    def shut(self) -> None:
        """Tell everybody, and let nobody in."""
        self.closing = True
        self._end_all(ProtocolError("shutting_down", "the server is going down"))

    def close(self, timeout_s: float) -> bool:
        """Stop the threads; False if the engine is still in a forward, or the disk has not taken all recordings."""
        stopped = self.engine.stop(timeout_s)
        if self.recorder is not None:
            stopped = self.recorder.close(timeout_s) and stopped
        for pool in (self.encoders, self._preparers):
            pool.shutdown(wait=False, cancel_futures=True)
        return stopped

    def _end_all(self, error: ProtocolError) -> None:
        for seat in self.lobby.seats:
            seat.audience.end(error)
            if seat.occupant is not None:
                seat.occupant.end_soon(error)
            elif not seat.joined.done():
                seat.joined.set_exception(error)

    def _post(self, notes: Sequence[Note]) -> None:
        """On the engine's thread. Chunks are dropped while the loop is far behind, other notes never."""
        for note in notes:
            if isinstance(note, Frames) and len(self._notes) > 8 * self.settings.capacity:
                self.counts.chunks_undelivered += 1
            else:
                self._notes.append(note)
        try:
            self._loop.call_soon_threadsafe(self._hand_out)
        except RuntimeError:  # the loop has closed: nobody is left to tell
            self._notes.clear()

    def _hand_out(self) -> None:
        if self.engine.phase not in (Phase.LOADING, Phase.PREWARMING):
            self.settled.set()
        while self._notes:
            self._deliver(self._notes.popleft())

    def _deliver(self, note: Note) -> None:
        if isinstance(note, Ended):
            self._end_all(ProtocolError("internal", "the world has stopped"))
            return
        assert isinstance(note, Joined | Refused | Frames)
        seat = self.lobby[note.session_id]
        if seat is None:
            return
        if isinstance(note, Joined):
            if not seat.joined.done():
                seat.joined.set_result(None)
        elif isinstance(note, Refused):
            if not seat.joined.done():
                seat.joined.set_exception(ProtocolError(note.code, note.message))
            elif seat.occupant is not None:
                seat.occupant.refuse(note)
        else:
            if note.chunk.prompt is not None:
                seat.prompt = note.chunk.prompt.text
            if seat.occupant is not None:
                seat.occupant.deliver(note)
