"""Deadlines count frames over the short first chunk; lateness shifts the clock and no report buys priority."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sessions.pacing import Pacing
from world.chunk import Geometry


def geometry(f: int) -> Geometry:
    return Geometry(64, 48, 16, f)


@pytest.mark.parametrize("f", [1, 3, 4])
def test_deadlines_count_video_frames(f: int) -> None:
    pacing = Pacing(geometry(f), 10.0)
    assert pacing.deadline_s == 10.0
    assert pacing.finished(0, 11.0) == 0.0  # a first chunk is never late: nothing played yet
    assert pacing.deadline_s == 11.0 + (4 * f - 3) / 16
    shown_s = 11.0 + 2 * f
    assert pacing.finished(1, shown_s) == 0.0  # the clock starts here
    for chunk in range(2, 20):
        assert pacing.deadline_s == pytest.approx(shown_s + (chunk - 1) * 4 * f / 16)
        assert pacing.finished(chunk, pacing.deadline_s - 0.01) == 0.0
    assert pacing.late_s == 0.0


def test_a_late_chunk_shifts_the_clock_once_and_nothing_is_made_up_for() -> None:
    pacing = Pacing(geometry(1), 0.0)
    for chunk, at_s in enumerate((0.0, 0.1, 0.3)):
        pacing.finished(chunk, at_s)
    assert pacing.deadline_s == pytest.approx(0.6)
    assert pacing.finished(3, 1.0) == pytest.approx(0.4)
    assert pacing.deadline_s == pytest.approx(1.25)
    assert pacing.finished(4, 1.01) == 0.0
    assert pacing.deadline_s == pytest.approx(1.5)
    assert pacing.late_s == pytest.approx(0.4)


def test_a_restart_wants_a_chunk_at_once() -> None:
    pacing = Pacing(geometry(1), 0.0)
    for chunk in range(5):
        pacing.finished(chunk, chunk * 0.25)
    pacing.restart(5, 60.0)
    assert pacing.deadline_s == 60.0
    assert pacing.finished(5, 60.2) == 0.0
    assert pacing.deadline_s == pytest.approx(60.45)


def test_reports_move_the_clock_towards_what_the_client_sees() -> None:
    pacing = Pacing(geometry(1), 0.0)
    real_deadline_s = 0.1 + 0.25
    pacing.finished(0, 0.0)
    pacing.finished(1, 0.1)
    real_deadline_s += 0.12  # the client waits that much longer than the server knows
    for chunk in range(2, 40):
        finished_s = pacing.deadline_s - 0.03
        pacing.finished(chunk, finished_s)
        pacing.report(real_deadline_s - finished_s, chunk)
        real_deadline_s += 0.25
    assert pacing.deadline_s == pytest.approx(real_deadline_s, abs=1e-3)


@given(st.lists(st.tuples(st.floats(0.0, 0.4), st.floats(allow_nan=True), st.integers(0, 3)), max_size=40))
def test_no_report_buys_priority_or_stops_the_clock(schedule: list[tuple[float, float, int]]) -> None:
    """(wait, reported slack, how old the reported chunk is): the next deadline stays near the last finish."""
    pacing = Pacing(geometry(1), 0.0)
    at_s = 0.0
    for chunk, (wait_s, slack_s, age) in enumerate(schedule):
        at_s = max(at_s + wait_s, pacing.earliest_s)
        pacing.finished(chunk, at_s)
        chunk_s = geometry(1).video_frames(chunk) / 16
        for _ in range(3):  # a repeated report counts once
            pacing.report(slack_s, chunk - age)
        assert at_s + chunk_s - 1e-9 <= pacing.deadline_s <= at_s + 4 * 0.25 + chunk_s
        assert pacing.earliest_s == pytest.approx(pacing.deadline_s - chunk_s)


def test_a_chunk_is_reported_once() -> None:
    clocks = [Pacing(geometry(1), 0.0), Pacing(geometry(1), 0.0)]
    for repeats, pacing in enumerate(clocks, 1):
        pacing.finished(0, 0.0)
        pacing.finished(1, 0.1)
        for _ in range(repeats):
            pacing.report(0.2, 1)
    assert clocks[0].deadline_s == clocks[1].deadline_s == pytest.approx(0.1 + 0.25 + 0.05)
