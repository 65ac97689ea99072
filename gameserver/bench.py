"""Measure a world on this machine: several players in one forward, against the same players one after another.

Every player is always behind its deadline, so each tick runs all the rows there are: this is throughput, not pacing.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from gameserver.preparation import scene_intrinsics
from gameserver.progress import report
from gameserver.serve import player_count, world_loader
from sessions.control import Control
from sessions.tick import Game, TickResult
from world.chunk import Start, World

BEHIND_S = 1000.0  # the game's clock jumps by this each tick, so that nobody waits for a deadline


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


@dataclass(frozen=True, slots=True)
class _Walk:
    ticks_s: tuple[float, ...]
    rows: int
    frames: int
    seconds: float


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--world", help="a checkpoint's directory, or `pattern` for test pictures (default: meadow)")
    counts = "how many at once (default: 1,2,4,8)"
    parser.add_argument("--players", type=_player_counts, default=(1, 2, 4, 8), help=counts)
    parser.add_argument("--chunks", type=player_count, default=8, help="measured for each (default: %(default)s)")
    parser.add_argument("--warmup", type=player_count, default=2, help="chunks before that (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="only one line of JSON on stdout")


def _player_counts(text: str) -> tuple[int, ...]:
    return tuple(player_count(part) for part in text.split(","))


def run(args: argparse.Namespace) -> int:
    """A table, or with --json one line."""
    started_s = time.perf_counter()
    world = world_loader(args.world, max(args.players))(report)
    world.prewarm(report)
    about = describe(world, time.perf_counter() - started_s)
    if not args.json:
        print("\n".join(f"{key.replace('_', ' ')}: {value}" for key, value in about.items()))
        print("players   ms a tick     p95   rows   fps in all   a player   one by one   ratio")
    results: list[Measured] = []
    for num_players in args.players:
        result = measure(world, num_players, args.chunks, args.warmup)
        results.append(result)
        if not args.json:
            print(
                f"{result.players:7} {result.ms_a_tick:11.2f} {result.ms_a_tick_p95:7.2f} {result.rows_a_forward:6.2f}"
                f" {result.fps:12.2f} {result.fps_a_player:10.2f} {result.one_after_another_fps:12.2f}"
                f" {result.speedup:7.2f}",
                flush=True,
            )
    if args.json:
        print(json.dumps({**about, "results": [asdict(result) for result in results]}))
    return 0


def measure(
    world: World, num_players: int, num_chunks: int, warmup_chunks: int, clock: Callable[[], float] = time.perf_counter
) -> Measured:
    starts = [_start(world, player) for player in range(num_players)]
    together = walk(world, starts, num_chunks, warmup_chunks, clock)
    alone = [walk(world, [start], num_chunks, warmup_chunks, clock) for start in starts]
    alone_fps = sum(each.frames for each in alone) / sum(each.seconds for each in alone)
    fps = together.frames / together.seconds
    ticks_ms = [1000 * tick for tick in together.ticks_s]
    return Measured(
        num_players, statistics.median(ticks_ms), float(np.percentile(ticks_ms, 95)),
        together.rows / len(together.ticks_s), fps, fps / num_players, alone_fps, fps / alone_fps,
    )  # fmt: skip


def walk(
    world: World, starts: Sequence[Start], num_chunks: int, warmup_chunks: int, clock: Callable[[], float]
) -> _Walk:
    """Everybody walks and turns; counts the ticks from everybody's last warm-up chunk to anybody's last chunk."""
    game = Game(world)
    ids = [f"player-{number}" for number in range(len(starts))]
    now_s, ticks_s, rows, frames = 0.0, list[float](), 0, 0
    done = dict.fromkeys(ids, 0)
    for number, (session_id, start) in enumerate(zip(ids, starts, strict=True)):
        game.join(session_id, start, "axes", now_s)
        for _ in range(number % (world.num_steps + 1)):  # so that rows stand at different steps, as in play
            now_s += BEHIND_S
            for chunk in _tick(game, now_s).finished:
                done[chunk.session_id] += 1
    turn_seq, measuring = 0, False
    while max(done.values()) < warmup_chunks + num_chunks + len(starts):
        measuring = measuring or min(done.values()) >= warmup_chunks
        turn_seq += 1
        for number, session_id in enumerate(ids):
            turn = 1.0 if (turn_seq // 40 + number) % 2 else -1.0
            game.steer(session_id, Control(turn_seq, turn_seq * 20.0, (1.0, 0.0, turn, 0.0)))
        now_s += BEHIND_S
        began_s = clock()
        result = _tick(game, now_s)
        elapsed_s = clock() - began_s
        for chunk in result.finished:
            done[chunk.session_id] += 1
        if measuring:
            ticks_s.append(elapsed_s)
            rows += len(result.rows)
            frames += sum(len(chunk.picture.frames) for chunk in result.finished)
    for session_id in ids:
        game.leave(session_id)
    return _Walk(tuple(ticks_s), rows, frames, sum(ticks_s))


def _tick(game: Game, now_s: float) -> TickResult:
    return game.tick(now_s, lambda: now_s)


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
        "cpu": _cpu_model(),
        "cores": _cores(),
        "torch": "not loaded" if torch is None else str(torch.__version__),
        "commit": _commit(),
        "load_seconds": round(load_s, 2),
    }


def _start(world: World, player: int) -> Start:
    scene = world.scenes[player % len(world.scenes)]
    prompt, image = world.encode_prompt(scene.prompt), world.prepare_image(scene.image)
    return Start(player, prompt, image, np.array(scene_intrinsics(scene, world.geometry), np.float32), scene.scale)


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _commit() -> str:
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
