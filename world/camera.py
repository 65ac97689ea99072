"""Camera poses and intrinsics -> the control channels a checkpoint was trained on.

Poses are camera-to-world [n, 4, 4], OpenCV axes (x right, y down, z forward); intrinsics are fx, fy, cx, cy in pixels.
A latent frame has one pose, that of the last video frame it decodes to. Channels are [ray origin, unit ray direction]
of every pixel, or the direction alone followed by the w, a, s, d planes (`act`), 8x8 pixels folded into channels:
channel = (plane * 8 + dy) * 8 + dx.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from world.chunk import SPATIAL_STRIDE, TEMPORAL_STRIDE
from world.motion import keyboard_poses

FOLD = SPATIAL_STRIDE
CASE_FRAMES = 6  # relative poses a golden case turns into rays

Poses = NDArray[np.float32]


def scale_intrinsics(
    intrinsics: NDArray[np.floating[Any]], size: tuple[int, int], to_size: tuple[int, int]
) -> NDArray[np.float32]:
    """[..., 4] for a picture of `size` (width, height) -> the same camera for a picture of `to_size`."""
    x, y = to_size[0] / size[0], to_size[1] / size[1]
    return (np.asarray(intrinsics, np.float64) * [x, y, x, y]).astype(np.float32)


def latent_frames(video_frames: int, chunk_frames: int) -> int:
    """Latent frames of a recording: one in four, rounded down to whole chunks."""
    frames = (video_frames - 1) // TEMPORAL_STRIDE + 1
    return frames - frames % chunk_frames


def interpolate(poses: Poses, num_frames: int) -> Poses:
    """Recorded poses [m, 4, 4] -> [num_frames, 4, 4] spread evenly over them: linear translation, slerp rotation."""
    recorded = np.asarray(poses, np.float64)
    at = np.linspace(0, len(recorded) - 1, num_frames)
    left = np.minimum(at.astype(int), max(len(recorded) - 2, 0))
    right = np.minimum(left + 1, len(recorded) - 1)
    share = (at - left)[:, None]
    mixed = np.tile(np.eye(4), (num_frames, 1, 1))
    mixed[:, :3, 3] = (1 - share) * recorded[left, :3, 3] + share * recorded[right, :3, 3]
    turns = _quaternions(recorded[:, :3, :3])
    mixed[:, :3, :3] = _rotations(_slerp(turns[left], turns[right], share))
    return mixed.astype(np.float32)


def relative(poses: Poses) -> Poses:
    """Frame-to-frame poses [n, 4, 4] of a whole recording, the first the identity, as published: translations are
    divided by the largest of them (left alone when nothing moves)."""
    steps = _steps(np.concatenate([poses[:1], poses]))
    largest = np.linalg.norm(steps[:, :3, 3], axis=-1).max(initial=0.0)
    if largest > 0:
        steps[:, :3, 3] /= largest
    return steps.astype(np.float32)


def relative_live(poses: Poses, scale: float) -> Poses:
    """The same for one chunk of a stream: [f + 1, 4, 4] with the pose before the chunk -> [f, 4, 4].

    A stream cannot know its largest step, so translations are divided by a constant of the scene.
    """
    steps = _steps(poses)
    steps[:, :3, 3] /= scale
    return steps.astype(np.float32)


def rays(relative: Tensor, intrinsics: Tensor, height: int, width: int, rays_only: bool = False) -> Tensor:
    """Relative poses [B, f, 4, 4] and intrinsics [B, 4] -> float32 [B, 384 (rays_only: 192), f, height/8, width/8].

    Only exactly rounded elementwise arithmetic, so that a row has the same bits in any batch and on any machine.
    """
    rows, frames = relative.shape[:2]
    h, w = height // FOLD, width // FOLD
    fx, fy, cx, cy = (intrinsics.float()[:, i].reshape(-1, 1, 1, 1, 1) for i in range(4))
    columns = torch.arange(width, dtype=torch.float32, device=relative.device) + 0.5
    lines = torch.arange(height, dtype=torch.float32, device=relative.device) + 0.5
    x = (columns.reshape(w, FOLD).T.reshape(1, 1, FOLD, 1, w) - cx) / fx  # [B, 1, dx, 1, w]
    y = (lines.reshape(h, FOLD).T.reshape(1, FOLD, 1, h, 1) - cy) / fy  # [B, dy, 1, h, 1]
    length = torch.sqrt(x * x + y * y + 1.0)  # [B, dy, dx, h, w]
    x, y, z = ((part / length).reshape(rows, 1, FOLD * FOLD, 1, h * w) for part in (x, y, torch.ones_like(x)))
    pose = relative.float()[:, :, :3].movedim(1, 3)[:, :, :, None, :, None]  # [B, 3, 4, 1, f, 1]
    direction = pose[:, :, 0] * x + pose[:, :, 1] * y + pose[:, :, 2] * z  # [B, 3, 64, f, h * w]
    if not rays_only:
        direction = torch.cat([pose[:, :, 3].expand_as(direction), direction], dim=1)
    return direction.reshape(rows, -1, frames, h, w)


def key_planes(keys: Tensor, height: int, width: int) -> Tensor:
    """w, a, s, d of each latent frame [B, f, 4] as 0/1 -> [B, 256, f, height/8, width/8], constant over the picture."""
    planes = keys.float().mT.repeat_interleave(FOLD * FOLD, dim=1)  # [B, 256, f]
    return planes[..., None, None].expand(-1, -1, -1, height // FOLD, width // FOLD)


def act(relative: Tensor, keys: Tensor, intrinsics: Tensor, height: int, width: int) -> Tensor:
    """Control channels of an `act` checkpoint, [B, 192 + 256, f, height/8, width/8]."""
    directions = rays(relative, intrinsics, height, width, rays_only=True)
    return torch.cat([directions, key_planes(keys, height, width)], dim=1)


def camera_case(tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> dict[str, Tensor]:
    """What a golden camera file holds, computed from its inputs: the action strings and `example*.poses`."""
    out = {
        f"action{i}.c2w": torch.from_numpy(keyboard_poses(script)) for i, script in enumerate(meta.get("actions", ()))
    }
    chunk_frames = int(meta.get("frames_per_chunk", 3))
    for key in tensors:
        example, _, kind = key.rpartition(".")
        if kind != "poses":
            continue
        recorded = tensors[key].numpy()
        picked = interpolate(recorded, latent_frames(len(recorded), chunk_frames))
        steps = torch.from_numpy(relative(picked))
        out[f"{example}.interpolated"] = torch.from_numpy(picked)
        out[f"{example}.relative"] = steps
        intrinsics = torch.tensor([meta["intrinsics_fx_fy_cx_cy"]], dtype=torch.float32)
        size = steps[None, :CASE_FRAMES], intrinsics, int(meta["height"]), int(meta["width"])
        out[f"{example}.plucker"] = rays(*size)
        out[f"{example}.plucker_rays_only"] = rays(*size, rays_only=True)
    return out


def _steps(poses: Poses) -> NDArray[np.float64]:
    """Inverse of each pose times the next, [n + 1, 4, 4] -> [n, 4, 4]; positions are subtracted first, so that a
    player far from the origin keeps every bit of a small step."""
    exact = np.asarray(poses, np.float64)
    back = exact[:-1, :3, :3].mT
    steps = np.tile(np.eye(4), (len(exact) - 1, 1, 1))
    steps[:, :3, :3] = back @ exact[1:, :3, :3]
    steps[:, :3, 3] = (back @ (exact[1:, :3, 3:] - exact[:-1, :3, 3:]))[..., 0]
    still = (poses[:-1] == poses[1:]).all(axis=(1, 2))
    steps[still] = np.eye(4)
    return steps


def _quaternions(rotations: NDArray[np.float64]) -> NDArray[np.float64]:
    """[n, 3, 3] -> unit quaternions [n, 4] (x, y, z, w), solved from the largest component."""
    r = rotations
    trace = np.trace(r, axis1=1, axis2=2)
    squares = np.stack([*(2 * r[:, i, i] - trace for i in range(3)), trace], axis=1)  # 4 q_i**2 - 1
    x, y, z = r[:, 2, 1] - r[:, 1, 2], r[:, 0, 2] - r[:, 2, 0], r[:, 1, 0] - r[:, 0, 1]  # 4 q_i w
    xy, yz, zx = r[:, 0, 1] + r[:, 1, 0], r[:, 1, 2] + r[:, 2, 1], r[:, 2, 0] + r[:, 0, 2]  # 4 q_i q_j
    products = np.stack(
        [
            np.stack([squares[:, 0] + 1, xy, zx, x], axis=1),
            np.stack([xy, squares[:, 1] + 1, yz, y], axis=1),
            np.stack([zx, yz, squares[:, 2] + 1, z], axis=1),
            np.stack([x, y, z, squares[:, 3] + 1], axis=1),
        ],
        axis=1,
    )  # 4 q q^T
    largest = products[np.arange(len(r)), squares.argmax(axis=1)]
    return largest / np.linalg.norm(largest, axis=1, keepdims=True)


def _slerp(start: NDArray[np.float64], end: NDArray[np.float64], share: NDArray[np.float64]) -> NDArray[np.float64]:
    """Between unit quaternions [n, 4] the shorter way, share [n, 1] in 0..1."""
    cosine = (start * end).sum(axis=1, keepdims=True)
    end = np.where(cosine < 0, -end, end)
    # The angle from the chord: arccos loses half the digits where the turn is small.
    angle = 2 * np.arcsin(np.minimum(np.linalg.norm(end - start, axis=1, keepdims=True) / 2, 1.0))
    safe = np.maximum(angle, 1e-12)
    mixed = np.where(
        angle > 1e-9,
        (np.sin((1 - share) * safe) * start + np.sin(share * safe) * end) / np.sin(safe),
        (1 - share) * start + share * end,
    )
    return mixed / np.linalg.norm(mixed, axis=1, keepdims=True)


def _rotations(quaternions: NDArray[np.float64]) -> NDArray[np.float64]:
    """Unit quaternions [n, 4] (x, y, z, w) -> [n, 3, 3]."""
    x, y, z, w = quaternions.T
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    return np.moveaxis(np.array(rows), -1, 0)
