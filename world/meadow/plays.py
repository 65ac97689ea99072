"""What a student is judged on: plays (a place, where the camera goes, what is asked on the way) and what the teacher
draws of them. A student is whatever makes a play's pictures; frames are I420, as they leave a world."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from world.chunk import TEMPORAL_STRIDE, Geometry
from world.meadow.clips import poses_of
from world.meadow.land import Land, eye_height
from world.meadow.look import Look
from world.meadow.start_scenes import draw_start
from world.meadow.teacher import UNIT_M, default_intrinsics, make_terrain, render
from world.motion import KEY_STEP_DEG, key_axes
from world.picture import to_i420

AWAY_DEG = 120.0  # how far a player turns before turning back
# Keys of mixed control, held for half a second to a second each: walking and turning, alone and together.
HELD = ("w", "w", "wl", "wj", "l", "j", "s", "a", "d", "none")
HELD_FRAMES = (8, 12, 16)

Frames = NDArray[np.uint8]  # I420 [k, H * 3 // 2, W]


@dataclass(frozen=True, slots=True, eq=False)
class Play:
    """Every play begins with the teacher's picture of its look, and is told that look."""

    seed: int
    look: Look
    start: NDArray[np.uint8]  # [H, W, 3] RGB
    poses: NDArray[np.float32]  # [n, 4, 4], one a video frame, the identity first
    kept: tuple[int, ...]  # the frames that are looked at, in order
    changes: tuple[tuple[int, Look], ...] = ()  # (video frame, what is asked from then on), in order

    def asked(self, frame: int) -> Look:
        """What the newest prompt asks for."""
        return next((look for at, look in reversed(self.changes) if at <= frame), self.look)


Student = Callable[[Sequence[Play]], list[Frames]]  # the kept frames of every play


def begin(
    seed: int, look: Look, axes: NDArray[np.float64], geometry: Geometry, kept: Sequence[int] | None = None,
    changes: tuple[tuple[int, Look], ...] = (), start: NDArray[np.uint8] | None = None,
) -> Play:  # fmt: skip
    """The play of axes [steps, 4]. All frames are kept unless said otherwise; a start picture not given is drawn."""
    poses = poses_of(axes[None])[0]
    drawn = draw_start(seed, look, geometry.width, geometry.height) if start is None else start
    return Play(seed, look, drawn, poses, tuple(range(len(poses)) if kept is None else kept), changes)


def held(keys: str, frames: int) -> NDArray[np.float64]:
    """Axes [frames, 4] of keys held down."""
    return np.tile(np.array(key_axes("" if keys == "none" else keys)), (frames, 1))


def mixed_axes(seed: int, variant: int, frames: int) -> NDArray[np.float64]:
    """[frames, 4], a function of its arguments: every script begins walking or turning and does both in its course."""
    rng = np.random.default_rng([seed, variant])
    parts = [held("w" if variant % 2 == 0 else str(rng.choice(["l", "j"])), int(rng.choice(HELD_FRAMES)))]
    parts.append(held(str(rng.choice(["wl", "wj"])), int(rng.choice(HELD_FRAMES))))
    while sum(map(len, parts)) < frames:
        parts.append(held(str(rng.choice(HELD)), int(rng.choice(HELD_FRAMES))))
    return np.concatenate(parts)[:frames]


def turn_axes(step_deg: float, way: int) -> NDArray[np.float64]:
    """AWAY_DEG to one side (way 1: right) and back, in whole chunks of TEMPORAL_STRIDE frames each way."""
    frames = TEMPORAL_STRIDE * max(1, round(AWAY_DEG / step_deg / TEMPORAL_STRIDE))
    axes = np.zeros((2 * frames, 4))
    axes[:frames, 2] = way * AWAY_DEG / frames / KEY_STEP_DEG
    axes[frames:, 2] = -axes[:frames, 2]
    return axes


def walk_axes(frames: int) -> NDArray[np.float64]:
    """Forward and back."""
    return np.concatenate([held("w", frames), held("s", frames)])


@dataclass(frozen=True, slots=True, eq=False)
class Truth:
    """What the teacher draws of a play's kept frames."""

    frames: Frames
    rgb: NDArray[np.uint8]  # [k, 3, H, W], before it was I420
    depth: Tensor  # [k, H, W] along the camera's axis in pose units, inf where the sky is
    eyes: NDArray[np.float64]  # [k, 4, 4], the poses at the height the eye has there: it follows the ground


def draw_play(play: Play, geometry: Geometry, device: torch.device) -> Truth:
    looks = [play.asked(frame) for frame in play.kept]
    distinct = list(dict.fromkeys(looks))
    poses = torch.from_numpy(play.poses[list(play.kept)])
    lens = default_intrinsics(geometry.width, geometry.height)
    size = geometry.height, geometry.width
    rgb = torch.empty(len(looks), 3, *size, dtype=torch.uint8)
    depth = torch.empty(len(looks), *size)
    for look in distinct:
        at = torch.tensor([i for i, own in enumerate(looks) if own == look])
        colour, far = render(make_terrain([play.seed], [look], device), poses[at][None], lens, size)
        rgb[at], depth[at] = colour[0].cpu(), far[0].cpu()
    eyes = eyes_of(make_terrain([play.seed], [play.look]), play.poses[None, list(play.kept)])[0]
    return Truth(as_served(rgb), rgb.numpy(), depth, eyes)


def eyes_of(terrain: Land, poses: NDArray[np.float32]) -> NDArray[np.float64]:
    """Poses [B, n, 4, 4] at the height the teacher draws them from, each path in a world of its own, in order."""
    paths, count = poses.shape[:2]
    land = terrain.take(torch.arange(paths, device=terrain.key.device).repeat_interleave(count))
    at = torch.from_numpy(poses[..., :3, 3]).reshape(-1, 3).to(terrain.key.device) * UNIT_M
    height = eye_height(land, at[:, 0], at[:, 2], -at[:, 1]).cpu().numpy()
    eyes = poses.astype(np.float64)
    eyes[..., 1, 3] = -height.reshape(paths, count) / UNIT_M
    return eyes


def as_served(rgb: Tensor) -> Frames:
    """uint8 [k, 3, H, W] -> the I420 a world would send of it: everybody is judged after the same conversion."""
    pieces = [to_i420(part.transpose(0, 1)[None].float() / 127.5 - 1)[0] for part in rgb.split(64)]
    return torch.cat(pieces).cpu().numpy()
