"""The teacher: draws what a camera sees of an endless landscape, a pure function of (seed, look, camera).

A camera's view is drawn as a small panorama first: columns of equal azimuth, rows of equal elevation. Along a column
the ground is a curve of heights over distance, so what a row sees is a search in the running maximum of slopes, exact
and without marching; trees and towers are bodies of revolution that a column cuts at a few distances. The picture then
samples the panorama. Nothing is cached: the same arguments give the same picture, wherever the camera went before.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, grid_sample

from world.meadow.land import Land, eye_height, ground_colour, light, make_land, surface
from world.meadow.look import Look
from world.meadow.noise import constant, make_lattice, mix, mix_seed, smoothstep
from world.meadow.palette import Palette, make_palette, sun_direction
from world.meadow.sky import air, draw_sky
from world.meadow.things import BIG_KEPT, SMALL_KEPT, Things, big_things, in_view, join, radius_at, small_things

UNIT_M = 4.0  # metres in a pose unit
WIDTH, HEIGHT = 224, 128
FOV_DEG = 75.0  # horizontal
REACH_M = 2600.0  # no ground is drawn farther away
_SMALL_LAYERS, _BIG_LAYERS = 6, 3  # things one column may show
_STEP_GROWTH = 0.0215  # share by which the steps between samples of the ground grow

Drawn = tuple[Tensor, Tensor]  # rgb [F, 3, H, W] in 0..1, depth [F, H, W] along the camera's axis in pose units


class Brushes(NamedTuple):
    """The parts of a drawing that take its time: arithmetic alone, so that each may be compiled by itself."""

    ground: Callable[..., tuple[Tensor, ...]]
    shade: Callable[..., Tensor]
    sky: Callable[..., Tensor]
    thing: Callable[..., tuple[Tensor, Tensor, Tensor]]
    display: Callable[[Tensor], Tensor]

    def compiled(self) -> Brushes:
        """The same drawn some times as fast, after a minute of compiling; bits may differ in the last place."""
        return Brushes(*(torch.compile(brush, dynamic=False) for brush in self))


def default_intrinsics(width: int = WIDTH, height: int = HEIGHT, fov_deg: float = FOV_DEG) -> Tensor:
    """[4] fx, fy, cx, cy in pixels."""
    focal = width / 2 / math.tan(math.radians(fov_deg) / 2)
    return torch.tensor([focal, focal, width / 2, height / 2], dtype=torch.float32)


def make_terrain(seeds: Sequence[int], looks: Sequence[Look], device: torch.device | str = "cpu") -> Land:
    """B seeds and looks -> B worlds. The form of the land follows from the seed and the look's place alone."""
    mixed = [mix_seed(seed) for seed in seeds]
    jitters = [(h / 2**32 - 0.5) * 0.8 for h in mixed]
    key = torch.tensor(mixed, dtype=torch.int64, device=device)
    return make_land(key, make_lattice(key), make_palette(list(looks), jitters, device))


def render(
    terrain: Land,
    poses: Tensor,
    intrinsics: Tensor,
    size: tuple[int, int] = (HEIGHT, WIDTH),
    slice_frames: int | None = None,
    worlds: Tensor | None = None,
    brushes: Brushes | None = None,
) -> tuple[Tensor, Tensor]:
    """Poses [B, n, 4, 4] (camera-to-world, OpenCV axes, pose units), intrinsics [4] or [B, 4] in pixels of `size`.

    `worlds` int64 [B, n] names the world each frame is of (default: every path has its own, in order).
    Returns uint8 [B, n, 3, H, W] and depth [B, n, H, W] along the camera's axis in pose units, inf where the sky is.
    `slice_frames` bounds memory (about 50 MB a frame at the default size); `brushes` may be PLAIN.compiled().
    """
    paths, count = poses.shape[:2]
    device = terrain.key.device
    slice_frames = slice_frames or (192 if device.type == "cuda" else 2)
    flat = poses.to(device, torch.float32).reshape(-1, 4, 4)
    focal = intrinsics.to(device, torch.float32).expand(paths, 4).repeat_interleave(count, 0)
    owner = torch.arange(paths).repeat_interleave(count) if worlds is None else worlds.flatten()
    owner = owner.to(device)
    rgb = torch.empty(paths * count, 3, *size, dtype=torch.uint8, device=device)
    depth = torch.empty(paths * count, *size, device=device)
    for start in range(0, len(flat), slice_frames):
        part = slice(start, start + slice_frames)
        one_each = terrain.take(owner[part])
        colour, depth[part] = draw_frames(one_each, flat[part], focal[part], *size, brushes or PLAIN)
        rgb[part] = (colour * 255 + 0.5).to(torch.uint8)
    return rgb.unflatten(0, (paths, count)), depth.unflatten(0, (paths, count))


def draw_frames(land: Land, poses: Tensor, intrinsics: Tensor, height: int, width: int, brushes: Brushes) -> Drawn:
    """One world a frame (see Land.take), poses [F, 4, 4], intrinsics [F, 4]. No data-dependent control flow."""
    eye_x, eye_z = poses[:, 0, 3] * UNIT_M, poses[:, 2, 3] * UNIT_M
    eye = eye_height(land, eye_x, eye_z, -poses[:, 1, 3] * UNIT_M)
    rays = _rays(poses, intrinsics, height, width)  # [F, 2H, 2W, 3], camera z = 1
    yaw = torch.atan2(poses[:, 0, 2], poses[:, 2, 2])
    c, s = torch.cos(yaw)[:, None, None], torch.sin(yaw)[:, None, None]
    east, north = rays[..., 0] * c - rays[..., 2] * s, rays[..., 0] * s + rays[..., 2] * c
    flat = torch.sqrt(east * east + north * north + 1e-12)
    azimuth, elevation = torch.atan2(east, north), torch.atan2(-rays[..., 1], flat)
    half = (azimuth.abs().amax((1, 2)) + 0.01).clamp(max=math.pi)
    low = (elevation.amin((1, 2)) - 0.01).clamp(min=-1.56)
    high = (elevation.amax((1, 2)) + 0.01).clamp(max=1.56)

    columns, rows = width * 7 // 4, height * 15 // 8
    across = torch.linspace(-1, 1, columns, device=poses.device)
    up = torch.linspace(0, 1, rows, device=poses.device)
    column = yaw[:, None] + half[:, None] * across  # [F, C]
    row = low[:, None] + (high - low)[:, None] * up  # [F, E]
    panorama, distance = draw_panorama(land, eye_x, eye, eye_z, yaw, half, column, row, brushes)

    where = torch.stack(
        (azimuth / half[:, None, None], (elevation - low[:, None, None]) / (high - low)[:, None, None] * 2 - 1), -1
    )
    linear = avg_pool2d(grid_sample(panorama.transpose(2, 3), where, padding_mode="border", align_corners=True), 2)
    centre = where.unflatten(1, (height, 2)).unflatten(3, (width, 2)).mean((2, 4))
    seen = grid_sample(
        distance.transpose(1, 2)[:, None], centre, mode="nearest", padding_mode="border", align_corners=True
    )[:, 0]
    depth = seen / avg_pool2d(flat[:, None], 2)[:, 0].clamp(min=1e-3) / UNIT_M
    return linear, torch.where(seen < 1e8, depth, torch.inf)


def _rays(poses: Tensor, intrinsics: Tensor, height: int, width: int) -> Tensor:
    """World directions of 2 x 2 points in every pixel."""
    x = (torch.arange(2 * width, device=poses.device) + 0.5) / 2
    y = (torch.arange(2 * height, device=poses.device) + 0.5) / 2
    fx, fy, cx, cy = (value[:, None, None] for value in intrinsics.unbind(1))
    x, y = (x[None, None, :] - cx) / fx, (y[None, :, None] - cy) / fy
    r = poses[:, None, None, :3, :3]
    return r[..., 0] * x[..., None] + r[..., 1] * y[..., None] + r[..., 2]


def draw_panorama(
    land: Land, eye_x: Tensor, eye: Tensor, eye_z: Tensor, yaw: Tensor, half: Tensor, column: Tensor, row: Tensor,
    brushes: Brushes,
) -> Drawn:  # fmt: skip
    """Azimuths [F, C] and elevations [F, E] -> display colour [F, 3, C, E] in 0..1, and how far on the ground things
    are in metres [F, C, E]."""
    palette = land.palette
    small = in_view(small_things(land, eye_x, eye_z), eye_x, eye_z, yaw, half, SMALL_KEPT)
    big = in_view(big_things(land, eye_x, eye_z), eye_x, eye_z, yaw, half, BIG_KEPT)

    # the ground along every column: samples of height, colour and slope at distances [D]
    samples = 2 * round(math.log(REACH_M / 7.0 + 1) / _STEP_GROWTH / 2)
    steps = torch.arange(samples, device=eye.device, dtype=torch.float32)
    away = 0.25 + 7.0 * torch.expm1(_STEP_GROWTH * steps)
    shadow = _shadows(land, join([small, big]), eye_x, eye_z, column, away, brushes)
    colour, slope, horizon, haze = brushes.ground(land, eye_x, eye, eye_z, column, away, shadow)

    # what every row of a column sees of it: where its ray first passes below the running maximum of slopes
    tangent = torch.tan(row)[:, None, :].expand(-1, column.shape[1], -1).contiguous()  # [F, C, E]
    hit = torch.searchsorted(horizon, tangent).clamp(1, samples - 1)
    before, after = slope.gather(2, hit - 1) - tangent, slope.gather(2, hit) - tangent
    nearer, farther = away[hit - 1], away[hit]
    share = (before * nearer / (before * nearer - after * farther).clamp(max=-1e-9)).clamp(0, 1)
    sky_seen = tangent > horizon[..., -1:]
    distance = torch.where(sky_seen, 1e9, mix(nearer, farther, share))
    wide = hit[:, None].expand(-1, 3, -1, -1)
    seen = mix(colour.gather(3, wide - 1), colour.gather(3, wide), share[:, None])
    sky = brushes.sky(land, column[..., None], row[:, None, :], eye_x, eye_z)
    seen = torch.where(sky_seen[:, None], sky, seen)
    seen, distance = _draw_things(land, small, big, eye_x, eye, eye_z, column, tangent, distance, haze, seen, brushes)
    return brushes.display(seen * palette.exposure[:, None, None, None]), distance


def _ground(
    land: Land, eye_x: Tensor, eye: Tensor, eye_z: Tensor, column: Tensor, away: Tensor, shadow: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The ground along every column: colour [F, 3, C, D] at distances [D], the slope at which it is seen [F, C, D], the
    running maximum of that, and the haze it fades to [F, 3, C, 1]."""
    palette = land.palette
    footprint = 0.05 + 0.8 * _STEP_GROWTH * (away + 7.0)
    sine, cosine = torch.sin(column)[..., None], torch.cos(column)[..., None]  # [F, C, 1]
    x, z = eye_x[:, None, None] + away * sine, eye_z[:, None, None] + away * cosine  # [F, C, D]
    ground = surface(land, x, z, footprint)
    slope = (ground.height.clamp(min=0) - eye[:, None, None]) / away
    horizon = torch.cummax(slope, -1).values
    haze = air(palette, column[..., None], torch.zeros_like(sine), torch.ones_like(sine))
    colour, slope_x, slope_z, water = ground_colour(land, ground, x, z, footprint)
    colour = colour * light(palette, slope_x, slope_z, shadow)
    mirror = _mirror(land, column, slope, horizon, haze, slope_x * sine + slope_z * cosine, ground.height)
    colour = mix(colour, mirror, water[:, None])
    clear = torch.exp(-away / palette.haze_m[:, None, None]) * (1 - (away / REACH_M) ** 6).clamp(min=0)
    return mix(haze, colour, clear[:, None]), slope, horizon, haze


def _display(light_in: Tensor) -> Tensor:
    """Linear light -> display values in 0..1: a soft shoulder (Narkowicz's fit of the ACES curve), then gamma."""
    x = light_in.clamp(min=0) * 0.72
    return (x * (2.51 * x + 0.03) / (x * (2.43 * x + 0.59) + 0.14)).clamp(1e-6, 1) ** (1 / 2.2)


def _mirror(
    land: Land, column: Tensor, slope: Tensor, horizon: Tensor, haze: Tensor, ripple: Tensor, height: Tensor
) -> Tensor:
    """What water shows [F, 3, C, D]: the sky above, dark under far hills, and its own colour when looked into."""
    palette = land.palette
    down = (-slope).clamp(min=0)
    rise = down + 0.03
    sine = rise * torch.rsqrt(1 + rise * rise)
    sky = air(palette, column[..., None], sine, torch.sqrt(1 - sine * sine))
    hills = smoothstep(-0.03, 0.03, horizon[..., -1:] - down)[:, None]
    sky = mix(sky, haze * 0.55, 0.8 * hills)
    fresnel = 0.10 + 0.86 * (1 - down * torch.rsqrt(1 + down * down)).clamp(0, 1) ** 3
    lit = palette.ambient[:, :, None, None] * 0.9 + palette.sun[:, :, None, None] * 0.25
    shallow = smoothstep(-2.5, 0.0, height)[:, None]
    deep = mix(palette.water[:, :, None, None], palette.sand[:, :, None, None] * 0.6, 0.5 * shallow) * lit
    mirrored = mix(deep, sky, fresnel[:, None]) * (1 + 0.25 * ripple.clamp(-0.4, 0.4))[:, None]
    ice = constant(slope, 0.62, 0.72, 0.80)[None, :, None, None] * (lit + 0.3 * lit)
    return mix(mirrored, ice, palette.ice[:, None, None, None])


def _columns(things: Things, eye_x: Tensor, eye_z: Tensor, column: Tensor) -> tuple[Tensor, Tensor]:
    """Where things [F, N] lie seen along azimuths [F, C]: distance ahead and metres to the right, [F, C, N]."""
    dx, dz = (things.x - eye_x[:, None])[:, None], (things.z - eye_z[:, None])[:, None]
    sine, cosine = torch.sin(column)[..., None], torch.cos(column)[..., None]
    return dx * sine + dz * cosine, dx * cosine - dz * sine


def _shadows(
    land: Land, things: Things, eye_x: Tensor, eye_z: Tensor, column: Tensor, away: Tensor, brushes: Brushes
) -> Tensor:
    """Share of sun that reaches the ground [F, C, D]: every thing throws a soft capsule away from the sun."""
    palette = land.palette
    length = (things.height * 0.8 / torch.tan(palette.sun_height.clamp(min=0.08))[:, None]).clamp(max=30.0)  # [F, N]
    east, _, north = sun_direction(palette)
    flat = torch.rsqrt(east * east + north * north)
    end_x, end_z = things.x - (east * flat)[:, None] * length, things.z - (north * flat)[:, None] * length
    radius = things.radius * (things.height > 0.05) * 1.05
    ahead, aside = _columns(things, eye_x, eye_z, column)
    end_ahead, end_aside = _columns(things._replace(x=end_x, z=end_z), eye_x, eye_z, column)
    crossed = (torch.minimum(aside.abs(), end_aside.abs()) < radius[:, None]) | ((aside > 0) != (end_aside > 0))
    crossed = crossed & (torch.maximum(ahead, end_ahead) > -radius[:, None]) & (radius[:, None] > 0)
    first = torch.where(crossed, torch.minimum(ahead, end_ahead), torch.inf)
    near = first.topk(8, dim=2, largest=False)
    shade = torch.ones(*column.shape, len(away), device=away.device)

    def pick(value: Tensor) -> Tensor:
        return value.gather(2, near.indices)

    ahead, aside, end_ahead, end_aside = pick(ahead), pick(aside), pick(end_ahead), pick(end_aside)
    radius = pick(radius[:, None].expand_as(first)) * near.values.isfinite()
    run, side = end_ahead - ahead, end_aside - aside
    inverse = 1 / (run * run + side * side + 1e-6)
    for k in range(near.indices.shape[2]):
        here = (..., slice(k, k + 1))
        parts = (v[here] for v in (ahead, aside, run, side, inverse, radius))
        shade = brushes.shade(shade, away, *parts)
    return shade


def _shade(
    shade: Tensor, away: Tensor, ahead: Tensor, aside: Tensor, run: Tensor, side: Tensor, inverse: Tensor,
    radius: Tensor,
) -> Tensor:  # fmt: skip
    """One capsule's shadow [F, C, 1] on top of others [F, C, D]."""
    s, b = away - ahead, -aside
    t = ((s * run + b * side) * inverse).clamp(0, 1)
    s, b = s - t * run, b - t * side
    size = radius * (1 - 0.45 * t) + 1e-4
    return shade * (1 - 0.72 * (radius > 0) * smoothstep(1.25, 0.55, torch.sqrt(s * s + b * b + 1e-9) / size))


def _draw_things(
    land: Land, small: Things, big: Things, eye_x: Tensor, eye: Tensor, eye_z: Tensor, column: Tensor, tangent: Tensor,
    ground_distance: Tensor, haze: Tensor, behind: Tensor, brushes: Brushes,
) -> Drawn:  # fmt: skip
    """Lays the nearest things of every column over what is behind them, front to back."""
    palette = land.palette
    found = []
    for things, layers in ((small, _SMALL_LAYERS), (big, _BIG_LAYERS)):
        ahead, aside = _columns(things, eye_x, eye_z, column)
        met = (aside.abs() < things.radius[:, None]) & (ahead > 0.3) & (things.height > 0.05)[:, None]
        near = torch.where(met, ahead, torch.inf).topk(layers, dim=2, largest=False)
        found.append((near.values, aside.gather(2, near.indices), things.pick_columns(near.indices)))
    ahead, order = torch.cat([f[0] for f in found], 2).sort(dim=2)
    aside = torch.cat([f[1] for f in found], 2).gather(2, order)
    joined = join([f[2] for f in found])
    things = Things(*(v.gather(v.dim() - 1, order[:, None].expand_as(v) if v.dim() == 4 else order) for v in joined))
    real = ahead.isfinite()
    ahead = torch.where(real, ahead, 1.0)
    centre = torch.hypot(ahead, aside)
    alpha = smoothstep(0.4, 2.2, centre - things.radius) * real  # what the camera enters fades away

    seen, through, distance = torch.zeros_like(behind), torch.ones_like(tangent), ground_distance
    for k in range(ahead.shape[2]):
        here = (..., slice(k, k + 1))
        thing = Things(*(v[here] for v in things))
        seen, through, distance = brushes.thing(
            palette, thing, ahead[here], aside[here], alpha[here], eye, column, tangent, ground_distance, haze,
            seen, through, distance,
        )  # fmt: skip
    return seen + behind * through[:, None], distance


def _thing(
    palette: Palette, thing: Things, s: Tensor, b: Tensor, alpha: Tensor, eye: Tensor, column: Tensor,
    tangent: Tensor, ground_distance: Tensor, haze: Tensor, seen: Tensor, through: Tensor, distance: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Lays one thing a column [F, C, 1], s metres ahead and b to the right, behind what was laid before."""
    sun_east, sun_up, sun_north = (value[:, None, None] for value in sun_direction(palette))
    sine, cosine = torch.sin(column)[..., None], torch.cos(column)[..., None]  # [F, C, 1]
    sun_right, sun_back = sun_east * cosine - sun_north * sine, -(sun_east * sine + sun_north * cosine)
    sun, ambient = palette.sun[:, :, None, None], palette.ambient[:, :, None, None]
    lamp = constant(tangent, 1.0, 0.62, 0.22)[None, :, None, None]
    size = thing.height.clamp(min=0.05)
    at_axis = radius_at(thing, (eye[:, None, None] + tangent * s - thing.base) / size)
    front = s - torch.sqrt((at_axis * at_axis - b * b).clamp(min=0))
    y = eye[:, None, None] + tangent * front - thing.base
    u = y / size
    radius = radius_at(thing, u)
    covered = (b.abs() < radius) & (u > 0) & (u < 1) & (front > 0.2) & (front < ground_distance)
    opacity = alpha * covered

    across = (-b / radius.clamp(min=0.05)).clamp(-1, 1)
    toward = torch.sqrt((1 - across * across).clamp(min=0))
    capped = u >= thing.split
    v = ((u - thing.split) / (1 - thing.split)).clamp(0, 1)
    upward = torch.where(capped, thing.cone * 0.35 + thing.ellipsoid * (1.7 * v - 0.7), 0.0)
    level = torch.sqrt((1 - upward * upward).clamp(min=0.02))
    facing = level * (across * sun_right + toward * sun_back) + upward * sun_up
    soft = 0.35 * thing.rough
    direct = ((facing + soft) / (1 + soft)).clamp(min=0)
    # mottling and windows are fixed to the thing, not to the view
    north, east = -toward * cosine - across * sine, -toward * sine + across * cosine
    grain = torch.sin(east * 5.1 + 2.3 * y) * torch.sin(north * 4.7 - 1.9 * y + thing.x) * thing.rough
    square = north * north
    panes = 1 - 18 * square + 48 * square**2 - 32 * square**3  # cos of six times the angle around
    window = (
        smoothstep(0.55, 0.85, panes) * smoothstep(0.3, 0.6, torch.sin(y * 1.15)) * thing.windows * ~capped * (y > 3)
    )
    stripe = 0.5 + 0.5 * torch.tanh(4 * torch.sin(u * thing.stripes * 2 * math.pi))
    base = mix(thing.body, torch.full_like(thing.body, 0.75), ((thing.stripes > 0) * stripe)[:, None])
    albedo = torch.where(capped[:, None], thing.cap, base) * (1 + 0.22 * grain - 0.65 * window)[:, None]
    ground_shade = 0.55 + 0.45 * smoothstep(0.0, 1.6, y)
    lit = albedo * (sun * direct[:, None] + ambient * ((0.75 + 0.25 * upward) * ground_shade)[:, None])
    lit = lit + lamp * (window * palette.night[:, None, None] * 0.9)[:, None]
    clear = torch.exp(-s / palette.haze_m[:, None, None])[:, None]
    seen = seen + mix(haze, lit, clear) * (through * opacity)[:, None]
    distance = torch.where((opacity > 0.5) & (through > 0.5), torch.minimum(distance, front), distance)
    through = through * (1 - opacity)
    return seen, through, distance


PLAIN = Brushes(_ground, _shade, draw_sky, _thing, _display)


if __name__ == "__main__":
    from world.meadow.contact_sheet import main

    main()
