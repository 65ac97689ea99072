"""Protects play on several ranks: one world to whoever uses it, whose end is one sentence when a rank is gone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.world.tiny_world import Life, Player, random_world, tiny_config
from world.chunk import Identity, Picture, WeightLayout
from world.leader import RankedWorld
from world.model import DiffusionWorld
from world.ranks import Ranks
from world.snapshot import Snapshot, read, write

CFG = tiny_config(num_heads=4, width=80, height=48)  # warped, 15 tokens
CHUNKS = 4


def quiet(stage: str, share: float) -> None: ...


def load(ranks: Ranks, report: object, layout: WeightLayout = "replicated") -> DiffusionWorld:
    return random_world(CFG, num_slots=3, ranks=ranks, layout=layout)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def world() -> Iterator[RankedWorld]:
    world = RankedWorld(load, 2, quiet, deadline_s=60.0)
    yield world
    world.end()


def play(world: RankedWorld | DiffusionWorld, players: list[Player], forwards: int) -> dict[int, list[Picture]]:
    """Who is not over takes part; pictures by slot."""
    made: dict[int, list[Picture]] = {player.slot: [] for player in players}
    for _ in range(forwards):
        due = [player for player in players if not player.is_over]
        if not due:
            break
        pictures = world.step([player.row(world) for player in due])
        assert [p.slot for p in pictures] == [p.slot for p in due if p.step_index == world.num_steps - 1]
        for picture in pictures:
            made[picture.slot].append(picture)
        for player in due:
            player.advanced(world.num_steps)
    return made


def party(world: RankedWorld | DiffusionWorld) -> list[Player]:
    """Three players: slots 1 and 3 are decoded by rank 0 of two, slot 2 by rank 1."""
    players = [Player(Life(who, 1, CHUNKS), slot) for who, slot in enumerate((2, 3, 1))]
    for player in players:
        world.open(player.slot, player.life.start(world))
    return players


def test_players_see_what_one_rank_would_show_them(world: RankedWorld) -> None:
    alone = random_world(CFG, num_slots=3)
    several, one = play(world, party(world), 99), play(alone, party(alone), 99)
    for slot in (1, 2, 3):
        world.close(slot)
        assert len(several[slot]) == len(one[slot]) == CHUNKS
        for got, expected in zip(several[slot], one[slot], strict=True):
            np.testing.assert_allclose(got.means, expected.means, atol=1e-5)
            assert got.frames.shape == expected.frames.shape and len(got.digest) == len(expected.digest)
            assert np.abs(got.frames.astype(int) - expected.frames).max() <= 1, "a rounding of a last bit"


def test_a_kept_state_goes_on_to_the_bit_in_a_slot_that_another_rank_decodes(
    world: RankedWorld, tmp_path: Path
) -> None:
    player, f = Player(Life(0, 1, CHUNKS), 1), world.num_steps + 1
    world.open(1, player.life.start(world))
    play(world, [player], 2 * f)
    write(tmp_path / "state.safetensors", Snapshot(world.export(1), {}))
    rest = play(world, [player], 99)[1]
    world.close(1)
    state = read(tmp_path / "state.safetensors").state
    for slot in (2, 1):
        world.restore(slot, state)
        again = play(world, [Player(player.life, slot, chunk_index=2)], 99)[slot]
        world.close(slot)
        assert [p.digest for p in again] == [p.digest for p in rest] and len(rest) == 2
        assert all(np.array_equal(a.frames, b.frames) for a, b in zip(again, rest, strict=True))


def test_a_state_that_one_rank_alone_finds_wrong_changes_nothing(world: RankedWorld) -> None:
    player = Player(Life(0, 1, CHUNKS), 1)
    world.open(1, player.life.start(world))
    whole = world.export(1)
    assert world.state_bytes == sum(t.data.size for name, t in whole.tensors.items() if name.startswith("slab."))
    theirs = next(name for name in whole.tensors if name.endswith("@1"))
    cut = type(whole)({n: t for n, t in whole.tensors.items() if n != theirs}, whole.facts)
    wrong = type(whole)({**whole.tensors, theirs: whole.tensors["slab.x"]}, whole.facts)
    for state in (cut, wrong):
        with pytest.raises(ValueError, match=r"slot of this world"):
            world.restore(1, state)
    expected = play(world, [player], 99)[1]
    world.restore(2, whole)
    again = play(world, [Player(player.life, 2)], 99)[2]
    assert [p.digest for p in again] == [p.digest for p in expected]
    for slot in (1, 2):
        world.close(slot)


def test_what_is_refused_disturbs_nobody(world: RankedWorld) -> None:
    player = Player(Life(1, 1, CHUNKS), 1)
    start = player.life.start(world)
    world.open(1, start)
    with pytest.raises(ValueError, match="slot 9 is not one of 1 to 3"):
        world.open(9, start)
    with pytest.raises(KeyError):
        world.close(3)
    with pytest.raises(KeyError):
        world.step([player.life.row(world, 2, 0, 0)])
    assert len(play(world, [player], 99)[1]) == CHUNKS
    world.close(1)


def test_the_arithmetic_names_the_ranks(world: RankedWorld) -> None:
    several: Identity = world.identify(quiet)
    one = random_world(CFG).identify(quiet)
    assert (several.weights, several.rounded, several.config) == (one.weights, one.rounded, one.config)
    assert several.arithmetic == {**one.arithmetic, "ranks": "2"} and "ranks" not in one.arithmetic
