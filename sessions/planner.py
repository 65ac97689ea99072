"""Which sessions' rows run in the next forward: begun chunks first, then the earliest deadlines, just in time."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from sessions.session import Session

MARGIN_S = 0.03  # what remains for encoding, sending and a late timer
SMOOTHING = 1 / 8


@dataclass(slots=True)
class ServiceTime:
    """How long a chunk takes from when it may start to its frames: running mean and mean deviation."""

    mean_s: float | None = None
    deviation_s: float = 0.0

    def observe(self, service_s: float) -> None:
        if self.mean_s is None:
            self.mean_s, self.deviation_s = service_s, service_s / 2
            return
        error_s = service_s - self.mean_s
        self.mean_s += SMOOTHING * error_s
        self.deviation_s += SMOOTHING * (abs(error_s) - self.deviation_s)

    @property
    def lead_s(self) -> float:
        """How long before its deadline a chunk has to start; as early as allowed while nothing was measured."""
        return math.inf if self.mean_s is None else self.mean_s + 2 * self.deviation_s + MARGIN_S

    @property
    def least_s(self) -> float:
        """What a chunk takes at least."""
        return 0.0 if self.mean_s is None else max(0.0, self.mean_s - 4 * self.deviation_s)


class Planner:
    def __init__(self, max_rows: int) -> None:
        self._max_rows = max_rows
        self.service = ServiceTime()

    def start_s(self, session: Session) -> float:
        """When a waiting session's next chunk may start: late enough to hear the player, early enough to be in time.
        What was made before hears nobody, and a client in lockstep waits: there is nothing to hear that is not here."""
        if session.past or session.lockstep is not None:
            return session.ready_s
        pacing, service = session.pacing, self.service
        return max(session.ready_s, pacing.earliest_s - service.least_s, pacing.deadline_s - service.lead_s)

    def due_s(self, sessions: Iterable[Session], now_s: float) -> float | None:
        """When the next forward has work: now or later, None while nobody needs anything."""
        soonest_s: float | None = None
        for session in sessions:
            if session.in_chunk:
                return now_s
            if session.can_start:
                start_s = max(now_s, self.start_s(session))
                soonest_s = start_s if soonest_s is None else min(soonest_s, start_s)
        return soonest_s

    def plan(self, sessions: Iterable[Session], now_s: float) -> list[Session]:
        """The sessions of the next forward, at most one row each.

        A begun chunk is never held up, so at most `max_rows` are under way at once. Room that is left goes to the
        earliest deadlines among those that may start, and to chunks that are only made again after them; the slot
        breaks ties.
        """
        everybody = list(sessions)
        begun = [session for session in everybody if session.in_chunk]
        startable = [session for session in everybody if session.can_start and self.start_s(session) <= now_s]
        startable.sort(key=lambda session: (bool(session.past), session.pacing.deadline_s, session.slot))
        return begun + startable[: self._max_rows - len(begun)]
