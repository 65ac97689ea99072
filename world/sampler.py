"""The few-step sampler: sigmas of the published schedule, and one denoise update a row."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

V1_INDICES = (0, 179, 358, 679)
V2_INDICES = (0, 250, 500, 750)


@dataclass(frozen=True, slots=True)
class Schedule:
    """Per denoise step: the model's t, the sigma that turns flow into x0, and the sigma noise is added back with.

    The commit follows the last step at t = 0.
    """

    timesteps: tuple[float, ...]
    sigmas: tuple[float, ...]
    renoise_sigmas: tuple[float, ...]  # [i]: the level step i starts from; [0] is never used

    @property
    def num_steps(self) -> int:
        return len(self.timesteps)


def sigma_table(shift: float) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Timesteps [1000] and sigmas [1001] (the last is 0): linspace(0.999, 0, 1001)[:-1], shifted (LingBot-World)."""
    sigma = np.linspace(0.999, 0.0, 1001)[:-1].astype(np.float32)
    sigma = (shift * sigma / (1 + (shift - 1) * sigma)).astype(np.float32)
    return (sigma * np.float32(1000)).astype(np.int64), np.append(sigma, np.float32(0))


def published(shift: float, indices: tuple[int, ...]) -> Schedule:
    """The steps at these indices of the published table."""
    timesteps, _ = sigma_table(shift)
    return at_timesteps(shift, tuple(int(timesteps[i]) for i in indices))


def at_timesteps(shift: float, chosen: tuple[int, ...]) -> Schedule:
    """The published code looks a step's integer t up twice and t repeats in the table: x0 takes the first entry with
    that t, the re-noise the second (or the first where there is one only). ValueError for a t that is not in it.
    """
    timesteps, sigmas = sigma_table(shift)
    ties = [np.flatnonzero(timesteps == t) for t in chosen]
    if any(len(tie) == 0 for tie in ties):
        raise ValueError(f"timesteps {chosen} are not all in the schedule of shift {shift}")
    first = tuple(float(sigmas[tie[0]]) for tie in ties)
    second = tuple(float(sigmas[tie[min(1, len(tie) - 1)]]) for tie in ties)
    return Schedule(tuple(float(t) for t in chosen), first, second)


def from_sigmas(sigmas: tuple[float, ...]) -> Schedule:
    """A student's own list: t = 1000 sigma."""
    return Schedule(tuple(1000.0 * s for s in sigmas), sigmas, sigmas)


def noise(seed: int, chunk_index: int, step_index: int, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Standard normal noise, a pure function of its arguments: Philox keyed by the seed, chunk and step in its counter.

    Drawn in float64 and rounded, which hides the last bit in which math libraries differ.
    """
    bits = np.random.Philox(key=[seed, 0], counter=[0, 0, step_index, chunk_index])
    return np.random.Generator(bits).standard_normal(shape).astype(np.float32)


def clean(x: Tensor, flow: Tensor, sigma: Tensor) -> Tensor:
    """x0 = x - sigma v; sigma broadcasts over rows [B, 1, 1, 1, 1]."""
    return x - sigma * flow


def renoise(x0: Tensor, fresh: Tensor, sigma: Tensor) -> Tensor:
    """(1 - sigma) x0 + sigma n."""
    return (1 - sigma) * x0 + sigma * fresh
