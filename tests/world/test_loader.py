"""What a world is loaded with: as many threads as keep a row's bits its own, as much memory as a rank has."""

from __future__ import annotations

import pytest
import torch

from world import loader
from world.loader import serving_threads


@pytest.mark.parametrize("cores, threads", [(1, 1), (2, 2), (3, 2), (4, 4), (6, 4), (7, 4), (8, 8), (96, 64)])
def test_threads_are_a_power_of_two(cores: int, threads: int) -> None:
    assert serving_threads(cores) == threads


def test_ranks_share_the_memory_of_a_machine_and_have_a_gpu_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "available_bytes", lambda device: {"cpu": 800, "cuda": 500}[device.type])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert (loader.memory_there(4), loader.memory_there(4, on_gpus=True), loader.memory_there()) == (200, 500, 500)
