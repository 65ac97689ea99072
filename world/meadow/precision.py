"""Measures what FP8 costs in the built-in world: the same walks in bfloat16, in FP8, and in bfloat16 once more.

`python -m world.meadow.precision [--precision fp8|fp8-kv] [--seeds A:B] [--seconds N] [--json]` prints a table, a
second a row, and a verdict; with --json the last line is everything as one JSON object. Seeds are held-out places; in
each one player walks and turns for N seconds, whose pictures are held against the teacher's and against each other's.

A generated world never draws quite the same after its first rounding error, so FP8 is held against what rounding does
anyway: the walk once more ("again") is told camera poses of which every number is one float32 step larger. How much its
likeness to the teacher differs, seed by seed, is the band that FP8 is to stay in: two standard errors of the mean of as
many seeds.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from world.chunk import PRECISIONS, Geometry, Precision
from world.loader import serving_device, serving_dtype
from world.meadow.built_in import load_meadow
from world.meadow.config import meadow_config
from world.meadow.evaluate import SLOTS, held_out, note
from world.meadow.judging import look_of
from world.meadow.measures import psnr, to_rgb
from world.meadow.plays import Play, Student, begin, draw_play, mixed_axes
from world.meadow.students import Served

SEEN_A_SECOND = 4  # pictures that are looked at
COARSE = PRECISIONS[1:]


@dataclass(frozen=True, slots=True)
class Likeness:
    """Decibels [seeds, seconds] by `columns`: of each walk to the teacher, and of two walks to each other."""

    precision: Precision
    db: Mapping[str, NDArray[np.float64]]

    @property
    def gap_db(self) -> float:
        """By how much FP8 is nearer to the teacher than bfloat16, in the mean."""
        return float((self.db[self.precision] - self.db["bfloat16"]).mean())

    @property
    def band_db(self) -> float:
        """How far from 0 that is by chance: twice what the mean of as many seeds would be off."""
        by_seed = (self.db["again"] - self.db["bfloat16"]).mean(1)
        return float(2 * np.sqrt((by_seed**2).mean() / len(by_seed)))

    @property
    def verdict(self) -> str:
        side = "inside" if abs(self.gap_db) <= self.band_db else "below" if self.gap_db < 0 else "above"
        return (
            f"{self.precision}'s likeness to the teacher is {side} the band of bfloat16's own rounding: "
            f"{self.gap_db:+.3f} dB, the band is {self.band_db:.3f} dB to each side (of {len(self.db['again'])} seeds)."
        )


def columns(precision: Precision) -> tuple[str, ...]:
    return "bfloat16", "again", precision, "again ~ bfloat16", f"{precision} ~ bfloat16"


def walks(seeds: Sequence[int], seconds: int, geometry: Geometry) -> list[Play]:
    """Of mixed control, a few pictures a second kept."""
    frames, apart = seconds * geometry.fps, geometry.fps // SEEN_A_SECOND
    kept = range(apart, frames + 1, apart)
    return [begin(seed, look_of(seed), mixed_axes(seed, i % 2, frames), geometry, kept) for i, seed in enumerate(seeds)]


def nudged(play: Play) -> Play:
    """Every number of the poses one float32 step larger."""
    return replace(play, poses=np.nextafter(play.poses, np.float32(np.inf)))


def measure(
    student: Callable[[Precision], Student],
    plays: Sequence[Play],
    geometry: Geometry,
    device: torch.device,
    precision: Precision = "fp8",
) -> Likeness:
    """`student`: who plays in a precision; asked once for each."""
    plain = student("native")
    made = {"bfloat16": plain(plays), "again": plain([nudged(play) for play in plays])}
    made[precision] = student(precision)(plays)
    found: dict[str, list[NDArray[np.float64]]] = {name: [] for name in columns(precision)}

    def by_second(one: Tensor, other: Tensor) -> NDArray[np.float64]:
        return psnr(one, other).double().numpy().reshape(-1, SEEN_A_SECOND).mean(1)

    for i, play in enumerate(plays):
        truth = to_rgb(draw_play(play, geometry, device).frames)
        shown = {who: to_rgb(frames[i]) for who, frames in made.items()}
        for who, own in shown.items():
            found[who].append(by_second(own, truth))
        for other in ("again", precision):
            found[f"{other} ~ bfloat16"].append(by_second(shown[other], shown["bfloat16"]))
    return Likeness(precision, {name: np.stack(rows) for name, rows in found.items()})


def table(likeness: Likeness) -> str:
    """Means of all seeds, a row a second, and of all of it."""
    means = {name: [*db.mean(0), db.mean()] for name, db in likeness.db.items()}
    named = columns(likeness.precision)
    seconds = len(means["again"]) - 1
    lines = ["second  " + "  ".join(named)]
    for at, name in enumerate([*map(str, range(1, seconds + 1)), "mean"]):
        lines.append(f"{name:>6}  " + "  ".join(f"{means[column][at]:{len(column)}.2f}" for column in named))
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", choices=COARSE, default=COARSE[0], help="in 8 bits (default: %(default)s)")
    parser.add_argument("--seeds", type=held_out, default="700100:700108", metavar="A:B", help="held-out seeds")
    parser.add_argument("--seconds", type=int, default=20, metavar="N", help="of every walk (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="the last line is one JSON object")
    parser.add_argument("--device", type=torch.device, default=serving_device())
    args = parser.parse_args(argv)
    if args.seconds < 1:
        parser.error("a walk takes a second at least")

    def student(precision: Precision) -> Served:
        dtype = serving_dtype(args.device, args.precision)  # bfloat16 for both
        slots = min(SLOTS, len(args.seeds))
        world = load_meadow(slots, args.device, dtype, lambda stage, share: None, precision=precision)
        note(f"{args.seconds} s of mixed control in {world.dtype}")
        return Served(world, world.scenes[0].scale)

    geometry = meadow_config().geometry
    likeness = measure(student, walks(args.seeds, args.seconds, geometry), geometry, args.device, args.precision)
    print(f"dB to the teacher, and of one walk to another (~), {len(args.seeds)} seeds, {args.device}")
    print(table(likeness))
    print(likeness.verdict)
    if args.json:
        db = {name: np.round(db, 4).tolist() for name, db in likeness.db.items()}
        told = {"precision": args.precision, "seeds": args.seeds, "db": db}
        print(json.dumps({**told, "gap_db": likeness.gap_db, "band_db": likeness.band_db}))


if __name__ == "__main__":
    main()
