"""Sessions that a killed server left behind: who they belong to, and all it takes to bring one back."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

from gameserver.journal import Journal
from gameserver.ledger import Ticket, hash_token
from gameserver.mailbox import Return
from gameserver.saves import Saves
from sessions.recording import encode, read
from sessions.records import Mark
from sessions.recovery import fits, story, tail
from sessions.replay import ReplayError, refusal, start_of
from world.chunk import World, WorldError

MAX_RETRACED = 4000  # chunks that are made again for one session: at most so long does a lost moment cost


class RecoveryError(Exception):
    """A session cannot be brought back; the message is a sentence."""


class Foreign(RecoveryError):
    """Not by this server, and perhaps by another."""


@dataclass(slots=True)
class RecoveryCounts:
    """Since the server began."""

    found: int = 0
    recovered: int = 0
    failed: int = 0
    expired: int = 0  # nobody came back for them


@dataclass(frozen=True, slots=True, eq=False)
class Lost:
    """A session that its server left behind. Its recording is locked: it is nobody else's, and not removed."""

    ticket: Ticket
    journal: Journal


class Recovery:
    """The event loop asks `claim`; the rest takes as long as the disk takes and runs elsewhere."""

    def __init__(self, recordings: Path, saves: Saves) -> None:
        self.counts = RecoveryCounts()
        self._recordings = recordings.resolve()
        self._saves = saves
        self._lost: dict[str, Lost] = {}
        self._over = False  # the time to come back

    def find(self) -> None:
        """Once the saves are open: what a server of this world left in these directories. Servers of others may share
        the saves, and their sessions are left alone."""
        for ticket in self._saves.ledger.tickets():
            path = Path(ticket.recording)
            if path.parent != self._recordings or ticket.of != self._saves.maker:
                continue
            try:
                journal = Journal.again(path)
            except FileNotFoundError:
                self._saves.forget(ticket.session)
            except OSError:  # another server is alive and has it
                continue
            else:
                self._lost[ticket.token_hash] = Lost(ticket, journal)
        self.counts.found = len(self._lost)

    def __len__(self) -> int:
        """Sessions nobody has come back to yet."""
        return len(self._lost)

    def claim(self, token: str) -> Lost | None:
        """The lost session of a token, which from now on is nobody else's."""
        return self._lost.pop(hash_token(token), None)

    def put_back(self, lost: Lost) -> bool:
        """It was claimed while there was no room for it, and waits on; False if the time for that is over."""
        if not self._over:
            self._lost[lost.ticket.token_hash] = lost
        return not self._over

    def abandon(self) -> list[Lost]:
        """Nobody came for these in time."""
        self._over = True
        everybody, self._lost = list(self._lost.values()), {}
        return everybody

    def close(self) -> None:
        """The next server may find those that are left."""
        for lost in self.abandon():
            lost.journal.close()

    def prepare(self, lost: Lost, world: World) -> Return:
        """What brings it back to its last finished chunk. RecoveryError; then it is over, but if that is Foreign: then
        it is as it was, and no longer this server's."""
        try:
            return self._prepare(lost.ticket, world, lost.journal)
        except Foreign:
            lost.journal.close()
            raise
        except (RecoveryError, ReplayError, WorldError, ValueError, OSError) as fault:
            why = (fault.strerror or "") if isinstance(fault, OSError) else str(fault)
            self._end(lost, f"it could not be brought back: {why}")
            raise RecoveryError(why) from None

    def expire(self, lost: Lost) -> None:
        """It is over."""
        self._end(lost, "nobody came back after the server had failed")
        self.counts.expired += 1

    def _prepare(self, ticket: Ticket, world: World, journal: Journal) -> Return:
        recording = read(journal.path.read_bytes())
        if recording.verdict.state not in ("whole", "torn") or recording.header is None:
            raise RecoveryError(f"its recording is {recording.verdict.state}: {recording.verdict.reason}")
        if recording.ended:
            raise RecoveryError("it had ended")
        identity = world.identify(_unseen)
        reason = refusal(recording.header, world, identity)
        if reason is None and recording.header.arithmetic != dict(identity.arithmetic):
            reason = "it was recorded on another arithmetic"
        if reason is not None:
            raise Foreign(reason)
        told = story(recording)
        since = self._saves.newest(ticket.session)
        if since is not None and not fits(since.moment, told):
            since = None
        if len(told.chunks) - (since.moment.chunk_index if since is not None else 0) > MAX_RETRACED:
            raise RecoveryError(f"more than {MAX_RETRACED} chunks would have to be made again")
        rest = tail(told, None if since is None else since.moment, world)
        start = start_of(recording.header, world) if since is None else None
        journal.cut(recording.verdict.offset)
        return Return(ticket.session, start, since, told, rest, journal, ticket.lockstep)

    def _end(self, lost: Lost, why: str) -> None:
        """Mark the end, unless there is one already or nothing can be said of the file."""
        journal = lost.journal
        with contextlib.suppress(OSError):
            recording = read(journal.path.read_bytes())
            if recording.verdict.state in ("whole", "torn") and recording.records and not recording.ended:
                journal.cut(recording.verdict.offset)
                journal.append(encode(Mark(kind="end", text=why)))
                journal.sync()
        journal.close()
        self._saves.forget(lost.ticket.session)


def _unseen(stage: str, share: float) -> None:
    """Of what was made before the first player came in there is nothing to report."""
