"""Measures the built-in world against its teacher on places it never saw.

`python -m world.meadow.evaluate [--seeds A:B] [--long] [--weights FILE] [--json]` prints a table; with --json its last
line is everything as one JSON object. `--sheet OUT.png` draws instead: teacher above, model below, over time.

Seeds are absolute, the first included; those below 700000 belong to training and are refused. Everybody's pictures
are compared as served, in I420. Columns: the model; the VAE's round trip of the teacher's frames (what the model
cannot beat); the start picture carried along by the teacher's depth (what perfect memory of it would give); and two
baselines, the first frame repeated and the first frame turned as the camera has turned.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from world.chunk import Geometry, WorldError
from world.loader import serving_device, serving_dtype
from world.meadow.built_in import WEIGHTS, load_meadow
from world.meadow.contact_sheet import tile, write_png
from world.meadow.dataset import TRAINING_SEEDS
from world.meadow.judging import (
    MINUTES,
    SECONDS,
    TURN_STEPS_DEG,
    WALK_S,
    Tally,
    judge_coming_back,
    judge_long,
    judge_mixed,
    judge_prompts,
    look_of,
)
from world.meadow.measures import to_rgb
from world.meadow.plays import Student, begin, draw_play, mixed_axes, turn_axes
from world.meadow.students import Served, repeated, reprojected, round_trip, warped
from world.model import DiffusionWorld

SLOTS = 8
COLUMNS = {"model": "model", "vae": "VAE", "carried": "carried", "repeated": "repeated", "turned": "turned"}
SHEET_S = (0, 0.5, 1, 2, 3, 4)


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the table: what is taken of which numbers, and what the world promises of it."""

    key: str
    title: str
    promise: str = ""
    take: str = "mean"  # or median, min, max
    percent: bool = False
    digits: int = 1


def lines(fps: int, long: bool) -> list[Line]:
    found = [Line("first_frame_psnr", "first frame, dB")]
    for key, what in (("psnr", "whole picture, dB"), ("seen_psnr", "points seen at the start, dB"),
                      ("gain", "... above repeated, dB"), ("ssim", "whole picture, SSIM"),
                      ("seen_ssim", "points seen at the start, SSIM")):  # fmt: skip
        digits = 3 if "ssim" in key else 1
        promise = {"psnr": "VAE >= 30", "seen_psnr": ">= 20"}.get(key, "")
        found.append(Line(f"{key}_mean", f"{what}, mean of {SECONDS[-1]} s", promise, digits=digits))
        promise = {"gain": ">= 6"}.get(key, "")
        found += [Line(f"{key}_{s}s", f"  at {s} s", promise, digits=digits) for s in SECONDS]
    for kind, title in (("all", "all chunks that move"), ("turn", "turning"), ("walk", "walking"), ("both", "both")):
        promise = ">= 97" if kind == "all" else ""
        found.append(Line(f"direction_{kind}", f"right direction, {title}, %", promise, percent=True))
    for kind in ("turn", "walk", "both"):
        found.append(Line(f"size_{kind}", f"motion made of that asked, {kind}", "1", take="median", digits=2))
    for step in TURN_STEPS_DEG:
        took = len(turn_axes(step, 1)) / fps
        title = f"back from 120 degrees at {step * fps:.0f} a second, {took:.1f} s, dB"
        found.append(Line(f"back_turn_{step:g}_psnr", title, ">= 20" if took <= 2 else ""))
    found.append(Line("back_walk_psnr", f"back from {WALK_S} s of walking, {2 * WALK_S:.1f} s, dB"))
    prompts = ("start", "prompt at the start", ">= 90"), ("change", "prompt changed in play", ">= 80")
    for name, title, promise in prompts:
        for attribute in ("time", "season", "weather", "whole"):
            said = "all three" if attribute == "whole" else attribute
            found.append(Line(f"{name}_{attribute}", f"{title}, {said}, %", promise, percent=True))
    for m in range(1, MINUTES + 1) if long else ():
        found.append(Line(f"sharpness_m{m}", f"minute {m}: sharpness of the teacher's, mean", "0.6 to 1.6", digits=2))
        found.append(Line(f"sharpness_m{m}", "  the blurriest seed", "0.6 to 1.6", "min", digits=2))
        found.append(Line(f"sharpness_m{m}", "  the sharpest seed", "0.6 to 1.6", "max", digits=2))
        found.append(Line(f"colour_m{m}", "  mean colour away, of 255", "<= 12"))
        found.append(Line(f"colour_m{m}", "  the worst seed", "<= 12", "max"))
        found.append(Line(f"stuck_m{m}", "  stuck, %", "0", percent=True))
        found.append(Line(f"exploded_m{m}", "  exploded, %", "0", percent=True))
    return found


def table(tally: Tally, fps: int, long: bool) -> str:
    rows = [["", *COLUMNS.values(), "promised"]]
    for line in lines(fps, long):
        cells = []
        for who in COLUMNS:
            numbers = tally.of(line.key, who)
            take = {"min": min, "max": max, "median": statistics.median, "mean": statistics.fmean}[line.take]
            number = (100 if line.percent else 1) * take(numbers) if numbers else None
            cells.append("-" if number is None else f"{number:.{line.digits}f}")
        rows.append([line.title, *cells, line.promise])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    aligned = [[cell.rjust(width) for cell, width in zip(row, widths, strict=True)] for row in rows]
    return "\n".join("  ".join([row[0].ljust(widths[0]), *cells[1:]]).rstrip()
                     for row, cells in zip(rows, aligned, strict=True))  # fmt: skip


def summary(tally: Tally) -> dict[str, dict[str, dict[str, float]]]:
    """Every measure of everybody, for machines: mean, median, extremes and of how many."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for key, people in tally.numbers.items():
        for who in people:
            n = tally.of(key, who)
            if n:
                taken = {"mean": statistics.fmean(n), "median": statistics.median(n), "min": min(n), "max": max(n)}
                found.setdefault(key, {})[who] = {k: round(v, 4) for k, v in taken.items()} | {"count": len(n)}
    return found


def note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def judge(world: DiffusionWorld, seeds: list[int], long: bool) -> Tally:
    tally, geometry, device = Tally(), world.geometry, world.device
    model: dict[str, Student] = {"model": Served(world, world.scenes[0].scale)}
    everybody = model | {"repeated": repeated, "turned": warped}
    note("four seconds of mixed control")
    informed = {"vae": lambda play, truth: round_trip(world.vae, truth.rgb, device, as_clip=True),
                "carried": reprojected}  # fmt: skip
    judge_mixed(tally, everybody, informed, seeds, geometry, device)
    note("coming back")
    judge_coming_back(tally, model, seeds, geometry)
    note("prompts")
    lossy = {"vae": lambda rgb: to_rgb(round_trip(world.vae, (255 * rgb).round().byte().numpy(), device, False))}
    judge_prompts(tally, everybody, lossy, seeds, geometry, device)
    if long:
        note(f"{MINUTES} minutes of random control")
        judge_long(tally, everybody, seeds, geometry, device)
    return tally


def draw_sheet(student: Student, seeds: list[int], geometry: Geometry, device: torch.device, path: Path) -> None:
    """A pair of rows a seed, teacher above and student below, at SHEET_S of mixed control."""
    kept = [round(s * geometry.fps) for s in SHEET_S]
    plays = []
    for i, seed in enumerate(seeds):
        plays.append(begin(seed, look_of(seed), mixed_axes(seed, i % 2, kept[-1]), geometry, kept))
    rows = []
    for play, frames in zip(plays, student(plays), strict=True):
        rows += [to_rgb(draw_play(play, geometry, device).frames), to_rgb(frames)]
        print(f"{play.seed}: {play.look.prompt()}")
    write_png(path, tile((255 * torch.stack(rows)).round().to(torch.uint8).numpy()))


def held_out(text: str) -> list[int]:
    try:
        first, last = (int(part) for part in text.split(":"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not A:B") from None
    if not TRAINING_SEEDS <= first < last:
        raise argparse.ArgumentTypeError(f"{text} does not lie above training's seeds, from {TRAINING_SEEDS} on")
    return list(range(first, last))


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=held_out, default="700100:700108", metavar="A:B", help="held-out seeds")
    parser.add_argument("--long", action="store_true", help=f"{MINUTES} minutes of random control a seed as well")
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    parser.add_argument("--json", action="store_true", help="the last line is one JSON object")
    parser.add_argument("--sheet", type=Path, metavar="OUT.png", help="draw a contact sheet and measure nothing")
    parser.add_argument("--device", type=torch.device, default=serving_device())
    args = parser.parse_args(argv)
    dtype = serving_dtype(args.device)
    try:
        world = load_meadow(SLOTS, args.device, dtype, lambda stage, share: None, args.weights)
    except WorldError as error:
        sys.exit(str(error))
    if args.sheet:
        draw_sheet(Served(world, world.scenes[0].scale), args.seeds, world.geometry, world.device, args.sheet)
        return
    tally = judge(world, args.seeds, args.long)
    print(f"{world.name}, seeds {args.seeds[0]} to {args.seeds[-1]}, {args.device}, {world.dtype}")
    print(table(tally, world.geometry.fps, args.long))
    seen = [f"{100 * np.mean(tally.of(f'seen_{s}s', 'teacher')):.0f} %" for s in SECONDS]
    print(f"Of the picture, what was seen at the start is still seen after 1 to 4 s: {', '.join(seen)}.")
    if args.json:
        about = {"world": world.name, "weights": args.weights.name, "seeds": args.seeds, "device": str(args.device)}
        print(json.dumps(about | {"measures": summary(tally)}))


if __name__ == "__main__":
    main()
