"""Earliest deadline first into the room that is left, no earlier than needed, and begun chunks are never held up."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sessions.planner import Planner, ServiceTime
from sessions.session import Session
from world.chunk import Geometry


def sessions(*deadlines_s: float) -> list[Session]:
    result = []
    for slot, deadline_s in enumerate(deadlines_s, 1):
        session = Session(str(slot), slot, Geometry(64, 48, 16, 1), 2, "axes", deadline_s)
        session.ready_s = 0.0
        result.append(session)
    return result


@given(st.lists(st.integers(0, 9), max_size=8), st.lists(st.booleans(), min_size=8, max_size=8), st.integers(1, 4))
def test_earliest_deadlines_fill_the_room_that_begun_chunks_leave(
    deadlines: list[int], begun: list[bool], max_rows: int
) -> None:
    everybody = sessions(*map(float, deadlines))
    under_way = [session for session, yes in zip(everybody, begun, strict=False) if yes][:max_rows]
    for session in under_way:
        session.begin(0.0, 0.0, 0)
    plan = Planner(max_rows).plan(everybody, 5.0)
    assert plan[: len(under_way)] == under_way and len(plan) <= max_rows and len(set(map(id, plan))) == len(plan)
    chosen = plan[len(under_way) :]
    left = [s for s in everybody if s not in plan and s.pacing.deadline_s <= 5.0]
    assert all(s.pacing.deadline_s <= 5.0 for s in chosen)
    assert not left or len(plan) == max_rows
    assert max([s.pacing.deadline_s for s in chosen], default=0) <= min([s.pacing.deadline_s for s in left], default=9)


def test_a_chunk_waits_until_its_lead_and_never_ahead_of_the_one_that_plays() -> None:
    planner = Planner(4)
    (session,) = sessions(0.0)
    for chunk, at_s in enumerate((0.0, 0.1, 0.35)):
        session.pacing.finished(chunk, at_s)
    assert session.pacing.deadline_s == pytest.approx(0.6)
    assert planner.start_s(session) == pytest.approx(0.35)  # nothing measured: as early as allowed
    for _ in range(200):
        planner.service.observe(0.05)
    assert planner.start_s(session) == pytest.approx(0.6 - 0.05 - 0.03, abs=1e-3)
    assert planner.due_s([session], 0.2) == planner.start_s(session)
    assert planner.due_s([session], 0.9) == 0.9
    assert planner.plan([session], 0.5) == [] and planner.plan([session], 0.53) == [session]
    for i in range(200):
        planner.service.observe(0.8 * (i % 2))
    assert planner.start_s(session) == pytest.approx(0.35)  # whatever it takes, the one before plays by then
    session.ready_s = 0.4
    assert planner.start_s(session) == 0.4


def test_nobody_is_due_unless_somebody_can_play() -> None:
    planner = Planner(4)
    assert planner.due_s([], 1.0) is None
    (session,) = sessions(0.0)
    session.detach()
    assert planner.due_s([session], 1.0) is None
    session.attach(2.0)
    assert planner.due_s([session], 1.0) == 2.0
    session.begin(2.0, 2.0, 0)
    assert planner.due_s([session], 2.5) == 2.5
    waiting = Session("p", 1, Geometry(64, 48, 16, 1), 2, "poses", 0.0)
    assert planner.due_s([waiting], 1.0) is None  # a stream of poses begins with its first pose


def test_service_time_follows_and_leaves_room_for_its_scatter() -> None:
    service = ServiceTime()
    assert service.lead_s == math.inf and service.least_s == 0.0
    for i in range(400):
        service.observe(0.1 if i % 2 else 0.14)
    assert service.lead_s == pytest.approx(0.12 + 2 * 0.02 + 0.03, abs=5e-3)
    assert service.least_s < 0.1
