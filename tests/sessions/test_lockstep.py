"""Protects an agent's world from its speed: the same steering makes the same chunks, whenever it comes, whoever plays.
And protects everybody else: who waits for an agent costs nothing, and its waiting is nobody's lateness."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from session_simulation import Simulation

from sessions.control import Control
from sessions.lockstep import CHUNKS_AHEAD, MAX_QUEUED_CONTROLS, ControlQueueFull
from sessions.moment import Past, Save, pack, unpack
from sessions.session import Session
from sessions.tick import Finished
from world.motion import keyboard_poses

TURN = (0.0, 0.0, 1.0, 0.0)
REST = (0.0, 0.0, 0.0, 0.0)


class Agents(Simulation):
    """Sessions in lockstep whose frames leave as they are made."""

    def enter(self, name: str, control: str = "axes", seed: int = 1) -> Session:
        return self.game.join(name, self.start(seed), control, self.now_s, lockstep=True)  # type: ignore[arg-type]

    def control(self, name: str, seq: int, *axes: float, look: tuple[float, float] = (0.0, 0.0)) -> None:
        forward, right, turn, pitch = (*axes, 0.0, 0.0, 0.0, 0.0)[:4]
        self.game.steer(name, Control(seq, seq * 7.0, (forward, right, turn, pitch), look))

    def tick(self) -> None:
        before = len(self.finished)
        super().tick()
        for chunk in self.finished[before:]:
            self.game.left(chunk.session_id, chunk.chunk_index)


def essence(chunks: Iterable[Finished]) -> list[tuple[object, ...]]:
    """All that an agent sees of its world, and of what it was made."""
    return [
        (c.chunk_index, c.control_seq, c.poses.tobytes(), c.picture.digest, c.prompt and c.prompt.text) for c in chunks
    ]


Deeds = list[tuple[float, float, str | None]]  # for each chunk: turn, look, and a prompt before it


def deeds() -> st.SearchStrategy[Deeds]:
    turns, looks, prompts = [-1.0, -0.5, 0.0, 1.0], [0.0, 2.5], [None, "fog"]
    one = st.tuples(st.sampled_from(turns), st.sampled_from(looks), st.sampled_from(prompts))
    return st.lists(one, min_size=1, max_size=8)


def perform(game: Agents, name: str, seq: int, deed: tuple[float, float, str | None]) -> None:
    turn, look, prompt = deed
    if prompt is not None:
        game.game.set_prompt(name, game.world.encode_prompt(prompt))
    game.control(name, seq, 1.0, 0.0, turn, look=(look, 0.0))


@settings(max_examples=60)
@given(deeds(), st.data(), st.sampled_from([1, 3]))
def test_whenever_two_agents_steer_each_gets_the_chunks_it_gets_alone(
    plan: Deeds, data: st.DataObject, chunk_frames: int
) -> None:
    plans = {"a": plan, "b": data.draw(deeds())}
    alone = {}
    for name, todo in plans.items():
        game = Agents(chunk_frames=chunk_frames)
        game.enter(name)
        game.run(1.0)
        for seq, deed in enumerate(todo, 1):  # at once, one after another
            perform(game, name, seq, deed)
            game.run(1.0)
        alone[name] = essence(game.finished)
        assert len(alone[name]) == len(todo) + 1, "chunk 0 shows the start, then a chunk a control"
    game = Agents(chunk_frames=chunk_frames)
    game.join("human")
    for name in plans:
        game.enter(name)
    seqs = {"a": 1, "b": 1}
    while any(seqs[name] <= len(todo) for name, todo in plans.items()):
        name = data.draw(st.sampled_from(sorted(n for n, todo in plans.items() if seqs[n] <= len(todo))))
        perform(game, name, seqs[name], plans[name][seqs[name] - 1])
        seqs[name] += 1
        game.run(data.draw(st.sampled_from([0.0, 0.001, 0.05, 0.7])))
    game.run(3.0)
    assert {name: essence(game.chunks(name)) for name in plans} == alone
    human = game.chunks("human")
    assert sum(chunk.late_s for chunk in human) == 0 and len(human) >= 3 * 16 // (4 * chunk_frames) - 1


def test_a_control_counts_for_one_chunk_and_is_held_for_all_of_it() -> None:
    game = Agents()
    game.enter("a")
    for seq, axes in enumerate((TURN, REST, TURN), 1):
        game.control("a", seq, *axes)
    game.run(5.0)
    steers = [chunk.path.steer for chunk in game.finished]
    assert [[(s.duration_s, s.axes) for s in steer.segments] for steer in steers] == [
        [], [(0.25, TURN)], [(0.25, REST)], [(0.25, TURN)],
    ]  # fmt: skip
    assert [chunk.control_seq for chunk in game.finished] == [0, 1, 2, 3]


def test_the_first_chunk_stands_still_even_where_it_is_a_whole_one() -> None:
    game = Agents(chunk_frames=3)
    game.enter("a")
    game.control("a", 1, *TURN)
    game.run(2.0)
    first, second = game.finished
    assert np.array_equal(first.poses, np.tile(np.eye(4, dtype=np.float32), (9, 1, 1)))
    assert first.control_seq == 0 and second.control_seq == 1 and not np.array_equal(second.poses[-1], first.poses[-1])


def test_poses_make_a_chunk_when_all_of_its_frames_have_one() -> None:
    game = Agents()
    game.enter("a", "poses")
    poses = np.tile(np.eye(4, dtype=np.float32), (9, 1, 1))
    poses[:, 2, 3] = np.arange(9)
    counts = []
    for n in range(9):
        game.game.extend("a", n + 1, poses[n : n + 1])
        game.run(2.0)
        counts.append(len(game.finished))
    assert counts == [1, 1, 1, 1, 2, 2, 2, 2, 3]
    assert np.array_equal(np.concatenate([chunk.poses for chunk in game.finished]), poses)


def test_a_prompt_takes_hold_with_the_steering_that_came_after_it() -> None:
    game = Agents()
    game.enter("a")
    game.run(1.0)
    game.control("a", 1, 1.0)
    game.game.set_prompt("a", game.world.encode_prompt("fog"))
    session = game.game.roster["a"]
    game.game.set_prompt("a", game.world.encode_prompt("snow"))
    game.control("a", 2, 1.0)
    game.run(3.0)
    assert [chunk.prompt and chunk.prompt.text for chunk in game.finished] == [None, None, "snow"]
    assert session.prompts_replaced == 1


def test_who_waits_for_an_agent_costs_nothing_and_its_waiting_is_not_late() -> None:
    game = Agents()
    game.enter("a")
    game.run(1.0)
    assert game.game.due_s(game.now_s) is None, "nothing to do until it steers"
    forwards = game.game.counters.forwards
    game.now_s += 50.0
    game.run(50.0)
    assert game.game.counters.forwards == forwards
    for seq in range(1, 6):
        game.control("a", seq, 1.0)
        asked_s = game.now_s
        game.run(20.0)
        assert game.finished[-1].finished_s == pytest.approx(asked_s + 2 * 0.02), "at once, whatever the clock"
    assert game.game.counters.late_chunks == 0 and game.game._planner.service.mean_s is None


def test_those_in_real_time_go_first_and_agents_are_not_forgotten() -> None:
    """One row a forward: two hungry agents use what a human leaves, and are not starved by three."""
    game = Agents(max_rows=1, cost_s=lambda rows: 0.02)
    game.join("human")
    for name in "ab":
        game.enter(name)
    seqs = {"a": 0, "b": 0}

    def feed(seconds: float) -> None:
        until_s = game.now_s + seconds
        while game.now_s < until_s:
            for name in seqs:
                if game.game.roster[name].state == "waiting" and game.game.roster[name].chunk_index == seqs[name] + 1:
                    seqs[name] += 1
                    game.control(name, seqs[name], 1.0)
            game.now_s = max(game.now_s, game.game.due_s(game.now_s) or until_s)
            game.tick()

    feed(20.0)
    assert len(game.chunks("human")) >= 20 * 4 - 2
    assert sum(chunk.late_s for chunk in game.chunks("human")) < 0.3
    assert min(seqs.values()) > 100 and max(seqs.values()) - min(seqs.values()) <= 1
    before = dict(seqs)
    game.game.leave("human")
    for name in ("x", "y"):
        game.join(name)
    game.cost_s = lambda rows: 0.1  # more than there is time for
    feed(60.0)
    assert min(seqs[name] - before[name] for name in seqs) > 20


def test_frames_that_have_not_left_hold_the_next_chunks_up() -> None:
    game = Simulation()
    game.game.join("a", game.start(), "axes", game.now_s, lockstep=True)
    for seq in range(1, 9):
        game.game.steer("a", Control(seq, seq * 1.0, TURN))
    game.run(10.0)
    assert len(game.finished) == CHUNKS_AHEAD
    for left in range(6):
        game.game.left("a", left)
        game.run(10.0)
        assert len(game.finished) == CHUNKS_AHEAD + left + 1
    game.game.left("a", 2)  # late news changes nothing
    game.run(10.0)
    assert len(game.finished) == CHUNKS_AHEAD + 6


def test_too_many_controls_and_old_ones_are_refused() -> None:
    game = Agents()
    game.enter("a")
    game.control("a", 2, 1.0)
    with pytest.raises(ValueError, match="older"):
        game.control("a", 2, 1.0)
    with pytest.raises(ValueError, match="older"):
        game.game.steer("a", Control(3, 0.0, TURN))
    for seq in range(3, MAX_QUEUED_CONTROLS + 2):
        game.control("a", seq, 1.0)
    with pytest.raises(ControlQueueFull):
        game.control("a", 99, 1.0)
    game.run(10.0)
    assert [chunk.control_seq for chunk in game.finished] == [0, *range(2, MAX_QUEUED_CONTROLS + 2)]


@pytest.mark.parametrize("control", ["axes", "poses"])
def test_who_comes_back_starts_with_nothing_steered(control: str) -> None:
    game = Agents()
    game.enter("a", control)

    def steer(seq: int, chunks: int) -> None:
        for n in range(chunks):
            if control == "axes":
                game.control("a", seq + n, 1.0)
            else:
                game.game.extend("a", seq + n, np.tile(np.eye(4, dtype=np.float32), (4, 1, 1)))

    steer(5, 3)
    game.tick()  # chunk 0 is under way
    game.game.detach("a")
    game.run(5.0)
    assert len(game.finished) == 1
    game.game.attach("a", game.now_s)
    game.run(5.0)
    assert len(game.finished) == 1, "what was steered is gone"
    steer(1, 2)
    game.run(5.0)
    assert [chunk.chunk_index for chunk in game.finished] == [0, 1, 2]
    assert game.game.counters.late_chunks == 0


WALK = keyboard_poses("wl-40,wj-40")


def saved_between(game: Agents, control: str) -> Save:
    """An agent `a` whose sixth chunk is next, with steering and a prompt that wait."""
    game.enter("a", control)
    for chunk in range(7):
        if chunk == 6:
            game.game.set_prompt("a", game.world.encode_prompt("snow"))
        turn_to(game, "a", control, chunk)
    session = game.game.roster["a"]
    while session.chunk_index < 6:
        game.now_s = game.game.due_s(game.now_s) or game.now_s
        game.tick()
    save = game.game.save("a", "here")
    return Save(unpack(pack(save.moment)), save.state)  # as it comes out of a file


def turn_to(game: Agents, name: str, control: str, chunk: int) -> None:
    """Steer one chunk."""
    first, n = game.geometry.first_video_frame(chunk), game.geometry.video_frames(chunk)
    if control == "poses":
        game.game.extend(name, chunk + 1, WALK[first : first + n])
    elif chunk:
        game.control(name, chunk, 1.0, 0.0, (-1.0) ** chunk, look=(chunk / 2, 0.0))


def go_on(game: Agents, name: str, control: str, chunks: Sequence[int]) -> list[tuple[object, ...]]:
    made = len(game.finished)
    for chunk in chunks:
        turn_to(game, name, control, chunk)
        game.run(1.0)
    return essence(chunk for chunk in game.finished[made:] if chunk.session_id == name)


@pytest.mark.parametrize("control", ["axes", "poses"])
def test_an_agent_goes_back_or_forks_and_the_same_steering_makes_the_same_chunks(control: str) -> None:
    game = Agents()
    save = saved_between(game, control)
    asked = game.world.encode_prompt("snow")
    assert save.moment.next_prompt == "snow"
    game.run(1.0)  # what waited
    first = [*essence(game.finished[-1:]), *go_on(game, "a", control, range(7, 11))]
    assert [of[0] for of in first] == [6, 7, 8, 9, 10] and first[0][4] == "snow"
    for chunk in (11, 12):
        turn_to(game, "a", control, chunk)
    game.tick()  # a chunk is under way, and steering waits for the next
    game.game.rewind("a", save, asked, game.now_s)
    made = len(game.finished)
    game.run(1.0)
    assert len(game.finished) == made, "the steering that waited is not part of a save"
    assert go_on(game, "a", control, range(6, 11)) == first
    game.game.fork("b", save, asked, game.now_s, lockstep=True)
    assert go_on(game, "b", control, range(6, 11)) == first, "another slot, the same agent"
    assert go_on(game, "a", control, [11])[0][0] == 11, "and its parent is where it was"
    game.game.fork("human", save, None, game.now_s)
    game.run(1.0)
    assert game.chunks("human"), "whether it goes on in lockstep, the fork says"


@pytest.mark.parametrize("control", ["axes", "poses"])
def test_an_agent_whose_server_died_goes_on_where_it_was(control: str) -> None:
    game = Agents()
    save = saved_between(game, control)
    game.run(1.0)
    before = go_on(game, "a", control, [7])
    session = game.game.roster["a"]
    heading = session.trajectory.heading
    past = [Past(chunk.path, chunk.prompt, chunk.picture.digest) for chunk in game.finished[-2:]]
    expected = go_on(game, "a", control, range(8, 11))
    game.game.fork("b", save, None, game.now_s, lockstep=True)
    game.game.retrace("b", past, heading, None, ())
    made = len(game.finished)
    game.run(1.0)
    again = game.game.roster["b"]
    assert (again.chunk_index, again.digest) == (8, before[0][3]) and len(game.finished) == made
    game.game.detach("b")
    game.game.attach("b", game.now_s)
    assert go_on(game, "b", control, range(8, 11)) == expected


def test_news_of_chunks_that_were_left_does_not_let_an_agent_run_ahead() -> None:
    game = Simulation()
    game.game.join("a", game.start(), "axes", game.now_s, lockstep=True)
    save = game.game.save("a")
    for seq in range(1, 9):
        game.game.steer("a", Control(seq, seq * 1.0, TURN))
    game.run(1.0)
    game.game.left("a", 0)
    game.run(1.0)
    assert len(game.finished) == 3
    game.game.rewind("a", save, None, game.now_s, same_clock=False)
    game.game.left("a", 2)
    for seq in range(1, 9):  # and it counts anew
        game.game.steer("a", Control(seq, seq * 1.0, TURN))
    game.run(10.0)
    assert len(game.finished) == 3 + CHUNKS_AHEAD
