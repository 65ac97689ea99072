"""Plays are the same for everybody, do what they are called, and come back to where they began."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from world.chunk import Geometry
from world.meadow.look import Look
from world.meadow.plays import AWAY_DEG, begin, draw_play, held, mixed_axes, turn_axes, walk_axes
from world.motion import yaw_deg

SMALL = Geometry(width=112, height=64, fps=16, chunk_frames=1)


def test_mixed_control_follows_its_seed_and_mixes() -> None:
    for seed in range(700000, 700020):
        for variant in (0, 1):
            axes = mixed_axes(seed, variant, 64)
            np.testing.assert_array_equal(axes, mixed_axes(seed, variant, 64))
            assert axes.shape == (64, 4) and axes[:, 0].any() and axes[:, 2].any()
            np.testing.assert_array_equal(axes[::4], axes[3::4])  # control changes between chunks
    assert not np.array_equal(mixed_axes(1, 0, 64), mixed_axes(2, 0, 64))


@pytest.mark.parametrize("step_deg, frames", [(10.0, 24), (7.5, 32), (5.0, 48), (2.0, 120)])
@pytest.mark.parametrize("way", [1, -1])
def test_turning_away_comes_back(step_deg: float, frames: int, way: int) -> None:
    axes = turn_axes(step_deg, way)
    poses = begin(1, Look(), axes, SMALL, (0,), start=np.zeros((64, 112, 3), np.uint8)).poses
    assert len(axes) == frames
    assert yaw_deg(poses[frames // 2]) == pytest.approx(way * AWAY_DEG, abs=1e-3)
    np.testing.assert_allclose(poses[-1], np.eye(4), atol=1e-6)


def test_walking_comes_back() -> None:
    poses = begin(1, Look(), walk_axes(32), SMALL, (0,), start=np.zeros((64, 112, 3), np.uint8)).poses
    assert poses[32, 2, 3] == pytest.approx(32 * 0.05)
    np.testing.assert_allclose(poses[-1], np.eye(4), atol=1e-6)


def test_what_is_asked_changes_when_it_is_said() -> None:
    night, dawn = Look("night"), Look("dawn")
    play = begin(700001, Look(), held("none", 6), SMALL, (0, 2, 3, 6), ((3, night), (6, dawn)))
    assert [play.asked(frame) for frame in play.kept] == [Look(), Look(), night, dawn]
    truth = draw_play(play, SMALL, torch.device("cpu"))
    assert truth.frames.shape == (4, 96, 112)
    np.testing.assert_array_equal(truth.rgb[0], play.start.transpose(2, 0, 1))
    np.testing.assert_array_equal(truth.rgb[0], truth.rgb[1])
    assert truth.rgb[2].mean() < 0.6 * truth.rgb[0].mean() and not np.array_equal(truth.rgb[3], truth.rgb[2])


def test_eyes_follow_the_ground() -> None:
    truth = draw_play(begin(700002, Look(place="valley"), held("w", 40), SMALL, (0, 40)), SMALL, torch.device("cpu"))
    assert (truth.eyes[:, 1, 3] < -1.0).all()  # up is negative, and the start is above water
    assert truth.eyes[0, 1, 3] != truth.eyes[1, 1, 3]
