"""Saved sessions on disk: those that players keep, and of every session under way the newest moment, for after a crash.

One thread writes; files appear whole or not at all. How many there may be, and how large they may grow, is bounded a
session and in all; those that are too old go. What has no room is not copied out of the world in the first place.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass
from pathlib import Path

from gameserver.journal import APP, data_directory
from gameserver.ledger import SUFFIX as TICKET
from gameserver.ledger import Ledger, Ticket
from gameserver.notes import Note, Refused, Saved
from sessions.moment import Save, pack, unpack
from world.snapshot import DRAFT, SUFFIX, Snapshot, SnapshotError, check_maker, read, write

log = logging.getLogger(__name__)

MAX_WAITING = 8  # saves on their way to the disk: each is a copy of a session in memory
DRAFT_S = 3600.0  # a draft so old is nobody's


@dataclass(frozen=True, slots=True)
class Shelf:
    """Where saves go, and how many stay."""

    directory: Path
    max_saves: int = 1000
    max_bytes: int = 4 * 1000**3  # saves and moments together; one draft beside them while it is written
    session_saves: int = 8
    max_age_s: float = 90 * 86400.0
    every_s: float = 20.0  # between two moments kept of a session under way
    recover_s: float = 120.0  # a lost session waits so long for its player, once the server is back

    @property
    def session_bytes(self) -> int:
        """The saves of one session; its first one may take all there is."""
        return self.max_bytes // 2

    @property
    def moment_bytes(self) -> int:
        """The moments of all sessions, on the disk or on their way. The other half is left to saves."""
        return self.max_bytes // 2


def default_directory() -> Path:
    """This user's. RuntimeError for a user without a home."""
    return data_directory() / APP / "saves"


@dataclass(frozen=True, slots=True)
class Extent:
    """The part of a recording that was written."""

    path: Path
    num_bytes: int


@dataclass(frozen=True, slots=True)
class Place:
    """What a server knows of a session beside the game."""

    scene: str
    own_prompt: str  # of the place it started from
    seed: int


@dataclass(frozen=True, slots=True, eq=False)
class Kept:
    """A save that was read."""

    save: Save
    place: Place
    recording: bytes | None  # of the session up to the save; None where it was not recorded


class SaveRefused(Exception):
    """`code` is one of protocol.ERRORS."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


@dataclass(slots=True)
class SaveCounts:
    """Since the server began."""

    saved: int = 0
    refused: int = 0  # for want of room
    failed: int = 0
    removed: int = 0  # too old
    moments: int = 0  # kept of sessions under way
    moments_skipped: int = 0  # for want of room: recovery then begins further back, and takes longer


class Saves:
    """`open` comes before `put` and `keep`; neither they, `next_moment`, `forget` nor `end` ever block."""

    def __init__(self, shelf: Shelf, deliver: Callable[[Sequence[Note]], None]) -> None:
        """OSError if there can be no such directory."""
        self.shelf = shelf
        self.counts = SaveCounts()
        self.ledger = Ledger(shelf.directory / "live")
        self._deliver = deliver
        self.maker: Mapping[str, str] = {}  # of this server's saves, once it is open
        self._pool = ThreadPoolExecutor(1, "save")
        self._asked = self._answered = 0  # puts; each counted on a thread of its own
        self._keeping: Future[None] | None = None  # the moment on its way: never more than one copy of a session
        self._kept: dict[str, tuple[int, float]] = {}  # by session, the chunk and time of the newest moment
        self._forgotten: set[str] = set()  # sessions that play on, and could not be brought back
        self._sizes = _sizes(shelf.directory)
        self._moments = _sizes(self.ledger.directory)  # by session, on the disk or on their way
        self._free_bytes: int | None = None  # on the disk, when it was last looked at
        self._largest = self._state_bytes = 0
        self._pool.submit(self._tidy)

    def open(self, maker: Mapping[str, str], state_bytes: int) -> None:
        """What saves of this server's world are made with, and what the state of a session takes."""
        self.maker = maker
        self._largest = self._state_bytes = state_bytes

    def check_room(self, session_id: str, more_bytes: int | None = None) -> None:
        """SaveRefused if a save, of about that size, has no room. Costs nothing."""
        shelf, size = self.shelf, self._largest if more_bytes is None else more_bytes
        own = [num_bytes for name, num_bytes in list(self._sizes.items()) if name.startswith(f"{session_id}-")]
        if len(own) >= shelf.session_saves:
            raise SaveRefused("too_many_saves", f"a session has at most {shelf.session_saves} saves")
        if len(self._sizes) >= shelf.max_saves:
            raise SaveRefused("too_many_saves", f"this server holds at most {shelf.max_saves} saves")
        waiting = self._asked - self._answered if more_bytes is None else 0
        all_bytes = self._held_bytes() + (waiting + 1) * size
        if all_bytes > shelf.max_bytes or (own and sum(own) + size > shelf.session_bytes):
            raise SaveRefused("saves_full", "there is no room for a save of this size")
        if waiting >= MAX_WAITING:
            raise SaveRefused("save_failed", "the disk is behind with the saves before this one")

    def put(self, session_id: str, save_id: str, save: Save, place: Place, extent: Extent | None) -> None:
        """Write a save, then tell. `extent` is all of its recording so far, if there is one."""
        self._asked += 1
        self._pool.submit(self._put, session_id, save_id, save, place, extent)

    def get(self, save_id: str) -> Kept:
        """SaveRefused `unknown_save` or `bad_save`. Takes as long as the disk takes."""
        try:
            save, parts = self._read(self._path(save_id))
            place = Place(**json.loads(parts["place"]))
        except FileNotFoundError:
            raise SaveRefused("unknown_save", "there is no such save") from None
        except (OSError, SnapshotError, ValueError, KeyError, TypeError) as fault:
            raise SaveRefused("bad_save", f"the save cannot be used: {fault}") from None
        return Kept(save, place, parts.get("recording"))

    def next_moment(self, at: Mapping[str, int], now_s: float) -> str | None:
        """Of sessions between two chunks, by the chunk that is next: the one that has waited longest for a moment of it
        to be kept. None while nobody's is due, one is on its way, or there is no room, which counts as skipped."""
        due: list[tuple[float, str]] = []
        for session_id, chunk_index in at.items():
            at_chunk, at_s = self._kept.setdefault(session_id, (0, now_s))
            if session_id not in self._forgotten and chunk_index != at_chunk and now_s - at_s >= self.shelf.every_s:
                due.append((at_s, session_id))
        if not due or (self._keeping is not None and not self._keeping.done()):
            return None
        _, session_id = min(due)
        if self._moment_fits(session_id):
            return session_id
        self._kept[session_id] = at[session_id], now_s
        self.counts.moments_skipped += 1
        self._keeping = self._pool.submit(self._look)
        return None

    def keep(self, session_id: str, save: Save, now_s: float) -> None:
        """The newest moment of a session under way, in place of the one before, as `next_moment` chose it."""
        self._kept[session_id] = save.moment.chunk_index, now_s
        self._moments[session_id] = max(save.state.num_bytes, self._moments.get(session_id, 0))
        self._keeping = self._pool.submit(self._keep, session_id, save)

    def newest(self, session_id: str) -> Save | None:
        """The newest moment kept of a session, if there is a good one."""
        try:
            return self._read(self._moment_path(session_id))[0]
        except (OSError, SnapshotError, ValueError, KeyError):
            return None

    def enter(self, ticket: Ticket) -> Future[None]:
        """Done when the session would be found after a crash; whether it would is the ledger's to say."""
        return self._pool.submit(self._enter, ticket)

    def forget(self, session_id: str) -> None:
        """It cannot be brought back, though it may play on: nothing but what its player saved stays, or is kept."""
        self._forgotten.add(session_id)
        self._remove(session_id)

    def end(self, session_id: str) -> None:
        """It is over: nothing but what its player saved stays."""
        self._remove(session_id)
        self._kept.pop(session_id, None)
        self._forgotten.discard(session_id)

    def close(self, timeout_s: float) -> bool:
        """Whether the disk had taken everything in time."""
        last = self._pool.submit(lambda: None)
        self._pool.shutdown(wait=False)
        return bool(wait([last], timeout_s).done)

    def _held_bytes(self) -> int:
        return sum([*self._sizes.values(), *self._moments.values()])

    def _moment_fits(self, session_id: str) -> bool:
        """In place of the one before, of which the bounds do not count the draft; the disk has to hold both."""
        if self._free_bytes is not None and self._state_bytes > self._free_bytes:
            return False
        before = self._moments.get(session_id, 0)
        moments = sum([*self._moments.values()]) - before + self._state_bytes
        waiting = (self._asked - self._answered) * self._largest
        all_bytes = self._held_bytes() - before + self._state_bytes + waiting
        return moments <= self.shelf.moment_bytes and all_bytes <= self.shelf.max_bytes

    def _remove(self, session_id: str) -> None:
        with contextlib.suppress(RuntimeError):  # after the close nothing is removed: it is found ended, then
            self._pool.submit(self._forget, session_id)

    def _path(self, save_id: str) -> Path:
        return self.shelf.directory / f"{save_id}{SUFFIX}"

    def _moment_path(self, session_id: str) -> Path:
        return self.ledger.directory / f"{session_id}{SUFFIX}"

    def _read(self, path: Path) -> tuple[Save, Mapping[str, bytes]]:
        snapshot = read(path)
        check_maker(snapshot, self.maker)
        return Save(unpack(snapshot.parts["moment"]), snapshot.state), snapshot.parts

    # On the pool's thread.

    def _put(self, session_id: str, save_id: str, save: Save, place: Place, extent: Extent | None) -> None:
        note: Note
        try:
            parts = {"moment": pack(save.moment), "place": json.dumps(asdict(place)).encode()}
            if extent is not None:
                with open(extent.path, "rb") as file:
                    parts["recording"] = file.read(extent.num_bytes)
            snapshot = Snapshot(save.state, self.maker, parts)
            self._largest = max(self._largest, snapshot.num_bytes)
            self.check_room(session_id, snapshot.num_bytes)
            path = self._path(save_id)
            self._sizes[save_id] = write(path, snapshot)
            self.counts.saved += 1
            note = Saved(session_id, save_id, save.moment.chunk_index)
            self._sweep(path.stat().st_mtime)
        except SaveRefused as refused:
            self.counts.refused += 1
            note = Refused(session_id, refused.code, refused.message)
        except OSError as fault:
            self._failed(fault)
            note = Refused(session_id, "save_failed", "the disk did not take the save")
        except Exception:
            log.exception("a save failed")
            note = Refused(session_id, "save_failed", "a fault of the server; it is in its log")
        self._answered += 1
        self._deliver([note])

    def _keep(self, session_id: str, save: Save) -> None:
        if session_id in self._forgotten:
            self._moments.pop(session_id, None)
            return
        path = self._moment_path(session_id)
        try:
            self._moments[session_id] = write(path, Snapshot(save.state, self.maker, {"moment": pack(save.moment)}))
            self.counts.moments += 1
        except OSError as fault:  # the one before is still there
            if not path.exists():
                self._moments.pop(session_id, None)
            self.counts.moments_skipped += 1
            self._failed(fault)
        self._look()

    def _look(self) -> None:
        """How much room the disk has."""
        with contextlib.suppress(OSError):
            self._free_bytes = shutil.disk_usage(self.ledger.directory).free

    def _enter(self, ticket: Ticket) -> None:
        try:
            now_s = self.ledger.write(ticket)
        except OSError as fault:
            self._failed(fault)
        else:
            for session_id in self.ledger.forsaken(now_s - self.shelf.max_age_s):
                self._forget(session_id)

    def _forget(self, session_id: str) -> None:
        self.ledger.remove(session_id)
        path = self._moment_path(session_id)
        for each in (path, path.with_suffix(DRAFT)):
            with contextlib.suppress(OSError):
                each.unlink(missing_ok=True)
        self._moments.pop(session_id, None)

    def _tidy(self) -> None:
        """Before anybody plays: what servers that were killed left of sessions that nobody can come back to."""
        directory = self.ledger.directory
        with contextlib.suppress(OSError):
            with tempfile.TemporaryFile(dir=directory) as probe:  # by the clock of the file system
                now_s = os.fstat(probe.fileno()).st_mtime
            for path in directory.iterdir():
                orphan = path.suffix == SUFFIX and not path.with_suffix(TICKET).exists()
                with contextlib.suppress(OSError):
                    if (orphan or path.suffix == DRAFT) and now_s - path.stat().st_mtime > DRAFT_S:
                        path.unlink()
                        if orphan:
                            self._moments.pop(path.stem, None)
        self._look()

    def _sweep(self, now_s: float) -> None:
        """What is too old goes. `now_s` is by the clock of the file system."""
        for path in self.shelf.directory.iterdir():
            with contextlib.suppress(OSError):
                age_s = now_s - path.stat().st_mtime
                if path.suffix == SUFFIX and age_s > self.shelf.max_age_s:
                    path.unlink()
                    self._sizes.pop(path.stem, None)
                    self.counts.removed += 1
                elif path.suffix == DRAFT and age_s > DRAFT_S:
                    path.unlink()

    def _failed(self, fault: OSError) -> None:
        if not self.counts.failed:
            log.error("saves fail in %s: %s", self.shelf.directory, fault.strerror or os.strerror(fault.errno or 0))
        self.counts.failed += 1


def _sizes(directory: Path) -> dict[str, int]:
    """Of the snapshots in a directory, by name."""
    return {path.stem: path.stat().st_size for path in directory.glob(f"*{SUFFIX}")}
