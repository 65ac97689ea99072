"""What is measured on pictures: how alike two are, how sharp one is, which look has its statistics. Pictures are RGB in
0..1 [n, 3, H, W] unless said otherwise; brightness (luma) is [n, H, W]."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from world.chunk import Geometry
from world.meadow.look import Look, values
from world.meadow.plays import as_served
from world.meadow.teacher import default_intrinsics, make_terrain, render

BEST_DB = 60.0  # what equal pictures count as
FEWEST_POINTS = 0.02  # share of the picture below which the points still seen say nothing
JUDGED = ("time", "season", "weather")  # what a prompt asks for and pictures are judged by


def to_rgb(frames: NDArray[np.uint8]) -> Tensor:
    """I420 [n, H * 3 // 2, W], BT.601 limited range -> RGB."""
    width = frames.shape[2]
    height = frames.shape[1] * 2 // 3
    x = torch.from_numpy(frames).float()
    luma = (x[:, :height] - 16) / 219
    chroma = (x[:, height:].reshape(len(x), 2, height // 2, width // 2) - 128) / 224
    blue, red = F.interpolate(chroma, size=(height, width), mode="bilinear", align_corners=False).unbind(1)
    green = luma - 0.344136 * blue - 0.714136 * red
    return torch.stack([luma + 1.402 * red, green, luma + 1.772 * blue], 1).clamp(0, 1)


def brightness(rgb: Tensor) -> Tensor:
    return 0.299 * rgb[:, 0] + 0.587 * rgb[:, 1] + 0.114 * rgb[:, 2]


def psnr(one: Tensor, other: Tensor, where: Tensor | None = None) -> Tensor:
    """[n] dB, over the whole picture or where a mask [n, H, W] holds; NaN where it holds for too few points."""
    error = (one - other).square().mean(1)  # [n, H, W]
    return -10 * average(error, where).clamp(min=10 ** (-BEST_DB / 10)).log10()


def ssim(one: Tensor, other: Tensor, where: Tensor | None = None) -> Tensor:
    """[n] structural similarity of brightness (Wang et al. 2004) over squares of 7 pixels."""

    def mean(x: Tensor) -> Tensor:
        return F.avg_pool2d(x[:, None], 7, stride=1, padding=3, count_include_pad=False)[:, 0]

    a, b = brightness(one), brightness(other)
    mean_a, mean_b = mean(a), mean(b)
    var_a, var_b, both = mean(a * a) - mean_a**2, mean(b * b) - mean_b**2, mean(a * b) - mean_a * mean_b
    alike = (2 * mean_a * mean_b + 1e-4) * (2 * both + 9e-4)
    return average(alike / ((mean_a**2 + mean_b**2 + 1e-4) * (var_a + var_b + 9e-4)), where)


def average(x: Tensor, where: Tensor | None) -> Tensor:
    """Mean of [n, H, W] over pixels, or over those of a mask."""
    if where is None:
        return x.mean((1, 2))
    share = where.float().mean((1, 2))
    mean = (x * where).mean((1, 2)) / share.clamp(min=1e-9)
    return torch.where(share < FEWEST_POINTS, torch.nan, mean)


def sharpness(rgb: Tensor) -> Tensor:
    """[n] mean gradient magnitude of brightness, in grey levels of 255 a pixel."""
    luma = 255 * brightness(rgb)
    across, down = luma[:, :-1].diff(dim=2), luma[:, :, :-1].diff(dim=1)
    return torch.sqrt(across**2 + down**2).mean((1, 2))


def looks_like(look: Look) -> list[Look]:
    """Every time, season and weather of a look's place and towers."""
    return [Look(*asked, look.place, look.towers) for asked in product(*(values(name) for name in JUDGED))]


def statistics(rgb: Tensor) -> Tensor:
    """[n, 57]: mean and spread of colour in the fields of a 3 x 3 grid, and how sharp the upper, middle and lower third
    is, which fog and clouds change."""
    means = F.adaptive_avg_pool2d(rgb, 3)
    spread = (F.adaptive_avg_pool2d(rgb**2, 3) - means**2).clamp(min=0).sqrt()
    thirds = [sharpness(part) for part in rgb.tensor_split(3, dim=2)]
    return torch.cat([means.flatten(1), spread.flatten(1), torch.stack(thirds, 1) / 255], 1)


def nearest_look(rgb: Tensor, drawn: Tensor, looks: Sequence[Look]) -> list[Look]:
    """For each picture the look of the teacher's pictures `drawn` [looks, 3, H, W] whose statistics are nearest, every
    statistic measured by how little a slightly different camera or a blur changes it."""
    known, own = statistics(drawn), statistics(rgb)
    noise = torch.stack([statistics(other) - known for other in disturbed(drawn)])
    scale = noise.square().mean((0, 1)).sqrt() + 2e-3
    return [looks[int(i)] for i in torch.cdist(own / scale, known / scale).argmin(1)]


def disturbed(rgb: Tensor) -> list[Tensor]:
    """The pictures a little to each side, nearer, farther, and blurred: what says nothing about a look."""
    found = [F.avg_pool2d(rgb, size, 1, size // 2, count_include_pad=False) for size in (5, 9)]
    for across, down, size in ((0.1, 0, 1), (-0.1, 0, 1), (0, 0.06, 1), (0, -0.06, 1), (0, 0, 0.9), (0, 0, 1.1)):
        view = torch.tensor([[size, 0, across], [0, size, down]]).expand(len(rgb), 2, 3)
        grid = F.affine_grid(view, list(rgb.shape), align_corners=False)
        found.append(F.grid_sample(rgb, grid, padding_mode="border", align_corners=False))
    return found


def draw_looks(
    seed: int, looks: Sequence[Look], pose: NDArray[np.float32], geometry: Geometry, device: torch.device
) -> Tensor:
    """One place and camera under every look, as served, RGB."""
    lens = default_intrinsics(geometry.width, geometry.height)
    poses = torch.from_numpy(pose).expand(len(looks), 1, 4, 4)
    terrain = make_terrain([seed] * len(looks), looks, device)
    drawn, _ = render(terrain, poses, lens, (geometry.height, geometry.width))
    return to_rgb(as_served(drawn[:, 0].cpu()))
