"""Protects the seam between threads: bounded, in order, and no session can take the room or the input of another."""

from __future__ import annotations

import threading

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from gameserver.mailbox import QUOTA, Extend, Join, Leave, Left, Mailbox, Presence, PromptChange, Slack, Steer, Step
from sessions.control import Control
from world.chunk import Prompt, Start

START = Start(0, Prompt("", None), None, np.ones(4, np.float32), 0.2)


def steer(session: str, seq: int, turn: float = 0.0) -> Steer:
    return Steer(session, Control(seq, seq * 16.0, (1.0, 0.0, 0.0, 0.0), (turn, -turn)))


def test_letters_come_out_once_and_in_order() -> None:
    box = Mailbox(8)
    letters = [Join("a", START, "axes"), steer("a", 1), steer("b", 1), Slack("a", 3, 0.1), Leave("b")]
    assert all(box.put(letter) for letter in letters)
    assert box.take(0) == letters
    assert box.take(0) == []


def test_of_a_connection_that_came_and_went_nothing_is_left() -> None:
    """The next one counts anew: a control of the one before would go back behind it, and end the session."""
    box = Mailbox(8)
    old, brief, new, stranger = steer("a", 9), steer("a", 1), steer("a", 1, 3.0), steer("b", 1)
    for letter in (old, Presence("a", False), Presence("a", True), brief, stranger):
        box.put(letter)
    for letter in (Presence("a", False), Presence("a", True), new):
        box.put(letter)
    assert box.take(0) == [old, stranger, Presence("a", True), new]


@given(turns=st.lists(st.floats(-5, 5), min_size=1, max_size=200))
def test_too_much_steering_keeps_every_degree_and_the_last_axes(turns: list[float]) -> None:
    box = Mailbox(8)
    for i, turn in enumerate(turns):
        assert box.put(steer("a", i + 1, turn))
    letters = [letter for letter in box.take(0) if isinstance(letter, Steer)]
    assert len(letters) == min(len(turns), QUOTA[Steer])
    assert letters[-1].control.seq == len(turns)
    np.testing.assert_allclose(sum(letter.control.look_deg[0] for letter in letters), sum(turns), atol=1e-9)
    assert box.coalesced["Steer"] == len(turns) - len(letters)


def test_a_flood_leaves_the_others_alone() -> None:
    box = Mailbox(8)
    for i in range(1000):
        box.put(steer("flood", i + 1))
    assert box.put(steer("calm", 1, 3.0))
    assert box.take(0)[-1] == steer("calm", 1, 3.0)


def test_steering_in_lockstep_is_refused_rather_than_taken_in_by_another() -> None:
    box = Mailbox(8)
    steps = [Step("a", steer("a", seq).control) for seq in range(1, QUOTA[Step] + 2)]
    assert [box.put(step) for step in steps] == [True] * QUOTA[Step] + [False]
    assert box.put(Left("a", 1)) and box.put(Left("a", 2))
    assert box.take(0) == [*steps[:-1], Left("a", 2)] and box.refused["Step"] == 1


def test_the_newest_prompt_presence_and_slack_win() -> None:
    box = Mailbox(8)
    rain, snow = Prompt("rain", None), Prompt("snow", None)
    for letter in (PromptChange("a", rain), Presence("a", False), Slack("a", 3, 0.1)):
        box.put(letter)
    for letter in (PromptChange("a", snow), Presence("a", True), Slack("a", 3, 0.2)):
        assert box.put(letter)
    first, second, third = box.take(0)
    assert isinstance(first, PromptChange) and first.prompt is snow
    assert second == Presence("a", True) and third == Slack("a", 3, 0.2)


def test_steering_of_a_new_connection_is_not_moved_before_its_arrival() -> None:
    """A resumed session counts its controls anew: one of them taken in by an older letter would go back in time."""
    box = Mailbox(8)
    for i in range(QUOTA[Steer]):
        box.put(steer("a", i + 100))
    box.put(Presence("a", True))
    box.put(steer("a", 1))
    *_, arrival, newest = box.take(0)
    assert arrival == Presence("a", True)
    assert isinstance(newest, Steer) and newest.control.seq == 1


def test_poses_and_joins_over_the_limit_are_refused_and_counted() -> None:
    box = Mailbox(max_joins=2)
    poses = np.eye(4, dtype=np.float32)[None]
    taken = [box.put(Extend("a", i + 1, poses)) for i in range(QUOTA[Extend] + 3)]
    assert taken == [True] * QUOTA[Extend] + [False] * 3
    assert [box.put(Join(name, START, "axes")) for name in "bcd"] == [True, True, False]
    assert box.refused == {"Extend": 3, "Join": 1}
    box.take(0)
    assert box.put(Join("d", START, "axes")) and box.put(Extend("a", 99, poses))  # taking makes room


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 5)), max_size=600))
def test_what_waits_is_bounded_by_the_sessions(posts: list[tuple[str, int]]) -> None:
    box = Mailbox(3)
    for session, kind in posts:
        box.put(
            [
                steer(session, 1), Extend(session, 1, np.zeros((1, 4, 4), np.float32)), Slack(session, 0, 0.0),
                Presence(session, True), PromptChange(session, Prompt("", None)), Leave(session),
            ][kind]
        )  # fmt: skip
    assert len(box) <= 2 * 3 * sum(QUOTA.values()) + 1
    assert len(box.take(0)) <= 3 * sum(QUOTA.values())


def test_taking_waits_for_a_letter_or_a_wake() -> None:
    box = Mailbox(8)
    taken: list[object] = []
    reader = threading.Thread(target=lambda: taken.extend(box.take(60)))
    reader.start()
    box.put(Leave("a"))
    reader.join(10)
    assert taken == [Leave("a")]
    box.wake()
    assert box.take(60) == []  # a wake before the wait is not lost
