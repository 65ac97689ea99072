"""Protects that what a player of the built-in world sees is made by its weights: without the DiT's nothing is left, and
with them the picture stands still, moves and turns as the player does."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from world.chunk import Row, Start, WorldError
from world.loader import serving_dtype
from world.meadow.built_in import load_meadow
from world.model import DiffusionWorld
from world.motion import KEY_STEP_DEG, keyboard_poses

CHUNKS = 6
FRAMES = 4 * (CHUNKS - 1)  # after the first
CHUNKS_WITHOUT = 2  # to see that nothing is left
WALKS = {name: keyboard_poses(f"{keys}-{FRAMES}") for name, keys in
         {"stands": "none", "walks": "w", "turns left": "j", "turns right": "l"}.items()}  # fmt: skip
MOVING = ("walks", "turns left", "turns right")
CPU = torch.device("cpu")
Luma = NDArray[np.float32]  # [n, H, W]


def silent(stage: str, share: float) -> None:
    pass


@pytest.fixture(scope="module")
def world() -> DiffusionWorld:
    return load_meadow(len(WALKS), CPU, serving_dtype(CPU), silent)


@pytest.fixture(scope="module")
def seen(world: DiffusionWorld) -> dict[str, Luma]:
    return roll(world)


@pytest.fixture(scope="module")
def seen_without(world: DiffusionWorld) -> dict[str, Luma]:
    """The same players, with every weight of the DiT zero."""
    dit = copy.deepcopy(world.denoiser.dit)
    for parameter in dit.parameters():
        parameter.zero_()
    bare = DiffusionWorld(world.cfg, dit, world.vae, world.text_encoder, world.scenes, world.num_slots)
    return roll(bare, CHUNKS_WITHOUT)


def roll(world: DiffusionWorld, chunks: int = CHUNKS) -> dict[str, Luma]:
    """Everybody's pictures, all in one forward."""
    scene = world.scenes[0]
    start = Start(3, world.encode_prompt(scene.prompt), world.prepare_image(scene.image), scene.intrinsics, scene.scale)
    slots = dict(enumerate(WALKS, start=1))
    pieces: dict[int, list[NDArray[np.uint8]]] = {slot: [] for slot in slots}
    for slot in slots:
        world.open(slot, start)
    keys = np.zeros((1, 4), np.float32)
    for chunk in range(chunks):
        latent = [max(0, 4 * (chunk - 1)), 4 * chunk]  # the video frames whose poses they take
        for step in range(world.num_steps + 1):
            rows = [Row(slot, chunk, step, WALKS[name][latent], keys) for slot, name in slots.items()]
            for picture in world.step(rows):
                pieces[picture.slot].append(picture.frames)
    for slot in slots:
        world.close(slot)
    height = world.geometry.height
    return {slots[slot]: np.concatenate(some)[:, :height].astype(np.float32) for slot, some in pieces.items()}


def likeness(one: Luma, other: Luma) -> float:
    """Correlation of two pictures."""
    return float(np.corrcoef(one.ravel(), other.ravel())[0, 1])


def shift(one: Luma, other: Luma, most: int = 36) -> int:
    """By how many columns the picture has moved to the right: where the overlapping parts are most alike."""
    one, other, width = one[::2], other[::2], one.shape[1]  # half the rows tell enough

    def alike(by: int) -> float:
        return likeness(one[:, max(0, -by) : width - max(0, by)], other[:, max(0, by) : width - max(0, -by)])

    return max(range(-most, most + 1), key=alike)


def test_every_walk_has_its_frames(world: DiffusionWorld, seen: dict[str, Luma]) -> None:
    for pictures in seen.values():
        assert pictures.shape == (FRAMES + 1, world.geometry.height, world.geometry.width)


def test_without_the_weights_of_the_dit_the_picture_is_destroyed(
    seen: dict[str, Luma], seen_without: dict[str, Luma]
) -> None:
    for name, pictures in seen.items():
        both = list(zip(pictures, seen_without[name], strict=False))[1:]
        assert np.mean([np.abs(a - b).mean() for a, b in both]) > 25, name  # grey levels
        assert abs(np.mean([likeness(a, b) for a, b in both])) < 0.4, name


def test_who_stands_still_goes_on_seeing_the_start(world: DiffusionWorld, seen: dict[str, Luma]) -> None:
    image = world.scenes[0].image.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    assert likeness(seen["stands"][0], image) > 0.95
    assert min(likeness(picture, image) for picture in seen["stands"]) > 0.8


@pytest.mark.parametrize("name", MOVING)
def test_frames_differ_while_moving(seen: dict[str, Luma], name: str) -> None:
    changes = np.abs(np.diff(seen[name], axis=0)).mean(axis=(1, 2))
    assert (changes > 0.1).mean() >= 0.95, changes.round(2)


@pytest.mark.parametrize("name, way", [("turns left", 1), ("turns right", -1)])
def test_the_picture_moves_against_the_turn(world: DiffusionWorld, seen: dict[str, Luma], name: str, way: int) -> None:
    turned = math.radians(4 * KEY_STEP_DEG)
    expected = way * world.scenes[0].intrinsics[0] * math.tan(turned)  # pixels a chunk at the picture's centre
    moved = [shift(seen[name][i], seen[name][i + 4]) for i in range(0, FRAMES - 3, 4)]
    assert np.median(moved) == pytest.approx(expected, rel=0.35), (moved, expected)
    assert np.mean(np.sign(moved) == way) >= 0.75, moved


def test_it_draws_places_of_the_size_it_plays(world: DiffusionWorld) -> None:
    assert world.draw_start is not None
    place = world.draw_start("", 2**40)
    assert place.image.shape == (world.geometry.height, world.geometry.width, 3) and place.prompt


def test_missing_weights_are_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(WorldError, match=r"absent\.safetensors cannot be read as the built-in world"):
        load_meadow(1, CPU, torch.float32, silent, tmp_path / "absent.safetensors")
