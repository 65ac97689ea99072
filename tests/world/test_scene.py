"""Conditioning that streams: one bounded encode and then a constant; a warp that moves as the camera does."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.world.test_vae import tiny_vae
from world.motion import step_pose
from world.scene import (
    CONSTANT_FROM,
    MASK_CHANNELS,
    OUTDATED,
    best_known,
    encode_image,
    first_frame_condition,
    moves_between,
    warp_condition,
)

INTRINSICS = torch.tensor([80.0, 80.0, 48.0, 32.0])  # of a 96 x 64 picture: 12 x 8 latent cells
EYE_UNITS = 0.7


def picture(seed: int) -> torch.Tensor:
    return torch.rand(1, 3, 1, 16, 32, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_the_tail_of_a_condition_is_constant_and_the_image_is_forgotten():
    """The published depth, where the receptive field is longest: encoding longer changes nothing from index 29 on."""
    vae = tiny_vae(encoder_blocks=2)
    kept = encode_image(vae, picture(0), then_black=True)
    assert kept.shape == (16, CONSTANT_FROM + 1, 2, 4)
    longer = vae.encode(F.pad(picture(0), (0, 0, 0, 0, 0, 4 * (CONSTANT_FROM + 6))))[0]
    assert torch.equal(longer[:, : CONSTANT_FROM + 1], kept)
    assert torch.equal(longer[:, CONSTANT_FROM:], kept[:, -1:].expand(-1, 7, -1, -1))
    other = encode_image(vae, picture(1), then_black=True)
    assert torch.equal(other[:, -1], kept[:, -1]) and not torch.equal(other[:, 1], kept[:, 1])
    assert torch.equal(encode_image(vae, picture(0), then_black=False), kept[:, :1])


@pytest.mark.parametrize("first_frame", [0, 3, 27, 28, 30, 10**6])
def test_first_frame_condition(first_frame):
    latents = torch.randn(16, 30, 2, 4, generator=torch.Generator().manual_seed(0))
    y = first_frame_condition(latents, first_frame, 3)
    assert y.shape == (20, 3, 2, 4)
    for i in range(3):
        index = first_frame + i
        assert torch.equal(y[MASK_CHANNELS:, i], latents[:, min(index, 29)])
        assert (y[:MASK_CHANNELS, i] == float(index == 0)).all()


def moved(**step: float) -> torch.Tensor:
    """What a camera at the identity did in one step, as a warp wants it: moves [1, 4, 4]."""
    return moves_between(step_pose(np.eye(4), **step)[None], np.eye(4)[None])


def flat_ground() -> torch.Tensor:
    """The inverse depth [1, 16, 24] of ground EYE_UNITS below the camera and of sky: two points a cell each way."""
    below = (torch.arange(16) + 0.5 - 8).clamp(min=0) * 4  # pixels
    return (below / 80 / EYE_UNITS)[None, :, None].expand(1, 16, 24)


def warp(latents: torch.Tensor, intrinsics: torch.Tensor = INTRINSICS, **step: float) -> torch.Tensor:
    return warp_condition(latents, flat_ground(), moved(**step), intrinsics, torch.ones(1))


def ramp(axis: int) -> torch.Tensor:
    """A latent whose every channel is its cell's column (axis 1) or row (axis 0): [1, 16, 8, 12]."""
    shape = (8, 12)
    return torch.arange(shape[axis]).float().view((-1, 1) if axis == 0 else (1, -1)).expand(1, 16, *shape)


def test_no_move_returns_the_latent():
    latent = torch.randn(1, 16, 8, 12, generator=torch.Generator().manual_seed(0))
    y = warp(latent)
    assert y.shape == (20, 1, 8, 12) and (y[0] == 1).all() and not y[1:MASK_CHANNELS].any()
    torch.testing.assert_close(y[MASK_CHANNELS:, 0], latent[0], rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "turned, axis, moves",
    [
        (dict(turn_deg=10), 1, 1),
        (dict(turn_deg=-10), 1, -1),
        (dict(pitch_up_deg=10), 0, -1),
        (dict(pitch_up_deg=-10), 0, 1),
    ],
)
def test_a_turn_moves_the_picture_the_other_way(turned, axis, moves):
    """Turning right, what was further right comes to the middle; looking up, what was higher."""
    y = warp(ramp(axis), **turned)
    middle = y[MASK_CHANNELS, 0, 3:5, 5:7].mean() - ramp(axis)[0, 0, 3:5, 5:7].mean()
    cells = moves * 80 * np.tan(np.radians(10)) / 8
    assert middle.item() == pytest.approx(cells, abs=0.05)


def test_walking_moves_the_ground_and_leaves_the_sky():
    """A point of flat ground at distance z is eye / z below the horizon; what is above it is far away."""
    ahead = 0.2
    y = warp(ramp(0), forward=ahead)[MASK_CHANNELS, 0, :, 6]
    rows = torch.arange(8.0)
    torch.testing.assert_close(y[:4], rows[:4], rtol=0, atol=0.05)
    focal, horizon = 80 / 8, 4.0 - 0.5  # in cells; a cell's centre
    depth = focal * EYE_UNITS / (rows[4:] - horizon)
    torch.testing.assert_close(y[4:], horizon + focal * EYE_UNITS / (depth + ahead), rtol=0, atol=0.05)
    assert (y[4:] < rows[4:]).all()  # what is near now was farther away


def test_walking_sideways_moves_the_near_more_than_the_far():
    y = warp(ramp(1), right=0.1)[MASK_CHANNELS, 0, :, 5]
    shift = y - 5
    assert (shift[:4].abs() < 0.05).all() and (shift[5:].diff() > 0).all()


def test_how_far_the_camera_moved_is_told():
    y = warp(ramp(1), forward=3.0, right=-1.0)
    seen = y[0] == 1
    assert torch.allclose(y[1][seen], torch.tensor(-0.5)) and torch.allclose(y[3][seen], torch.tensor(0.75))
    assert not y[2].any()


def test_the_mask_says_where_the_old_picture_still_knows():
    y = warp(ramp(1) + 1, turn_deg=20)
    known = y[0, 0]
    assert (known[:, :6] == 1).all() and (known[:, -3:] == 0).all()
    assert (y[MASK_CHANNELS:, 0, known == 0] == 0).all() and (y[MASK_CHANNELS:, 0, known == 1] > 0).all()
    centred = torch.tensor([80.0, 80.0, 52.0, 36.0])  # on the centre of a cell, whose ray leads straight back
    assert not warp(ramp(1), centred, turn_deg=180).any(), "what lies behind is not seen through the back"


def test_what_was_hidden_is_not_known():
    """A wall two units away fills the left of the view, mountains the rest. A step to the right uncovers some of
    them, and moves the wall by its own depth."""
    inverse = torch.where(torch.arange(24) < 12, 0.5, 0.02).expand(1, 16, 24)
    y = warp_condition(ramp(1), inverse, moved(right=0.6), INTRINSICS, torch.ones(1))
    known, seen = y[0, 0], y[MASK_CHANNELS, 0]
    wall_moves, mountains_move = 0.6 * 0.5 * 80 / 8, 0.6 * 0.02 * 80 / 8  # cells
    assert (known[:, 3:6] == 0).all(), "what the wall hid is neither wall nor mountains"
    assert (known[:, :2] == 1).all() and seen[0, 1].item() == pytest.approx(1 + wall_moves, abs=0.05)
    assert (known[:, 7:] == 1).all() and seen[0, 8].item() == pytest.approx(8 + mountains_move, abs=0.05)


def test_what_one_walked_up_to_is_trusted_less():
    """A wall at 2 units, from where it is 0.5 away: four times as large, twice what is fully trusted."""
    wall = torch.full((1, 16, 24), 0.5)
    y = warp_condition(ramp(1), wall, moved(forward=1.5), INTRINSICS, torch.tensor([OUTDATED]))
    torch.testing.assert_close(y[0, 0, 3:5, 5:7], torch.full((2, 2), OUTDATED / 2), rtol=0.02, atol=0)
    near = warp_condition(ramp(1), wall, moved(forward=0.5), INTRINSICS, torch.ones(1))
    assert (near[0] == 1).all()


def test_every_cell_is_of_the_first_view_that_knows_it_best():
    trusts = torch.tensor([[0.0, 0.5, 1.0, 1.0], [0.0, 1.0, 1.0, 0.5], [0.5, 1.0, 0.0, 1.0]])
    views = [
        torch.cat([trust.expand(1, 1, 1, 4), torch.full((19, 1, 1, 4), float(i))]) for i, trust in enumerate(trusts)
    ]
    best = best_known(views)
    assert best[0, 0, 0].tolist() == [0.5, 1.0, 1.0, 1.0] and best[1, 0, 0].tolist() == [2, 1, 0, 0]


def test_frames_of_a_chunk_move_apart():
    poses = np.stack([np.eye(4), step_pose(np.eye(4), turn_deg=15, forward=0.3)])
    moves = moves_between(poses, np.tile(np.eye(4), (2, 1, 1)))
    latents = torch.randn(2, 16, 8, 12, generator=torch.Generator().manual_seed(0))
    depths = torch.cat([flat_ground(), flat_ground() / 2])
    trust = torch.tensor([OUTDATED, 1.0])
    y = warp_condition(latents, depths, moves, INTRINSICS, trust)
    assert set(y[0, 0].unique().tolist()) == {OUTDATED} and set(y[0, 1].unique().tolist()) == {0.0, 1.0}
    for i in (slice(0, 1), slice(1, 2)):
        assert torch.equal(y[:, i], warp_condition(latents[i], depths[i], moves[i], INTRINSICS, trust[i]))


def test_frames_may_be_seen_by_different_cameras():
    moves, depths = moved(turn_deg=7, forward=0.2), flat_ground()
    latents, trust = torch.randn(2, 16, 8, 12, generator=torch.Generator().manual_seed(0)), torch.ones(2)
    lenses = torch.stack([INTRINSICS, 0.7 * INTRINSICS])
    both = depths.expand(2, -1, -1), moves.expand(2, -1, -1)
    y = warp_condition(latents, *both, lenses, trust)
    for i, lens in enumerate(lenses):
        own = slice(i, i + 1)
        assert torch.equal(y[:, own], warp_condition(latents[own], depths, moves, lens, trust[own]))
    assert not torch.equal(y, warp_condition(latents, *both, INTRINSICS, trust))


def test_a_small_step_far_from_the_origin_keeps_its_bits():
    far = np.eye(4)
    far[:3, 3] = 1e6, 0, -1e6
    moves = moves_between(step_pose(far, forward=0.05, turn_deg=2)[None], far[None])
    torch.testing.assert_close(moves, moved(forward=0.05, turn_deg=2), rtol=0, atol=1e-7)
