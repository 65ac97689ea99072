"""The sky of a world: gradient, sun or moon, clouds on a plane overhead, stars; and the colour far things fade to."""

from __future__ import annotations

import torch
from torch import Tensor

from world.meadow.land import Land
from world.meadow.noise import hash01, mix, noise, smoothstep
from world.meadow.palette import Palette

CLOUD_M = 600.0  # height of the clouds


def _colour(value: Tensor) -> Tensor:
    return value[:, :, None, None]


def _number(value: Tensor) -> Tensor:
    return value[:, None, None]


def sun_cosine(palette: Palette, azimuth: Tensor, sine: Tensor, cosine: Tensor) -> Tensor:
    """Cosine of the angle to the sun of directions [F, C, E], given sine and cosine of their elevation."""
    flat = torch.cos(azimuth - _number(palette.sun_azimuth)) * torch.cos(_number(palette.sun_height))
    return sine * torch.sin(_number(palette.sun_height)) + cosine * flat


def air(palette: Palette, azimuth: Tensor, sine: Tensor, cosine: Tensor) -> Tensor:
    """Sky without sun disc and clouds, [F, 3, C, E]; at sine 0 it is what far things fade to."""
    rise = 1 - torch.exp(-3.4 * sine.clamp(min=0))
    near_sun = sun_cosine(palette, azimuth, sine, cosine) - 1
    glow = 0.30 * torch.exp(4.5 * near_sun) + 0.32 * torch.exp(40 * near_sun)
    sky = mix(_colour(palette.horizon), _colour(palette.zenith), rise[:, None])
    hazy = torch.exp(-2.5 * sine.clamp(min=0) * (1 - _number(palette.sky_haze))) * _number(palette.sky_haze)
    sky = mix(sky, _colour(palette.horizon), hazy[:, None])
    return sky + _colour(palette.glow) * glow[:, None]


def draw_sky(land: Land, azimuth: Tensor, elevation: Tensor, eye_x: Tensor, eye_z: Tensor) -> Tensor:
    """azimuth [F, C, 1], elevation [F, 1, E] in radians -> linear light [F, 3, C, E]."""
    palette = land.palette
    sine, cosine = torch.sin(elevation), torch.cos(elevation)
    sky = air(palette, azimuth, sine, cosine)
    towards = sun_cosine(palette, azimuth, sine, cosine)
    clear = 1 - _number(palette.sky_haze)
    size = _number(palette.sun_size)
    disc = smoothstep(torch.cos(size * 1.2), torch.cos(size * 0.8), towards) * clear
    brightness = (_colour(palette.sun) * 1.6 + _colour(palette.glow)) * (1 + 1.5 * _number(palette.night)[:, None])
    stars = _stars(land, azimuth, elevation) * _number(palette.night) * clear * (1 - _number(palette.cloud_cover))
    sky = sky + stars[:, None] * 0.8

    far = CLOUD_M / (torch.tan(elevation.clamp(0.0, 1.55)) + 0.07)
    x, z = _number(eye_x) + far * torch.sin(azimuth), _number(eye_z) + far * torch.cos(azimuth)
    footprint = far * far / CLOUD_M * 0.004
    thick = torch.zeros_like(x)
    for i, (wavelength, weight) in enumerate(((900.0, 0.55), (370.0, 0.34), (150.0, 0.22))):
        fine = (wavelength / (2 * footprint) - 1).clamp(0, 1)
        thick = thick + weight * fine * noise(land.lattice, _number(land.base), x, z, wavelength, 20 + i)[0]
    bare = 0.42 - 1.15 * _number(palette.cloud_cover)
    cover = smoothstep(bare, bare + 0.5, thick) * smoothstep(0.015, 0.12, elevation) * clear
    shade = 1 - (0.10 + 0.16 * _number(palette.cloud_cover)) * smoothstep(bare + 0.1, bare + 0.9, thick)
    cloud = (_colour(palette.cloud) + 0.5 * _colour(palette.glow) * torch.exp(5 * (towards - 1))[:, None]) * shade[
        :, None
    ]
    sky = mix(sky, brightness, disc[:, None])
    return mix(sky, mix(sky, cloud, smoothstep(0.0, 0.3, elevation)[:, None] * 0.45 + 0.5), (0.92 * cover)[:, None])


def _stars(land: Land, azimuth: Tensor, elevation: Tensor) -> Tensor:
    """Soft points, about a pixel wide, in some of the cells of a grid of directions."""
    across, up = azimuth / 0.1, elevation / 0.1 + torch.zeros_like(azimuth)
    across = across + torch.zeros_like(up)
    ix, iz = across.floor().long(), up.floor().long()
    key = _number(land.key)
    dx = (across - ix - 0.2 - 0.6 * hash01(key, ix, iz, 80)) * torch.cos(elevation)
    dz = up - iz - 0.2 - 0.6 * hash01(key, ix, iz, 81)
    return torch.exp(-(dx * dx + dz * dz) / (2 * 0.034**2)) * smoothstep(0.45, 1.0, hash01(key, ix, iz, 82))
