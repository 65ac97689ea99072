"""Only the table's moves are possible, and a chunk is walked step by step."""

from __future__ import annotations

from itertools import product

import pytest

from sessions.control import Control
from sessions.session import LEGAL, IllegalState, Session, State
from world.chunk import Geometry, Prompt


def session(control: str = "axes", num_steps: int = 2) -> Session:
    return Session("a", 3, Geometry(64, 48, 16, 1), num_steps, control, 0.0)  # type: ignore[arg-type]


@pytest.mark.parametrize("before, after", list(product(State, State)))
def test_moves_outside_the_table_are_refused(before: State, after: State) -> None:
    one = session()
    one.state = before
    if after in LEGAL[before]:
        one.move(after)
        assert one.state is after
    else:
        with pytest.raises(IllegalState, match=f"from {before} to {after}"):
            one.move(after)


@pytest.mark.parametrize("num_steps", [1, 2, 4])
def test_a_chunk_is_denoised_then_committed(num_steps: int) -> None:
    one = session(num_steps=num_steps)
    for chunk in range(3):
        one.begin(0.0, 0.0, 0)
        for step in range(num_steps + 1):
            assert one.state is (State.COMMITTING if step == num_steps else State.DENOISING)
            assert (one.row().slot, one.row().chunk_index, one.row().step_index) == (3, chunk, step)
            one.advance(0.0)
        assert one.state is State.WAITING
    with pytest.raises(IllegalState):
        one.row()


def test_a_lost_connection_lets_the_chunk_finish_and_no_other_begin() -> None:
    one = session()
    one.begin(0.0, 0.0, 0)
    one.detach()
    assert one.state is State.DENOISING
    for _ in range(3):
        one.advance(1.0)
    assert one.state is State.DETACHED and not one.can_start
    one.detach()
    one.attach(5.0)
    assert one.can_start and one.pacing.deadline_s == 5.0 and one.chunk_index == 1


def test_a_reconnected_page_starts_with_nothing_held() -> None:
    one = session()
    one.steer(Control(9, 1e6, (1.0, 0.0, 0.0, 0.0), (30.0, 0.0)))
    one.attach(1.0)
    one.steer(Control(1, 0.0, (0.0, 0.0, 0.0, 0.0)))
    one.chunk_index = 1
    one.begin(1.0, 1.0, 0)
    assert one.path is not None and (one.path.poses == one.path.poses[0]).all()


def test_a_chunk_under_way_is_of_the_connection_before() -> None:
    one = session()
    one.begin(0.0, 0.0, 0)
    one.detach()
    one.attach(1.0)
    assert one.of_before
    for _ in range(3):
        one.advance(1.0)
    one.begin(1.0, 1.0, 1)
    assert not one.of_before


def test_the_last_prompt_counts_and_replaced_ones_are_counted() -> None:
    one = session()
    one.set_prompt(Prompt("fog", None))
    one.set_prompt(Prompt("night", None))
    one.begin(0.0, 0.0, 0)
    one.set_prompt(Prompt("rain", None))
    assert one.prompt is not None and one.prompt.text == "night" and one.prompts_replaced == 1
    for _ in range(3):
        one.advance(0.0)
    one.begin(0.0, 0.0, 0)
    assert one.row().prompt is not None and one.row().prompt.text == "rain"  # type: ignore[union-attr]


def test_each_kind_of_control_refuses_the_other() -> None:
    with pytest.raises(ValueError, match="by poses"):
        session("poses").steer(Control(1, 0.0, (0.0, 0.0, 0.0, 0.0)))
    with pytest.raises(ValueError, match="by axes"):
        session("axes").poses()
