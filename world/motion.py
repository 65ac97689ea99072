"""Camera motion: the recurrence the model was trained on, and the keyboard scripts that drive it. numpy only.

One step turns, pitches, then walks along the new heading: R' = Ry(turn) R Rx(pitch), and the position moves along the
forward and right axes of R', each projected to the horizontal and renormalised. A diagonal is therefore not slowed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

PITCH_LIMIT_DEG = 85.0
KEY_STEP_UNITS = 0.05  # what a movement key walks in a video frame
KEY_STEP_DEG = 2.0  # what a camera key turns in a video frame
MAX_SCRIPT_FRAMES = 1_000_000

Axes = tuple[float, float, float, float]  # forward, right, turn (right +), pitch (up +), each in -1..1
Script = tuple[tuple[str, int], ...]  # (keys held, video frames)

KEY_AXES: Mapping[str, Axes] = {
    "w": (1.0, 0.0, 0.0, 0.0),
    "s": (-1.0, 0.0, 0.0, 0.0),
    "d": (0.0, 1.0, 0.0, 0.0),
    "a": (0.0, -1.0, 0.0, 0.0),
    "l": (0.0, 0.0, 1.0, 0.0),
    "j": (0.0, 0.0, -1.0, 0.0),
    "i": (0.0, 0.0, 0.0, 1.0),
    "k": (0.0, 0.0, 0.0, -1.0),
}


def identity_pose() -> NDArray[np.float64]:
    return np.eye(4)


def yaw_deg(pose: NDArray[np.floating]) -> float:
    """Heading of a pose, right of the identity's; 0 where it looks straight up or down."""
    return math.degrees(math.atan2(pose[0, 2], pose[2, 2]))


def pitch_deg(pose: NDArray[np.floating]) -> float:
    """How far a pose looks above the horizon (its y axis points down)."""
    return math.degrees(math.asin(min(1.0, max(-1.0, -float(pose[1, 2])))))


def step_pose(
    pose: ArrayLike, forward: float = 0.0, right: float = 0.0, turn_deg: float = 0.0, pitch_up_deg: float = 0.0
) -> NDArray[np.float64]:
    """The camera-to-world pose one step later: walk in units, turn (right +) and pitch (up +) in degrees.

    A pitch step that would leave +-85 degrees is dropped whole, unless it leads back. Keep the float64 result as the
    state of a trajectory: float32 would drift.
    """
    old = np.asarray(pose, dtype=np.float64)
    new = old.copy()
    rotation = old[:3, :3]
    if turn_deg:
        c, s = math.cos(math.radians(turn_deg)), math.sin(math.radians(turn_deg))
        rotation = np.array([[c, 0.0, s], [0.0, 1.0, 0.0], [-s, 0.0, c]]) @ rotation
    if pitch_up_deg:
        before = pitch_deg(rotation)
        after = abs(before + pitch_up_deg)
        if after <= PITCH_LIMIT_DEG + 1e-6 or after < abs(before):  # 1e-6: rounding must not drop a step onto the limit
            c, s = math.cos(math.radians(pitch_up_deg)), math.sin(math.radians(pitch_up_deg))
            rotation = rotation @ np.array([[1.0, 0.0, 0.0], [0.0, c, -s], [0.0, s, c]])
    new[:3, :3] = rotation
    new[:3, 3] += forward * _horizontal(rotation[:, 2]) + right * _horizontal(rotation[:, 0])
    return new


def _horizontal(axis: NDArray[np.float64]) -> NDArray[np.float64]:
    """A camera axis projected to the ground and renormalised; zero where it stands upright."""
    length = math.hypot(axis[0], axis[2])
    if length < 1e-9:
        return np.zeros(3)
    return np.array([axis[0] / length, 0.0, axis[2] / length])


def parse_script(text: str) -> Script:
    """`w-8,wl-8,none-4` -> (("w", 8), ("wl", 8), ("", 4)): keys held for a number of video frames, or ValueError."""
    script: list[tuple[str, int]] = []
    for part in text.split(","):
        keys, dash, count = part.strip().rpartition("-")
        if not dash or not (count.isascii() and count.isdigit()) or len(count) > 7 or int(count) == 0:
            raise ValueError(f"{part.strip()!r} in a script is not KEYS-FRAMES, such as w-8 or none-4")
        held = "" if keys == "none" else keys
        wrong = sorted(set(held) - KEY_AXES.keys())
        if wrong or not keys or len(set(held)) != len(held):
            raise ValueError(f"{keys!r} in a script is neither none nor different keys of {''.join(KEY_AXES)}")
        script.append((held, int(count)))
    if sum(frames for _, frames in script) > MAX_SCRIPT_FRAMES:
        raise ValueError(f"a script may last {MAX_SCRIPT_FRAMES} video frames")
    return tuple(script)


def key_axes(keys: str) -> Axes:
    """Held keys as axes; opposite keys cancel."""
    forward, right, turn, pitch = (sum(KEY_AXES[key][axis] for key in keys) for axis in range(4))
    return forward, right, turn, pitch


def keyboard_poses(script: Script | str) -> NDArray[np.float32]:
    """The published key speeds: n video frames of keys -> n + 1 camera-to-world poses, identity first."""
    pose = identity_pose()
    poses = [pose]
    for keys, frames in parse_script(script) if isinstance(script, str) else script:
        forward, right, turn, pitch = key_axes(keys)
        for _ in range(frames):
            pose = step_pose(
                pose, forward * KEY_STEP_UNITS, right * KEY_STEP_UNITS, turn * KEY_STEP_DEG, pitch * KEY_STEP_DEG
            )
            poses.append(pose)
    return np.stack(poses).astype(np.float32)  # [n + 1, 4, 4]


def keyboard_planes(script: Script | str) -> NDArray[np.float32]:
    """w, a, s, d as 0/1 in each of a script's video frames, the planes that `act` checkpoints read."""
    parsed = parse_script(script) if isinstance(script, str) else script
    rows = [[float(key in keys) for key in "wasd"] for keys, frames in parsed for _ in range(frames)]
    return np.array(rows, dtype=np.float32)  # [n, 4]


def axes_planes(axes: Sequence[float]) -> NDArray[np.float32]:
    """w, a, s, d as 0/1 for one video frame of axes: a key counts as held when its axis leans its way at all."""
    forward, right = axes[0], axes[1]
    return np.array([forward > 0, right < 0, forward < 0, right > 0], dtype=np.float32)  # [4]
