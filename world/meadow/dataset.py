"""Clips the teacher drew, for training: pictures, poses and prompts, a shard a file, made once and read many times."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from world.chunk import TEMPORAL_STRIDE
from world.meadow.clips import random_poses
from world.meadow.config import TEXT
from world.meadow.look import random_look
from world.meadow.teacher import Draw, default_intrinsics, make_terrain, render
from world.nn.text import PADDING, byte_ids

TRAINING_SEEDS = 700_000  # seeds below this are for training, the rest are held out


@dataclass(frozen=True, slots=True, eq=False)
class Clips:
    """C clips of n = 4 (m - 1) + 1 video frames, m latent frames."""

    frames: Tensor  # uint8 [C, n, 3, H, W]
    poses: Tensor  # float32 [C, n, 4, 4]
    prompts: tuple[str, ...]

    @property
    def latent_poses(self) -> Tensor:
        """[C, m, 4, 4]: a latent frame has the pose of the last video frame it decodes to."""
        return self.poses[:, ::TEMPORAL_STRIDE]


def draw_clips(
    seed: int, count: int, frames: int, device: torch.device, held_out: bool = False, draw: Draw | None = None
) -> Clips:
    """A pure function of its arguments (on one device). Every clip has its own place, look and walk."""
    rng = np.random.default_rng([seed, int(held_out)])
    low, high = (TRAINING_SEEDS, 2 * TRAINING_SEEDS) if held_out else (0, TRAINING_SEEDS)
    seeds = [int(s) for s in rng.integers(low, high, count)]
    looks = [random_look(rng) for _ in range(count)]
    poses = torch.from_numpy(random_poses(rng, count, frames))
    pictures, _ = render(make_terrain(seeds, looks, device), poses, default_intrinsics(), draw=draw)
    return Clips(pictures.cpu(), poses, tuple(look.prompt(rng) for look in looks))


def save(clips: Clips, path: Path) -> None:
    half = path.with_suffix(".part")
    save_file({"frames": clips.frames, "poses": clips.poses}, half, {"prompts": "\n".join(clips.prompts)})
    half.replace(path)


def load(path: Path) -> Clips:
    with safe_open(path, "pt") as file:
        return Clips(file.get_tensor("frames"), file.get_tensor("poses"), tuple(file.metadata()["prompts"].split("\n")))


def prompt_ids(prompts: tuple[str, ...], device: torch.device) -> Tensor:
    """int64 [C, rows], padded at the end."""
    ids = [byte_ids(prompt, TEXT.max_bytes) for prompt in prompts]
    padded = torch.full((len(ids), max(map(len, ids))), PADDING)
    for row, one in zip(padded, ids, strict=True):
        row[: len(one)] = torch.tensor(one)
    return padded.to(device)


def to_video(frames: Tensor, device: torch.device) -> Tensor:
    """uint8 [C, n, 3, H, W] -> float32 [C, 3, n, H, W] in -1..1."""
    return frames.to(device, non_blocking=True).transpose(1, 2).float() / 127.5 - 1
