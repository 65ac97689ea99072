"""Players are independent: whatever company keeps, a player's latents and pictures are the bits it has alone.

Freed slots hold NaN, so that anything read from a stranger or a predecessor shows.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.world.tiny_world import PROMPTS, Life, Made, Player, alone, random_world, same_bits, tick, tiny_config
from world.chunk import Scene, Start
from world.loader import serving_dtype
from world.meadow.config import meadow_config
from world.model import DiffusionWorld
from world.scene import OUTDATED

SLOTS, LIVES, CHUNKS = 3, 4, 8
WORLDS = {
    "warp-float32": (dict(conditioning="warp"), torch.float32),
    "warp-bfloat16": (dict(conditioning="warp"), torch.bfloat16),
    "first_frame-float32": (
        dict(conditioning="first_frame", chunk_frames=2, window_frames=5, sink_frames=1, control_channels=7),
        torch.float32,
    ),
    "first_frame-bfloat16": (
        dict(conditioning="first_frame", chunk_frames=2, window_frames=7, sink_frames=3),
        torch.bfloat16,
    ),
}


pytestmark = pytest.mark.usefixtures("one_thread")


@cache
def world_of(name: str) -> DiffusionWorld:
    sizes, dtype = WORLDS[name]
    return random_world(tiny_config(**sizes), dtype, SLOTS)


@cache
def life_of(name: str, player: int) -> Life:
    return Life(player, world_of(name).geometry.chunk_frames, CHUNKS)


@cache
def start_of(name: str, player: int) -> Start:
    return life_of(name, player).start(world_of(name))


@cache
def alone_in(name: str, player: int) -> tuple[Made, ...]:
    sizes, dtype = WORLDS[name]
    return tuple(alone(random_world(tiny_config(**sizes), dtype, 1), life_of(name, player), 1))


def slot_is(world: DiffusionWorld, slot: int, what) -> bool:
    return all(bool(what(own).all()) for _, own in world.slab.rows(slot))


def ring(world: DiffusionWorld, slot: int, name: str = "k.0") -> Tensor:
    return dict(world.slab.rows(slot))[name]


# Per tick: who joins or leaves (a slot's number toggles it; 0: nobody), whose life a joiner has, and who is due.
moments = st.tuples(st.integers(0, SLOTS), st.integers(0, LIVES - 1), st.sets(st.integers(1, SLOTS)))


@pytest.mark.parametrize("name", WORLDS)
@settings(max_examples=10, deadline=None)
@given(schedule=st.lists(moments, min_size=20, max_size=50))
def test_alone_or_in_company_the_same_bits(name, schedule):
    world, playing = world_of(name), dict[int, Player]()
    try:
        for toggled, who, due in schedule:
            if toggled in playing:
                del playing[toggled]
                world.close(toggled)
            elif toggled:
                world.open(toggled, start_of(name, who))
                playing[toggled] = Player(life_of(name, who), toggled)
            ready = [playing[slot] for slot in sorted(due) if slot in playing and not playing[slot].is_over]
            if ready:
                tick(world, ready)
            for player in ready:
                expected = alone_in(name, player.life.player)
                for n, made in enumerate(player.made):
                    assert same_bits(made, expected[n]), f"player {player.life.player} differs in chunk {n}"
            for slot in set(range(1, SLOTS + 1)) - playing.keys():
                assert slot_is(world, slot, torch.isnan), f"a free slot {slot} was written"
    finally:
        for slot in playing:
            world.close(slot)


@pytest.mark.parametrize("name", WORLDS)
def test_a_full_house_in_which_everybody_is_somewhere_else(name):
    """Windows wrap, chunks and steps differ, commits share forwards: the schedule that hypothesis might not find."""
    world = world_of(name)
    players = [Player(life_of(name, who), slot=3 - who) for who in range(3)]
    mixed = set()
    for at in range(100):
        present = [p for i, p in enumerate(players) if at >= 4 * i + (i > 1) and not p.is_over]
        for player in present:
            if (player.chunk_index, player.step_index) == (0, 0):
                world.open(player.slot, start_of(name, player.life.player))
        if present:
            kinds = [p.step_index == world.num_steps for p in present]
            mixed.add((len({p.chunk_index for p in present}), any(kinds) and not all(kinds)))
            tick(world, present)
    assert (3, True) in mixed, "no forward held three chunk indices and a commit"
    for player in players:
        world.close(player.slot)
        assert len(player.made) == CHUNKS
        for n, (got, expected) in enumerate(zip(player.made, alone_in(name, player.life.player), strict=True)):
            assert same_bits(got, expected), (player.life.player, n)


@pytest.mark.parametrize("name", WORLDS)
def test_lives_differ(name):
    """The bits compared are about something: steering, seeds and prompts reach latents and pictures."""
    runs = [alone_in(name, player) for player in range(LIVES)]
    for n in range(CHUNKS):
        assert len({run[n][0].numpy().tobytes() for run in runs}) == LIVES
        assert len({run[n][1].tobytes() for run in runs}) == LIVES
    for latents, pictures in runs[0]:
        assert latents.isfinite().all() and latents.std() > 0.1 and pictures.std() > 1


def test_the_built_in_sizes_in_the_dtype_served():
    """Random weights at the real sizes: the kernels of a served forward, not those of a toy's."""
    cfg, dtype = meadow_config(), serving_dtype(torch.device("cpu"))
    lives = [Life(player, 1, 3) for player in range(3)]
    expected = [list(alone(random_world(cfg, dtype, 1), life, 1)) for life in lives]
    world = random_world(cfg, dtype, 4)
    players = [Player(life, slot) for life, slot in zip(lives, (3, 1, 4), strict=True)]
    for at in range(60):
        present = [p for i, p in enumerate(players) if at >= 3 * i and not p.is_over]
        for player in present:
            if (player.chunk_index, player.step_index) == (0, 0):
                world.open(player.slot, player.life.start(world))
        if present:
            tick(world, present)
    for player, chunks in zip(players, expected, strict=True):
        assert len(player.made) == len(chunks) == 3
        for n, (got, own) in enumerate(zip(player.made, chunks, strict=True)):
            assert same_bits(got, own), (player.life.player, n)


def test_a_slot_is_clean_when_it_is_taken_and_nan_when_it_is_left():
    world = random_world(tiny_config(), num_slots=2)
    life = Life(0, 1, 3)
    assert slot_is(world, 1, torch.isnan) and slot_is(world, 2, torch.isnan)
    world.open(2, life.start(world))
    assert slot_is(world, 2, torch.isfinite) and slot_is(world, 1, torch.isnan)
    assert not ring(world, 2).any() and world.slab.text[0][0][2].any(), "clean, with the prompt in place"
    player = Player(life, 2)
    for _ in range(4):
        tick(world, [player])
    assert ring(world, 2).any()
    world.close(2)
    assert slot_is(world, 2, torch.isnan) and not ring(world, 0).any(), "the padding row is left alone"


def test_a_slot_that_does_not_exist_is_refused():
    world = random_world(tiny_config(), num_slots=2)
    for slot in (0, 3, -1):
        with pytest.raises(ValueError, match="slot"):
            world.open(slot, Life(0, 1, 1).start(world))
    with pytest.raises(KeyError):
        world.close(1)


def test_a_prompt_takes_effect_with_its_chunk_and_stays():
    world = random_world(tiny_config(), num_slots=2)
    life = Life(0, 1, 4)
    object.__setattr__(life, "prompts", (None,) * 4)
    told = Life(0, 1, 4)
    object.__setattr__(told, "prompts", (None, "another place", None, None))
    plain, changed = list(alone(world, life, 1)), list(alone(world, told, 2))
    assert same_bits(plain[0], changed[0])
    assert not any(same_bits(plain[n], changed[n]) for n in (1, 2, 3))
    text = world.encode_prompt("another place")
    assert world.encode_prompt("another place") is text, "encoded once"


def test_what_another_prompt_made_is_half_known_until_that_prompt_is_back():
    world = random_world(tiny_config(), num_slots=1)
    life, told = Life(0, 1, 5), (None, "another place", None, None, PROMPTS[0])
    object.__setattr__(life, "prompts", told)
    object.__setattr__(life, "poses", np.repeat(life.poses[:1], len(life.poses), axis=0))  # always before its start
    player, trusts = Player(life, 1), []
    world.open(1, life.start(world))
    while not player.is_over:
        begins = player.step_index == 0
        tick(world, [player])
        if begins:
            trusts.append(tuple(mask.max().item() for mask in (world.slab.y[1, 0], world.slab.y[1, 20])))
    half = OUTDATED
    assert trusts == [(1, 1), (half, half), (1, half), (1, half), (half, 1)]


def test_pictures_come_with_the_last_step_and_before_the_commit():
    world = random_world(tiny_config(chunk_frames=2, window_frames=5), num_slots=1)
    life = Life(0, 2, 2)
    world.open(1, life.start(world))
    for chunk_index in range(2):
        for step_index in range(world.num_steps + 1):
            pictures = world.step([life.row(world, 1, chunk_index, step_index)])
            assert len(pictures) == (step_index == world.num_steps - 1)
            for picture in pictures:
                assert picture.frames.shape == (world.geometry.video_frames(chunk_index), 48, 48)
                assert picture.frames.dtype == np.uint8


def test_a_commit_leaves_the_finished_latents_alone_and_rewrites_the_keys():
    world = random_world(tiny_config(), num_slots=1)
    life = Life(0, 1, 1)
    world.open(1, life.start(world))
    for step_index in range(world.num_steps):
        world.step([life.row(world, 1, 0, step_index)])
    latents, names = world.slab.x[1].clone(), [f"k.{i}" for i in range(world.cfg.dit.num_layers)]
    keys = [ring(world, 1, name).clone() for name in names]
    assert world.step([life.row(world, 1, 0, world.num_steps)]) == []
    assert torch.equal(world.slab.x[1], latents)
    assert all(not torch.equal(ring(world, 1, name), before) for name, before in zip(names, keys, strict=True))


def test_act_checkpoints_read_the_keys():
    world = random_world(tiny_config(control_channels=7), num_slots=2)
    life, other = Life(0, 1, 2), Life(0, 1, 2)
    object.__setattr__(other, "keys", 1 - life.keys)
    assert not same_bits(next(alone(world, life, 1)), next(alone(world, other, 2)))


def test_prewarming_leaves_every_slot_free():
    world = random_world(tiny_config(), num_slots=2)
    world._scenes = (Scene("s", "S", "a place", np.zeros((32, 48, 3), np.uint8), np.float32([40, 40, 24, 16])),)
    shares: list[float] = []
    world.prewarm(lambda stage, share: shares.append(share))
    assert shares == sorted(shares) and all(0 <= share <= 1 for share in shares)
    assert all(slot_is(world, slot, torch.isnan) for slot in (1, 2))
