"""Serve a world: the page, and everybody who plays."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from gameserver import journal, saves
from gameserver.app import App, ServeError, running
from gameserver.arguments import add_precision, player_count, port_number, positive, rank_count
from gameserver.door import Settings
from gameserver.engine import LoadWorld, Phase
from gameserver.journal import Keep
from gameserver.saves import Shelf
from world.chunk import PRECISIONS, WEIGHT_LAYOUTS, Precision, Report, WeightLayout, World
from world.pattern import PatternWorld

PROGRESS_S = 0.2
SEATS = 8  # where nobody says how many


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=port_number, default=8000, help="0 picks a free one (default: %(default)s)")
    parser.add_argument("--world", help="a checkpoint's directory, or `pattern` for test pictures (default: meadow)")
    seats = f"seats; more than memory holds are refused (default: {SEATS}, or as many as it holds)"
    parser.add_argument("--players", type=player_count, help=seats)
    add_spread_arguments(parser)
    add_precision(parser)
    parser.add_argument(
        "--record-dir",
        type=Path,
        metavar="DIR",
        help="where every session is recorded (default: a folder of the user's)",
    )
    parser.add_argument("--no-record", action="store_true", help="do not record")
    sizes = "recordings that are kept, in GB; the oldest finished ones go first (default: %(default)s)"
    parser.add_argument("--record-gb", type=positive, default=2.0, metavar="GB", help=sizes)
    ages = "days that a recording is kept (default: %(default)s)"
    parser.add_argument("--record-days", type=positive, default=14.0, metavar="DAYS", help=ages)
    places = "where players' saves are, and what brings sessions back after a crash (default: a folder of the user's)"
    parser.add_argument("--save-dir", type=Path, metavar="DIR", help=places)
    parser.add_argument("--no-save", action="store_true", help="keep no saves, and nothing for after a crash")
    room = "saves that are kept, automatic ones with them, in GB; over it none is taken (default: %(default)s)"
    parser.add_argument("--save-gb", type=positive, default=4.0, metavar="GB", help=room)
    parser.add_argument(
        "--save-days", type=positive, default=90.0, metavar="DAYS", help="that a save is kept (default: %(default)s)"
    )
    parking = parser.add_mutually_exclusive_group()
    host = "memory of the host for sessions that stand still while others want their slots (default: %(default)s)"
    parking.add_argument("--park-gb", type=positive, default=4.0, metavar="GB", help=host)
    parking.add_argument("--no-park", action="store_true", help="whoever has a slot keeps it")
    only = "let in no more players than are not slowed, as measured at the start (default: that is said, no more)"
    parser.add_argument("--realtime-only", action="store_true", help=only)
    every = "between two automatic saves of each session, which a crash goes back to (default: %(default)s)"
    parser.add_argument("--save-every", type=positive, default=20.0, metavar="SECONDS", help=every)


def add_spread_arguments(parser: argparse.ArgumentParser) -> None:
    """Over what a world is spread: `spread_of` reads them, and what `add_precision` adds."""
    where = parser.add_mutually_exclusive_group()
    processes = "processes on the CPU that compute the world together (default: %(default)s)"
    where.add_argument("--ranks", type=rank_count, default=1, metavar="N", help=processes)
    where.add_argument("--gpus", type=rank_count, metavar="N", help="GPUs to serve on, a process each (default: one)")
    layouts = "of several ranks: all weights on each, 1/N of them, or 1/N until first used (default: %(default)s)"
    parser.add_argument("--weights", choices=WEIGHT_LAYOUTS, default=WEIGHT_LAYOUTS[0], help=layouts)


def recordings(args: argparse.Namespace) -> Keep | None:
    """Where to record, if at all. ServeError for a directory that was asked for and cannot be; without the default one
    there is a warning and no recording."""
    if args.no_record:
        return None
    without = "sessions are not recorded (%s): --record-dir names another place"
    directory = _directory(args.record_dir, journal.default_directory, "record", without)
    if directory is None:
        return None
    return Keep(directory, int(args.record_gb * 1e9), args.record_days * 86400)


def shelf(args: argparse.Namespace) -> Shelf | None:
    """Where to save, if at all; as `recordings`."""
    if args.no_save:
        return None
    without = "nothing is saved (%s): --save-dir names another place"
    directory = _directory(args.save_dir, saves.default_directory, "save", without, inner="live")
    if directory is None:
        return None
    max_bytes, max_age_s = int(args.save_gb * 1e9), args.save_days * 86400
    return Shelf(directory, max_bytes=max_bytes, max_age_s=max_age_s, every_s=args.save_every)


def too_small(shelf: Shelf, world: World) -> str | None:
    """What --save-gb has no room for in this world, as a sentence."""
    each, first = world.state_bytes / 1e9, f"--save-gb {shelf.max_bytes / 1e9:g} is too small"
    if world.state_bytes > shelf.max_bytes:
        return f"{first} for a save of this world, which takes {each:.3g} GB: nobody can save, go back or fork."
    if world.state_bytes > shelf.moment_bytes:
        return f"{first} for automatic saves of {each:.3g} GB: after a crash sessions are made again from their start."
    return None


def _directory(
    asked: Path | None, default: Callable[[], Path], verb: str, without: str, inner: str = ""
) -> Path | None:
    """Where to write, made if it is not there with `inner` in it. ServeError if it was asked for and cannot be; without
    the default one there is the warning `without` and None."""
    try:
        directory = asked or default()
        (directory / inner).mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError) as fault:
        why = f"{fault.filename}: {fault.strerror}" if isinstance(fault, OSError) else str(fault)
        if asked is not None:
            raise ServeError(f"cannot {verb} in {asked} ({why})") from None
        logging.getLogger(__name__).warning(without, why)
        return None
    return directory


@dataclass(frozen=True, slots=True)
class Spread:
    """Over what a world is spread, and how finely."""

    ranks: int = 1
    gpus: int | None = None  # None: the one there is, if any; several have a rank each
    weights: WeightLayout = WEIGHT_LAYOUTS[0]
    precision: Precision = PRECISIONS[0]

    @property
    def on_gpus(self) -> bool:
        return self.gpus is not None and self.gpus > 1

    @property
    def num_ranks(self) -> int:
        """Processes that compute the world together."""
        return self.ranks if self.gpus is None else self.gpus


def spread_of(args: argparse.Namespace) -> Spread:
    return Spread(args.ranks, args.gpus, args.weights, args.precision)


def world_loader(
    path: str | None, players: int, spread: Spread = Spread(), tell: Callable[[str], None] | None = None,
    or_fewer: bool = False,
) -> LoadWorld:  # fmt: skip
    """Loads on the thread that calls it, and imports what a world needs only then. With `tell` it says first what that
    will take of the memory there is, WorldError if it does not fit; or_fewer: then the world has fewer slots."""

    def load(report: Report) -> World:
        num_slots = players
        if path == "pattern" and spread == Spread():  # numpy only: there within a blink
            return PatternWorld(num_slots=num_slots)
        report("importing torch", 0.0)
        from world.loader import check_gpus, load_world, memory_there, plan_world

        if spread.gpus is not None:
            check_gpus(spread.gpus)
        if tell is not None and path != "pattern":
            report("planning memory", 0.0)
            plan = plan_world(
                path, num_slots, spread.num_ranks, spread.weights, precision=spread.precision, on_gpus=spread.on_gpus
            )
            there = memory_there(spread.num_ranks, spread.on_gpus)
            if there is not None:
                plan = plan.fitted(there) if or_fewer else plan
                plan.check(there)
            num_slots = plan.num_slots
            fewer = "" if num_slots == players else f" Seats: {num_slots} instead of {players}."
            tell(plan.sentence(there) + fewer)
        world: World = load_world(
            path, num_slots, report, spread.num_ranks, spread.weights, spread.precision, spread.on_gpus
        )
        return world

    return load


def run(args: argparse.Namespace) -> int:
    """0 after an orderly end by SIGINT or SIGTERM, 1 with a sentence if the world cannot be served."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    seats = args.players or SEATS
    try:
        settings = Settings(
            host=args.host, port=args.port, capacity=seats, record=recordings(args), saves=shelf(args),
            park_bytes=0 if args.no_park else int(args.park_gb * 1e9),
            pledge="enforced" if args.realtime_only else "advised",
        )  # fmt: skip
        load = world_loader(args.world, seats, spread_of(args), _say, or_fewer=args.players is None)
        engine_stopped, code = asyncio.run(_serve(settings, load))
    except ServeError as fault:
        print(f"gameserver: {fault}", file=sys.stderr)
        return 1
    if not engine_stopped:  # still in a forward or loading: interpreters do not end well under a running thread
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def _say(line: str) -> None:
    """On stderr, over the line of progress if there is one."""
    print(f"\r\x1b[K{line}" if sys.stderr.isatty() else line, file=sys.stderr, flush=True)


async def _serve(settings: Settings, load: LoadWorld) -> tuple[bool, int]:
    """(whether the engine's thread ended, exit code)"""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    code = 0
    async with running(settings, load) as app:
        print(f"Listening at {app.url} while the world loads.", file=sys.stderr, flush=True)
        if settings.record is not None:
            where = settings.record.directory
            print(f"Sessions are recorded in {where}; --no-record turns it off.", file=sys.stderr, flush=True)
        telling = asyncio.create_task(_tell_progress(app))
        stopping = asyncio.create_task(stop.wait())
        settled = asyncio.create_task(app.door.settled.wait())
        await asyncio.wait({stopping, settled}, return_when=asyncio.FIRST_COMPLETED)
        telling.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await telling
        if app.door.engine.phase is Phase.FAILED:
            print(f"gameserver: {app.door.engine.failure}", file=sys.stderr)
            code = 1
        elif not stop.is_set():
            if (real_time := app.door.engine.real_time) is not None:
                print(real_time.sentence, file=sys.stderr, flush=True)
            if settings.saves is not None and (sentence := too_small(settings.saves, app.door.world)) is not None:
                print(sentence, file=sys.stderr, flush=True)
            print(f"Open {app.url} in a browser to play. Ctrl-C ends it.", flush=True)
            ended = asyncio.create_task(app.door.ended.wait())
            await asyncio.wait({stopping, ended}, return_when=asyncio.FIRST_COMPLETED)
            ended.cancel()
            if stop.is_set():
                print("Going down.", file=sys.stderr)
            else:
                print(f"gameserver: {app.door.engine.failure}", file=sys.stderr)
                code = 1
        stopping.cancel()
        settled.cancel()
    return app.stopped, code


async def _tell_progress(app: App) -> None:
    """On a terminal one line that is written over, elsewhere a line for each stage."""
    terminal = sys.stderr.isatty()
    told = ""
    try:
        while True:
            progress = app.door.engine.progress
            if terminal:
                print(f"\r\x1b[K{progress.stage} {progress.share:4.0%}", end="", file=sys.stderr, flush=True)
            elif progress.stage != told:
                print(f"{progress.stage} ...", file=sys.stderr, flush=True)
            told = progress.stage
            await asyncio.sleep(PROGRESS_S)
    finally:
        if terminal:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
