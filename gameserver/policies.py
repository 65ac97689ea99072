"""Things for a bot to do: streams of what is held, each a function of its arguments and nothing else."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle

import numpy as np
from numpy.typing import NDArray

from world.motion import KEY_STEP_DEG, KEY_STEP_UNITS, Axes, Script, key_axes, parse_script

# Odd lengths, so that the controls do not keep step with the chunks.
WANDER = parse_script("w-29,wl-13,w-23,wj-17,w-11,wi-5,wk-5,wa-9,w-19,wd-9,l-21,w-31,j-15")
FOREVER = 1_000_000  # video frames
HELD_FRAMES = (2, 32)  # of a random move, the last not included


@dataclass(frozen=True, slots=True)
class Hold:
    """Axes held for a number of video frames."""

    axes: Axes
    frames: int


Policy = Iterator[Hold]


def scripted(script: Script | str, repeat: bool = False) -> Policy:
    """Keys, as `w-8,wl-8,none-4`: once and then at rest, or again and again. ValueError for what is no script."""
    parsed = parse_script(script) if isinstance(script, str) else script
    holds = [Hold(key_axes(keys), frames) for keys, frames in parsed]
    return cycle(holds) if repeat else iter([*holds, Hold((0.0, 0.0, 0.0, 0.0), FOREVER)])


def walk() -> Policy:
    """On and on, looking about."""
    return scripted(WANDER, repeat=True)


def orbit(radius_units: float = 2.0) -> Policy:
    """Around a point ahead, looking at it."""
    tightest = KEY_STEP_UNITS / math.radians(KEY_STEP_DEG)  # with both axes full
    right, turn = min(1.0, radius_units / tightest), min(1.0, tightest / radius_units)
    return cycle([Hold((0.0, right, -turn, 0.0), FOREVER)])


def random_walk(seed: int) -> Policy:
    """Moves of random length, mostly ahead."""
    chance = np.random.default_rng(seed)
    while True:
        forward = float(chance.choice([1.0, 1.0, 1.0, 0.5, 0.0, -1.0]))
        right, turn, pitch = (float(chance.choice([0.0, 0.0, -1.0, 1.0])) * float(chance.random()) for _ in range(3))
        yield Hold((forward, right, turn, pitch / 4), int(chance.integers(*HELD_FRAMES)))


def recorded(poses: NDArray[np.float32], chunk_frames: int, first_frames: int) -> Iterator[NDArray[np.float32]]:
    """Poses [n, 4, 4] by chunks, for a session in lockstep: the last chunk is filled up with the last pose."""
    begin, end = 0, first_frames
    while begin < len(poses):
        piece = poses[begin:end]
        yield np.concatenate([piece, poses[-1:].repeat(end - begin - len(piece), axis=0)])
        begin, end = end, end + chunk_frames


def per_chunk(policy: Policy, chunk_frames: int) -> Iterator[Axes]:
    """What is held in the mean of each chunk, for a session in lockstep."""
    left, axes = 0, np.zeros(4)
    while True:
        total, missing = np.zeros(4), chunk_frames
        while missing:
            if not left:
                hold = next(policy, Hold((0.0, 0.0, 0.0, 0.0), FOREVER))
                left, axes = hold.frames, np.array(hold.axes)
            frames = min(left, missing)
            total, left, missing = total + frames * axes, left - frames, missing - frames
        forward, right, turn, pitch = (float(axis) for axis in total / chunk_frames)
        yield forward, right, turn, pitch
