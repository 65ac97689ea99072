"""Training clips move exactly as players do, and cover what players do."""

from __future__ import annotations

import numpy as np

from world.meadow.clips import poses_of, random_axes, random_poses
from world.motion import KEY_STEP_DEG, KEY_STEP_UNITS, identity_pose, pitch_deg, step_pose


def test_many_at_once_equals_one_step_after_another() -> None:
    axes = random_axes(np.random.default_rng(3), 6, 120)
    axes[..., 3] *= 0.1  # stays inside training's limit of pitch, which is narrower than a player's
    poses = poses_of(axes)
    for clip, made in zip(axes, poses, strict=True):
        pose = identity_pose()
        for i, (forward, right, turn, pitch) in enumerate(clip):
            np.testing.assert_allclose(made[i], pose, atol=2e-6)
            walked = forward * KEY_STEP_UNITS, right * KEY_STEP_UNITS
            pose = step_pose(pose, *walked, turn * KEY_STEP_DEG, pitch * KEY_STEP_DEG)
        np.testing.assert_allclose(made[-1], pose, atol=2e-6)
    assert max(abs(pitch_deg(pose)) for pose in poses.reshape(-1, 4, 4)) > 2


def test_clips_follow_their_generator() -> None:
    first, second, other = (random_poses(np.random.default_rng(seed), 4, 50) for seed in (8, 8, 9))
    np.testing.assert_array_equal(first, second)
    assert first.shape == (4, 50, 4, 4) and first.dtype == np.float32
    assert not np.array_equal(first, other)
    assert random_poses(np.random.default_rng(8), 2, 1).shape == (2, 1, 4, 4)


def test_clips_hold_every_kind_of_control() -> None:
    axes = random_axes(np.random.default_rng(0), 200, 96)
    moving, turning = np.abs(axes[..., :2]).max(-1) > 0, np.abs(axes[..., 2]) > 0
    still = np.abs(axes).max(-1) == 0
    shares = still.mean(), (moving & ~turning).mean(), (turning & ~moving).mean(), (moving & turning).mean()
    assert min(shares) > 0.05, shares
    assert (np.abs(axes[..., 2]) > 1.5).any()  # fast turns
    assert 0.7 < (axes[..., 2] < 0).mean() / (axes[..., 2] > 0).mean() < 1.4
    assert max(abs(pitch_deg(pose)) for pose in poses_of(axes)[:, ::8].reshape(-1, 4, 4)) < 31
