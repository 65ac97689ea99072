"""Saved sessions on disk: those that players keep, and of every session under way the newest moment, for after a crash.

One thread writes; files appear whole or not at all. How many there may be, and how large they may grow, is bounded a
session and in all; those that are too old go.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass
from pathlib import Path

from gameserver.journal import APP, data_directory
from gameserver.ledger import Ledger, Ticket
from gameserver.notes import Note, Refused, Saved
from sessions.moment import Save, pack, unpack
from world.snapshot import SUFFIX, Snapshot, SnapshotError, check_maker, read, write

log = logging.getLogger(__name__)

MAX_WAITING = 8  # saves on their way to the disk: each is a copy of a session in memory
DRAFT_S = 3600.0  # a draft so old is nobody's


@dataclass(frozen=True, slots=True)
class Shelf:
    """Where saves go, and how many stay."""

    directory: Path
    max_saves: int = 1000
    max_bytes: int = 4 * 1000**3
    session_saves: int = 8
    session_bytes: int = 2 * 1000**3
    max_age_s: float = 90 * 86400.0
    every_s: float = 20.0  # between two moments kept of a session under way
    recover_s: float = 120.0  # a lost session waits so long for its player, once the server is back


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
    moments_skipped: int = 0  # because the one before was not on the disk yet, or could not be


class Saves:
    """`put`, `keep` and `forget` never block; `open` comes before them."""

    def __init__(self, shelf: Shelf, deliver: Callable[[Sequence[Note]], None]) -> None:
        """OSError if there can be no such directory."""
        self.shelf = shelf
        self.counts = SaveCounts()
        self.ledger = Ledger(shelf.directory / "live")
        self._deliver = deliver
        self.maker: Mapping[str, str] = {}  # of this server's saves, once it is open
        self._pool = ThreadPoolExecutor(1, "save")
        self._asked = self._answered = 0  # puts; each counted on a thread of its own
        self._keeping: dict[str, Future[None]] = {}  # by session, the moment on its way
        self._kept: dict[str, tuple[int, float]] = {}  # by session, the chunk and time of the newest moment
        self._sizes = {path.stem: path.stat().st_size for path in shelf.directory.glob(f"*{SUFFIX}")}
        self._largest = 0  # of the saves of this server

    def open(self, maker: Mapping[str, str]) -> None:
        """What saves of this server's world are made with."""
        self.maker = maker

    def check_room(self, session_id: str, more_bytes: int | None = None) -> None:
        """SaveRefused if a save, of about that size, has no room. Costs nothing."""
        shelf, size = self.shelf, self._largest if more_bytes is None else more_bytes
        own = [num_bytes for name, num_bytes in list(self._sizes.items()) if name.startswith(f"{session_id}-")]
        if len(own) >= shelf.session_saves:
            raise SaveRefused("too_many_saves", f"a session has at most {shelf.session_saves} saves")
        if len(self._sizes) >= shelf.max_saves:
            raise SaveRefused("too_many_saves", f"this server holds at most {shelf.max_saves} saves")
        if sum(own) + size > shelf.session_bytes or sum(self._sizes.values()) + size > shelf.max_bytes:
            raise SaveRefused("saves_full", "there is no room for a save of this size")
        if more_bytes is None and self._asked - self._answered >= MAX_WAITING:
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

    def is_due(self, session_id: str, chunk_index: int, now_s: float) -> bool:
        """Whether it is time to keep another moment of a session under way."""
        at_chunk, at_s = self._kept.setdefault(session_id, (0, now_s))
        return chunk_index != at_chunk and now_s - at_s >= self.shelf.every_s

    def keep(self, session_id: str, save: Save, now_s: float) -> None:
        """The newest moment of a session under way, in place of the one before."""
        self._kept[session_id] = save.moment.chunk_index, now_s
        before = self._keeping.get(session_id)
        if before is not None and not before.done():
            self.counts.moments_skipped += 1
            return
        self._keeping[session_id] = self._pool.submit(self._keep, session_id, save)

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
        """It is over, or cannot be brought back: nothing but what its player saved stays."""
        self._kept.pop(session_id, None)
        self._keeping.pop(session_id, None)
        with contextlib.suppress(RuntimeError):  # after the close nothing is removed: it is found ended, then
            self._pool.submit(self._forget, session_id)

    def close(self, timeout_s: float) -> bool:
        """Whether the disk had taken everything in time."""
        last = self._pool.submit(lambda: None)
        self._pool.shutdown(wait=False)
        return bool(wait([last], timeout_s).done)

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
        try:
            write(self._moment_path(session_id), Snapshot(save.state, self.maker, {"moment": pack(save.moment)}))
            self.counts.moments += 1
        except OSError as fault:  # the one before is still there
            self.counts.moments_skipped += 1
            self._failed(fault)

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
        with contextlib.suppress(OSError):
            self._moment_path(session_id).unlink()

    def _sweep(self, now_s: float) -> None:
        """What is too old goes. `now_s` is by the clock of the file system."""
        for path in self.shelf.directory.iterdir():
            with contextlib.suppress(OSError):
                age_s = now_s - path.stat().st_mtime
                if path.suffix == SUFFIX and age_s > self.shelf.max_age_s:
                    path.unlink()
                    self._sizes.pop(path.stem, None)
                    self.counts.removed += 1
                elif path.suffix == ".tmp" and age_s > DRAFT_S:
                    path.unlink()

    def _failed(self, fault: OSError) -> None:
        if not self.counts.failed:
            log.error("saves fail in %s: %s", self.shelf.directory, fault.strerror or os.strerror(fault.errno or 0))
        self.counts.failed += 1
