"""A chunk begins with what its row is shown, wherever that lies, in one work of all rows that begin."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.world.tiny_world import random_world, tiny_config
from world.beginning import Beginning, begin
from world.graphs import Graphs
from world.model import DiffusionWorld
from world.motion import step_pose
from world.scene import OUTDATED
from world.views import NEWEST, Shown

CPU = torch.device("cpu")
LENS = np.float32([40, 40, 24, 16])
pytestmark = pytest.mark.usefixtures("one_thread")


def opened(conditioning: str = "warp", slots: tuple[int, ...] = (1, 2)) -> DiffusionWorld:
    """Three slots; those that are not open hold NaN."""
    world = random_world(tiny_config(conditioning, chunk_frames=2, window_frames=5), num_slots=3)
    for slot in slots:
        world.slab.clean(slot)
    return world


def beginning(slot: int, *shown: Shown, turn_deg: float = 0.0, lens: np.ndarray = LENS) -> Beginning:
    """Of two frames, of a camera that turns before the first and then stands."""
    noise = np.random.default_rng(slot).standard_normal((16, 2, 4, 6)).astype(np.float32)
    poses = np.stack([step_pose(np.eye(4), turn_deg=turn_deg)] * 2)
    return Beginning.of(slot, noise, poses.astype(np.float32), lens, np.zeros((2, 4), np.float32), poses, shown)


def begun(world: DiffusionWorld, *rows: Beginning, sizes: tuple[int, ...] = ()) -> DiffusionWorld:
    with torch.inference_mode():
        begin(world.denoiser, world.vae, rows, Graphs(CPU, sizes=sizes))
    return world


def test_each_row_is_shown_the_newest_frame_or_a_view_of_its_own():
    world, here = opened(), np.eye(4)
    assert world.vae.depth is not None
    for parameter in world.vae.depth.layers[-1].parameters():
        parameter.zero_()  # all of it is as far away
    for slot in (1, 2):
        world.slab.x[slot, :, 0], world.slab.x[slot, :, 1] = -1, 10 * slot
        for place in range(3):
            world.slab.views[slot, place] = 10 * slot + 1 + place
    one = beginning(1, Shown(NEWEST, here, True), Shown(2, here, False))
    two = beginning(2, Shown(0, here, False), Shown(1, here, True))
    begun(world, two, one)
    for slot, shown in ((1, [(10, 1.0), (13, OUTDATED)]), (2, [(21, OUTDATED), (22, 1.0)])):
        for y, (value, trust) in zip(world.slab.y[slot].split(20), shown, strict=True):
            assert (y[0] == trust).all() and not y[1:4].any()
            torch.testing.assert_close(y[4:], torch.full_like(y[4:], value), rtol=0, atol=1e-4)
    assert all(torch.equal(world.slab.x[row.slot], torch.from_numpy(row.noise)) for row in (one, two))
    assert all(scale[slot].any() for scale, _ in world.slab.camera for slot in (1, 2))


def test_rows_have_the_bits_they_have_alone_in_any_size():
    seen = [Shown(NEWEST, step_pose(np.eye(4), forward=0.2), True), Shown(1, step_pose(np.eye(4), right=0.1), True)]
    rows = beginning(1, *seen, turn_deg=9), beginning(2, *reversed(seen), turn_deg=-5, lens=LENS * np.float32(1.2))

    def filled() -> DiffusionWorld:
        world = opened()
        generator = torch.Generator().manual_seed(0)
        for slot in (1, 2):
            for t in (world.slab.x, world.slab.views):
                t[slot] = torch.randn(t[slot].shape, generator=generator)
        return world

    alone = begun(begun(filled(), rows[0]), rows[1])
    for sizes in ((), (2, 3), (3,)):
        together = begun(filled(), *rows, sizes=sizes)
        for slot in (1, 2):
            states = zip(alone.slab.rows(slot), together.slab.rows(slot), strict=True)
            assert all(torch.equal(a, b) for (_, a), (_, b) in states), sizes
        assert all(own.isnan().all() for _, own in together.slab.rows(3)), "a stranger's slot was written"
        assert all(own.isfinite().all() for _, own in together.slab.rows(0)), "the padding row does not stay finite"
        assert not together.slab.x[0].any() and not together.slab.y[0].any()
    assert not torch.equal(alone.slab.y[1], alone.slab.y[2])


@pytest.mark.parametrize("sizes", [(), (3,)])
def test_a_condition_that_is_there_stays(sizes):
    world = opened("first_frame")
    kept = torch.randn(world.slab.y[2].shape)
    world.slab.y[2] = kept
    begun(world, beginning(2), sizes=sizes)
    assert torch.equal(world.slab.y[2], kept) and world.slab.x[2].any() and world.slab.camera[0][0][2].any()
    assert not world.slab.y[0].any() and not world.slab.y[1].any()
