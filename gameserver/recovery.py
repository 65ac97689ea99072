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


@dataclass(slots=True)
class RecoveryCounts:
    """Since the server began."""

    found: int = 0
    recovered: int = 0
    failed: int = 0
    expired: int = 0  # nobody came back for them


class Recovery:
    """The event loop asks `claim`; the rest takes as long as the disk takes and runs elsewhere."""

    def __init__(self, recordings: Path, saves: Saves) -> None:
        self.counts = RecoveryCounts()
        self._recordings = recordings
        self._saves = saves
        self._lost = {ticket.token_hash: ticket for ticket in saves.ledger.tickets()}
        self.counts.found = len(self._lost)

    def __len__(self) -> int:
        """Sessions nobody has come back to yet."""
        return len(self._lost)

    def claim(self, token: str) -> Ticket | None:
        """The lost session of a token, which from now on is nobody else's."""
        return self._lost.pop(hash_token(token), None)

    def abandon(self) -> list[Ticket]:
        """Nobody came for these in time."""
        tickets, self._lost = list(self._lost.values()), {}
        return tickets

    def prepare(self, ticket: Ticket, world: World) -> Return:
        """What brings it back to its last finished chunk. RecoveryError; then the recording is as it was, but for a
        mark that it ended."""
        journal = self._open(ticket)
        try:
            return self._prepare(ticket, world, journal)
        except (RecoveryError, ReplayError, WorldError, ValueError, OSError) as fault:
            why = (fault.strerror or "") if isinstance(fault, OSError) else str(fault)
            self._end(journal, f"it could not be brought back: {why}")
            self._saves.forget(ticket.session)
            raise RecoveryError(why) from None

    def expire(self, ticket: Ticket) -> None:
        """It is over."""
        with contextlib.suppress(RecoveryError):
            self._end(self._open(ticket), "nobody came back after the server had failed")
            self._saves.forget(ticket.session)
            self.counts.expired += 1

    def _open(self, ticket: Ticket) -> Journal:
        """Its recording, locked. RecoveryError where it is not to be had; then somebody else has it, or it is gone."""
        path = self._recordings / Path(ticket.recording).name
        try:
            return Journal.again(path)
        except FileNotFoundError:
            self._saves.forget(ticket.session)
            raise RecoveryError("its recording is gone") from None
        except OSError as fault:
            raise RecoveryError(f"its recording cannot be had: {fault.strerror}") from None

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
            raise RecoveryError(reason)
        told = story(recording)
        since = self._saves.newest(ticket.session)
        if since is not None and not fits(since.moment, told):
            since = None
        if len(told.chunks) - (since.moment.chunk_index if since is not None else 0) > MAX_RETRACED:
            raise RecoveryError(f"more than {MAX_RETRACED} chunks would have to be made again")
        rest = tail(told, None if since is None else since.moment, world)
        start = start_of(recording.header, world) if since is None else None
        journal.cut(recording.verdict.offset)
        return Return(ticket.session, start, since, told, rest, journal)

    def _end(self, journal: Journal, why: str) -> None:
        """Mark the end, unless there is one already or nothing can be said of the file."""
        with contextlib.suppress(OSError):
            recording = read(journal.path.read_bytes())
            if recording.verdict.state in ("whole", "torn") and recording.records and not recording.ended:
                journal.cut(recording.verdict.offset)
                journal.append(encode(Mark(kind="end", text=why)))
                journal.sync()
        journal.close()


def _unseen(stage: str, share: float) -> None:
    """Of what was made before the first player came in there is nothing to report."""
