"""The ground of a world: its height anywhere, its colour, and what the camera stands on."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from world.meadow.noise import SIZE, constant, hash01, mix, noise, smoothstep
from world.meadow.palette import WAVELENGTHS_M, Palette, sun_direction

EYE_M = 1.7
CLEARING_M = 34.0  # how far the start place is lifted out of water


class Land(NamedTuple):
    """B worlds, or after `take` one world for each of F frames. `lattice` is always that of the B worlds."""

    key: Tensor  # [B] int64, 32 bits of seed
    base: Tensor  # [B] int32, first lattice row
    lattice: Tensor  # [B * SIZE * SIZE, 4]
    lift: Tensor  # [B] metres the start is lifted
    side: Tensor  # [B] -1 or 1: where the shore is
    bend: Tensor  # [B] what is subtracted so that a valley or shore passes the start
    palette: Palette

    def take(self, index: Tensor) -> Land:
        """[F] worlds -> the same land, one entry a frame."""
        key, base, lift, side, bend = (v[index] for v in (self.key, self.base, self.lift, self.side, self.bend))
        return Land(key, base, self.lattice, lift, side, bend, Palette(*(value[index] for value in self.palette)))


def make_land(key: Tensor, lattice: Tensor, palette: Palette) -> Land:
    base = torch.arange(len(key), device=key.device, dtype=torch.int32) * (SIZE * SIZE)
    zero = torch.zeros_like(key)
    side = torch.where(hash01(key, zero, zero, 90) < 0.5, -1.0, 1.0)
    none = torch.zeros_like(palette.bias)
    land = Land(key, base, lattice, none, side, none, palette)
    origin = none[:, None]
    land = land._replace(bend=surface(land, origin, origin, origin + 2.0).octaves[1][:, 0])
    height = surface(land, origin, origin, origin + 2.0).height[:, 0]
    return land._replace(lift=(2.2 - height).clamp(min=0))


class Surface(NamedTuple):
    """Ground under points [F, ...]: height above the water level in metres, slopes, and the octaves it was made of."""

    height: Tensor
    slope_x: Tensor
    slope_z: Tensor
    octaves: tuple[Tensor, ...]


def _fit(value: Tensor, like: Tensor) -> Tensor:
    """[F] -> [F, 1, ...] that broadcasts against points [F, ...]."""
    return value.reshape(value.shape[0], *(1,) * (like.dim() - 1))


def surface(land: Land, x: Tensor, z: Tensor, footprint_m: Tensor) -> Surface:
    """The ground, without what is finer than twice `footprint_m` (broadcast against points)."""
    palette = land.palette
    base, ridge = _fit(land.base, x), _fit(palette.ridge, x)
    height, slope_x, slope_z = _fit(palette.bias, x) + torch.zeros_like(x), torch.zeros_like(x), torch.zeros_like(x)
    octaves = []
    bend, bend_x, bend_z = height, slope_x, slope_z
    for i, wavelength in enumerate(WAVELENGTHS_M):
        n, nx, nz = noise(land.lattice, base, x, z, wavelength, i)
        octaves.append(n)
        if i == 1:
            bend, bend_x, bend_z = n - _fit(land.bend, x), nx, nz
        if i < 3:  # crests: 1 - 2|n|, rounded at the top so that the ground stays smooth
            soft = torch.sqrt(n * n + 0.004)
            crease = -2.0 * n / soft * ridge
            n, nx, nz = mix(n, 1.0 - 2.0 * soft, ridge), (1 - ridge + crease) * nx, (1 - ridge + crease) * nz
        amplitude = _fit(palette.octaves[:, i], x) * (wavelength / (2 * footprint_m) - 1).clamp(0, 1)
        height, slope_x, slope_z = height + amplitude * n, slope_x + amplitude * nx, slope_z + amplitude * nz
    # a valley that winds along z: its sides rise as s^2 / (1 + s^2)
    width, rise = _fit(palette.trough_width, x), _fit(palette.trough, x)
    s = (x + 70 * bend) / width
    inverse = 1 / (1 + s * s)
    slope = rise * 2 * s * inverse * inverse / width
    height, slope_x, slope_z = (
        height + rise * s * s * inverse,
        slope_x + slope * (1 + 70 * bend_x),
        slope_z + slope * 70 * bend_z,
    )
    # land that falls to the sea ahead and to one side
    shore, to_x, to_z = _fit(palette.shore, x), 0.8 * _fit(land.side, x), 0.6
    s = (to_x * x + to_z * z + 25 * bend - 38) / 45
    fall = torch.tanh(s)
    slope = shore * (fall * fall - 1) / 45
    height, slope_x, slope_z = (
        height - shore * fall,
        slope_x + slope * (to_x + 25 * bend_x),
        slope_z + slope * (to_z + 25 * bend_z),
    )
    raised = _fit(land.lift, x) * torch.exp(-(x * x + z * z) / (2 * CLEARING_M**2))
    height, slope_x, slope_z = (
        height + raised,
        slope_x - raised * x / CLEARING_M**2,
        slope_z - raised * z / CLEARING_M**2,
    )
    return Surface(height, slope_x, slope_z, tuple(octaves))


def forest(land: Land, x: Tensor, z: Tensor) -> Tensor:
    """How wooded a place is, 0..1."""
    return (noise(land.lattice, _fit(land.base, x), x, z, 82.0, 11)[0] * 0.5 + 0.5) ** 1.3


def path_distance(land: Land, x: Tensor, z: Tensor) -> Tensor:
    """About how many metres away the nearest footpath is: the zero line of a noise."""
    n, nx, nz = noise(land.lattice, _fit(land.base, x), x, z, 150.0, 12)
    return n.abs() / torch.sqrt(nx * nx + nz * nz + 1e-6)


def eye_height(land: Land, x: Tensor, z: Tensor, offset_m: Tensor) -> Tensor:
    """[F] places and vertical offsets -> height of the camera: above smoothed ground or water, never inside either."""
    smooth = surface(land, x[:, None], z[:, None], torch.full_like(x[:, None], 9.0)).height[:, 0]
    smooth = 0.5 * (smooth + torch.sqrt(smooth * smooth + 0.5))  # a soft max(ground, water)
    real = surface(land, x[:, None], z[:, None], torch.full_like(x[:, None], 0.5)).height[:, 0].clamp(min=0) + 0.7
    wanted = smooth + EYE_M + offset_m
    over = wanted - real
    return real + 0.5 * (over + torch.sqrt(over * over + 0.04))


def ground_colour(
    land: Land, ground: Surface, x: Tensor, z: Tensor, footprint_m: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Points [F, C, D] -> albedo [F, 3, C, D], slopes for the light, and the share of water.

    Everything finer than two footprints is left out, so that distance does not sparkle."""
    palette = land.palette
    base = _fit(land.base, x)

    def near(wavelength: float) -> Tensor:
        return (wavelength / (2 * footprint_m) - 1).clamp(0, 1)

    def fit(value: Tensor) -> Tensor:
        return value[:, :, None, None] if value.dim() == 2 else value[:, None, None, None]

    detail, detail_x, detail_z = noise(land.lattice, base, x, z, 2.7, 13)
    detail = detail * near(2.7)
    blotch = ground.octaves[3] * 0.5 + ground.octaves[4] * 0.3 * near(23.0) + ground.octaves[5] * 0.25 * near(9.0)
    slope = torch.sqrt(ground.slope_x**2 + ground.slope_z**2)
    wooded = forest(land, x, z)

    tone = (1 + 0.24 * ground.octaves[5] * near(9.0) + 0.22 * detail)[:, None]
    colour = mix(fit(palette.grass), fit(palette.grass_dry), smoothstep(-0.35, 0.55, blotch)[:, None]) * tone
    colour = colour * (1 - 0.35 * (wooded * fit(palette.trees)[:, 0] * 1.6).clamp(0, 1))[:, None]
    bloom = smoothstep(0.25, 0.75, detail) * smoothstep(-0.1, 0.5, ground.octaves[4]) * fit(palette.flowers)[:, 0]
    colour = mix(colour, fit(palette.flower), (0.75 * bloom)[:, None])
    path = smoothstep(1.9, 0.9, path_distance(land, x, z)) * fit(palette.path)[:, 0] * near(6.0)
    colour = mix(colour, fit(palette.sand) * (0.72 + 0.1 * detail[:, None]), (0.85 * path)[:, None])
    rock = smoothstep(0.5, 0.85, slope + 0.12 * ground.octaves[5] * near(9.0))
    strata = 1 + 0.14 * torch.sin(ground.height * 0.9 + 2.5 * ground.octaves[3])
    colour = mix(colour, fit(palette.rock) * (tone * strata[:, None]), rock[:, None])
    beach = smoothstep(1.5, 0.5, ground.height + 0.35 * ground.octaves[4] * near(23.0))
    colour = mix(colour, fit(palette.sand) * (0.9 + 0.1 * tone), beach[:, None])
    snow = fit(palette.snow)[:, 0] * (1 - 0.55 * path) * (1 - 0.8 * beach)
    peak = smoothstep(-10.0, 25.0, ground.height - fit(palette.peak_snow_m)[:, 0] + 14 * ground.octaves[3])
    snow = torch.maximum(snow, peak) * smoothstep(1.0, 0.62, slope + 0.1 * ground.octaves[4])
    white = constant(x, 0.86, 0.89, 0.95)[None, :, None, None]
    colour = mix(colour, white * (0.97 + 0.03 * tone), (0.97 * snow)[:, None])
    relief = 0.26 * (1 - 0.6 * snow) * near(2.7)
    water = smoothstep(0.06, -0.10, ground.height)
    return colour, ground.slope_x + relief * detail_x, ground.slope_z + relief * detail_z, water


def light(palette: Palette, slope_x: Tensor, slope_z: Tensor, shadow: Tensor) -> Tensor:
    """Slopes [F, C, D] and the share of sun that arrives -> light on the ground [F, 3, C, D]."""
    east, up, north = (value[:, None, None] for value in sun_direction(palette))
    inverse = torch.rsqrt(1 + slope_x * slope_x + slope_z * slope_z)
    direct = ((up - slope_x * east - slope_z * north) * inverse).clamp(min=0) * shadow
    sky = 0.55 + 0.45 * inverse
    return (
        palette.sun[:, :, None, None] * direct[:, None]
        + palette.ambient[:, :, None, None] * (sky * (0.7 + 0.3 * shadow))[:, None]
    )
