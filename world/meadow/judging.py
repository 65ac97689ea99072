"""The judging of students: every function plays some plays and adds what it measured to a tally."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise, product

import numpy as np
import torch
from torch import Tensor

from world.chunk import TEMPORAL_STRIDE, Geometry
from world.meadow.clips import random_axes
from world.meadow.look import Look, random_look, values
from world.meadow.measures import (
    JUDGED,
    draw_looks,
    looks_like,
    nearest_look,
    psnr,
    sharpness,
    ssim,
    to_rgb,
)
from world.meadow.plays import Frames, Play, Student, Truth, begin, draw_play, mixed_axes, turn_axes, walk_axes
from world.meadow.reprojection import motion_made, seen_at_start
from world.meadow.students import repeated, start_frame

SECONDS = (1, 2, 3, 4)
VARIANTS = 2  # scripts of mixed control a seed
ASKS = 4  # prompts a seed is begun with and changed to
CHANGE_S, WAIT_S = 1, 3  # a prompt changes after so long, and is judged so long after that
TURN_STEPS_DEG = (10.0, 7.5, 5.0, 2.0)  # degrees a frame: fast mice first, the turn keys last
WALK_S = 2  # seconds out, and as many back
RIGHT_WAY = 0.25  # share of the asked motion from which its direction counts as right
SAMPLE_S, MINUTES = 2, 5  # what is looked at of a long run
STUCK = 0.2  # share of the teacher's change below which a picture stands still
CLIPPED = 0.3  # share of clipped pixels beyond the teacher's from which a picture has exploded

Informed = Callable[[Play, Truth], Frames]  # pictures made from what the teacher drew: no student's, but what one might


class Tally:
    """Numbers by what they measure and who was measured; NaN says that there was nothing to measure."""

    def __init__(self) -> None:
        self.numbers: dict[str, dict[str, list[float]]] = {}

    def add(self, key: str, who: str, numbers: float | Iterable[float]) -> None:
        found = self.numbers.setdefault(key, {}).setdefault(who, [])
        found += [float(n) for n in numbers] if isinstance(numbers, Iterable) else [float(numbers)]

    def of(self, key: str, who: str) -> list[float]:
        return [n for n in self.numbers.get(key, {}).get(who, []) if n == n]


def look_of(seed: int) -> Look:
    return random_look(np.random.default_rng(seed))


def judge_mixed(
    tally: Tally, students: Mapping[str, Student], informed: Mapping[str, Informed], seeds: Sequence[int],
    geometry: Geometry, device: torch.device,
) -> None:  # fmt: skip
    """Likeness to the teacher over four seconds of mixed control, and whether every chunk moved as it was asked to."""
    axes = [mixed_axes(seed, variant, SECONDS[-1] * geometry.fps) for seed, variant in product(seeds, range(VARIANTS))]
    plays = [begin(seeds[i // VARIANTS], look_of(seeds[i // VARIANTS]), a, geometry) for i, a in enumerate(axes)]
    made = {who: student(plays) for who, student in students.items()}
    for i, play in enumerate(plays):
        truth = draw_play(play, geometry, device)
        rgb, seen = to_rgb(truth.frames), seen_at_start(truth.depth, truth.eyes)
        still = psnr(to_rgb(repeated([play])[0]), rgb, seen)
        shares = seen.float().mean((1, 2))
        for second in SECONDS:
            tally.add(f"seen_{second}s", "teacher", shares[second * geometry.fps].item())
        frames = {who: some[i] for who, some in made.items()}
        for who, shown in (frames | {who: make(play, truth) for who, make in informed.items()}).items():
            own = to_rgb(shown)
            tally.add("first_frame_psnr", who, psnr(own[:1], rgb[:1]))
            numbers = {"psnr": psnr(own, rgb), "ssim": ssim(own, rgb)}
            numbers |= {"seen_psnr": psnr(own, rgb, seen), "seen_ssim": ssim(own, rgb, seen)}
            for name, number in (numbers | {"gain": numbers["seen_psnr"] - still}).items():
                tally.add(f"{name}_mean", who, number[1:].nanmean().item())
                for second in SECONDS:
                    tally.add(f"{name}_{second}s", who, number[second * geometry.fps].item())
            _judge_motion(tally, who, own, axes[i], truth)


def _judge_motion(tally: Tally, who: str, own: Tensor, axes: np.ndarray, truth: Truth) -> None:
    for at in range(0, len(axes), TEMPORAL_STRIDE):
        held, end = axes[at], at + TEMPORAL_STRIDE
        if not held.any() or (axes[at:end] != held).any():
            continue
        kind = "both" if held[:2].any() and held[2] else "turn" if held[2] else "walk"
        share = motion_made(own[at], own[end], truth.depth[at], truth.eyes[[at, end]])
        right = float(share > RIGHT_WAY) if share == share else share
        for name in (kind, "all"):
            tally.add(f"direction_{name}", who, right)
            tally.add(f"size_{name}", who, share)


def judge_coming_back(tally: Tally, students: Mapping[str, Student], seeds: Sequence[int], geometry: Geometry) -> None:
    """The last view against the first after turning or walking away and back. Baselines would be right for nothing."""
    plays, keys = [], []
    for i, seed in enumerate(seeds):
        tracks = {f"turn_{step:g}": turn_axes(step, 1 if i % 2 == 0 else -1) for step in TURN_STEPS_DEG}
        tracks["walk"] = walk_axes(WALK_S * geometry.fps)
        start = None
        for name, axes in tracks.items():
            plays.append(begin(seed, look_of(seed), axes, geometry, (len(axes),), start=start))
            start = plays[-1].start
            keys.append(f"back_{name}")
    for who, student in students.items():
        for key, play, frames in zip(keys, plays, student(plays), strict=True):
            first = to_rgb(start_frame(play))
            tally.add(f"{key}_psnr", who, psnr(to_rgb(frames), first))
            tally.add(f"{key}_ssim", who, ssim(to_rgb(frames), first))


def judge_prompts(
    tally: Tally, students: Mapping[str, Student], lossy: Mapping[str, Callable[[Tensor], Tensor]],
    seeds: Sequence[int], geometry: Geometry, device: torch.device,
) -> None:  # fmt: skip
    """Whether the look that a picture is nearest to is the one that was asked for: after a second of play, and three
    seconds after a change of time, season and weather at once. `lossy` says what becomes of the teacher's pictures."""
    change = CHANGE_S * geometry.fps
    kept = (change, change + WAIT_S * geometry.fps)
    pairs = {seed: random_changes(seed) for seed in seeds}
    plays = []
    for seed in seeds:
        axes = mixed_axes(seed, VARIANTS, kept[-1])
        plays += [begin(seed, a, axes, geometry, kept, ((change + 1, b),)) for a, b in pairs[seed]]
    played = {who: student(plays) for who, student in students.items()}
    for i, seed in enumerate(seeds):
        looks, part = looks_like(look_of(seed)), slice(i * ASKS, (i + 1) * ASKS)
        drawn = [draw_looks(seed, looks, plays[i * ASKS].poses[at], geometry, device) for at in kept]
        made = {who: [to_rgb(frames) for frames in some[part]] for who, some in played.items()}
        for who, lose in lossy.items():
            true = [[d[looks.index(look)] for d, look in zip(drawn, pair, strict=True)] for pair in pairs[seed]]
            made[who] = [lose(torch.stack(two)) for two in true]
        for who, pictures in made.items():
            for k, name in enumerate(("start", "change")):
                found = nearest_look(torch.stack([rgb[k] for rgb in pictures]), drawn[k], looks)
                for asked, got in zip((pair[k] for pair in pairs[seed]), found, strict=True):
                    right = [getattr(asked, attribute) == getattr(got, attribute) for attribute in JUDGED]
                    for attribute, good in zip((*JUDGED, "whole"), (*right, all(right)), strict=True):
                        tally.add(f"{name}_{attribute}", who, good)


def random_changes(seed: int) -> list[tuple[Look, Look]]:
    """ASKS pairs of looks of a seed's place that differ in everything that is judged."""
    rng, place = np.random.default_rng([seed, ASKS]), look_of(seed)
    pairs = []
    for _ in range(ASKS):
        two = [rng.permutation(values(name))[:2].tolist() for name in JUDGED]
        first, second = (Look(*(pair[k] for pair in two), place.place, place.towers) for k in (0, 1))
        pairs.append((first, second))
    return pairs


def judge_long(
    tally: Tally, students: Mapping[str, Student], seeds: Sequence[int], geometry: Geometry, device: torch.device,
    minutes: int = MINUTES,
) -> None:  # fmt: skip
    """Sharpness, colour and life over minutes of random control, every two seconds."""
    minute, sample = 60 * geometry.fps, SAMPLE_S * geometry.fps
    plays = []
    for seed in seeds:
        axes = random_axes(np.random.default_rng([seed, minutes]), 1, minutes * minute)[0]
        plays.append(begin(seed, look_of(seed), axes, geometry, range(0, len(axes) + 1, sample)))
    made = {who: student(plays) for who, student in students.items()}
    for i, play in enumerate(plays):
        true = to_rgb(draw_play(play, geometry, device).frames)
        for who, shown in made.items():
            own = to_rgb(shown[i])
            away = 255 * (own.mean((2, 3)) - true.mean((2, 3))).abs().mean(1)
            lost = torch.from_numpy((shown[i][:, : geometry.height] < 16).any((1, 2)))  # NaN becomes 0, black is 16
            exploded = lost | (clipped(own) > clipped(true) + CLIPPED)
            changes, expected = changed(own), changed(true)
            for m in range(minutes):
                part = slice(1 + m * minute // sample, 1 + (m + 1) * minute // sample)
                ratio = sharpness(own[part]).mean() / sharpness(true[part]).mean()
                tally.add(f"sharpness_m{m + 1}", who, ratio.item())
                tally.add(f"colour_m{m + 1}", who, away[part].mean().item())
                tally.add(f"exploded_m{m + 1}", who, exploded[part].float().mean().item())
                steps = slice(part.start - 1, part.stop - 1)
                moving = expected[steps] > 1
                stuck = (changes[steps] < STUCK * expected[steps])[moving].float()
                tally.add(f"stuck_m{m + 1}", who, stuck.mean().item())


def changed(rgb: Tensor) -> Tensor:
    """[n - 1] mean change from picture to picture, in grey levels of 255."""
    return torch.stack([255 * (b - a).abs().mean() for a, b in pairwise(rgb)])


def clipped(rgb: Tensor) -> Tensor:
    """[n] share of pixels with a channel at its end."""
    return ((rgb < 0.004) | (rgb > 0.996)).any(1).float().mean((1, 2))
