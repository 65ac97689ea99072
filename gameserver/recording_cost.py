"""What recording costs a tick: the same walks with and without, turn by turn in one run.

A walk's ticks do the same work in the same order whether it is recorded or not. Few of them finish a chunk, so what is
compared is the mean tick of a *round*: as many ticks as a chunk takes, in which every player finishes one.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gameserver.bench_walk import Walk, start, walk
from gameserver.diary import Diary
from gameserver.journal import Keep
from gameserver.mailbox import Join
from gameserver.recorder import Recorder
from world.chunk import World, WorldError

WALKS = 10  # of each kind
DIGESTS = 50
CLOSE_S = 30.0


@dataclass(frozen=True, slots=True)
class RecordingCost:
    """Of `players` at once. The digest of a chunk's latents is taken whether or not it is written down."""

    players: int
    rounds: int  # of each kind
    ms_a_tick: float  # without recording: the median round's
    ms_a_tick_p95: float
    recorded_ms_a_tick: float
    recorded_ms_a_tick_p95: float
    ratio: float  # of the medians
    digest_ms: float  # a chunk's, in both


def measure_recording(
    world: World, num_players: int, num_chunks: int, warmup_chunks: int, directory: Path, clock: Callable[[], float]
) -> RecordingCost:
    """Leaves its recordings in `directory`. WorldError if they cannot be written there: it would cost nothing."""
    joins = [start(world, player) for player in range(num_players)]
    plain: list[float] = []
    recorded: list[float] = []
    for number in range(WALKS):
        for records in (False, True) if number % 2 == 0 else (True, False):  # neither is always the first
            if records:
                recorded += _rounds_s(world, _recorded_walk(world, joins, num_chunks, warmup_chunks, directory, clock))
            else:
                plain += _rounds_s(world, walk(world, joins, num_chunks, warmup_chunks, clock))
    medians = 1000 * statistics.median(plain), 1000 * statistics.median(recorded)
    p95s = 1000 * np.percentile(plain, 95), 1000 * np.percentile(recorded, 95)
    return RecordingCost(
        num_players, len(plain), medians[0], float(p95s[0]), medians[1], float(p95s[1]), medians[1] / medians[0],
        1000 * _digest_s(world, clock),
    )  # fmt: skip


def _recorded_walk(
    world: World,
    joins: Sequence[Join],
    num_chunks: int,
    warmup_chunks: int,
    directory: Path,
    clock: Callable[[], float],
) -> Walk:
    recorder = Recorder(Keep(directory), lambda notes: None)
    diary = Diary(lambda notes: None, recorder, None)
    diary.open(world, lambda stage, share: None)
    walked = walk(world, joins, num_chunks, warmup_chunks, clock, diary)
    counts = recorder.counts
    if not recorder.close(CLOSE_S) or counts.lost or counts.given_up or counts.recordings != len(joins):
        raise WorldError(f"recordings were lost in {directory}: what they cost cannot be said")
    return walked


def _rounds_s(world: World, walked: Walk) -> list[float]:
    """The mean tick of each whole round."""
    size = world.num_steps + 1
    whole = len(walked.ticks_s) // size * size
    return [float(each) for each in np.reshape(walked.ticks_s[:whole], (-1, size)).mean(axis=1)]


def _digest_s(world: World, clock: Callable[[], float]) -> float:
    size = world.geometry
    latents = np.zeros((size.latent_channels, size.chunk_frames, size.latent_height, size.latent_width), np.float32)
    took_s = []
    for _ in range(DIGESTS):
        began_s = clock()
        world.digest(latents)
        took_s.append(clock() - began_s)
    return statistics.median(took_s)
