"""Clip jobs: what a line of a jobs file, or a command line, asks for, and what the world has to begin from for it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from gameserver.bot_error import BotError
from gameserver.preparation import Preparation
from gameserver.protocol import VERSION, Hello, Index, PromptText, ProtocolError, Scale, ShortText
from gameserver.recorded_camera import read_intrinsics, read_poses, scale_intrinsics
from sessions.clip_game import Clip
from world.chunk import Geometry, WorldError
from world.motion import MAX_SCRIPT_FRAMES, identity_pose, keyboard_poses, parse_script

FileName = Annotated[str, Meta(pattern=r"^[^/\\\x00-\x1f\x7f]{1,64}$")]
Size = Annotated[int, Meta(ge=1, le=2**31 - 1)]


class Job(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One clip. Where it starts is chosen as for a hello of the protocol with these fields."""

    name: FileName | None = None  # of its file, without .mp4
    prompt: PromptText | None = None
    image: str | None = None  # a JPEG or PNG file
    scene: ShortText | None = None
    seed: Index | None = None  # 0 where it is not given
    poses: str | None = None  # .npy [n, 4, 4], a camera-to-world pose for every video frame
    intrinsics: str | None = None  # .npy, of a picture of `intrinsics_size` or twice their principal point
    intrinsics_size: tuple[Size, Size] | None = None  # width, height
    scale: Scale | None = None  # pose units that count as 1
    script: str | None = None  # such as w-8,wl-8,none-4
    seconds: Annotated[float, Meta(gt=0, le=86400)] | None = None  # a script repeats; a camera stands at its last pose


class JobError(Exception):
    """Why a clip cannot be made, in a sentence."""


NamedJob = tuple[str, Job | JobError]


def read_jobs(path: Path) -> list[NamedJob]:
    """Every line that is not empty. JobError, raised: there is no reading the file."""
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as fault:
        raise JobError(f"{path} cannot be read ({fault.strerror})") from None
    jobs: list[NamedJob] = []
    names: set[str] = set()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        name = f"clip-{number}"
        try:
            job: Job | JobError = msgspec.json.decode(line, type=Job)
            name = getattr(job, "name", None) or name
            if name in names:
                job = JobError(f"line {number}: another clip is called {name}")
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as fault:
            job = JobError(f"line {number}: {fault}")
        names.add(name)
        jobs.append((name, job))
    return jobs


def one_job(fields: Mapping[str, Any]) -> Job:
    """JobError for a field out of range."""
    try:
        return msgspec.convert(fields, Job)
    except msgspec.ValidationError as fault:
        raise JobError(str(fault)) from None


async def prepare(job: Job, folder: Path, preparation: Preparation, geometry: Geometry) -> Clip:
    """What a job begins from and where its camera goes; its files are looked for from `folder` on. JobError."""
    try:
        poses, num_frames = _camera(job, folder, geometry.fps)
        hello = _hello(job, folder, geometry)
        words, seed = (job.prompt or "").strip(), job.seed or 0
        if words:
            await preparation.prompt(words)
        place = await preparation.place(hello, words, seed)
        prompt = await preparation.prompt(words or place.prompt)
        return Clip(await preparation.start(hello, place, prompt, seed), poses, num_frames)
    except OSError as fault:
        raise JobError(f"{fault.filename} cannot be read ({fault.strerror})") from None
    except (BotError, ProtocolError, WorldError, ValueError) as fault:
        raise JobError(str(fault)) from None


def _hello(job: Job, folder: Path, geometry: Geometry) -> Hello:
    image = None if job.image is None else (folder / job.image).read_bytes()
    intrinsics = None
    if job.intrinsics is not None:
        given = read_intrinsics(folder / job.intrinsics)
        size = job.intrinsics_size or (2 * given[2], 2 * given[3])
        intrinsics = scale_intrinsics(given, size, (geometry.width, geometry.height))
    return Hello(
        version=VERSION, control="poses", scene=job.scene, prompt=job.prompt, seed=job.seed,
        intrinsics=intrinsics, scale=job.scale, image=image,
    )  # fmt: skip


def _camera(job: Job, folder: Path, fps: int) -> tuple[NDArray[np.float32], int]:
    """Poses [n, 4, 4] and how many video frames there shall be. Errors of files, and ValueError."""
    if job.poses is not None and job.script is not None:
        raise ValueError("a camera follows poses or a script, not both")
    wanted = None if job.seconds is None else max(1, round(job.seconds * fps))
    if job.poses is not None:
        poses = read_poses(folder / job.poses)
        return poses, wanted or len(poses)
    if job.script is not None:
        script = parse_script(job.script)
        length = sum(frames for _, frames in script)
        rounds = 1 if wanted is None else math.ceil((wanted - 1) / length)
        if rounds * length > MAX_SCRIPT_FRAMES:
            raise ValueError(f"a script may last {MAX_SCRIPT_FRAMES} video frames, with its repetitions")
        return keyboard_poses(script * max(1, rounds)), wanted or length + 1
    if wanted is None:
        raise ValueError("it takes seconds, poses or a script to say how long the clip is")
    return identity_pose()[None].astype(np.float32), wanted
