"""Randomness that is a function of place: an integer hash, and value noise with its slope over a hashed lattice."""

from __future__ import annotations

import math

import torch
from torch import Tensor

SIZE = (
    128  # lattice cells before the noise repeats; octaves repeat at different places, so the sum does not in practice
)
_MASK = 0xFFFFFFFF


def mix_seed(seed: int) -> int:
    """Any non-negative integer -> 32 well mixed bits."""
    h = (seed ^ (seed >> 32) * 0x45D9F3B) & _MASK
    for factor in (0x7FEB352D, 0x6C68E9CB):
        h = ((h ^ (h >> 16)) * factor) & _MASK
    return h ^ (h >> 16)


def hash01(key: Tensor, x: Tensor, z: Tensor, channel: int) -> Tensor:
    """[0, 1) from 32-bit keys and integer coordinates (int64, broadcast). Every product stays below 2**63."""
    h = (key + x * 0x1F1F1F1 + z * 0x2545F491 + channel * 0x3C6EF35F) & _MASK
    for factor in (0x7FEB352D, 0x6C68E9CB):
        h = ((h ^ (h >> 16)) * factor) & _MASK
    return ((h ^ (h >> 16)) & 0xFFFFFF).float() / 0x1000000


def make_lattice(keys: Tensor) -> Tensor:
    """[B] keys -> [B * SIZE * SIZE, 4]: for each cell the bilinear coefficients of its four corners, in [-1, 1]."""
    axis = torch.arange(SIZE, device=keys.device)
    a = hash01(keys[:, None, None], axis[:, None], axis[None, :], 0) * 2 - 1  # [B, SIZE, SIZE]
    b, c = a.roll(-1, 1), a.roll(-1, 2)
    d = b.roll(-1, 2)
    return torch.stack((a, b - a, c - a, a - b - c + d), -1).reshape(-1, 4).contiguous()


def noise(
    lattice: Tensor, base: Tensor, x: Tensor, z: Tensor, wavelength: float, octave: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Value noise in [-1, 1] at (x, z) metres, and its slopes d/dx and d/dz.

    `base` (int32) is the world's first lattice row."""
    c, s = math.cos(0.6 + 1.1 * octave) / wavelength, math.sin(0.6 + 1.1 * octave) / wavelength
    u = c * x - s * z + (17.31 * octave + 0.5)
    v = s * x + c * z + (5.77 * octave + 0.5)
    floor_u, floor_v = u.floor(), v.floor()
    cell = base + (floor_u.int() & (SIZE - 1)) * SIZE + (floor_v.int() & (SIZE - 1))
    u, v = u - floor_u, v - floor_v
    k0, k1, k2, k3 = lattice[cell].unbind(-1)
    wu, wv = u * u * u * (u * (u * 6 - 15) + 10), v * v * v * (v * (v * 6 - 15) + 10)  # twice smooth at cell borders
    slope_u = (k1 + k3 * wv) * (30 * (u * (u - 1)) ** 2)
    slope_v = (k2 + k3 * wu) * (30 * (v * (v - 1)) ** 2)
    return k0 + k1 * wu + (k2 + k3 * wu) * wv, c * slope_u + s * slope_v, c * slope_v - s * slope_u


def constant(like: Tensor, *values: float) -> Tensor:
    """[len(values)] where `like` is, made by fills: a copy from the host would make a GPU wait."""
    return torch.stack([torch.full((), value, device=like.device) for value in values])


def smoothstep(low: float | Tensor, high: float | Tensor, x: Tensor) -> Tensor:
    t = ((x - low) / (high - low)).clamp(0, 1)
    return t * t * (3 - 2 * t)


def mix(a: Tensor, b: Tensor, share: Tensor) -> Tensor:
    return a + (b - a) * share
