"""A look in numbers: the form of the land, its colours and its light, as one float32 tensor a quantity and world."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from world.meadow.look import Look

WAVELENGTHS_M = (840.0, 330.0, 140.0, 58.0, 23.0, 9.0)  # octaves of the land


class Palette(NamedTuple):
    """[B] each, colours [B, 3] in linear light. Form follows from the place alone: other words change no hill."""

    octaves: Tensor  # [B, 6] amplitudes in metres of WAVELENGTHS_M
    ridge: Tensor  # 0 rounded, 1 sharp crests in the large octaves
    bias: Tensor  # metres added everywhere; water fills everything below 0
    trough: Tensor  # metres the sides of a valley along z rise
    trough_width: Tensor
    shore: Tensor  # metres the land falls to one side
    trees: Tensor  # share of tree places taken
    conifers: Tensor  # share of trees that are conifers
    cactus: Tensor
    path: Tensor
    grass: Tensor
    grass_dry: Tensor
    flower: Tensor
    flowers: Tensor  # share of ground in flower
    rock: Tensor
    sand: Tensor
    snow: Tensor  # share of flat ground under snow
    peak_snow_m: Tensor  # height from which snow lies anyway
    water: Tensor
    ice: Tensor
    leaf_a: Tensor
    leaf_b: Tensor
    needle: Tensor
    tower: Tensor
    tower_mixed: Tensor  # 1: every tower has a colour of its own
    sun: Tensor
    sun_azimuth: Tensor  # radians, 0 is the start heading, right positive
    sun_height: Tensor  # radians
    sun_size: Tensor  # radius in radians
    ambient: Tensor
    zenith: Tensor
    horizon: Tensor
    glow: Tensor
    cloud: Tensor
    cloud_cover: Tensor
    haze_m: Tensor
    sky_haze: Tensor  # 0: the sky is clear, 1: only haze is seen
    night: Tensor
    exposure: Tensor


def _rgb(code: str) -> tuple[float, ...]:
    """Hex sRGB -> linear light."""
    return tuple((int(code[i : i + 2], 16) / 255) ** 2.2 for i in (0, 2, 4))


def _lerp(a: tuple[float, ...], b: tuple[float, ...], share: float) -> tuple[float, ...]:
    return tuple(x + (y - x) * share for x, y in zip(a, b, strict=True))


def _scale(a: tuple[float, ...], factor: float) -> tuple[float, ...]:
    return tuple(x * factor for x in a)


_FORM = {  # octaves, ridge, bias, trough, trough width, shore, trees, conifers, cactus, path
    "meadow": ((11.0, 9.0, 6.0, 2.2, 0.7, 0.18), 0.0, 1.8, 16.0, 260.0, 0.0, 0.30, 0.30, 0.0, 1.0),
    "valley": ((60.0, 26.0, 9.0, 2.4, 0.8, 0.2), 0.75, 4.5, 190.0, 210.0, 0.0, 0.34, 0.85, 0.0, 1.0),
    "coast": ((7.0, 6.0, 4.0, 1.8, 0.6, 0.15), 0.15, 3.0, 0.0, 200.0, 11.0, 0.22, 0.25, 0.0, 1.0),
    "lakes": ((8.0, 9.0, 7.0, 2.6, 0.8, 0.18), 0.1, 0.6, 10.0, 300.0, 0.0, 0.34, 0.6, 0.0, 0.6),
    "forest": ((14.0, 9.0, 6.0, 2.4, 0.9, 0.25), 0.0, 5.5, 20.0, 300.0, 0.0, 0.85, 0.6, 0.0, 1.0),
    "desert": ((22.0, 12.0, 9.0, 4.0, 0.5, 0.12), 0.9, 14.0, 30.0, 400.0, 0.0, 0.07, 0.0, 1.0, 0.35),
}
_SEASON = {  # grass, dry grass, flower, flowers, leaf a, leaf b, needle, snow
    "summer": ("57793a", "8a8a4c", "e8d34a", 0.25, "3a6b30", "64833c", "2f5540", 0.0),
    "spring": ("6a9a45", "8fac5c", "f0a0c8", 1.0, "8cbf4c", "e6a5bd", "38704a", 0.0),
    "autumn": ("9a8a3c", "b5853c", "c8642a", 0.35, "d0702a", "c9a233", "3d5a38", 0.0),
    "winter": ("7d8466", "8d8a72", "ffffff", 0.0, "c9d2d8", "b0b7bd", "6f8c86", 1.0),
}
_DESERT = {  # sand, sand of the slopes, flowers: a desert has seasons too
    "summer": ("dfb070", "c98f55", 0.0),
    "spring": ("c8bb74", "a9a35c", 1.0),
    "autumn": ("c97f58", "a65a3c", 0.0),
    "winter": ("dfb070", "c98f55", 0.0),
}
_TIME = {  # sun, strength, azimuth, height, size, ambient, strength, zenith, horizon, glow, night
    "day": ("fff3da", 2.6, 1.9, 0.80, 0.035, "a9c4ea", 0.62, "3a79c9", "bcd9ec", "fff0d0", 0.0),
    "dawn": ("ffc79a", 1.7, -0.55, 0.17, 0.05, "c2b8da", 0.85, "6b9ad6", "f6cfc4", "ffd9a0", 0.0),
    "dusk": ("ff9a55", 1.6, 0.45, 0.11, 0.06, "a090c0", 0.80, "3b3f86", "f09a62", "ff8a3a", 0.15),
    "night": ("9fb8ff", 0.55, 0.7, 0.50, 0.04, "7f96d8", 0.24, "0a1130", "24365f", "5a74b0", 1.0),
}
_WEATHER = {  # sunlight left, ambient factor, cloud cover, haze metres, sky haze, sky greyness
    "clear": (1.0, 1.0, 0.22, 1100.0, 0.0, 0.0),
    "cloudy": (0.85, 1.05, 0.62, 900.0, 0.0, 0.12),
    "overcast": (0.10, 1.25, 1.0, 520.0, 0.25, 0.85),
    "fog": (0.12, 1.30, 0.8, 60.0, 1.0, 0.7),
}
_PEAK_SNOW_M = {"summer": 135.0, "spring": 105.0, "autumn": 95.0, "winter": 0.0}
_TOWER = {"mixed": "c8402e", "red": "c8281e", "orange": "e07a1c", "yellow": "e8bf28", "green": "2f9a4c",
          "blue": "2c58c8", "purple": "7c3cae", "white": "f2eee2", "black": "24242c"}  # fmt: skip


def _numbers(look: Look, jitter: float) -> dict[str, float | tuple[float, ...]]:
    octaves, ridge, bias, trough, trough_width, shore, trees, conifers, cactus, path = _FORM[look.place]
    grass, dry, flower, flowers, leaf_a, leaf_b, needle, snow = _SEASON[look.season]
    sun, sun_power, azimuth, height, size, ambient, ambient_power, zenith, horizon, glow, night = _TIME[look.time]
    sunlight, brighter, cover, haze_m, sky_haze, grey = _WEATHER[look.weather]
    desert = look.place == "desert"
    ground, ground_dry = _rgb(grass), _rgb(dry)
    if desert:
        sand, slopes, flowers = _DESERT[look.season]
        ground, ground_dry = _lerp(_rgb(sand), ground, 0.12), _lerp(_rgb(slopes), ground_dry, 0.12)
    sky, low = _rgb(zenith), _rgb(horizon)
    grey_sky = _scale(_rgb("c3c9cf"), 0.03 if night else 0.55 if look.time == "dusk" else 0.85)
    grey_sky = _lerp(grey_sky, low, 0.15 if look.time == "day" else 0.45)
    sky, low = _lerp(sky, _scale(grey_sky, 0.8), grey), _lerp(low, grey_sky, grey)
    light = _scale(_rgb(sun), sun_power)
    fill = _scale(_lerp(_rgb(ambient), grey_sky if not night else _rgb(ambient), grey * 0.6), ambient_power * brighter)
    if snow:  # white ground throws light back
        fill = _scale(fill, 1.12)
    return {
        "octaves": octaves, "ridge": ridge, "bias": bias, "trough": trough,
        "trough_width": trough_width, "shore": shore,
        "trees": trees, "conifers": conifers, "cactus": cactus, "path": path * (1 - 0.5 * snow),
        "grass": ground, "grass_dry": ground_dry, "flower": _rgb(flower), "flowers": flowers,
        "rock": _rgb("b0774f" if desert else "7c7870"), "sand": _rgb("e2c48c" if desert else "cdb98a"),
        "snow": snow, "peak_snow_m": 1e4 if desert else _PEAK_SNOW_M[look.season],
        "water": _rgb("1f4f63"), "ice": snow * 0.75,
        "leaf_a": _rgb("5f7f48") if desert else _rgb(leaf_a), "leaf_b": _rgb("5f7f48") if desert else _rgb(leaf_b),
        "needle": _rgb(needle), "tower": _rgb(_TOWER[look.towers]), "tower_mixed": float(look.towers == "mixed"),
        "sun": _scale(light, sunlight), "sun_azimuth": azimuth + jitter, "sun_height": height, "sun_size": size,
        "ambient": fill, "zenith": sky, "horizon": low, "glow": _scale(_rgb(glow), sunlight * (0.25 if night else 1.0)),
        "cloud": _lerp(_lerp(_rgb("ffffff"), low, 0.35), light, 0.12) if not night else _scale(_rgb("46557f"), 0.6),
        "cloud_cover": cover, "haze_m": haze_m, "sky_haze": sky_haze, "night": night, "exposure": 0.95,
    }  # fmt: skip


def make_palette(looks: list[Look], jitters: list[float], device: torch.device | str) -> Palette:
    """Looks, and by how much each seed turns the sun in radians, as tensors."""
    worlds = [_numbers(look, jitter) for look, jitter in zip(looks, jitters, strict=True)]
    return Palette(
        *(torch.tensor([w[name] for w in worlds], dtype=torch.float32, device=device) for name in Palette._fields)
    )


def sun_direction(palette: Palette) -> tuple[Tensor, Tensor, Tensor]:
    """[B] each: east (x), up, north (z) of the unit vector to the sun."""
    flat = torch.cos(palette.sun_height)
    return flat * torch.sin(palette.sun_azimuth), torch.sin(palette.sun_height), flat * torch.cos(palette.sun_azimuth)
