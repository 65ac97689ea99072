"""Measure a world on this machine: several players in one forward, against the same players one after another.

Every player is always behind its deadline, so each tick runs all the rows there are: this is throughput, not pacing.
With --recording: what it costs a tick to write everything down, with and without turn by turn.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from gameserver import bench_geometry
from gameserver.arguments import player_counts
from gameserver.bench_geometry import add_counts, add_geometry
from gameserver.bench_machine import machine
from gameserver.bench_walk import start, walk
from gameserver.progress import report
from gameserver.recording_cost import RecordingCost, measure_recording
from gameserver.serve import add_spread_arguments, spread_of, world_loader
from world.chunk import World, WorldError


@dataclass(frozen=True, slots=True)
class Measured:
    """`num_players` walking for some chunks each."""

    players: int
    ms_a_tick: float  # median
    ms_a_tick_p95: float
    rows_a_forward: float
    fps: float  # of all players
    fps_a_player: float
    one_after_another_fps: float  # the same players and chunks, alone in turn
    speedup: float  # fps over that


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--world", help="a checkpoint's directory, or `pattern` for test pictures (default: meadow)")
    add_counts(parser)
    add_geometry(parser)
    agents = "measure instead how fast so many gymnasium environments step, such as 1,4,16, on a server of their own"
    parser.add_argument("--environments", type=player_counts, metavar="COUNTS", help=agents)
    parser.add_argument("--recording", action="store_true", help="measure what recording costs instead")
    add_spread_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """A table, or with --json one line."""
    if args.geometry or args.ablation:
        _check_alone(args)
        return bench_geometry.run(args)
    if args.environments:
        if args.precision != "native":
            raise WorldError("--precision does not go with --environments")
        return _run_environments(args)
    started_s = time.perf_counter()
    world = world_loader(args.world, max(args.players), spread_of(args))(report)
    world.prewarm(report)
    about = describe(world, time.perf_counter() - started_s)
    if not args.json:
        print("\n".join(f"{key.replace('_', ' ')}: {value}" for key, value in about.items()))
    results: list[Measured] | list[RecordingCost] = (
        list(_recordings(world, args)) if args.recording else list(_players(world, args))
    )
    if args.json:
        print(json.dumps({**about, "results": [asdict(result) for result in results]}))
    return 0


def _check_alone(args: argparse.Namespace) -> None:
    """WorldError for options that a bench of random weights would not heed."""
    given = {"--world": args.world, "--environments": args.environments, "--recording": args.recording}
    given |= {"--gpus": args.ablation and args.gpus, "--ranks": args.ranks > 1 and not args.ablation}
    for option, value in given.items():
        if value:
            raise WorldError(f"{option} does not go with {'--ablation' if args.ablation else '--geometry'}")


def _players(world: World, args: argparse.Namespace) -> Iterator[Measured]:
    if not args.json:
        print("players   ms a tick     p95   rows   fps in all   a player   one by one   ratio")
    for num_players in args.players:
        result = measure(world, num_players, args.chunks, args.warmup)
        yield result
        if not args.json:
            print(
                f"{result.players:7} {result.ms_a_tick:11.2f} {result.ms_a_tick_p95:7.2f} {result.rows_a_forward:6.2f}"
                f" {result.fps:12.2f} {result.fps_a_player:10.2f} {result.one_after_another_fps:12.2f}"
                f" {result.speedup:7.2f}",
                flush=True,
            )


def _recordings(world: World, args: argparse.Namespace) -> Iterator[RecordingCost]:
    if not args.json:
        print("players   rounds   ms a tick     p95   recorded     p95    ratio   digest in both, ms a chunk")
    for num_players in args.players:
        with tempfile.TemporaryDirectory(prefix="manyworlds-bench-") as directory:
            cost = measure_recording(world, num_players, args.chunks, args.warmup, Path(directory), time.perf_counter)
        yield cost
        if not args.json:
            print(
                f"{cost.players:7} {cost.rounds:8} {cost.ms_a_tick:11.3f} {cost.ms_a_tick_p95:7.3f}"
                f" {cost.recorded_ms_a_tick:10.3f} {cost.recorded_ms_a_tick_p95:7.3f} {cost.ratio:8.4f}"
                f" {cost.digest_ms:8.3f}",
                flush=True,
            )


def _run_environments(args: argparse.Namespace) -> int:
    try:
        from gameserver.bench_environments import table
    except ImportError:
        raise WorldError("environments need gymnasium: install the extra gym") from None
    about = {"world": args.world or "meadow", **machine()}
    if not args.json:
        print("\n".join(f"{key}: {value}" for key, value in about.items()))
        print("environments   steps/s   frames/s   ms a step of all")
    results = []
    for result in table(args.world, args.environments, args.chunks, args.warmup):
        results.append(asdict(result))
        if not args.json:
            print(
                f"{result.environments:12} {result.steps_a_second:9.1f} {result.frames_a_second:10.1f}"
                f" {result.ms_a_step:18.1f}",
                flush=True,
            )
    if args.json:
        print(json.dumps({**about, "results": results}))
    return 0


def measure(
    world: World, num_players: int, num_chunks: int, warmup_chunks: int, clock: Callable[[], float] = time.perf_counter
) -> Measured:
    joins = [start(world, player) for player in range(num_players)]
    together = walk(world, joins, num_chunks, warmup_chunks, clock)
    alone = [walk(world, [join], num_chunks, warmup_chunks, clock) for join in joins]
    alone_fps = sum(each.frames for each in alone) / sum(each.seconds for each in alone)
    fps = together.frames / together.seconds
    ticks_ms = [1000 * tick for tick in together.ticks_s]
    return Measured(
        num_players, statistics.median(ticks_ms), float(np.percentile(ticks_ms, 95)),
        together.rows / len(together.ticks_s), fps, fps / num_players, alone_fps, fps / alone_fps,
    )  # fmt: skip


def describe(world: World, load_s: float) -> dict[str, object]:
    """What the numbers were taken on."""
    torch = sys.modules.get("torch")
    geometry = world.geometry
    return {
        "world": world.name,
        "picture": f"{geometry.width}x{geometry.height}",
        "fps_wanted": geometry.fps,
        "chunk_frames": geometry.video_frames(1),
        "dtype": str(getattr(world, "dtype", "unknown")).removeprefix("torch."),
        **machine(),
        "torch": "not loaded" if torch is None else str(torch.__version__),
        "load_seconds": round(load_s, 2),
    }
