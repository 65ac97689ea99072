"""The teacher is a pure function of (seed, look, camera), and its picture moves the way the camera does."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from world.meadow.land import EYE_M, eye_height, surface
from world.meadow.look import Look, random_look, values
from world.meadow.teacher import UNIT_M, default_intrinsics, make_terrain, render
from world.motion import keyboard_poses

SIZE = (64, 112)
CAMERA = default_intrinsics(112, 64)


def draw(seeds: list[int], looks: list[Look], poses: Tensor, **options: int) -> tuple[Tensor, Tensor]:
    return render(make_terrain(seeds, looks), poses, CAMERA, SIZE, **options)


def path(script: str, every: int = 1) -> Tensor:
    return torch.from_numpy(keyboard_poses(script)[::every])[None]


def grey(pictures: Tensor) -> Tensor:
    return pictures.float().mean(-3)


def test_the_same_arguments_give_the_same_bits() -> None:
    poses = path("wl-6", 3)
    first, second = (draw([7], [Look()], poses) for _ in range(2))
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])
    assert first[0].shape == (1, 3, 3, *SIZE) and first[0].dtype == torch.uint8 and first[1].shape == (1, 3, *SIZE)


def test_a_frame_depends_on_nobody_else() -> None:
    """Alone, among others, in other slices, and after another way to the same place."""
    looks = [
        Look("dusk", "winter", "cloudy", "valley"),
        Look("night", place="desert"),
        Look(place="coast", weather="fog"),
    ]
    poses = path("wl-10", 5).expand(3, -1, -1, -1)
    together, _ = draw([1, 2, 3], looks, poses, slice_frames=4)
    for world in range(3):
        for frame in (0, 2):
            alone, _ = draw([world + 1], [looks[world]], poses[:1, frame : frame + 1])
            assert (alone[0, 0].int() - together[world, frame].int()).abs().max() <= 1


def test_seeds_and_places_differ_but_light_moves_no_hill() -> None:
    pose = torch.eye(4)[None, None]
    rgb, depth = draw([1], [Look()], pose)
    other, _ = draw([2], [Look()], pose)
    assert (grey(rgb) - grey(other)).abs().mean() > 5
    night, same = draw([1], [Look("night", "winter", "overcast")], pose)
    assert torch.equal(depth.isinf(), same.isinf())
    assert (grey(rgb) - grey(night)).abs().mean() > 30


def shift(before: Tensor, after: Tensor) -> int:
    """By how many pixels the middle of a picture moved right, by cross-correlation."""
    a, b = before[16:48, 20:-20], after[16:48]
    errors = [((a - b[:, 20 + d : b.shape[1] - 20 + d]) ** 2).mean() for d in range(-20, 21)]
    return int(torch.stack(errors).argmin()) - 20


@pytest.mark.parametrize("seed", [3, 11])
def test_turning_left_moves_the_picture_right(seed: int) -> None:
    first, left, right = (grey(draw([seed], [Look()], path(s, 4)[:, -1:])[0])[0, 0] for s in ("none-4", "j-4", "l-4"))
    expected = float(CAMERA[0]) * math.tan(math.radians(8))
    assert abs(shift(first, left) - expected) <= 2
    assert abs(shift(first, right) + expected) <= 2


def test_pitching_up_moves_the_horizon_down() -> None:
    sky = [draw([5], [Look()], path(s, 5)[:, -1:])[1].isinf().float().mean() for s in ("k-5", "none-5", "i-5")]
    assert sky[0] < sky[1] < sky[2]


def test_depth_and_colour_are_one_place() -> None:
    """Walking forward expands the picture as the first frame's depth, in pose units, says it must."""
    rgb, depth = draw([4, 9], [Look(weather="overcast")] * 2, path("w-40", 40).expand(2, -1, -1, -1))
    pictures = grey(rgb)
    _fx, fy, cx, cy = CAMERA.tolist()
    y, x = torch.meshgrid(torch.arange(SIZE[0]) + 0.5, torch.arange(SIZE[1]) + 0.5, indexing="ij")
    step = 40 * 0.05
    terrain, zero = make_terrain([4, 9], [Look()] * 2), torch.zeros(2)  # the eye follows the ground up and down
    rise = (eye_height(terrain, zero, zero + step * UNIT_M, zero) - eye_height(terrain, zero, zero, zero)) / UNIT_M
    known = (depth[:, 0] > 2.2 * step) & (depth[:, 0] < 20)

    def error(far: Tensor) -> float:
        scale = far / (far - step)
        u, v = (x - cx) * scale + cx, (y - cy) * scale + cy + fy * rise[:, None, None] / (far - step)
        where = torch.stack((u / SIZE[1] * 2 - 1, v / SIZE[0] * 2 - 1), -1)
        warped = grid_sample(pictures[:, 1:], where.nan_to_num(9), align_corners=False)[:, 0]
        both = known & (where.abs() < 1).all(-1)
        assert both.float().mean() > 0.03
        return float((pictures[:, 0] - warped)[both].abs().mean())

    true = error(depth[:, 0])
    assert true < 0.7 * error(depth[:, 0] * 1.5) and true < 0.7 * error(depth[:, 0] * 50), true  # 50: it stood still


def test_walking_and_coming_back_is_the_same_view() -> None:
    rgb, _ = draw([6], [Look(place="forest")], path("w-20,s-20,l-15,j-15", 70)[:, [0, -1]])
    assert (rgb[0, 0].int() - rgb[0, 1].int()).abs().max() <= 2


def test_prompts_change_what_a_picture_measures() -> None:
    pose, seeds = torch.eye(4)[None, None].expand(4, -1, -1, -1), list(range(20, 24))

    def mean(look: Look, first_row: int = 0) -> Tensor:
        return draw(seeds, [look] * 4, pose)[0][..., first_row:, :].float().mean((0, 1, 3, 4))

    day, night, dusk = mean(Look()), mean(Look("night")), mean(Look("dusk"))
    assert night.mean() < 0.5 * day.mean()
    assert dusk[0] - dusk[2] > day[0] - day[2] and dusk.mean() < day.mean()
    summer, winter, autumn = (mean(Look(season=season), first_row=44) for season in ("summer", "winter", "autumn"))
    assert winter.min() > 180 and winter.max() - winter.min() < 25 < summer.max() - summer.min()  # white ground
    assert summer[1] > summer[0] > summer[2] and autumn[0] > autumn[1] > autumn[2]  # from green to orange
    fog, clear = (grey(draw(seeds, [Look(weather=w)] * 4, pose)[0]).diff(dim=-1).abs().mean() for w in ("fog", "clear"))
    assert fog < 0.6 * clear  # edges fade


@pytest.mark.parametrize("script", ["i-42", "k-42", "l-90", "j-45,k-30"])
def test_extreme_views_are_whole(script: str) -> None:
    looks = [random_look(np.random.default_rng(i)) for i in range(2)]
    rgb, depth = draw([1, 2], looks, path(script)[:, -1:].expand(2, -1, -1, -1))
    assert not depth.isnan().any() and (depth > 0).all()
    assert (rgb.float().amax((-3, -2, -1)) > 8).all()  # nothing is black


def test_odd_cameras_are_survived() -> None:
    """Far away, high up, far below, rolled: always a finite picture."""
    poses = torch.eye(4).repeat(5, 1, 1)
    poses[0, :3, 3] = torch.tensor([25_000.0, 0.0, -40_000.0])
    poses[1, 1, 3], poses[2, 1, 3] = -60.0, 60.0
    poses[3, :3, :3] = torch.tensor([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    poses[4, :3, :3] = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, -1.0, 0.0]])  # straight down
    rgb, depth = draw([1], [Look()], poses[None])
    assert not depth.isnan().any() and (rgb.float().std((-3, -2, -1)) > 2).all()


def test_the_eye_walks_smoothly_over_land_and_water() -> None:
    seeds = list(range(12))
    places = [values("place")[i % 6] for i in seeds]
    terrain = make_terrain(seeds, [Look(place=place) for place in places])
    at = torch.arange(0, 600, 0.2)  # metres, a step a frame
    land = terrain.take(torch.arange(12).repeat_interleave(len(at)))
    z, x = at.repeat(12), torch.zeros(12 * len(at))
    eye = eye_height(land, x, z, torch.zeros_like(x))
    ground = surface(land, x[:, None], z[:, None], torch.full_like(x[:, None], 0.5)).height[:, 0].clamp(min=0)
    assert (eye - ground).min() > 0.6
    assert abs(float((eye - ground).mean()) - EYE_M) < 0.35
    steps = eye.reshape(12, -1).diff(dim=1)
    assert steps.abs().max() < 0.2 and steps.diff(dim=1).abs().max() < 0.02  # no step steeper than 45 degrees, no jolt
    start = surface(terrain, torch.zeros(12, 1), torch.zeros(12, 1), torch.full((12, 1), 2.0)).height
    assert (start > 1.5).all()  # nobody starts in water


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_cuda_draws_the_same_world() -> None:
    looks = [random_look(np.random.default_rng(i)) for i in range(4)]
    poses = path("wl-10", 5).expand(4, -1, -1, -1)
    cpu = draw([1, 2, 3, 4], looks, poses)[0].int()
    gpu = render(make_terrain([1, 2, 3, 4], looks, "cuda"), poses, CAMERA, SIZE)[0].cpu().int()
    assert ((cpu - gpu).abs() > 3).float().mean() < 0.01
