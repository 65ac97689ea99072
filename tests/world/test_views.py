"""A stream keeps views where its camera had not been, and is shown the oldest near by when it comes back."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from world.motion import keyboard_poses, step_pose
from world.views import NEWEST, ViewRules, Views, recalled_frames

RULES = ViewRules(capacity=4, turn_deg=20.0, walk_units=0.75, shown=2, reach=2.0)


def at(turn_deg: float = 0.0, forward: float = 0.0) -> np.ndarray:
    return step_pose(np.eye(4), turn_deg=turn_deg, forward=forward)


@pytest.mark.parametrize(
    "turn_deg, forward, apart", [(0, 0, 0), (20, 0, 1), (-10, 0, 0.5), (0, 0.75, 1), (10, 0.375, 1), (180, 0, 9)]
)
def test_turn_and_way_add_up(turn_deg: float, forward: float, apart: float) -> None:
    assert RULES.apart(at(turn_deg, forward), np.eye(4)) == pytest.approx(apart, abs=1e-6)


def test_a_view_is_kept_only_where_none_stands_for_it() -> None:
    views = Views(RULES)
    assert views.remember(at()) == 0
    assert views.remember(at(15)) is None
    assert views.remember(at(25)) == 1


def test_the_oldest_within_reach_and_the_nearest_are_recalled_the_oldest_first() -> None:
    views = Views(RULES)
    for turn in (0, 30, 60):
        views.remember(at(turn))
    assert views.recall(at(0)) == (0, 1)
    assert views.recall(at(35)) == (0, 1)
    assert views.recall(at(45)) == (1, 2)  # the start is out of reach
    assert views.recall(at(58)) == (1, 2)
    assert views.recall(at(110)) == (2, 2)  # nothing is within reach
    assert replace_shown(views, 1).recall(at(40)) == (1,) and replace_shown(views, 4).recall(at(30)) == (0, 1, 2, 1)


def replace_shown(views: Views, shown: int) -> Views:
    return dataclasses.replace(views, rules=dataclasses.replace(RULES, shown=shown))


def test_the_oldest_but_the_start_makes_room() -> None:
    views = Views(RULES)
    assert [views.remember(at(turn)) for turn in (0, 30, 60, 90, 120, 150)] == [0, 1, 2, 3, 1, 2]
    assert list(views.kept) == [0, 3, 1, 2]
    assert views.recall(at())[0] == 0 and 1 in views.recall(at(120))


def test_who_comes_back_is_shown_what_was_there() -> None:
    poses = keyboard_poses("l-60,j-60")[::4]  # 120 degrees and back, 8 degrees a frame
    recalled = recalled_frames(poses, ViewRules())
    assert recalled.shape == (len(poses), ViewRules().shown)
    assert (recalled[0] == 0).all() and recalled[-1, 0] == 0 and recalled[15].min() > 0
    assert (recalled <= np.maximum(np.arange(len(poses)) - 1, 0)[:, None]).all()
    assert (recalled[16:] <= 15).all()  # nothing made on the way back


@given(st.lists(st.tuples(st.floats(-90, 90), st.floats(-2, 2)), min_size=1, max_size=40))
def test_a_stream_never_forgets_its_start_nor_keeps_more_than_it_may(steps: list[tuple[float, float]]) -> None:
    views, pose = Views(RULES), np.eye(4)
    views.remember(pose)
    for turn_deg, forward in steps:
        pose = step_pose(pose, forward, 0, turn_deg)
        assert set(views.recall(pose)) <= set(views.kept) and len(views.recall(pose)) == RULES.shown
        place = views.remember(pose)
        assert place is None or 0 < place < RULES.capacity
        assert len(views.kept) <= RULES.capacity and (views.kept[0].pose == np.eye(4)).all()


def test_a_view_tells_under_which_prompt_it_was_made_also_when_read_again():
    views = Views(RULES, "day")
    views.remember(at())
    views.prompt = "night"
    views.remember(at(90))
    views.remember(at(10))  # where another stands for it
    again = Views.of(RULES, json.loads(json.dumps(views.facts())))
    for kept in (views, again):
        assert [view.prompt for view in kept.kept.values()] == ["day", "night"] and kept.prompt == "night"
    assert again.facts() == views.facts()


def test_a_chunk_is_shown_the_newest_picture_and_the_recalled_ones() -> None:
    views, path = Views(RULES, "day"), np.stack([at(turn) for turn in (0, 0, 30, 60)])
    shown = views.begin(path[:2], True, None)
    assert [view.place for view in shown] == [0, 0, 0] and all(view.is_current for view in shown), "the start picture"
    assert (views.kept[0].pose == path[1]).all() and views.kept[0].prompt == "day"
    views.remember(path[2])
    newest, *recalled = views.begin(path[2:], False, None)
    assert (newest.place, [view.place for view in recalled]) == (NEWEST, [1, 1])
    assert all((view.pose == path[2]).all() for view in (newest, *recalled))
    newest, *recalled = views.begin(np.stack([path[2], path[0]]), False, None)
    assert [view.place for view in recalled] == [0, 1]
    assert (newest.pose == path[2]).all() and (recalled[0].pose == path[0]).all()


def test_what_is_shown_is_current_if_the_chunks_own_prompt_made_it() -> None:
    views, path = Views(RULES, "day"), np.stack([at(), at()])
    assert [shown.is_current for shown in views.begin(path, True, "day")] == [True, True, True]
    assert [shown.is_current for shown in views.begin(path, False, "night")] == [False, False, False]
    assert [shown.is_current for shown in views.begin(path, False, None)] == [True, False, False]
    assert [shown.is_current for shown in views.begin(path, False, "day")] == [False, True, True]
    assert list(views.kept) == [0], "a beginning remembers nothing but the start"
