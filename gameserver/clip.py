"""Make clips of a world: an image, a prompt and camera poses in, a video out; one, or many in one process.

They are made side by side in the forwards that players share, as fast as the world goes, and each comes out the same
to the bit as if it were made alone. The exit status is 0 if all of them were made, and 1 if any failed.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import sys
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from gameserver.arguments import add_precision, player_count
from gameserver.clip_jobs import JobError, NamedJob, one_job, prepare, read_jobs
from gameserver.preparation import Preparation
from gameserver.progress import line, report
from gameserver.serve import Spread, world_loader
from gameserver.video_file import VideoFile
from sessions.clip_game import Clip, Clips
from sessions.tick import Finished
from world.chunk import DIGEST_BYTES, World, WorldError

ONE = ("name", "prompt", "image", "scene", "seed", "poses", "intrinsics", "scale", "script", "seconds")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a job."""

    name: str
    error: str | None = None  # a sentence; then there is no file
    file: str | None = None
    frames: int = 0
    chunks: int = 0
    seed: int = 0
    prompt: str = ""  # that the world was told
    digest: str = ""  # of every chunk's latents


Tell = Callable[[Outcome], None]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--world", help="a checkpoint's directory, or `pattern` for test pictures (default: meadow)")
    add_precision(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where NAME.mp4 is written")
    many = "one job a line, as JSON: the options below by name, and intrinsics_size as [W, H]; files beside this one"
    parser.add_argument("--jobs", type=Path, metavar="FILE.jsonl", help=many)
    parser.add_argument("--name", help="of the clip (default: clip)")
    parser.add_argument("--prompt", help="what the world shall be (default: the scene's)")
    parser.add_argument("--image", metavar="FILE", help="a JPEG or PNG file to start from")
    parser.add_argument("--scene", help="id of a start scene to start from instead")
    parser.add_argument("--seed", type=int, help="(default: 0)")
    parser.add_argument("--poses", metavar="FILE", help=".npy [n, 4, 4]: a camera-to-world pose for every video frame")
    camera = ".npy [4], [n, 4] or [3, 3] of a picture whose centre is the principal point, or of --intrinsics-size"
    parser.add_argument("--intrinsics", metavar="FILE", help=camera)
    parser.add_argument("--intrinsics-size", nargs=2, type=int, metavar=("W", "H"))
    parser.add_argument("--scale", type=float, help="pose units that count as 1 for the world (default: the scene's)")
    parser.add_argument("--script", help="keys and video frames instead of poses, as w-8,wl-8,none-4")
    parser.add_argument("--seconds", type=float, help="how long (default: the poses or the script once)")
    parser.add_argument("--slots", type=player_count, default=4, help="clips made at once (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="only one line of JSON on stdout")


def run(args: argparse.Namespace) -> int:
    """A line for each clip when it is done, or with --json one for all at the end."""
    given = {name: value for name in (*ONE, "intrinsics_size") if (value := getattr(args, name)) is not None}
    if args.jobs is not None and given:
        print(f"gameserver: --jobs stands alone, --{next(iter(given))} belongs into the file", file=sys.stderr)
        return 2
    try:
        jobs = [_single(given)] if args.jobs is None else read_jobs(args.jobs)
        args.out.mkdir(parents=True, exist_ok=True)
    except JobError as fault:
        raise WorldError(str(fault)) from None
    except OSError as fault:
        raise WorldError(f"{args.out} cannot be made ({fault.strerror})") from None
    if not jobs:
        raise WorldError(f"{args.jobs} holds no job")

    def tell(outcome: Outcome) -> None:
        line("", done=True)
        if not args.json:
            print(_sentence(outcome), flush=True)

    folder = Path() if args.jobs is None else args.jobs.parent
    load = world_loader(args.world, min(args.slots, len(jobs)), Spread(precision=args.precision))
    outcomes = make(load(report), jobs, folder, args.out, tell)
    code = int(any(outcome.error is not None for outcome in outcomes))
    if args.json:
        print(json.dumps({"clips": [asdict(outcome) for outcome in outcomes], "status": code}))
    return code


def make(world: World, jobs: Sequence[NamedJob], folder: Path, out: Path, tell: Tell) -> list[Outcome]:
    """All of them, as many at once as the world has slots; the outcomes are in the order of the jobs."""
    with asyncio.Runner() as runner, ThreadPoolExecutor(1, "prepare") as pool, _Studio(world, out, tell) as studio:
        preparation = Preparation(world, pool)
        waiting = deque(enumerate(jobs))
        while waiting or studio.busy:
            while waiting and studio.has_room:
                number, (name, job) = waiting.popleft()
                try:
                    if isinstance(job, JobError):
                        raise job
                    studio.begin(number, name, runner.run(prepare(job, folder, preparation, world.geometry)))
                except (JobError, WorldError) as fault:
                    studio.conclude(number, Outcome(name, str(fault)))
            studio.tick()
            studio.report(len(jobs))
        return [studio.outcomes[number] for number in range(len(jobs))]


@dataclass(slots=True)
class _Take:
    """A clip that is being made."""

    name: str
    clip: Clip
    video: VideoFile
    digest: Any = field(default_factory=lambda: hashlib.blake2b(digest_size=DIGEST_BYTES))
    chunks: int = 0


class _Studio:
    """Clips under way, by the number of their job, and their files. What is left when it closes leaves no trace."""

    def __init__(self, world: World, out: Path, tell: Tell) -> None:
        self.outcomes: dict[int, Outcome] = {}
        self._geometry = world.geometry
        self._out = out
        self._tell = tell
        self._clips = Clips(world)
        self._takes: dict[int, _Take] = {}

    def __enter__(self) -> _Studio:
        return self

    def __exit__(self, *fault: object) -> None:
        for number in list(self._takes):
            self._discard(number)

    @property
    def busy(self) -> bool:
        return bool(self._takes)

    @property
    def has_room(self) -> bool:
        return self._clips.has_room

    def begin(self, number: int, name: str, clip: Clip) -> None:
        """WorldError if its file cannot be written, before anything is made for it."""
        self._takes[number] = _Take(name, clip, VideoFile(self._out / f"{name}.mp4", self._geometry))
        self._clips.begin(str(number), clip)

    def tick(self) -> None:
        for chunk in self._clips.tick():
            number = int(chunk.session_id)
            try:
                self._keep(number, chunk)
            except WorldError as fault:
                name = self._takes[number].name
                self._discard(number)
                self.conclude(number, Outcome(name, str(fault)))

    def conclude(self, number: int, outcome: Outcome) -> None:
        self.outcomes[number] = outcome
        self._tell(outcome)

    def report(self, num_jobs: int) -> None:
        done, frames = len(self.outcomes), sum(take.video.frames for take in self._takes.values())
        line(f"{done} of {num_jobs} clips, {len(self._takes)} under way with {frames} frames", done == num_jobs)

    def _keep(self, number: int, chunk: Finished) -> None:
        take = self._takes[number]
        take.digest.update(chunk.picture.digest)
        take.chunks += 1
        for frame, picture in enumerate(chunk.picture.frames, chunk.first_frame):
            if frame < take.clip.num_frames:
                take.video.add(frame, chunk.chunk_index, picture)
        if str(number) in self._clips:
            return
        take.video.close()
        del self._takes[number]
        start, video = take.clip.start, take.video
        outcome = Outcome(
            take.name, None, str(video.path), video.frames, take.chunks, start.seed, start.prompt.text,
            take.digest.hexdigest(),
        )  # fmt: skip
        self.conclude(number, outcome)

    def _discard(self, number: int) -> None:
        take = self._takes.pop(number)
        if str(number) in self._clips:
            self._clips.drop(str(number))
        take.video.discard()


def _single(given: dict[str, Any]) -> NamedJob:
    try:
        job = one_job(given)
    except JobError as fault:
        return "clip", fault
    return job.name or "clip", job


def _sentence(outcome: Outcome) -> str:
    if outcome.error is not None:
        return f"{outcome.name}: failed: {outcome.error}"
    return f"{outcome.name}: {outcome.frames} frames in {outcome.file}, latents {outcome.digest}"
