"""No tap is lost, none is played late or longer than it was, and looks add up."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sessions.control import MAX_TAPS, MIN_TAP_S, Control, ControlTrack, Segment, Steer

CHUNK_S = 0.25


def track(*events: tuple[float, float]) -> ControlTrack:
    """(milliseconds, forward axis) -> a track."""
    result = ControlTrack()
    for seq, (t_ms, forward) in enumerate(events, 1):
        result.put(Control(seq, t_ms, (forward, 0.0, 0.0, 0.0)))
    return result


def forward(steer: Steer) -> list[tuple[float, float]]:
    """(seconds, forward axis), neighbours that are equal joined."""
    parts: list[tuple[float, float]] = []
    for segment in steer.segments:
        if parts and parts[-1][1] == segment.axes[0]:
            parts[-1] = (parts[-1][0] + segment.duration_s, segment.axes[0])
        else:
            parts.append((segment.duration_s, segment.axes[0]))
    return [(round(duration, 6), axis) for duration, axis in parts]


def test_a_chunk_uses_what_is_held_when_it_starts() -> None:
    held = track((0, 1.0))
    assert forward(held.take(CHUNK_S)) == [(0.25, 1.0)]
    assert forward(held.take(CHUNK_S)) == [(0.25, 1.0)]
    held.put(Control(2, 300, (0.0, 0.0, 0.0, 0.0)))
    assert forward(held.take(CHUNK_S)) == [(0.25, 0.0)]  # two chunks saw the push: its end is no tap


@pytest.mark.parametrize(
    "events, expected",
    [
        ([(10, 1.0), (70, 0.0)], [(0.06, 1.0), (0.19, 0.0)]),
        ([(10, 1.0), (900, 0.0)], [(0.25, 1.0)]),  # longer than the chunk: capped
        ([(10, 1.0), (40, 0.0), (50, 1.0), (80, 0.0)], [(0.06, 1.0), (0.19, 0.0)]),
        ([(10, 1.0), (60, -1.0)], [(0.05, 1.0), (0.2, -1.0)]),  # tap, then the other way held
        ([(10, 1.0), (60, -1.0), (90, 0.0)], [(0.05, 1.0), (0.03, -1.0), (0.17, 0.0)]),
        ([(10, 1.0), (10, 0.0)], [(round(MIN_TAP_S, 6), 1.0), (round(CHUNK_S - MIN_TAP_S, 6), 0.0)]),
        ([(10, 0.2), (30, 0.8), (50, 0.0)], [(0.04, 0.5), (0.21, 0.0)]),  # a stick: one push, its mean
        ([(10, 0.2), (30, 0.8)], [(0.25, 0.8)]),  # a stick on its way: no history
    ],
)
def test_a_tap_becomes_a_pulse_of_its_real_length(
    events: list[tuple[float, float]], expected: list[tuple[float, float]]
) -> None:
    taps = track(*events)
    assert forward(taps.take(CHUNK_S)) == expected
    assert {axis for _, axis in forward(taps.take(CHUNK_S))} == {events[-1][1]}  # and once only


def test_what_taps_left_no_time_for_is_not_lost() -> None:
    taps = track((0, 1.0), (400, -1.0))
    assert forward(taps.take(CHUNK_S)) == [(0.25, 1.0)]
    taps.put(Control(3, 450, (0.0, 0.0, 0.0, 0.0)))
    assert forward(taps.take(CHUNK_S)) == [(0.05, -1.0), (0.2, 0.0)]


def test_axes_are_independent() -> None:
    both = ControlTrack()
    both.put(Control(1, 0, (1.0, 0.0, 0.0, 0.0)))
    both.put(Control(2, 20, (1.0, 0.0, 1.0, 0.0)))
    both.put(Control(3, 70, (1.0, 0.0, 0.0, 0.0)))
    steer = both.take(CHUNK_S)
    assert steer.control_seq == 3
    assert [segment.axes for segment in steer.segments] == [(1.0, 0.0, 1.0, 0.0), (1.0, 0.0, 0.0, 0.0)]
    assert steer.segments[0] == Segment(pytest.approx(0.05), (1.0, 0.0, 1.0, 0.0))


def test_looks_add_up_and_are_used_once() -> None:
    looks = ControlTrack()
    for seq in range(1, 11):
        looks.put(Control(seq, seq, (0.0, 0.0, 0.0, 0.0), (1.5, -0.5)))
    assert looks.take(CHUNK_S).look_deg == (15.0, -5.0)
    assert looks.take(CHUNK_S).look_deg == (0.0, 0.0)


def test_order_is_kept_and_a_refused_control_changes_nothing() -> None:
    order = track((50, 1.0))
    for seq, t_ms in ((1, 60.0), (2, 40.0)):
        with pytest.raises(ValueError, match="control"):
            order.put(Control(seq, t_ms, (-1.0, 0.0, 0.0, 0.0), (9.0, 9.0)))
    assert order.take(CHUNK_S) == Steer((Segment(CHUNK_S, (1.0, 0.0, 0.0, 0.0)),), (0.0, 0.0), 1)
    order.restart()
    order.put(Control(1, 0.0, (0.0, 0.0, 0.0, 0.0)))  # another page's clock
    assert forward(order.take(CHUNK_S)) == [(0.25, 0.0)]


@pytest.mark.parametrize(
    "axes, look, t_ms",
    [
        ((1.1, 0, 0, 0), (0, 0), 0),
        ((math.nan, 0, 0, 0), (0, 0), 0),
        ((0, 0, 0), (0, 0), 0),
        ((0, 0, 0, 0), (math.inf, 0), 0),
        ((0, 0, 0, 0), (0, 0), math.nan),
    ],
)
def test_numbers_out_of_range_are_refused(axes: tuple[float, ...], look: tuple[float, float], t_ms: float) -> None:
    with pytest.raises(ValueError):
        Control(1, t_ms, axes, look)  # type: ignore[arg-type]


def test_waiting_taps_are_bounded_and_counted() -> None:
    taps = track(*[(i, float(i % 2)) for i in range(1, 2 * MAX_TAPS + 22)])
    assert taps.dropped == 10
    assert len(forward(taps.take(1000.0))) <= MAX_TAPS + 1


moves = st.lists(st.tuples(st.integers(0, 120), st.sampled_from([-1.0, 0.0, 0.5, 1.0]), st.booleans()), max_size=60)


@given(moves)
def test_every_push_is_played_by_some_chunk(schedule: list[tuple[int, float, bool]]) -> None:
    """(milliseconds to wait, axis, a chunk starts then): a push is seen while held, or as a pulse in the next chunk."""
    hands = ControlTrack()
    t_ms, value, pushes, seen = 0.0, 0.0, 0, True
    played: list[list[float]] = []
    owed: list[float] = []  # pushes that ended since the last chunk start, unseen
    for seq, (wait_ms, axis, chunk_starts) in enumerate([*schedule, (10, 0.0, True)], 1):
        t_ms += wait_ms
        if math.copysign(axis != 0, axis) != math.copysign(value != 0, value) or (axis != 0) != (value != 0):
            if value and not seen:
                owed.append(value)
            pushes, seen = pushes + 1, False
        value = axis
        hands.put(Control(seq, t_ms, (axis, 0.0, 0.0, 0.0)))
        if chunk_starts:
            steer = hands.take(1000.0)  # long enough for all taps
            assert sum(segment.duration_s for segment in steer.segments) == pytest.approx(1000.0)
            played.append([segment.axes[0] for segment in steer.segments])
            signs = [math.copysign(1, axis) for axis in played[-1][:-1] if axis]
            assert signs == [math.copysign(1, axis) for axis in owed]
            assert played[-1][-1] == value
            owed, seen = [], True


@given(st.integers(17, 240), st.integers(0, 1000), st.floats(0.1, 1.0))
def test_a_pulse_moves_as_far_as_the_tap_was_long(length_ms: int, start_ms: int, axis: float) -> None:
    steer = track((start_ms, axis), (start_ms + length_ms, 0.0)).take(CHUNK_S)
    area = sum(segment.duration_s * segment.axes[0] for segment in steer.segments)
    assert area == pytest.approx(axis * length_ms / 1000)
