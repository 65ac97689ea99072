"""Equal pictures are perfectly alike, blur takes sharpness, and a look is nearest to itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from world.chunk import Geometry
from world.meadow import measures
from world.meadow.look import Look
from world.meadow.plays import as_served

SMALL = Geometry(width=112, height=64, fps=16, chunk_frames=1)
CPU = torch.device("cpu")


def noise(seed: int, *shape: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).random(shape)).float()


def test_served_pictures_come_back_as_they_were() -> None:
    y, x = torch.meshgrid(torch.linspace(0, 1, 32), torch.linspace(0, 1, 48), indexing="ij")
    rgb = (255 * torch.stack([x, y, 1 - x]))[None].round().to(torch.uint8)
    again = measures.to_rgb(as_served(rgb))
    assert again.shape == (1, 3, 32, 48)
    assert (255 * again - rgb.float()).abs().max() < 8  # two chroma pixels apart the colours of a ramp differ by 7
    assert (255 * again - rgb.float()).abs().mean() < 1


def test_likeness_of_equal_and_of_noisy_pictures() -> None:
    one = noise(0, 2, 3, 40, 60) * 0.5 + 0.25
    assert torch.allclose(measures.psnr(one, one), torch.tensor(measures.BEST_DB))
    assert torch.allclose(measures.ssim(one, one), torch.tensor(1.0))
    off = one + 0.1
    torch.testing.assert_close(measures.psnr(one, off), torch.full((2,), 20.0), atol=1e-3, rtol=0)
    assert (measures.ssim(one, noise(1, 2, 3, 40, 60)) < 0.2).all()


def test_a_mask_says_what_counts() -> None:
    one = noise(0, 1, 3, 40, 60)
    other = one.clone()
    other[..., 30:] += 0.1
    left = torch.zeros(1, 40, 60, dtype=torch.bool)
    left[..., :30] = True
    assert measures.psnr(one, other, left) == measures.BEST_DB
    assert measures.psnr(one, other, ~left).item() == pytest.approx(20, abs=1e-3)
    assert measures.psnr(one, other, left & (torch.arange(60) < 1)).isnan()  # too few points say nothing


def test_blur_takes_sharpness() -> None:
    one = noise(0, 1, 3, 40, 60)
    assert measures.sharpness(measures.disturbed(one)[0]) < 0.4 * measures.sharpness(one)
    assert measures.sharpness(torch.full((1, 3, 8, 8), 0.3)) == 0


def test_a_look_is_nearest_to_itself_even_blurred() -> None:
    looks = measures.looks_like(Look(place="lakes", towers="red"))
    assert len(set(looks)) == 64 and {(look.place, look.towers) for look in looks} == {("lakes", "red")}
    drawn = measures.draw_looks(700004, looks, np.eye(4, dtype=np.float32), SMALL, CPU)
    assert measures.nearest_look(drawn, drawn, looks) == looks
    blurred = measures.nearest_look(measures.disturbed(drawn)[0], drawn, looks)
    assert np.mean([a == b for a, b in zip(blurred, looks, strict=True)]) > 0.9
