"""Trees, stones, towers and landmarks: bodies of revolution on jittered grids, every property a hash of its cell."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from world.meadow.land import Land, forest, path_distance, surface
from world.meadow.noise import constant, hash01, mix, smoothstep

_PAINTS = (
    (0.54, 0.07, 0.05), (0.72, 0.27, 0.05), (0.78, 0.56, 0.10), (0.09, 0.34, 0.15),
    (0.06, 0.36, 0.42), (0.07, 0.15, 0.50), (0.27, 0.09, 0.38), (0.80, 0.77, 0.70),
)  # fmt: skip
SMALL_KEPT, BIG_KEPT = 224, 40  # things in view that one frame may draw, nearest first


class Things(NamedTuple):
    """[F, N] each, metres; colours [F, 3, N]. Below `split` a body (trunk, shaft), above it a cap (crown, roof)."""

    x: Tensor
    z: Tensor
    base: Tensor
    height: Tensor  # 0: nothing stands here
    body_radius: Tensor
    cap_radius: Tensor
    split: Tensor  # share of the height where the cap begins
    cone: Tensor  # the cap's form: weights of cone, ellipsoid (neither: cylinder)
    ellipsoid: Tensor
    belly: Tensor  # 1: a whole ellipsoid, 0: its upper half, a dome
    tiers: Tensor  # how jagged a cone is
    stripes: Tensor  # around the body
    windows: Tensor  # how much they shine
    rough: Tensor  # how mottled the colour is
    body: Tensor
    cap: Tensor

    @property
    def radius(self) -> Tensor:
        return torch.maximum(self.body_radius, self.cap_radius)

    def pick(self, index: Tensor) -> Things:
        """index [F, M] -> things [F, M]."""
        wide = index[:, None].expand(-1, 3, -1)
        return Things(*(v.gather(2, wide) if v.dim() == 3 else v.gather(1, index) for v in self))

    def pick_columns(self, index: Tensor) -> Things:
        """index [F, C, K] -> [F, C, K], colours [F, 3, C, K]."""
        flat = index.flatten(1)
        picked = self.pick(flat)
        return Things(*(v.unflatten(-1, index.shape[1:]) for v in picked))


def join(parts: list[Things]) -> Things:
    return Things(*(torch.cat(values, -1) for values in zip(*parts, strict=True)))


def _cells(eye_x: Tensor, eye_z: Tensor, size_m: float, reach: int) -> tuple[Tensor, Tensor]:
    """[F] -> integer cells [F, (2 * reach) ** 2] around the camera."""
    offset = torch.arange(-reach, reach, device=eye_x.device)
    ix = (eye_x / size_m).round().long()[:, None, None] + offset[None, :, None]
    iz = (eye_z / size_m).round().long()[:, None, None] + offset[None, None, :]
    shape = (len(eye_x), 2 * reach, 2 * reach)
    return ix.expand(shape).flatten(1), iz.expand(shape).flatten(1)


def _paint(share: Tensor) -> Tensor:
    """[F, N] in 0..1 -> one of eight colours that are easy to tell apart, linear [F, 3, N]."""
    paints = constant(share, *(part for paint in _PAINTS for part in paint)).reshape(-1, 3)
    return paints[(share * len(_PAINTS)).long().clamp(max=len(_PAINTS) - 1)].movedim(-1, 1)


def _near_start(x: Tensor, z: Tensor) -> Tensor:
    """True where nothing may stand, so that the start looks out freely."""
    return (x * x + z * z < 64) | ((x.abs() < 3 + 0.12 * z) & (z > 0) & (z < 42))


def small_things(land: Land, eye_x: Tensor, eye_z: Tensor) -> Things:
    return join([_trees(land, eye_x, eye_z), _stones(land, eye_x, eye_z)])


def _trees(land: Land, eye_x: Tensor, eye_z: Tensor) -> Things:
    ix, iz = _cells(eye_x, eye_z, 13.0, 15)
    palette, key = land.palette, land.key[:, None]

    def roll(channel: int) -> Tensor:
        return hash01(key, ix, iz, 10 + channel)

    def fit(value: Tensor) -> Tensor:
        return value[:, None]

    x, z = (ix + 0.1 + 0.8 * roll(0)) * 13.0, (iz + 0.1 + 0.8 * roll(1)) * 13.0
    ground = surface(land, x, z, torch.full_like(x, 1.0))
    distance = torch.hypot(x - eye_x[:, None], z - eye_z[:, None])
    steep = ground.slope_x**2 + ground.slope_z**2
    chance = fit(palette.trees) * (0.25 + 1.5 * forest(land, x, z))
    stands = (
        (roll(2) < chance)
        & (ground.height > 0.7)
        & (steep < 0.55)
        & (path_distance(land, x, z) > 3.2)
        & ~_near_start(x, z)
    )
    stands = stands & (ground.height < fit(palette.peak_snow_m.clamp(min=90)) + 15)
    grown = smoothstep(188.0, 140.0, distance) * stands
    conifer = (roll(3) < fit(palette.conifers)).float()
    cactus = fit(palette.cactus) + torch.zeros_like(x)
    size = 0.75 + 0.6 * roll(4)
    height = mix(mix(7.0 * size, 10.5 * size, conifer), 3.6 * size, cactus) * grown
    cap_radius = mix(mix(3.0 * size, 2.3 * size, conifer), 0.42 * size, cactus)
    body_radius = mix(0.34 * size, 0.42 * size, cactus)
    leaf = mix(palette.leaf_a[:, :, None], palette.leaf_b[:, :, None], (roll(5) ** 1.4)[:, None])
    needle = palette.needle[:, :, None] * (0.8 + 0.5 * roll(6))[:, None]
    cap = (
        mix(mix(leaf, needle, conifer[:, None]), palette.leaf_a[:, :, None], cactus[:, None])
        * (0.85 + 0.3 * roll(7))[:, None]
    )
    bark = constant(x, 0.115, 0.070, 0.042)[None, :, None]
    zero = torch.zeros_like(x)
    return Things(
        x, z, ground.height - 0.25, height, body_radius, cap_radius,
        mix(mix(0.24 + 0.1 * roll(8), 0.14 + zero, conifer), 0.85 + zero, cactus),
        conifer * (1 - cactus), 1 - conifer * (1 - cactus),
        1 - cactus, conifer, zero, zero, 1 - 0.5 * cactus, mix(bark + cap * 0, cap, cactus[:, None]), cap,
    )  # fmt: skip


def _stones(land: Land, eye_x: Tensor, eye_z: Tensor) -> Things:
    """Bushes and boulders."""
    ix, iz = _cells(eye_x, eye_z, 8.0, 9)
    palette, key = land.palette, land.key[:, None]

    def roll(channel: int) -> Tensor:
        return hash01(key, ix, iz, 30 + channel)

    x, z = (ix + 0.1 + 0.8 * roll(0)) * 8.0, (iz + 0.1 + 0.8 * roll(1)) * 8.0
    ground = surface(land, x, z, torch.full_like(x, 0.7))
    distance = torch.hypot(x - eye_x[:, None], z - eye_z[:, None])
    clear = (path_distance(land, x, z) > 2.5) & (x * x + z * z > 25)
    stands = (roll(2) < 0.24) & (ground.height > 0.3) & clear
    rock = (roll(3) < 0.4).float()
    height = (0.7 + 1.1 * roll(4)) * smoothstep(68.0, 42.0, distance) * stands
    radius = (0.55 + 0.65 * roll(5)) * (0.8 + 0.3 * rock)
    bush = mix(palette.leaf_a[:, :, None], palette.grass[:, :, None], roll(6)[:, None]) * 0.8
    snow = constant(x, 0.70, 0.74, 0.80)[None, :, None] * palette.snow[:, None, None]
    stone = (
        palette.rock[:, :, None] * (0.75 + 0.4 * roll(7))[:, None] * (1 - 0.6 * palette.snow[:, None, None])
        + 0.6 * snow
    )
    colour = mix(bush, stone, rock[:, None])
    zero = torch.zeros_like(x)
    return Things(
        x, z, ground.height - 0.45 * height, 1.45 * height, zero + 0.01, radius, zero, zero, zero + 1,
        zero + 1, zero, zero, zero, zero + 0.8, colour, colour,
    )  # fmt: skip


def big_things(land: Land, eye_x: Tensor, eye_z: Tensor) -> Things:
    """Towers on a grid of 95 m, landmarks on one of 420 m, and two towers that every start place has."""
    key = land.key[:, None]
    ix, iz = _cells(eye_x, eye_z, 95.0, 6)
    x, z = (ix + 0.15 + 0.7 * hash01(key, ix, iz, 50)) * 95.0, (iz + 0.15 + 0.7 * hash01(key, ix, iz, 51)) * 95.0
    away = torch.hypot(x - eye_x[:, None], z - eye_z[:, None])
    stands = (hash01(key, ix, iz, 52) < 0.42) & (torch.hypot(x, z) > 78)
    towers = _towers(land, ix, iz, x, z, stands * smoothstep(540.0, 430.0, away), torch.zeros_like(ix))

    one = torch.arange(2, device=ix.device).expand(len(ix), -1)
    first, second = hash01(key, one, one, 53), hash01(key, one, one, 54)
    angle = torch.where(one == 0, (first - 0.5) * 0.95, math.pi * (0.6 + 0.8 * first))
    reach = torch.where(one == 0, 36 + 30 * second, 45 + 45 * second)
    x, z = reach * torch.sin(angle), reach * torch.cos(angle)
    away = torch.hypot(x - eye_x[:, None], z - eye_z[:, None])
    home = _towers(land, one, one, x, z, smoothstep(540.0, 430.0, away), torch.zeros_like(one))

    ix, iz = _cells(eye_x, eye_z, 420.0, 3)
    x, z = (ix + 0.15 + 0.7 * hash01(key, ix, iz, 55)) * 420.0, (iz + 0.15 + 0.7 * hash01(key, ix, iz, 56)) * 420.0
    away = torch.hypot(x - eye_x[:, None], z - eye_z[:, None])
    stands = (hash01(key, ix, iz, 57) < 0.8) & (torch.hypot(x, z) > 150)
    landmarks = _towers(land, ix, iz, x, z, stands * smoothstep(1180.0, 980.0, away), torch.ones_like(ix))
    return join([towers, home, landmarks])


def _towers(land: Land, ix: Tensor, iz: Tensor, x: Tensor, z: Tensor, grown: Tensor, great: Tensor) -> Things:
    """`great` 0: a tower with a spire, a dome, battlements or stripes; 1: an obelisk, dome, pyramid or giant tower."""
    palette, key = land.palette, land.key[:, None]

    def roll(channel: int) -> Tensor:
        return hash01(key, ix, iz, 60 + channel)

    def choose(*values: float) -> Tensor:
        return constant(x, *values)[kind + 4 * great]

    kind = (roll(0) * 4).long()
    size = 0.8 + 0.5 * roll(1)
    body_radius = choose(2.5, 3.0, 3.3, 2.2, 5.0, 24.0, 30.0, 8.0) * size
    cap_radius = choose(1.35, 1.12, 1.22, 1.1, 1.0, 1.0, 1.0, 1.3) * body_radius
    height = choose(17.0, 14.0, 13.0, 19.0, 58.0, 24.0, 34.0, 62.0) * (0.8 + 0.5 * roll(2))
    ground = surface(land, x, z, torch.full_like(x, 3.0)).height.clamp(min=-0.5)
    zero = torch.zeros_like(x)
    hue = roll(3)
    mixed = palette.tower_mixed[:, None, None]
    own = mix(palette.tower[:, :, None] * (0.8 + 0.4 * roll(4))[:, None], _paint(hue), mixed)
    pale = constant(x, 0.70, 0.66, 0.58)[None, :, None] * (0.75 + 0.35 * roll(5))[:, None]
    slate = constant(x, 0.16, 0.17, 0.22)[None, :, None]
    painted = torch.maximum(1 - mixed[:, 0], (roll(6) < 0.55).float())[:, None]  # asked-for colours cover the walls
    body = mix(pale, own, painted)
    other = mix(slate + 0 * own, mix(pale, _paint((hue + 0.4) % 1.0), mixed), (roll(7) < 0.55).float()[:, None])
    cap = mix(own, other, painted * (1 - great[:, None] * (kind != 3)[:, None]))
    snow = constant(x, 0.84, 0.87, 0.93)[None, :, None]
    cap = mix(cap, snow, (0.45 * palette.snow[:, None] * (1 - great))[:, None])
    return Things(
        x, z, ground - 1.5, (height + 1.5) * grown, body_radius, cap_radius,
        choose(0.66, 0.80, 0.87, 0.86, 0.0, 0.0, 0.0, 0.8),
        choose(1.0, 0, 0, 0, 1, 0, 1, 1), choose(0, 1.0, 0, 1, 0, 1, 0, 0),
        zero, zero, choose(0, 0, 0, 5.0, 0, 0, 0, 0), choose(1.0, 1, 1, 0.5, 0, 0, 0, 1), zero + 0.25, body, cap,
    )  # fmt: skip


def in_view(things: Things, eye_x: Tensor, eye_z: Tensor, yaw: Tensor, half: Tensor, kept: int) -> Things:
    """The `kept` nearest things within `half` radians of the heading (and what may throw a shadow there)."""
    dx, dz = things.x - eye_x[:, None], things.z - eye_z[:, None]
    distance = torch.hypot(dx, dz)
    c, s = torch.cos(yaw)[:, None], torch.sin(yaw)[:, None]
    aside = torch.atan2(dx * c - dz * s, dx * s + dz * c).abs()
    seen = (things.height > 0.05) & ((aside - half[:, None]) * distance < 14 + 1.6 * things.radius)
    near = torch.where(seen, distance, torch.inf)
    nearest = near.topk(min(kept, near.shape[1]), dim=1, largest=False)
    picked = things.pick(nearest.indices)
    return picked._replace(height=picked.height * nearest.values.isfinite())


def radius_at(things: Things, u: Tensor) -> Tensor:
    """Radius at share u of the height; fields broadcast against u."""
    v = ((u - things.split) / (1 - things.split)).clamp(0, 1)
    jag = 1 - 0.42 * things.tiers * torch.frac(v * 3.6)
    dome = torch.sqrt((1 - (v * (1 + things.belly) - things.belly) ** 2).clamp(min=0))
    rest = 1 - things.cone - things.ellipsoid
    cap = things.cap_radius * (things.cone * (1 - v) * jag + things.ellipsoid * dome + rest)
    return torch.where(u < things.split, things.body_radius * (1 - 0.15 * u), cap)
