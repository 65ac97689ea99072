"""The recorder: a thread between the engine and the sockets that writes a chunk down before its frames leave.

What the engine has to tell passes through here with the records that belong to it: records are appended, then the
notes go on. A disk that is full or broken costs the recordings it was to hold. A disk that stalls holds frames up for
PATIENCE_S; then the recordings with records in the queue are given up and frames go past the recorder until the disk
answers. No session ever ends, or loses a frame, for its recording.
"""

from __future__ import annotations

import logging
import os
import secrets
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

from gameserver.journal import Journal, Keep, prune
from gameserver.notes import Note
from gameserver.saves import Extent
from sessions.recording import SUFFIX, encode
from sessions.records import Mark, Record

log = logging.getLogger(__name__)

SYNC_S = 1.0  # at most so often, and at most so late, is what was written synced
PATIENCE_S = 2.0  # the longest that frames wait for the disk; a busy machine must not look like a stuck one
MAX_WAITING = 256  # batches, a bound that PATIENCE_S leaves unreached


@dataclass(frozen=True, slots=True)
class Entry:
    """A record to be made on the recorder's thread, where packing and digests cost no tick."""

    session_id: str
    make: Callable[[], Record]
    opens: Callable[[Path], Journal] | None = None  # its file, by the name that a new one would have
    then: Callable[[Extent | None], None] | None = None  # told what is written, or None where nothing is recorded

    def done(self, extent: Extent | None) -> None:
        if self.then is not None:
            self.then(extent)


@dataclass(slots=True)
class RecordCounts:
    """Since the server began."""

    recordings: int = 0  # begun
    records: int = 0
    bytes: int = 0
    lost: int = 0  # recordings that the disk did not take
    given_up: int = 0  # records that frames did not wait for any longer
    removed: int = 0  # old recordings, to make room
    syncs: int = 0
    unsynced: int = 0  # syncs that failed


@dataclass(frozen=True, slots=True, eq=False)
class _Batch:
    notes: Sequence[Note]
    entries: Sequence[Entry]
    at_s: float


class Recorder:
    """The engine's thread posts; this one's writes and delivers. `run` names the files of one server."""

    def __init__(
        self,
        keep: Keep,
        deliver: Callable[[Sequence[Note]], None],
        lost: Callable[[str], None] = lambda session_id: None,  # a session whose recording ends before it does
    ) -> None:
        self.keep = keep
        self.run = secrets.token_hex(4)
        self.counts = RecordCounts()
        self._deliver = deliver
        self._lost = lost
        self._changed = threading.Condition()
        self._waiting: deque[_Batch] = deque()  # the first one is being written
        self._past = False  # the disk stalls: notes go past
        self._given_up: set[str] = set()  # sessions
        self._closing = False
        self._journals: dict[str, Journal] = {}  # by session; the thread's own, as all below
        self._unsynced: set[str] = set()
        self._synced_s = 0.0
        self._failing = False  # and its log event written
        self._pool = ThreadPoolExecutor(1, "sync")
        self._syncing: Future[None] | None = None
        self._pruning: Future[None] | None = None
        self._thread = threading.Thread(target=self._write_all, name="recorder", daemon=True)
        self._thread.start()

    def path(self, session_id: str) -> Path:
        """Of the recording of a session that begins here."""
        return self.keep.directory / f"{self.run}-{session_id}{SUFFIX}"

    def post(self, notes: Sequence[Note], entries: Sequence[Entry], now_s: float) -> None:
        """Never blocks: the notes go on once the entries are appended, or at once if the disk stalls."""
        batch = _Batch(notes, entries, now_s)
        with self._changed:
            if not (self._past or self._closing or self._late(now_s)):
                self._waiting.append(batch)
                self._changed.notify()
            else:
                self._go_past(batch)

    def check(self, now_s: float) -> None:
        """Nothing to post: but what was posted may not wait for ever."""
        with self._changed:
            if not self._past and self._late(now_s):
                self._go_past()

    def _go_past(self, *last: _Batch) -> None:
        if not (self._past or self._closing):
            self._past = True
            log.error("the disk of the recordings stalls: those under way are given up")
        for overdue in (*self._waiting, *last):
            self._given_up |= {entry.session_id for entry in overdue.entries}
            self.counts.given_up += len(overdue.entries)
            for entry in overdue.entries:
                entry.done(None)
            self._deliver(overdue.notes)
        self._waiting.clear()

    def _late(self, now_s: float) -> bool:
        if not self._waiting:
            return False
        return len(self._waiting) >= MAX_WAITING or now_s - self._waiting[0].at_s > PATIENCE_S

    def close(self, timeout_s: float) -> bool:
        """Write what waits, sync and close; False if the disk was not done in time."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            return False
        return self._syncing is None or bool(wait([self._syncing], timeout_s).done)

    def _write_all(self) -> None:
        while True:
            with self._changed:
                if not self._waiting and not self._closing:
                    self._changed.wait(SYNC_S)
                batch = self._waiting[0] if self._waiting else None
                given_up, self._given_up = self._given_up, set()
                if batch is None:  # the disk has answered all it was asked
                    self._past = False
                if batch is None and self._closing:
                    break
            for session_id in given_up:
                self._lost(session_id)
                self._end(session_id)
            if batch is None:
                self._sync()
                continue
            written = [(entry, self._write(entry)) for entry in batch.entries]
            with self._changed:
                if self._waiting and self._waiting[0] is batch:
                    self._waiting.popleft()
                    for entry, extent in written:
                        entry.done(extent)
                    self._deliver(batch.notes)
                self._past = False
            if batch.at_s - self._synced_s >= SYNC_S:
                self._synced_s = batch.at_s
                self._sync()
        for session_id in list(self._journals):
            self._end(session_id)
        self._syncing = self._pool.submit(lambda: None)  # done after everything before it
        self._pool.shutdown(wait=False)

    def _write(self, entry: Entry) -> Extent | None:
        """A record of a session whose recording was lost goes nowhere: one with a gap would be a wrong one."""
        if entry.opens is None and entry.session_id not in self._journals:
            return None
        try:
            record = entry.make()
            data = encode(record)
            if entry.opens is not None:
                self._journals[entry.session_id] = self._begin(entry.opens(self.path(entry.session_id)))
            journal = self._journals[entry.session_id]
            journal.append(data)
        except Exception as fault:  # whatever it is, the session must not suffer for it
            self.counts.lost += 1
            self._lost(entry.session_id)
            self._end(entry.session_id)
            if not self._failing:
                self._failing = True
                why = fault.strerror if isinstance(fault, OSError) else f"{type(fault).__name__}: {fault}"
                log.error("recordings are being lost in %s: %s", self.keep.directory, why)
            return None
        self.counts.records += 1
        self.counts.bytes += len(data)
        self._unsynced.add(entry.session_id)
        if isinstance(record, Mark) and record.kind == "end":
            self._end(entry.session_id)
            self._failing = False
        return Extent(journal.path, journal.num_bytes)

    def _begin(self, journal: Journal) -> Journal:
        self.counts.recordings += 1
        if self._pruning is None or self._pruning.done():  # it looks at every file: frames do not wait for that
            self._pruning = self._pool.submit(self._prune, os.stat(journal.path).st_mtime)
        return journal

    def _prune(self, now_s: float) -> None:
        self.counts.removed += prune(self.keep, now_s)

    def _end(self, session_id: str) -> None:
        """Its file is synced and closed, off this thread."""
        journal = self._journals.pop(session_id, None)
        self._unsynced.discard(session_id)
        if journal is not None:
            self._pool.submit(self._sync_files, [journal], True)

    def _sync(self) -> None:
        """Have what was written since the last time synced, unless that is still under way."""
        if self._unsynced and (self._syncing is None or self._syncing.done()):
            journals = [self._journals[session_id] for session_id in self._unsynced]
            self._unsynced.clear()
            self._syncing = self._pool.submit(self._sync_files, journals, False)

    def _sync_files(self, journals: Sequence[Journal], then_close: bool) -> None:
        for journal in journals:
            try:
                journal.sync()
                self.counts.syncs += 1
            except OSError as fault:
                self.counts.unsynced += 1
                log.error("%s may not have reached the disk: %s", journal.path, fault.strerror)
            finally:
                if then_close:
                    journal.close()
