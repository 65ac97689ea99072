"""Conditioning that streams: one bounded encode and then a constant; a warp that turns as the camera does."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.world.test_vae import tiny_vae
from world.motion import step_pose
from world.scene import CONSTANT_FROM, MASK_CHANNELS, encode_image, first_frame_condition, warp_condition

INTRINSICS = torch.tensor([80.0, 80.0, 48.0, 32.0])  # of a 96 x 64 picture: 12 x 8 latent cells


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


def turn(turn_deg: float = 0.0, pitch_deg: float = 0.0) -> torch.Tensor:
    """The rotation from the camera after the turn to the one before, [1, 3, 3]."""
    pose = step_pose(np.eye(4), turn_deg=turn_deg, pitch_up_deg=pitch_deg)
    return torch.from_numpy(pose[:3, :3].astype(np.float32))[None]


def ramp(axis: int) -> torch.Tensor:
    """A latent whose every channel is its cell's column (axis 1) or row (axis 0): [1, 16, 8, 12]."""
    shape = (8, 12)
    return torch.arange(shape[axis]).float().view((-1, 1) if axis == 0 else (1, -1)).expand(1, 16, *shape)


def test_no_turn_returns_the_latent():
    latent = torch.randn(1, 16, 8, 12, generator=torch.Generator().manual_seed(0))
    y = warp_condition(latent, turn(), INTRINSICS)
    assert y.shape == (20, 1, 8, 12) and (y[:MASK_CHANNELS] == 1).all()
    torch.testing.assert_close(y[MASK_CHANNELS:, 0], latent[0], rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "turned, axis, moves",
    [(dict(turn_deg=10), 1, 1), (dict(turn_deg=-10), 1, -1), (dict(pitch_deg=10), 0, -1), (dict(pitch_deg=-10), 0, 1)],
)
def test_a_turn_moves_the_picture_the_other_way(turned, axis, moves):
    """Turning right, what was further right comes to the middle; looking up, what was higher."""
    y = warp_condition(ramp(axis), turn(**turned), INTRINSICS)
    middle = y[MASK_CHANNELS, 0, 3:5, 5:7].mean() - ramp(axis)[0, 0, 3:5, 5:7].mean()
    cells = moves * 80 * np.tan(np.radians(10)) / 8
    assert middle.item() == pytest.approx(cells, abs=0.05)


def test_the_mask_says_where_the_old_picture_still_knows():
    y = warp_condition(ramp(1) + 1, turn(turn_deg=20), INTRINSICS)
    known = y[0, 0]
    assert (known[:, :6] == 1).all() and (known[:, -3:] == 0).all()
    assert torch.equal(y[:MASK_CHANNELS], known.expand(4, 1, -1, -1))
    assert (y[MASK_CHANNELS:, 0, known == 0] == 0).all() and (y[MASK_CHANNELS:, 0, known == 1] > 0).all()
    centred = torch.tensor([80.0, 80.0, 52.0, 36.0])  # on the centre of a cell, whose ray leads straight back
    behind = warp_condition(ramp(1), turn(turn_deg=180), centred)
    assert not behind.any(), "what lies behind is not seen through the back"


def test_frames_of_a_chunk_turn_apart():
    turns = torch.cat([turn(), turn(turn_deg=15)])
    latents = torch.randn(2, 16, 8, 12, generator=torch.Generator().manual_seed(0))
    y = warp_condition(latents, turns, INTRINSICS)
    for i in range(2):
        assert torch.equal(y[:, i : i + 1], warp_condition(latents[i : i + 1], turns[i : i + 1], INTRINSICS))
