"""Clips the teacher drew, for training: pictures, poses and prompts, a shard a file, made once and read many times."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from world.chunk import SPATIAL_STRIDE, TEMPORAL_STRIDE
from world.meadow.clips import random_poses
from world.meadow.config import TEXT, meadow_config
from world.meadow.look import Look, random_look
from world.meadow.plays import eyes_of
from world.meadow.reprojection import seen_at_start
from world.meadow.teacher import Brushes, default_intrinsics, make_terrain, render
from world.nn.depth import FINER
from world.nn.text import PADDING, byte_ids
from world.views import recalled_frames

TRAINING_SEEDS = 700_000  # seeds below this are for training, the rest are held out
PER_CELL = 4  # pixels from one point that is looked up to the next
CHANGING = 0.7  # share of clips whose prompt changes on the way
DRAWN_AGAIN = 0.85  # chance of each attribute that may change
_TENSORS = ("pictures", "poses", "inverse_depth", "recalled", "seen", "change")
CHANGES = ("time", "season", "weather", "towers")  # what a prompt may change on the way: the place stays where it is


@dataclass(frozen=True, slots=True, eq=False)
class Clips:
    """C clips of m latent frames. `pictures` are uint8 [C, 4 (m - 1) + 1, 3, H, W], or once encoded float16 latents
    [C, m, 16, h, w]; the second of a clip's prompts holds from latent frame `change` on (m: never)."""

    pictures: Tensor
    poses: Tensor  # float32 [C, m, 4, 4], of the last video frame each latent frame decodes to
    inverse_depth: Tensor  # float16 [C, m, 2 h, 2 w], along the camera's axis, 1 / pose units
    recalled: Tensor  # int64 [C, m, V], the frames whose views each is shown (world.views)
    seen: Tensor  # float16 [C, m, h, w], the share of every latent cell's points that the start shows too
    change: Tensor  # int64 [C]
    prompts: tuple[tuple[str, str], ...]  # [C]


def draw_clips(
    seed: int, count: int, latent_frames: int, device: torch.device, held_out: bool = False,
    brushes: Brushes | None = None, keep_on_device: bool = False,
) -> Clips:  # fmt: skip
    """A pure function of its arguments (on one device). Every clip has its own place, look and walk."""
    rng = np.random.default_rng([seed, int(held_out)])
    low, high = (TRAINING_SEEDS, 2 * TRAINING_SEEDS) if held_out else (0, TRAINING_SEEDS)
    seeds = [int(s) for s in rng.integers(low, high, count)]
    looks = [random_look(rng) for _ in range(count)]
    later = [changed(look, rng) for look in looks]
    frames = TEMPORAL_STRIDE * (latent_frames - 1) + 1
    poses = torch.from_numpy(random_poses(rng, count, frames))
    change = torch.from_numpy(rng.integers(2, max(3, latent_frames - 6), count))  # and then long enough to get there
    change = torch.where(torch.from_numpy(rng.random(count) < CHANGING), change, latent_frames)
    first_changed = TEMPORAL_STRIDE * (change - 1) + 1  # the first of the video frames that latent frame decodes to
    which = (torch.arange(frames) >= first_changed[:, None]).long()
    terrain = make_terrain(seeds * 2, looks + later, device)
    worlds = which * count + torch.arange(count)[:, None]
    pictures, depth = render(terrain, poses, default_intrinsics(), worlds=worlds, brushes=brushes)
    prompts = tuple((look.prompt(rng), then.prompt(rng)) for look, then in zip(looks, later, strict=True))
    latent_poses = poses[:, ::TEMPORAL_STRIDE].contiguous()
    recalled = np.stack([recalled_frames(path, meadow_config().views) for path in latent_poses.numpy()])
    depth = depth[:, ::TEMPORAL_STRIDE]
    inverse_depth = F.avg_pool2d(1 / depth, SPATIAL_STRIDE // FINER).half().cpu()
    seen = seen_cells(depth, eyes_of(terrain, latent_poses.numpy())).cpu()
    kept = pictures if keep_on_device else pictures.cpu()
    return Clips(kept, latent_poses, inverse_depth, torch.from_numpy(recalled), seen, change, prompts)


def seen_cells(depth: Tensor, eyes: NDArray[np.float64]) -> Tensor:
    """Depth [C, m, H, W] and eyes [C, m, 4, 4] -> float16 [C, m, H / 8, W / 8], by one point in sixteen."""
    half = PER_CELL // 2
    seen = torch.stack(
        [seen_at_start(d[:, half::PER_CELL, half::PER_CELL], e) for d, e in zip(depth, eyes, strict=True)]
    )
    return F.avg_pool2d(seen.float(), SPATIAL_STRIDE // PER_CELL).half()


def changed(look: Look, rng: np.random.Generator) -> Look:
    """The same place, with some of what a prompt may change drawn again."""
    other = random_look(rng)
    return replace(look, **{f.name: getattr(other, f.name) for f in fields(Look)
                            if f.name in CHANGES and rng.random() < DRAWN_AGAIN})  # fmt: skip


def save(clips: Clips, path: Path) -> None:
    half = path.with_suffix(".part")
    save_file({name: getattr(clips, name) for name in _TENSORS}, half, {"prompts": json.dumps(clips.prompts)})
    half.replace(path)


def load(path: Path) -> Clips:
    with safe_open(path, "pt") as file:
        prompts = tuple((first, then) for first, then in json.loads(file.metadata()["prompts"]))
        return Clips(*(file.get_tensor(name) for name in _TENSORS), prompts)


def prompt_ids(prompts: list[str]) -> Tensor:
    """int64 [n, max_rows], padded at the end."""
    padded = torch.full((len(prompts), TEXT.max_rows), PADDING)
    for row, prompt in zip(padded, prompts, strict=True):
        ids = byte_ids(prompt, TEXT.max_bytes)
        row[: len(ids)] = torch.tensor(ids)
    return padded


def to_video(frames: Tensor, device: torch.device) -> Tensor:
    """uint8 [C, n, 3, H, W] -> float32 [C, 3, n, H, W] in -1..1."""
    return frames.to(device, non_blocking=True).transpose(1, 2).float() / 127.5 - 1
