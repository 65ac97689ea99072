"""How many players a world holds in real time on this machine, measured before anybody comes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from world.chunk import Report, Row, World, usual_start

SHARE = 0.9  # of real time: the rest is for encoding, and for what else the machine does


@dataclass(frozen=True, slots=True)
class RealTime:
    chunk_s: float  # that a chunk plays
    costs_s: tuple[float, ...]  # [n - 1]: a chunk of n players in one forward; up to the first that is over real time
    players: int  # so many are not slowed

    @property
    def sentence(self) -> str:
        times = ", ".join(f"{1000 * cost_s:.0f} ms for {n}" for n, cost_s in enumerate(self.costs_s, 1))
        held = f"{self.players} player{'s' * (self.players != 1)}" if self.players else "nobody"
        return f"In real time: {held} (a chunk of {1000 * self.chunk_s:.0f} ms takes {times})."


def measure(world: World, clock: Callable[[], float], report: Report) -> RealTime:
    """A chunk of 1, 2, ... players, from its commit's predecessor's pictures to its own: with all that it costs, also
    where a commit is still being computed when a step returns. Slots are free before and after."""
    geometry, num_steps = world.geometry, world.num_steps
    most = min(world.num_slots, world.max_rows)
    chunk_s = geometry.video_frames(1) / geometry.fps
    start, f = usual_start(world), geometry.chunk_frames
    poses, keys = np.tile(np.eye(4, dtype=np.float32), (f + 1, 1, 1)), np.zeros((f, 4), np.float32)
    chunks = dict.fromkeys(range(1, most + 1), 0)

    def step(num_rows: int, step_index: int) -> None:
        world.step([Row(slot, chunks[slot], step_index, poses, keys) for slot in range(1, num_rows + 1)])

    for slot in chunks:
        world.open(slot, start)
    for step_index in range(num_steps):
        step(most, step_index)
    costs_s: list[float] = []
    while len(costs_s) < most and (not costs_s or costs_s[-1] <= SHARE * chunk_s):
        report("measuring real time", len(costs_s) / most)
        num_rows, began_s = len(costs_s) + 1, clock()
        step(num_rows, num_steps)
        for slot in range(1, num_rows + 1):
            chunks[slot] += 1
        for step_index in range(num_steps):
            step(num_rows, step_index)
        costs_s.append(clock() - began_s)
    for slot in chunks:
        world.close(slot)
    return RealTime(chunk_s, tuple(costs_s), held(costs_s, chunk_s, most, world.num_slots))


def held(costs_s: list[float], chunk_s: float, max_rows: int, num_slots: int) -> int:
    """Players whose chunks are made in a share of the time that they play; more than one forward's in several."""
    if costs_s[-1] > SHARE * chunk_s:
        return len(costs_s) - 1
    return min(num_slots, int(max_rows * SHARE * chunk_s / max(costs_s[-1], 1e-9)))
