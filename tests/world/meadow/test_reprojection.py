"""What is hidden was not seen, and motion is found with its direction and size."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from world.chunk import Geometry
from world.meadow.look import Look
from world.meadow.measures import to_rgb
from world.meadow.plays import begin, draw_play, held
from world.meadow.reprojection import SHARES, motion_made, part_of, seen_at_start
from world.meadow.students import Teacher

SMALL = Geometry(width=112, height=64, fps=16, chunk_frames=1)
CPU = torch.device("cpu")


def wall(near: float | None, right: float) -> tuple[Tensor, np.ndarray]:
    """Depth and eyes of a far wall at 4 behind a near post in the middle, seen from the origin and from the right."""
    eyes = np.tile(np.eye(4), (2, 1, 1))
    eyes[1, 0, 3] = right
    depth = torch.full((2, 64, 112), 4.0)
    if near is not None:
        fx = 112 / 2 / math.tan(math.radians(37.5))
        for i, eye in enumerate((0.0, right)):
            middle = 56 - fx * eye / near
            depth[i, :, round(middle - 10) : round(middle + 10)] = near
    return depth, eyes


def test_what_stood_behind_something_was_not_seen() -> None:
    depth, eyes = wall(near=None, right=0.5)
    seen = seen_at_start(depth, eyes)
    fx = 112 / 2 / math.tan(math.radians(37.5))
    new = fx * 0.5 / 4  # columns that came in at the right
    assert seen[0].all() and seen[1].float().mean().item() == pytest.approx(1 - new / 112, abs=0.02)
    depth, eyes = wall(near=1.0, right=0.3)
    hidden = ~seen_at_start(depth, eyes)[1, :, : 112 - round(fx * 0.3 / 4) - 1]
    post = depth[1, 0] == 1
    assert not hidden[:, post[: hidden.shape[1]]].any()  # the post itself was seen
    expected = fx * 0.3 * (1 / 1 - 1 / 4)  # columns of wall that it uncovers
    assert hidden.float().sum(1).mean().item() == pytest.approx(min(20, expected), abs=3)


def test_turned_away_nothing_of_the_start_is_seen_and_the_sky_stays_sky() -> None:
    play = begin(700001, Look(), held("l", 60), SMALL, (0, 10, 60))
    truth = draw_play(play, SMALL, CPU)
    shares = seen_at_start(truth.depth, truth.eyes).float().mean((1, 2))
    assert shares[0] == 1 and 0.6 < shares[1] < 0.85 and shares[2] == 0
    sky = truth.depth.isinf()
    assert seen_at_start(truth.depth, truth.eyes)[1][sky[1]].float().mean() > 0.6


@pytest.mark.parametrize("keys", ["l", "w", "wj", "d"])
def test_motion_is_found_with_its_direction_and_size(keys: str) -> None:
    play = begin(700003, Look(weather="cloudy"), held(keys, 4), SMALL)
    truth = draw_play(play, SMALL, CPU)
    opposite = begin(700003, Look(weather="cloudy"), -held(keys, 4), SMALL)
    rgb, other = (to_rgb(frames) for frames in Teacher(SMALL, CPU)([play, opposite]))
    ends = truth.eyes[[0, 4]]
    assert motion_made(rgb[0], rgb[4], truth.depth[0], ends) == pytest.approx(1, abs=0.25)
    assert motion_made(rgb[0], rgb[2], truth.depth[0], ends) == pytest.approx(0.5, abs=0.25)
    assert motion_made(rgb[0], rgb[0], truth.depth[0], ends) == pytest.approx(0, abs=0.02)
    assert motion_made(rgb[0], other[4], truth.depth[0], ends) < -0.5
    assert motion_made(rgb[0], torch.zeros_like(rgb[4]), truth.depth[0], ends) < SHARES[1]


def test_a_part_of_a_motion() -> None:
    start, end = (begin(1, Look(), held("wl", 4), SMALL, (0,)).poses[i].astype(np.float64) for i in (1, 4))
    np.testing.assert_allclose(part_of(start, end, 0), start)
    np.testing.assert_allclose(part_of(start, end, 1), end, atol=1e-6)
    half = part_of(start, end, 0.5)
    np.testing.assert_allclose(part_of(half, end, 1), end, atol=1e-6)
    back = part_of(start, end, -1)
    np.testing.assert_allclose(back[:3, :3] @ start[:3, :3].T, start[:3, :3] @ end[:3, :3].T, atol=1e-6)
