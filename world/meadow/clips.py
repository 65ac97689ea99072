"""Random walks for training: keys held for a while, still moments, now and then a fast look around with the mouse, and
ways that lead back to where they began."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from world.motion import KEY_STEP_DEG, KEY_STEP_UNITS

AND_BACK = 0.35  # share of walks that retrace their beginning
_PITCH_LIMIT_DEG = 30.0  # training looks little above or below this


def random_axes(rng: np.random.Generator, count: int, steps: int) -> NDArray[np.float64]:
    """[count, steps, 4]: forward, right, turn, pitch of every video frame, keys at -1, 0, 1 and mouse looks beyond."""
    axes = np.zeros((count, steps, 4))
    for clip in axes:
        at = 0
        while at < steps:
            length = int(rng.integers(4, 33))
            held = np.zeros(4)
            kind = rng.random()
            if kind > 0.10:
                if kind < 0.75:
                    held[0] = rng.choice([1.0, 1.0, 1.0, -1.0, 0.0])
                    held[1] = rng.choice([0.0, 0.0, 0.0, -1.0, 1.0])
                if kind > 0.35:
                    held[2] = rng.choice([-1.0, 1.0])
                    if rng.random() < 0.15:
                        held[2] *= rng.uniform(1.0, 3.0)
                if rng.random() < 0.2:
                    held[3] = rng.choice([-1.0, 1.0]) * rng.uniform(0.3, 1.0)
                if rng.random() < 0.2:
                    held *= rng.uniform(0.2, 1.0)
            clip[at : at + length] = held
            at += length
        if rng.random() < AND_BACK:
            out = int(rng.integers(steps // 6, steps // 2 + 1))
            clip[out : 2 * out] = -clip[:out][::-1]
    return axes


def poses_of(axes: NDArray[np.float64]) -> NDArray[np.float32]:
    """Axes [count, steps, 4] -> camera-to-world [count, steps + 1, 4, 4], identity first: `world.motion`'s recurrence
    for many walks at once, where pitch stays within training's limit (a step beyond it is dropped)."""
    count, steps = axes.shape[:2]
    yaw = np.zeros((count, steps + 1))
    yaw[:, 1:] = np.cumsum(axes[..., 2] * KEY_STEP_DEG, axis=1)
    pitch = np.zeros((count, steps + 1))
    for i in range(steps):
        wanted = pitch[:, i] + axes[:, i, 3] * KEY_STEP_DEG
        pitch[:, i + 1] = np.where(np.abs(wanted) <= _PITCH_LIMIT_DEG, wanted, pitch[:, i])
    yaw, pitch = np.radians(yaw), np.radians(pitch)
    sy, cy, sp, cp = np.sin(yaw), np.cos(yaw), np.sin(pitch), np.cos(pitch)
    poses = np.tile(np.eye(4), (count, steps + 1, 1, 1))
    poses[..., 0, 0], poses[..., 0, 1], poses[..., 0, 2] = cy, sy * sp, sy * cp
    poses[..., 1, 0], poses[..., 1, 1], poses[..., 1, 2] = 0.0, cp, -sp
    poses[..., 2, 0], poses[..., 2, 1], poses[..., 2, 2] = -sy, cy * sp, cy * cp
    forward, right = axes[..., 0] * KEY_STEP_UNITS, axes[..., 1] * KEY_STEP_UNITS
    poses[:, 1:, 0, 3] = np.cumsum(forward * sy[:, 1:] + right * cy[:, 1:], axis=1)
    poses[:, 1:, 2, 3] = np.cumsum(forward * cy[:, 1:] - right * sy[:, 1:], axis=1)
    return poses.astype(np.float32)


def random_poses(rng: np.random.Generator, count: int, frames: int) -> NDArray[np.float32]:
    """[count, frames, 4, 4]."""
    return poses_of(random_axes(rng, count, frames - 1))
