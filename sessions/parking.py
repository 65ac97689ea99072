"""Sessions that stand still give up their slots when others want them: all that they are waits in the host's memory.

Whoever is connected may be parked after standing still for IDLE_S, which a stream in real time that is steered by axes
never does; who is not connected, at once. Who wants to go on gets a free slot, or that of somebody who stands still.
"""

from __future__ import annotations

from sessions.roster import Full, Roster
from sessions.session import Session
from world.chunk import SlotState, World

IDLE_S = 1.0


class Parking:
    def __init__(self, world: World, roster: Roster, max_bytes: int) -> None:
        """max_bytes 0: nobody is parked."""
        self.max_bytes = max_bytes
        self.held_bytes = 0
        self.parked = 0  # in all: sessions that gave up their slots
        self.returned = 0  # in all: those that got one again
        self._world = world
        self._roster = roster
        self._states: dict[str, SlotState] = {}
        self._each_bytes = 1  # of a state, once one was seen: all of a world's are of one size

    def __len__(self) -> int:
        return len(self._states)

    def state(self, session_id: str) -> SlotState:
        """Of a session that is parked."""
        return self._states[session_id]

    def forget(self, session_id: str) -> None:
        self.held_bytes -= self._states.pop(session_id).num_bytes

    def slot_for(self, session_id: str, now_s: float) -> int:
        """For a new session; nobody who waits for a slot is passed. Full or DuplicateSession if it cannot join."""
        self._roster.check_new(session_id)
        if self._waiting():
            raise Full(f"all {self._roster.num_slots} slots are taken, and others wait for one")
        self._make_room(now_s)
        return self._roster.next_slot(session_id)

    def bring_back(self, session: Session, now_s: float) -> bool:
        """Give a parked session a slot, if one can be had."""
        if not self._make_room(now_s):
            return False
        self._roster.settle(session, now_s)
        self._world.restore(session.slot, self._states[session.id])
        self.forget(session.id)
        self.returned += 1
        return True

    def bring_back_all(self, now_s: float) -> None:
        """Those who want to go on, the longest waiting first, as long as there are slots."""
        for session in self._waiting():
            if not self.bring_back(session, now_s):
                return

    def due_s(self, now_s: float) -> float | None:
        """When somebody who waits can have a slot: now or later; None while nobody waits, or nobody stands still."""
        if not self._waiting():
            return None
        if self._roster.free_slot is not None:
            return now_s
        idle = self._next_idle()
        return None if idle is None else max(now_s, _since_s(idle))

    def _waiting(self) -> list[Session]:
        waiting = [session for session in self._roster if session.parked and session.wants_to_start]
        return sorted(waiting, key=lambda session: session.ready_s)

    def _make_room(self, now_s: float) -> bool:
        """Whether there is a free slot then."""
        if self._roster.free_slot is not None:
            return True
        idle = self._next_idle()
        return idle is not None and _since_s(idle) <= now_s and self._park(idle)

    def _next_idle(self) -> Session | None:
        """Whoever would be parked next: those who are gone first, then those who have stood still the longest."""
        if self.held_bytes + self._each_bytes > self.max_bytes:
            return None
        resting = (session for session in self._roster if not (session.parked or session.in_chunk))
        idle = [session for session in resting if not session.wants_to_start]
        return min(idle, key=lambda session: (session.attached, session.ready_s), default=None)

    def _park(self, session: Session) -> bool:
        """False if its state, the first that is seen, is over the bound."""
        state = self._world.export(session.slot)
        self._each_bytes = state.num_bytes
        if self.held_bytes + state.num_bytes > self.max_bytes:
            return False
        self._states[session.id] = state
        self.held_bytes += state.num_bytes
        self.parked += 1
        self._world.close(session.slot)
        self._roster.park(session)
        return True


def _since_s(idle: Session) -> float:
    """From when on it may be parked."""
    return idle.ready_s + IDLE_S if idle.attached else idle.ready_s
