"""Several processes that compute one thing together, for tests. Not a test: what uses it is."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from tests.world.tiny_world import random_world, tiny_config
from world.chunk import Report, Scene
from world.model import DiffusionWorld
from world.ranks import Ranks, join, leave

DEADLINE_S = 60.0  # a busy machine is not a lost rank


def together(size: int, body: Callable[..., Any], directory: Path, *arguments: Any) -> list[Any]:
    """What `body(ranks, *arguments)` returns on each of `size` new processes."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    mp.start_processes(_rank, (size, store.port, body, directory, arguments), nprocs=size, start_method="spawn")
    return [torch.load(directory / f"{index}.pt", weights_only=False) for index in range(size)]


def _rank(
    index: int, size: int, port: int, body: Callable[[Ranks], Any], directory: Path, arguments: tuple[Any, ...]
) -> None:
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    ranks = join(index, size, dist.TCPStore("127.0.0.1", port, is_master=False), DEADLINE_S)
    with torch.inference_mode():
        made = body(ranks, *arguments)
    torch.save(made, directory / f"{index}.pt")
    leave()


def load_small(ranks: Ranks, report: Report) -> DiffusionWorld:
    """A rank's part of a small world, for processes of their own: they import what it is in, so no test module."""
    cfg = tiny_config(width=80, height=48)  # 15 tokens: one of the two ranks' shares is filled up
    cfg = replace(cfg, geometry=replace(cfg.geometry, fps=32))
    world = random_world(cfg, num_slots=2, ranks=ranks)
    image = np.random.default_rng(1).integers(0, 256, (48, 80, 3)).astype(np.uint8)
    world._scenes = (Scene("noise", "Noise", "a place", image, np.array([80, 80, 40, 24], np.float32)),)
    return world
