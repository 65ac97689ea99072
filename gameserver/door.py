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
from gameserver.engine import Engine, LoadWorld, Phase, Pledge
from gameserver.journal import Keep
from gameserver.ledger import Ticket, hash_token
from gameserver.lobby import Lobby, Seat
from gameserver.mailbox import Leave, Mailbox, Presence
from gameserver.notes import Ended, Frames, Joined, Loaded, Note, Refused, Saved
from gameserver.preparation import Preparation
from gameserver.protocol import ProtocolError
from gameserver.recorder import Recorder
from gameserver.recovery import Lost, Recovery, RecoveryError
from gameserver.saves import Kept, SaveRefused, Saves, Shelf
from sessions.trajectory import ControlKind
from world.chunk import World

log = logging.getLogger(__name__)

NO_ROOM = ("full", "not_real_time")  # errors that end nothing: who gets one may try again


@dataclass(frozen=True, slots=True)
class Settings:
    host: str = "127.0.0.1"
    port: int = 8000
    capacity: int = 8
    grace_s: float = 30.0  # a seat waits so long for its player to come back
    hello_s: float = 10.0  # from opening a socket to its hello
    patience_s: float = 600.0  # for a client in lockstep to steer
    stats_s: float = 1.0
    limits: Limits = field(default_factory=Limits)
    record: Keep | None = None  # None: sessions are not recorded
    saves: Shelf | None = None  # None: nothing is saved, and a crash is the end of every session
    park_bytes: int = 0  # of memory, for sessions that stand still while others want their places; 0: nobody is parked
    pledge: Pledge = "none"  # whether real time is measured, and kept


class Door:
    def __init__(self, settings: Settings, load: LoadWorld) -> None:
        self.settings = settings
        self.counts = Counts()
        self.lobby = Lobby(settings.capacity)
        self.mailbox = Mailbox(settings.capacity)
        self.saves = None if settings.saves is None else Saves(settings.saves, self._post)
        lost = (lambda session_id: None) if self.saves is None else self.saves.forget
        self.recorder = None if settings.record is None else Recorder(settings.record, self._post, lost)
        self.engine = Engine(
            load, self._post, self.mailbox, recorder=self.recorder, saves=self.saves, park_bytes=settings.park_bytes,
            pledge=settings.pledge,
        )  # fmt: skip
        self.recovery: Recovery | None = None
        if self.saves is not None and settings.record is not None:
            self.recovery = Recovery(settings.record.directory, self.saves)
        self._returning: set[asyncio.Task[None]] = set()
        self.encoders = ThreadPoolExecutor(4, "encode")
        self.closing = False
        self.settled = asyncio.Event()  # the engine is ready, or has failed
        self.ended = asyncio.Event()  # it has failed
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

    @property
    def is_open(self) -> bool:
        """The world is ready, and it is known whose places a crash left."""
        return self.settled.is_set() and self.engine.phase is Phase.READY and not self.closing

    def check_open(self) -> None:
        """ProtocolError if nobody can come in now."""
        if self.closing:
            raise ProtocolError("shutting_down", "the server is going down")
        if self.engine.phase in (Phase.FAILED, Phase.STOPPED):
            raise ProtocolError("internal", "the world has stopped")
        if not self.settled.is_set():
            progress = self.engine.progress
            raise ProtocolError("not_ready", f"the world is still warming up: {progress.stage} {progress.share:.0%}")

    async def read_save(self, save_id: str, fatal: bool = False) -> Kept:
        """ProtocolError `no_saves`, `unknown_save` or `bad_save`."""
        try:
            if self.saves is None:
                raise SaveRefused("no_saves", "this server keeps no saves")
            return await self._loop.run_in_executor(self._preparers, self.saves.get, save_id)
        except SaveRefused as refused:
            raise ProtocolError(refused.code, refused.message, fatal) from None

    async def enter(self, seat: Seat) -> None:
        """Have the session be found after a crash; from here on its player may be told the token."""
        if self.saves is not None and self.recorder is not None:
            ticket = Ticket(
                session=seat.session_id, token_hash=hash_token(seat.token), control=seat.control, scene=seat.scene_id,
                recording=str(self.recorder.path(seat.session_id).resolve()), own_prompt=seat.own_prompt,
                seed=seat.seed, lockstep=seat.lockstep, of=self.saves.maker,
            )  # fmt: skip
            await asyncio.wrap_future(self.saves.enter(ticket))

    async def seat_of(self, token: str | None) -> Seat | None:
        """Where a token continues, once the game has the session; None where there is nothing to continue.
        ProtocolError `full` or `not_real_time` where it has no room now."""
        seat = self.lobby.by_token(token)
        if seat is None and token and self.recovery is not None and (lost := self.recovery.claim(token)) is not None:
            seat = self._seat_again(token, lost, self.recovery)
            task = self._loop.create_task(self._bring_back(seat, lost, self.recovery))
            self._returning.add(task)
            task.add_done_callback(self._returning.discard)
        if seat is None:
            return None
        await asyncio.wait([seat.joined])
        if (refused := _no_room(seat.joined)) is not None:
            raise refused
        return None if seat.joined.cancelled() or seat.joined.exception() is not None else seat

    def _seat_again(self, token: str, lost: Lost, recovery: Recovery) -> Seat:
        """ProtocolError `full`; then it is as lost as before."""
        ticket, joined = lost.ticket, self._loop.create_future()
        seat = Seat(ticket.session, token, ticket.control, ticket.scene, "", ticket.seed, joined, None)
        seat.own_prompt, seat.lockstep = ticket.own_prompt, ticket.lockstep
        try:
            self.lobby.add(seat, over=self._over, returns=True)
        except ProtocolError:
            self._wait_again(lost, recovery)
            raise
        self.lobby.reserved = len(recovery)
        return seat

    def _wait_again(self, lost: Lost, recovery: Recovery) -> None:
        """There is no room for it now; its player may try again until the usual time is over."""
        if not recovery.put_back(lost) and not self.closing:
            self._preparers.submit(recovery.expire, lost)
        self.lobby.reserved = len(recovery)

    async def _bring_back(self, seat: Seat, lost: Lost, recovery: Recovery) -> None:
        """Raises nothing; the seat's `joined` says how it went."""
        try:
            letter = await self._loop.run_in_executor(self._preparers, recovery.prepare, lost, self.world)
            told = letter.story
            seat.prompt, seat.chunk, seat.control_seq = told.prompt, len(told.chunks), told.control_seq
            if not self.mailbox.put(letter):
                raise ProtocolError("full", "too many players are coming in at once")
            await asyncio.wait([seat.joined], timeout=self.settings.saves.recover_s if self.settings.saves else None)
            if not seat.joined.done():
                raise RecoveryError("it took too long")
        except Exception as fault:
            if not isinstance(fault, RecoveryError | ProtocolError):
                log.exception("a session could not be brought back")
            if not seat.joined.done():
                refused = fault if isinstance(fault, ProtocolError) else ProtocolError("bad_save", str(fault))
                seat.joined.set_exception(refused)
        if _no_room(seat.joined) is not None:
            self.release(seat)
            self._wait_again(lost, recovery)
        elif seat.joined.cancelled() or seat.joined.exception() is not None:
            recovery.counts.failed += 1
            why = "it was given up" if seat.joined.cancelled() else seat.joined.exception()
            log.warning("session %s could not be brought back: %s", seat.session_id, why)
            self.release(seat)
        else:
            recovery.counts.recovered += 1
            if seat.occupant is None:
                self._wait_for_player(seat)

    def _expire_lost(self, recovery: Recovery) -> None:
        """Nobody came back for them: their places are free."""
        if self.closing:  # they may be found again
            return
        for lost in recovery.abandon():
            self._preparers.submit(recovery.expire, lost)
        self.lobby.reserved = 0

    def reserve(self, control: ControlKind, scene_id: str, prompt: str, seed: int | None) -> Seat:
        """A seat with a fresh session and token. ProtocolError `full`."""
        seed = secrets.randbelow(2**32) if seed is None else seed
        joined: asyncio.Future[None] = self._loop.create_future()
        seat = Seat(secrets.token_hex(4), secrets.token_urlsafe(18), control, scene_id, prompt, seed, joined, None)
        # Places of those who come back after a crash are theirs.
        self.lobby.add(seat, over=0 if self._returning else self._over)
        return seat

    @property
    def _over(self) -> int:
        """Seats beyond the capacity, where the game says who can come in."""
        return self.lobby.capacity if self.settings.park_bytes > 0 else 0

    def occupied(self, seat: Seat) -> None:
        if seat.expiry is not None:
            seat.expiry.cancel()
            seat.expiry = None

    def vacated(self, seat: Seat) -> None:
        """The connection is gone: keep the seat for a while."""
        seat.occupant = None
        self.mailbox.put(Presence(seat.session_id, False))
        self._wait_for_player(seat)

    def _wait_for_player(self, seat: Seat) -> None:
        self.occupied(seat)
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
        if self.recovery is not None:
            self.recovery.close()
        if self.saves is not None:
            stopped = self.saves.close(timeout_s) and stopped
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
            late = isinstance(note, Frames) and not note.lockstep  # a session in lockstep does not get ahead
            if late and len(self._notes) > 8 * self.settings.capacity:
                self.counts.chunks_undelivered += 1
            else:
                self._notes.append(note)
        try:
            self._loop.call_soon_threadsafe(self._hand_out)
        except RuntimeError:  # the loop has closed: nobody is left to tell
            self._notes.clear()

    def _hand_out(self) -> None:
        if self.engine.phase not in (Phase.LOADING, Phase.PREWARMING) and not self.settled.is_set():
            self._settle()
        while self._notes:
            self._deliver(self._notes.popleft())

    def _settle(self) -> None:
        """Whom a crash left behind is known before anybody comes in, and how many the world holds."""
        if self.engine.phase is Phase.READY:
            self.lobby.capacity = min(self.lobby.capacity, self.world.num_slots)
        if self.recovery is not None and self.settings.saves is not None and self.engine.phase is Phase.READY:
            self.recovery.find()
            self.lobby.reserved = len(self.recovery)
            self._loop.call_later(self.settings.saves.recover_s, self._expire_lost, self.recovery)
        self.settled.set()

    def _deliver(self, note: Note) -> None:
        if isinstance(note, Ended):
            self.ended.set()
            self._end_all(ProtocolError("internal", "the world has stopped"))
            return
        assert isinstance(note, Joined | Refused | Saved | Loaded | Frames)
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
        elif isinstance(note, Saved):
            if seat.occupant is not None:
                seat.occupant.saved(note)
        elif isinstance(note, Loaded):
            seat.prompt, seat.chunk = note.prompt, note.chunk_index
            if seat.occupant is not None:
                seat.occupant.loaded(note)
        else:
            seat.chunk, seat.control_seq = note.chunk.chunk_index + 1, note.chunk.control_seq
            if note.chunk.prompt is not None:
                seat.prompt = note.chunk.prompt.text
            if seat.occupant is not None:
                seat.occupant.deliver(note)


def _no_room(joined: asyncio.Future[None]) -> ProtocolError | None:
    """Why the game took a session not in for now; None where it did, or never will."""
    fault = joined.exception() if joined.done() and not joined.cancelled() else None
    return fault if isinstance(fault, ProtocolError) and fault.code in NO_ROOM else None
