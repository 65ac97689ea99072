"""Who plays in which slot. Slots count from 1: slot 0 is a world's padding row, and of whoever is parked."""

from __future__ import annotations

from collections.abc import Iterator

from sessions.session import NO_SLOT, Session


class Full(Exception):
    """Every slot is taken."""


class UnknownSession(KeyError):
    """No session of that id plays here."""


class DuplicateSession(ValueError):
    """A session of that id plays already."""


class Roster:
    def __init__(self, num_slots: int) -> None:
        self._free = list(range(num_slots, 0, -1))
        self._sessions: dict[str, Session] = {}
        self.num_slots = num_slots

    def __len__(self) -> int:
        return len(self._sessions)

    def __contains__(self, session_id: str) -> bool:
        return session_id in self._sessions

    def __iter__(self) -> Iterator[Session]:
        """In the order in which they joined."""
        return iter(self._sessions.values())

    def __getitem__(self, session_id: str) -> Session:
        try:
            return self._sessions[session_id]
        except KeyError:
            raise UnknownSession(session_id) from None

    @property
    def free_slot(self) -> int | None:
        return self._free[-1] if self._free else None

    def next_slot(self, session_id: str) -> int:
        """The slot that a new session would get. Full or DuplicateSession if it cannot join."""
        self.check_new(session_id)
        if self.free_slot is None:
            raise Full(f"all {self.num_slots} slots are taken")
        return self.free_slot

    def check_new(self, session_id: str) -> None:
        """DuplicateSession if it plays already."""
        if session_id in self._sessions:
            raise DuplicateSession(f"session {session_id!r} plays already")

    def add(self, session: Session) -> None:
        if session.slot != self.next_slot(session.id):
            raise ValueError(f"slot {session.slot} is not the next free one")
        self._free.pop()
        self._sessions[session.id] = session

    def remove(self, session_id: str) -> Session:
        session = self[session_id]
        del self._sessions[session_id]
        self._give_back(session.slot)
        return session

    def park(self, session: Session) -> None:
        """It stays, without its slot."""
        self._give_back(session.slot)
        session.slot = NO_SLOT

    def settle(self, session: Session, now_s: float) -> None:
        """Whoever was parked has the next free slot."""
        session.settle(self._free.pop(), now_s)

    def _give_back(self, slot: int) -> None:
        if slot != NO_SLOT:
            self._free.append(slot)
            self._free.sort(reverse=True)
