"""Save, play on, load and repeat: the same bits, whatever the session was doing, for axes and poses, alone and beside
its parent. The pattern world's digests are of everything that ever came, so equal ones mean equal histories.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from session_simulation import Simulation

from sessions.control import Control
from sessions.moment import Save, pack, unpack
from sessions.session import IllegalState, State
from sessions.tick import Finished


def between(game: Simulation, session_id: str) -> None:
    """On to the end of the chunk under way."""
    while game.game.roster[session_id].in_chunk:
        game.tick()


def scene(num_slots: int = 4) -> Simulation:
    return Simulation(num_slots=num_slots, num_steps=3, cost_s=lambda rows: 0.013)


def steered(game: Simulation, name: str, seq: int, t_ms: float, *axes: float, look: float = 0.0) -> None:
    held = (*axes, *[0.0] * (4 - len(axes)))
    game.game.steer(name, Control(seq, t_ms, held, (look, 0.0)))  # type: ignore[arg-type]


def busy(game: Simulation, name: str = "a") -> Save:
    """Somebody who holds one axis, has tapped another, has a push under way, looks, and asked for a prompt."""
    game.join(name)
    steered(game, name, 1, 0.0, 1.0)
    game.run(0.7)
    between(game, name)
    steered(game, name, 2, 100.0, 1.0, 0.0, 1.0, look=3.0)
    steered(game, name, 3, 130.0, 1.0, -1.0)
    game.game.set_prompt(name, game.world.encode_prompt("snow"))
    return game.game.save(name)


def play_on(game: Simulation, *names: str) -> list[list[Finished]]:
    """Four chunks of each, with the same hands each time: the push under way at the save ends, and so on."""
    sessions = {name: game.game.roster[name] for name in names}
    first, made = {name: session.chunk_index for name, session in sessions.items()}, len(game.finished)
    for name in names:
        steered(game, name, 4, 150.0, 1.0, 0.0, -0.5)
    turned: set[str] = set()
    while any(session.chunk_index < first[name] + 4 for name, session in sessions.items()):
        game.now_s = game.game.due_s(game.now_s) or game.now_s
        game.tick()
        for name, session in sessions.items():
            if name not in turned and not session.in_chunk and session.chunk_index == first[name] + 2:
                turned.add(name)
                steered(game, name, 5, 700.0, 0.0, 0.0, 1.0, look=-7.0)
    return [[c for c in game.finished[made:] if c.session_id == name][:4] for name in names]


def same(one: list[Finished], other: list[Finished]) -> bool:
    pairs = list(zip(one, other, strict=True))
    return all(
        a.picture.digest == b.picture.digest and a.path.poses.tobytes() == b.path.poses.tobytes() for a, b in pairs
    )


def test_played_on_loaded_and_repeated_it_is_the_same() -> None:
    game = scene()
    save = busy(game)
    save = replace(save, moment=unpack(pack(save.moment)))  # as it comes out of a file
    (first,) = play_on(game, "a")
    game.game.rewind("a", save, game.world.encode_prompt("snow"), game.now_s)
    (again,) = play_on(game, "a")
    assert len(first) == 4 and same(first, again)
    assert first[0].prompt is not None and first[0].prompt.text == "snow", "the prompt that waited came back too"
    game.game.rewind("a", replace(save, moment=replace(save.moment, next_prompt=None)), None, game.now_s)
    assert not same(first, play_on(game, "a")[0]), "nobody would notice if the prompt were lost"


def test_a_fork_in_company_of_its_parent_and_both_alone() -> None:
    solo = scene()
    busy(solo)
    (alone,) = play_on(solo, "a")
    game = scene()
    save = busy(game)
    game.game.fork("b", save, game.world.encode_prompt("snow"), game.now_s)
    parent, fork = play_on(game, "a", "b")
    assert same(alone, parent) and same(alone, fork)
    game.game.fork("c", save, game.world.encode_prompt("snow"), game.now_s)
    game.game.rewind("a", save, game.world.encode_prompt("snow"), game.now_s)
    assert all(same(alone, made) for made in play_on(game, "c", "a")), "and again, while b plays on"


def test_poses_that_wait_are_saved_too() -> None:
    walk = np.tile(np.eye(4, dtype=np.float32), (40, 1, 1))
    walk[:, 2, 3] = np.arange(40) / 10
    game = scene()
    game.join("a", control="poses")
    game.game.extend("a", 3, walk)
    game.run(0.5)
    between(game, "a")
    save = game.game.save("a")
    save = replace(save, moment=unpack(pack(save.moment)))
    assert save.moment.heading.queue

    def rest(name: str) -> list[Finished]:
        before = len(game.chunks(name))
        game.run(1.5)
        return game.chunks(name)[before:][:5]

    first = rest("a")
    game.game.rewind("a", save, None, game.now_s)
    game.game.fork("b", save, None, game.now_s)
    before = len(game.chunks("b"))
    assert same(first, rest("a")) and same(first, game.chunks("b")[before:][:5])


def test_a_chunk_under_way_is_not_saved_and_is_given_up_by_who_goes_back() -> None:
    game = scene()
    save = busy(game)
    while game.game.roster["a"].state is not State.DENOISING:
        game.now_s = game.game.due_s(game.now_s) or game.now_s
        game.tick()
    with pytest.raises(IllegalState):
        game.game.save("a")
    game.game.rewind("a", save, None, game.now_s)
    game.run(0.3)
    assert [c.chunk_index for c in game.chunks("a")].count(save.moment.chunk_index) == 1, "its frames never came out"


def test_who_is_away_goes_back_and_stays_away() -> None:
    game = scene()
    save = busy(game)
    game.game.detach("a")
    game.game.rewind("a", save, None, game.now_s)
    made = len(game.finished)
    game.run(1.0)
    assert game.game.roster["a"].state is State.DETACHED and len(game.finished) == made


def test_another_clock_and_count_go_on_with_what_was_held() -> None:
    game = scene()
    save = busy(game)
    game.game.rewind("a", save, None, game.now_s, same_clock=False)
    assert game.game.roster["a"].moment().heading.control_seq == 0
    steered(game, "a", 1, 5e9, 1.0, 0.0, -0.5)  # neither seq 4 nor a push of 57 days
    game.run(0.4)
    chunk = next(c for c in game.chunks("a") if c.chunk_index == save.moment.chunk_index)
    assert chunk.control_seq == 1 or chunk.control_seq == 0
    assert chunk.path.steer.segments[0].axes[0] == 1.0


def test_a_save_of_another_kind_of_control_is_refused() -> None:
    game = scene()
    save = busy(game)
    game.join("p", control="poses")
    with pytest.raises(ValueError, match="axes"):
        game.game.rewind("p", save, None, game.now_s)


@pytest.mark.parametrize("data", [b"", b"\xc1", b"\x80", b"\x93\x01\x02\x03", pack(busy(scene()).moment)[:-3]])
def test_what_is_no_moment_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError):
        unpack(data)
