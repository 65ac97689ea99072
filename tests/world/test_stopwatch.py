"""Protects the stopwatch: times add up, on a clock that the test moves, and a world that was watched is as before."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.world.tiny_world import Life, Player, alone, random_world, same_bits, tick, tiny_config
from world.chunk import Row
from world.stopwatch import Stopwatch, label_of, watching

CPU = torch.device("cpu")


class Clock:
    """Every reading is a second after the one before, unless time is spent."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_a_stage_has_its_own_time_only() -> None:
    clock = Clock()
    watch = Stopwatch(CPU, clock)
    with watch.step("step 0"):
        clock.now_s += 1
        with watch.span("copy"):
            clock.now_s += 2
            for _ in range(2):
                with watch.span("vae"):
                    clock.now_s += 4
        clock.now_s += 0.5
    assert watch.host_s == 11.5
    (stages,) = watch.read()
    assert stages == {"step 0": 1500, "copy": 2000, "vae": 8000}
    assert watch.read() == []


def test_a_step_is_named_after_what_all_its_rows_do() -> None:
    def rows(*steps: int) -> list[Row]:
        return [Row(1, 0, step, np.zeros((2, 4, 4), np.float32), np.zeros((1, 4), np.float32)) for step in steps]

    assert label_of(rows(0, 0), 2) == "step 0"
    assert label_of(rows(2), 2) == "commit"
    assert label_of(rows(1, 2), 2) == "mixed"


@pytest.mark.usefixtures("one_thread")
def test_a_watched_world_does_what_it_did() -> None:
    world = random_world(tiny_config())
    life = Life(0, 1, 2)
    unwatched = list(alone(world, life, 1))
    watch = Stopwatch(CPU, Clock())
    own = vars(world).keys() | set()
    world.open(2, life.start(world))
    player = Player(life, 2)
    with watching(world, watch):
        while not player.is_over:
            tick(world, [player])
    assert vars(world).keys() == own and "step" not in vars(world.denoiser) and "decode" not in vars(world.vae)
    assert all(same_bits(a, b) for a, b in zip(unwatched, player.made, strict=True))
    chunk = [{"begin", "step 0"}, {"step 1", "copy", "vae", "digest"}, {"commit"}]
    assert [set(stages) for stages in watch.read()] == chunk * 2
