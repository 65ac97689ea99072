"""Players at different places of their streams, and where a chunk's milliseconds go.

Everybody is at the same step of another chunk, so that a stage is one kind of forward. The chunks of `chunk_ms` are
timed whole, with nothing else between them; the stages come from as many chunks after that, with marks in the device's
stream.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from sessions.control import Control
from sessions.tick import Finished, Game
from world.chunk import World, usual_start
from world.instrument import Instrument, compilations

BEHIND_S = 1000.0  # the game's clock jumps by this each tick, so that nobody waits for a deadline
WARM_STARTS = 3

EncodeAll = Callable[[Sequence[Finished]], None]
Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Stage:
    name: str
    ms: float  # median
    ms_p95: float
    times: int  # measured


@dataclass(frozen=True, slots=True)
class Staged:
    """`players` in one forward. DiT figures are of all of them together."""

    players: int
    chunk_indices: tuple[int, ...]  # of the players, when measuring began
    chunk_ms: float  # median: of everybody's next chunk, from plan to pictures on the host
    chunk_ms_p95: float
    fps: float  # of all players
    fps_a_player: float
    cold_first_chunk_ms: float  # of one player alone: the first one after readiness
    warm_first_chunk_ms: float  # and those of later ones, median
    stages: tuple[Stage, ...]
    step_tflops: float  # a second, of denoise steps
    dit_tflops: float  # a second, of a chunk's steps and commit and of `begin`, its camera in it
    step_share: float  # of the measured matrix peak
    dit_share: float
    counted_ticks: int  # of joins, leaves and full windows, in which were counted:
    waits: dict[str, int]  # how often the host waited for the device, by place
    compilations: int
    planned_bytes: int  # of memory in use, as the plan says it
    peak_bytes: int | None  # of memory in use, None where it is not counted
    reserved_bytes: int | None  # of memory that the device gave: with what graphs keep, and what is free inside
    slot_bytes: int  # of the slab, a player


class Crowd:
    """Players of one game, all at the same step; or, with fewer rows a forward than players, one after another."""

    def __init__(self, world: World, clock: Callable[[], float], max_rows: int | None = None):
        self._start = usual_start(world)
        self.world, self.game, self._clock = world, Game(world, max_rows=max_rows), clock
        self._max_rows = max_rows or world.max_rows
        self._now_s, self._seq = 0.0, 0
        self.tick_s: list[float] = []  # of the last chunk

    def join(self, player: int) -> None:
        self.game.join(f"player-{player}", replace(self._start, seed=player), "axes", self._now_s)

    def leave(self, player: int) -> None:
        self.game.leave(f"player-{player}")

    @property
    def chunk_indices(self) -> tuple[int, ...]:
        return tuple(session.chunk_index for session in self.game.roster)

    def tick(self) -> tuple[Finished, ...]:
        self._now_s += BEHIND_S
        began_s = self._clock()
        finished = self.game.tick(self._now_s, lambda: self._now_s).finished
        self.tick_s.append(self._clock() - began_s)
        return finished

    def chunk(self, after_tick: Callable[[], None] = lambda: None) -> list[Finished]:
        """Everybody's next one."""
        self._seq += 1
        for number, session in enumerate(self.game.roster):
            turn = 1.0 if (self._seq // 8 + number) % 2 else -1.0
            session.steer(Control(self._seq, self._seq * 100.0, (1.0, 0.0, turn, 0.0)))
        self.tick_s, made = [], list[Finished]()
        turns = -(-len(self.chunk_indices) // self._max_rows)
        for _ in range(turns * (self.world.num_steps + 1)):
            made += self.tick()
            after_tick()
        return made


def measure(
    instrument: Instrument, num_players: int, num_chunks: int, warmup_chunks: int, peak_tflops: float,
    encode: EncodeAll | None, tell: Tell,
) -> Staged:  # fmt: skip
    """DoesNotFit if so many players do not."""
    instrument.free()
    return instrument.attempt(
        lambda: _measure(instrument, num_players, num_chunks, warmup_chunks, peak_tflops, encode, tell)
    )


def _measure(
    instrument: Instrument, num_players: int, num_chunks: int, warmup_chunks: int, peak_tflops: float,
    encode: EncodeAll | None, tell: Tell,
) -> Staged:  # fmt: skip
    clock, watch = instrument.clock, instrument.watch
    tell(f"{num_players} players: warming up")
    world = instrument.world(num_players)
    world.prewarm(lambda stage, share: None)
    watch.wait()
    crowd = Crowd(world, clock)
    tell(f"{num_players} players: first chunks")
    cold_ms, *warm_ms = (_first_chunk_ms(crowd, instrument) for _ in range(1 + WARM_STARTS))
    tell(f"{num_players} players: walking until every window is full")
    for player in range(num_players):
        crowd.join(player)
        crowd.chunk()
    while min(crowd.chunk_indices) < instrument.chunks_to_fill + warmup_chunks:
        crowd.chunk()
    indices = crowd.chunk_indices
    tell(f"{num_players} players: {num_chunks} chunks whole")
    # Begun and ended while the device is at a commit, as every chunk between: it is not waited for.
    frames, chunk_ms, began_s = 0, list[float](), clock()
    for _ in range(num_chunks):
        chunk_began_s = clock()
        frames += sum(len(chunk.picture.frames) for chunk in crowd.chunk())
        chunk_ms.append(1000 * (clock() - chunk_began_s))
    fps = frames / (clock() - began_s)
    tell(f"{num_players} players: {num_chunks} chunks in stages")
    times = _stages(crowd, instrument, num_chunks, encode)
    stages = tuple(Stage(name, *middle(ms), len(ms)) for name, ms in times.items() if ms)
    ticks, waits, compiled = _waits(crowd, instrument, num_players, num_chunks)
    flops, steps = instrument.flops(), world.num_steps
    of = {stage.name: stage.ms for stage in stages}
    step_ms = sum(of[f"step {i}"] for i in range(steps))
    step_tflops = num_players * steps * flops.step / step_ms / 1e9
    dit_tflops = num_players * flops.chunk(steps) / (step_ms + of["commit"] + of.get("begin", 0.0)) / 1e9
    return Staged(
        num_players, indices, *middle(chunk_ms), fps, fps / num_players, cold_ms, statistics.median(warm_ms), stages,
        step_tflops, dit_tflops, step_tflops / peak_tflops, dit_tflops / peak_tflops, ticks, waits, compiled,
        instrument.planned_bytes(num_players), instrument.peak_bytes(), instrument.reserved_bytes(),
        instrument.slot_bytes(world),
    )  # fmt: skip


def _first_chunk_ms(crowd: Crowd, instrument: Instrument) -> float:
    """Of a player who comes, alone, and goes again. The device is waited for, before and after."""
    instrument.watch.wait()
    began_s = instrument.clock()
    crowd.join(0)
    crowd.chunk()
    instrument.watch.wait()
    ms = 1000 * (instrument.clock() - began_s)
    crowd.leave(0)
    return ms


def _stages(crowd: Crowd, instrument: Instrument, num_chunks: int, encode: EncodeAll | None) -> dict[str, list[float]]:
    """Stage -> milliseconds, each time that it ran."""
    clock, watch = instrument.clock, instrument.watch
    steps = [f"step {i}" for i in range(crowd.world.num_steps)]
    order = ("plan", "begin", *steps, "commit", "vae", "copy", "digest")
    times: dict[str, list[float]] = {name: [] for name in order}
    encode_ms = list[float]()
    with instrument.watching(crowd.world):
        for _ in range(num_chunks):
            finished = crowd.chunk(lambda: times["plan"].append(1000 * (crowd.tick_s[-1] - watch.host_s)))
            if encode is not None:
                began_s = clock()
                encode(finished)
                encode_ms.append(1000 * (clock() - began_s))
        for stages in watch.read():
            for name, ms in stages.items():
                times[name].append(ms)
    return times | ({"encode": encode_ms} if encode is not None else {})


def _waits(crowd: Crowd, instrument: Instrument, num_players: int, num_chunks: int) -> tuple[int, dict[str, int], int]:
    """(ticks, waits by place, compilations) while the last player goes and comes again after each chunk."""
    before, forwards = compilations(), crowd.game.counters.forwards
    with instrument.counting() as found:
        for _ in range(num_chunks):
            crowd.leave(num_players - 1)
            crowd.join(num_players - 1)
            crowd.chunk()
    return crowd.game.counters.forwards - forwards, dict(found), compilations() - before


def middle(ms: Sequence[float] | NDArray[np.float64]) -> tuple[float, float]:
    """(median, 95th percentile)"""
    return float(np.median(ms)), float(np.percentile(ms, 95))
