"""The game under random schedules: nobody starves or rushes, overload is shared, no tap is lost, slots stay apart.

The pattern world raises if a row is out of order, so every test here also says that rows follow the protocol.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from session_simulation import Simulation

from sessions.roster import DuplicateSession, Full, UnknownSession
from sessions.session import State
from sessions.tick import RowMark
from sessions.trajectory import PoseQueueFull
from world.chunk import Row
from world.motion import yaw_deg
from world.pattern import Misuse, prompt_mark, read_pattern

LEFT = (0.0, 0.0, -1.0)


def yaw(simulation: Simulation, session_id: str) -> float:
    return yaw_deg(simulation.chunks(session_id)[-1].poses[-1])


@pytest.mark.parametrize("chunk_frames, cost_s", [(1, 0.02), (1, 0.06), (3, 0.1)])
def test_one_player_gets_real_time_with_no_late_chunk(chunk_frames: int, cost_s: float) -> None:
    game = Simulation(chunk_frames=chunk_frames, cost_s=lambda rows: cost_s)
    game.join("a")
    game.run(30.0)
    chunks = game.chunks("a")
    assert [c.chunk_index for c in chunks] == list(range(len(chunks)))
    assert all(c.late_s == 0 for c in chunks)
    settled = chunks[10:]
    fps = (settled[-1].first_frame - settled[0].first_frame) / (settled[-1].finished_s - settled[0].finished_s)
    assert fps == pytest.approx(16, rel=0.01)
    for before, after in pairwise(settled):  # never more than one chunk waits
        assert after.finished_s >= before.deadline_s - 1e-9
    lead_s = settled[-1].deadline_s - settled[-1].started_s
    assert lead_s == pytest.approx(2 * cost_s + 0.03, abs=0.01) or cost_s == 0.1  # just in time


def test_frames_come_out_before_the_commit_and_carry_what_they_were_made_from() -> None:
    game = Simulation(num_steps=3)
    session = game.join("a")
    for _ in range(4):
        game.tick()
    game.steer("a", 1.0)
    game.game.set_prompt("a", game.world.encode_prompt("night"))
    for _ in range(3):
        game.now_s = game.game.due_s(game.now_s) or game.now_s
        assert len(game.finished) == 1
        game.tick()
    first, second = game.finished
    assert session.state is State.COMMITTING
    assert (first.chunk_index, first.first_frame, first.control_seq, first.prompt) == (0, 0, 0, None)
    assert (second.chunk_index, second.first_frame, second.control_seq) == (1, 1, 1)
    assert second.prompt is not None and second.prompt.text == "night"
    assert [len(c.poses) for c in game.finished] == [len(c.picture.frames) for c in game.finished] == [1, 4]
    assert second.finished_s - second.started_s == pytest.approx(0.06)
    assert np.allclose(second.poses[:, 2, 3], [0.05, 0.1, 0.15, 0.2])
    assert [read_pattern(f).prompt for f in second.picture.frames] == [prompt_mark("night")] * 4


def test_players_at_different_chunks_and_steps_share_one_forward() -> None:
    game = Simulation(num_steps=3, cost_s=lambda rows: 0.06)
    for name in "abc":
        game.join(name)
        game.tick()
        game.tick()
        game.run(0.3)
    assert game.game.counters.mixed > 0
    assert any(
        len({r.slot for r in mix}) == len({r.chunk_index for r in mix}) == len({r.step_index for r in mix}) == 3
        for mix in game.game.counters.recent
    )
    counters = game.game.counters
    assert counters.rows == sum(size * count for size, count in counters.forwards_of.items())
    assert counters.forwards == sum(counters.forwards_of.values())


def test_a_newcomer_waits_for_one_forward_only() -> None:
    game = Simulation(num_steps=4, cost_s=lambda rows: 0.05)
    game.join("a")
    game.tick()
    game.join("b")
    game.game.tick(game.now_s, lambda: game.now_s)
    assert game.game.counters.recent[-1] == (RowMark(1, 0, 1), RowMark(2, 0, 0))


@pytest.mark.parametrize("max_rows", [1, 2, 4])
def test_overload_slows_everybody_equally(max_rows: int) -> None:
    game = Simulation(max_rows=max_rows, cost_s=lambda rows: 0.05 + 0.05 * len(rows))
    for name in "abcd":
        game.join(name)
    game.run(60.0)
    progress = [session.chunk_index for session in game.game.roster]
    assert max(progress) - min(progress) <= 1
    assert 20 < min(progress) < 200  # slower than real time, but moving
    late = [session.pacing.late_s for session in game.game.roster]
    assert min(late) > 10 and max(late) - min(late) < 1.0
    game.cost_s = lambda rows: 0.001  # relief: nobody rushes to make up for it
    begin_s, frames = game.now_s, game.game.counters.frames
    game.run(20.0)
    assert (game.game.counters.frames - frames) / (game.now_s - begin_s) == pytest.approx(4 * 16, rel=0.03)


def test_a_player_alone_again_is_back_at_full_speed() -> None:
    game = Simulation(max_rows=1, cost_s=lambda rows: 0.07)
    for name in "abcd":
        game.join(name)
    game.run(20.0)
    for name in "abc":
        game.game.leave(name)
    game.run(2.0)
    begin = game.chunks("d")[-1]
    game.run(20.0)
    end = game.chunks("d")[-1]
    fps = (end.first_frame - begin.first_frame) / (end.finished_s - begin.finished_s)
    assert fps == pytest.approx(16, rel=0.03)


def test_reported_slack_starts_chunks_later_or_earlier() -> None:
    leads = []
    for wait_s in (0.0, 0.1):  # the client plays so much later than the server knows
        game = Simulation()
        game.join("a")
        due_s = 0.0
        for _ in range(80):
            game.run(0.1)
            for chunk in game.chunks("a")[-1:]:
                due_s = max(due_s, game.chunks("a")[1].finished_s + wait_s if chunk.chunk_index else 0.0)
                played_s = due_s + (chunk.first_frame - 1) / 16
                if chunk.chunk_index >= 2:
                    game.game.report_slack("a", played_s - chunk.finished_s, chunk.chunk_index)
        leads.append(played_s - game.chunks("a")[-1].started_s)
    assert leads[0] == pytest.approx(leads[1], abs=0.02)  # with the wait unknown, the second were 0.1 longer


def test_taps_between_chunks_turn_the_camera_by_their_length() -> None:
    game = Simulation()
    game.join("a")
    game.run(1.0)
    before = yaw(game, "a")
    for _ in range(8):  # 100 ms each, a second apart, wherever chunk starts lie
        game.run(0.4 + game.now_s % 0.07)
        game.steer("a", *LEFT)
        game.now_s += 0.001
        game.run(0.099)
        game.steer("a")
        game.run(0.9)
    # Seen by a chunk start it lasts that chunk (8 degrees), else its 100 ms (3.2 degrees); never nothing.
    turned = before - yaw(game, "a")
    counts = [(n * 8 + (8 - n) * 3.2) for n in range(9)]
    assert min(abs(turned - count) for count in counts) < 0.1


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.floats(0.0, 0.6), st.floats(-30, 30)), max_size=20), st.sampled_from([1, 3]))
def test_every_degree_looked_arrives(looks: list[tuple[float, float]], chunk_frames: int) -> None:
    game = Simulation(chunk_frames=chunk_frames)
    game.join("a")
    for wait_s, look in looks:
        game.run(wait_s)
        game.steer("a", look=(look, 0.0))
    game.run(4.0)
    wanted = sum(look for _, look in looks)
    assert (yaw(game, "a") - wanted + 180) % 360 - 180 == pytest.approx(0, abs=1e-2)


def test_explicit_poses_are_played_and_their_overflow_is_refused() -> None:
    game = Simulation()
    game.join("a", "poses")
    game.run(3.0)
    assert game.finished == []  # a stream of poses begins with its first one
    poses = np.tile(np.eye(4, dtype=np.float32), (9, 1, 1))
    poses[:, 2, 3] = np.arange(9)
    game.game.extend("a", 5, poses)
    game.run(2.0)
    played = np.concatenate([c.poses for c in game.finished])
    assert np.array_equal(played[:9], poses) and np.array_equal(
        played[9:], np.tile(poses[-1:], (len(played) - 9, 1, 1))
    )
    assert [c.control_seq for c in game.finished[:3]] == [5, 5, 5]
    assert game.game._planner.service.mean_s == pytest.approx(0.04, abs=0.01)  # waiting for poses is no service
    with pytest.raises(PoseQueueFull):
        game.game.extend("a", 6, np.tile(poses[:1], (2000, 1, 1)))


def test_a_lost_connection_keeps_the_slot_and_stops_the_work() -> None:
    game = Simulation(num_slots=1)
    game.join("a")
    game.steer("a", 1.0)
    game.run(2.0)
    game.game.detach("a")
    game.run(1.0)
    chunks = len(game.finished)
    game.run(30.0)
    assert len(game.finished) == chunks and game.game.due_s(game.now_s) is None
    with pytest.raises(Full):
        game.join("b")
    game.game.attach("a", game.now_s)
    stopped = game.finished[-1].poses[-1]
    game.run(2.0)
    assert [c.chunk_index for c in game.finished] == list(range(len(game.finished)))
    assert np.array_equal(game.finished[-1].poses[-1], stopped)  # and lets go of the keys
    assert sum(c.late_s for c in game.finished) == 0


def test_leaving_in_the_middle_of_a_chunk_frees_the_slot() -> None:
    game = Simulation(num_slots=2)
    game.join("a")
    game.join("b")
    game.tick()
    game.game.leave("a")
    assert game.join("c").slot == 1
    game.run(1.0)
    assert {c.session_id for c in game.finished} == {"b", "c"}
    assert game.chunks("c")[0].chunk_index == 0


def test_strangers_and_doubles_are_refused() -> None:
    game = Simulation(num_slots=2)
    game.join("a")
    with pytest.raises(DuplicateSession):
        game.join("a")
    calls: list[tuple[Any, ...]] = [
        (game.game.leave,), (game.game.detach,), (game.game.attach, 0.0), (game.steer, 1.0),
        (game.game.set_prompt, game.world.encode_prompt("x")), (game.game.report_slack, 0.1),
        (game.game.extend, 1, np.eye(4, dtype=np.float32)[None]),
    ]  # fmt: skip
    for call, *args in calls:
        with pytest.raises(UnknownSession):
            call("nobody", *args)


def test_a_failed_forward_is_run_again() -> None:
    faults = [RuntimeError("out of memory")] * 3

    def cost_s(rows: Sequence[Row]) -> float:
        if game.now_s > 101 and faults:
            raise faults.pop()
        return 0.02

    game = Simulation(cost_s=cost_s)
    game.join("a")
    game.steer("a", 1.0)
    for _ in range(3):
        with pytest.raises(RuntimeError, match="memory"):
            game.run(5.0)
    game.run(2.0)
    poses = np.concatenate([c.poses for c in game.finished])
    assert [c.chunk_index for c in game.finished] == list(range(len(game.finished)))
    assert np.allclose(np.diff(poses[:, 2, 3]), 0.05, atol=1e-5)  # no control was used up by the failures


def test_the_pattern_world_would_notice_a_wrong_row() -> None:
    game = Simulation()
    game.join("a").begin(game.now_s, game.now_s, 0)
    game.game.roster["a"].step_index = 1
    with pytest.raises(Misuse):
        game.tick()


ACTIONS = ("join", "leave", "steer", "tap", "look", "prompt", "detach", "attach", "slack", "slow", "wait")


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(ACTIONS), st.integers(0, 5), st.floats(0.0, 0.5)), max_size=60),
    st.integers(1, 4), st.integers(1, 4), st.sampled_from([1, 3]), st.integers(0, 99),
)  # fmt: skip
def test_any_schedule_keeps_everybody_moving(
    schedule: list[tuple[str, int, float]], max_rows: int, num_steps: int, chunk_frames: int, seed: int
) -> None:
    jitter, slow = random.Random(seed), [1.0]
    game = Simulation(4, max_rows, chunk_frames, num_steps, lambda rows: slow[0] * jitter.uniform(0.005, 0.03))
    playing: dict[str, int] = {}
    for action, who, wait_s in schedule:
        name = str(who)
        if action == "join" and name not in playing:
            if len(playing) == 4:
                with pytest.raises(Full):
                    game.join(name)
            else:
                game.finished = [c for c in game.finished if c.session_id != name]
                playing[name] = game.join(name).slot
        elif action == "slow":
            slow[0] = 1.0 + 20.0 * wait_s
        elif name in playing:
            if action == "leave":
                game.game.leave(name)
                del playing[name]
            elif action in ("steer", "look"):
                game.steer(name, 1.0, 0.0, wait_s, look=(who * 10.0, 0.0))
            elif action == "tap":
                game.steer(name, 0.0, 1.0)
                game.run(wait_s / 4)
                game.steer(name)
            elif action == "prompt":
                game.game.set_prompt(name, game.world.encode_prompt(str(wait_s)))
            elif action == "detach":
                game.game.detach(name)
            elif action == "attach":
                game.game.attach(name, game.now_s)
            elif action == "slack":
                game.game.report_slack(name, wait_s - 0.25)
        game.run(wait_s)
    slow[0] = 1.0
    for name in playing:
        game.game.attach(name, game.now_s)
    before = {session.id: session.chunk_index for session in game.game.roster}
    game.run(6.0 * chunk_frames)
    for session in game.game.roster:
        assert session.slot == playing[session.id]
        assert session.chunk_index >= before[session.id] + 2  # nobody starves
        chunks = game.chunks(session.id)
        assert [c.chunk_index for c in chunks] == list(range(len(chunks)))
        first = [c.first_frame for c in chunks]
        assert first == [0, *np.cumsum([len(c.picture.frames) for c in chunks])[:-1]]
    for mix in game.game.counters.recent:
        assert len({row.slot for row in mix}) == len(mix) <= max_rows
