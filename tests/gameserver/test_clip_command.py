"""Protects clips: each comes out alone and in company to the same bit, as a bot would have played it, and a job that
fails says why and stops no other."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from conftest import read_frames, serve_pattern
from numpy.typing import NDArray
from test_replay_command import RELAXED, tiny
from test_upload import png

from gameserver import cli
from gameserver import clip as command
from gameserver.bot_plan import BotPlan
from gameserver.encoder import encode_still
from gameserver.journal import Keep
from gameserver.player import play
from gameserver.serve import Spread
from gameserver.video_file import VideoFile
from sessions.recording import read
from world.chunk import DIGEST_BYTES, Prompt, World, WorldError
from world.motion import keyboard_poses
from world.pattern import PatternWorld

UNSPEAKABLE = "a place without words"
Make = Callable[..., tuple[int, list[dict[str, Any]]]]


def noise(width: int, height: int, seed: int) -> NDArray[np.uint8]:
    """In squares, so that a file of it is small."""
    squares = np.random.default_rng(seed).integers(0, 256, (height // 10 + 1, width // 10 + 1, 3)).astype(np.uint8)
    return squares.repeat(10, 0).repeat(10, 1)[:height, :width]


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Make:
    """Runs the command in a fresh world, with lines of a jobs file or options: (exit status, what it says of each)."""

    def run(
        *options: object, jobs: list[Any] | None = None, out: str = "out", world: Callable[[int], World] = tiny
    ) -> tuple[int, list[dict[str, Any]]]:
        def load(path: str | None, num_slots: int, spread: Spread) -> Callable[..., World]:
            return lambda report: refusing(world(num_slots))

        monkeypatch.setattr(command, "world_loader", load)
        if jobs is not None:
            lines = [job if isinstance(job, str) else json.dumps(job) for job in jobs]
            (tmp_path / "jobs.jsonl").write_text("\n".join(lines) + "\n")
            options = ("--jobs", tmp_path / "jobs.jsonl", *options)
        code = cli.main(["clip", "--out", str(tmp_path / out), "--json", *map(str, options)])
        (line,) = capsys.readouterr().out.splitlines()
        told = json.loads(line)
        assert told["status"] == code
        return code, told["clips"]

    return run


def refusing(world: World) -> World:
    """A world that cannot encode one prompt."""
    encode = world.encode_prompt

    def fussy(text: str) -> Prompt:
        if text == UNSPEAKABLE:
            raise WorldError("this cannot be encoded")
        return encode(text)

    world.encode_prompt = fussy  # type: ignore[method-assign]
    return world


def pictures(path: str) -> NDArray[np.uint8]:
    with av.open(path) as video:
        return np.stack([frame.to_ndarray() for frame in video.decode(video=0)])


@pytest.fixture
def eight(tmp_path: Path) -> list[dict[str, Any]]:
    """Jobs of different lengths, prompts, cameras and sizes of image, their files beside the jobs file."""
    for number, (width, height) in enumerate([(40, 30), (96, 64), (300, 500), (1280, 96)]):
        (tmp_path / f"{number}.png").write_bytes(png(noise(width, height, number)))
    (tmp_path / "4.jpg").write_bytes(encode_still(noise(222, 110, 4)))
    np.save(tmp_path / "walk.npy", keyboard_poses("w-9,wl-17,wj-14"))
    np.save(tmp_path / "turn.npy", keyboard_poses("l-6,i-3").astype(np.float64))
    np.save(tmp_path / "lens.npy", np.array([[70, 75, 40, 30], [1, 1, 1, 1]], np.float32))
    return [
        {"image": "0.png", "prompt": "a field", "poses": "walk.npy", "seed": 1},
        {"image": "1.png", "script": "w-8,wl-8", "seconds": 1.5, "seed": 2},
        {"image": "2.png", "prompt": "snow", "poses": "turn.npy", "intrinsics": "lens.npy", "scale": 0.7},
        {"image": "3.png", "prompt": "the sea", "seconds": 0.25, "seed": 2**53 - 1},
        {"image": "4.jpg", "poses": "turn.npy", "seconds": 1.0, "name": "turns and stands"},
        {"prompt": "a place", "script": "d-30", "seed": 5},
        {"scene": "noise", "prompt": "rain", "poses": "walk.npy", "seconds": 0.5, "scale": 0.1},
        {"image": "1.png", "script": "w-8,wl-8", "seconds": 1.5, "seed": 3, "intrinsics": "lens.npy",
         "intrinsics_size": [160, 120]},
    ]  # fmt: skip


BAD = [
    ({"image": "walk.npy", "seconds": 1}, "neither a JPEG nor a PNG"),
    ({"image": "none.png", "seconds": 1}, "none.png cannot be read (No such file or directory)"),
    ({"poses": "lens.npy"}, "not poses [n, 4, 4]"),
    ({"poses": "0.png"}, "is not a .npy file"),
    ({"poses": "flat.npy"}, "rigid"),
    ({"poses": "walk.npy", "script": "w-8"}, "not both"),
    ({"seconds": 1, "speed": 3}, "line 8: Object contains unknown field `speed`"),
    ({"seconds": -1}, "seconds"),
    ("{", "line 10: "),
    ({"seconds": 1, "prompt": UNSPEAKABLE}, "this cannot be encoded"),
    ({"seconds": 1, "scene": "atlantis"}, "no scene is called 'atlantis'"),
    ({"seconds": 1, "name": "blocked"}, "blocked.mp4 cannot be written (Is a directory)"),
    ({"seconds": 1, "name": "../elsewhere"}, "name"),
    ({"script": "w-eight"}, "script"),
    ({"script": "w-999999", "seconds": 80000}, "with its repetitions"),
    ({}, "how long"),
    ({"seconds": 1, "intrinsics": "walk.npy"}, "not intrinsics"),
]


def test_eight_at_once_are_equal_to_each_alone_and_a_bad_one_fails_alone(
    eight: list[dict[str, Any]], make: Make, tmp_path: Path
) -> None:
    np.save(tmp_path / "flat.npy", np.zeros((4, 4, 4), np.float32))
    (tmp_path / "out" / "blocked.mp4").mkdir(parents=True)
    bad = [job for job, _ in BAD]
    mixed = [bad[0], *eight[:4], *bad[1:6], *eight[4:], *bad[6:]]
    code, told = make("--slots", 3, jobs=mixed)
    good = [outcome for outcome in told if outcome["error"] is None]
    assert code == 1 and len(told) == len(mixed) and len(good) == 8
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(
        ["blocked.mp4", *(Path(outcome["file"]).name for outcome in good)]
    )
    assert [outcome["frames"] for outcome in good] == [41, 48, 10, 8, 32, 31, 16, 48]
    assert len({outcome["digest"] for outcome in good}) == 8
    for job, together in zip(eight, good, strict=True):
        code, (alone,) = make("--slots", 1, jobs=[job], out="alone")
        assert code == 0 and alone["digest"] == together["digest"]
        for name in ("frames", "chunks", "seed", "prompt"):
            assert alone[name] == together[name]
        assert len(pictures(alone["file"])) == alone["frames"]
        assert np.array_equal(pictures(alone["file"]), pictures(together["file"]))


@pytest.mark.parametrize("at", range(len(BAD)))
def test_what_is_wrong_with_a_job_is_a_sentence(
    at: int, eight: list[dict[str, Any]], make: Make, tmp_path: Path
) -> None:
    np.save(tmp_path / "flat.npy", np.zeros((4, 4, 4), np.float32))
    (tmp_path / "out" / "blocked.mp4").mkdir(parents=True)
    job, why = BAD[at]
    blank = [""] * (at + 1)  # so that it stands in the line that BAD says
    code, (outcome,) = make(jobs=[*blank, job], world=lambda num_slots: PatternWorld(num_slots=num_slots))
    assert code == 1 and why in outcome["error"] and "\n" not in outcome["error"], outcome
    assert outcome["file"] is None


def test_two_of_one_name_do_not_overwrite_each_other(make: Make) -> None:
    jobs = [{"name": "a", "script": "w-4"}, {"name": "a", "script": "l-4"}, {"script": "d-4", "name": "clip-4"}]
    code, told = make(jobs=[*jobs, {"script": "s-4"}], world=lambda num_slots: PatternWorld(num_slots=num_slots))
    assert code == 1 and [outcome["error"] for outcome in told] == [
        None, "line 2: another clip is called a", None, "line 4: another clip is called clip-4"
    ]  # fmt: skip


def test_a_disk_that_fills_fails_one_clip(make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    add = VideoFile.add

    def full(video: VideoFile, frame: int, chunk: int, picture: NDArray[np.uint8]) -> None:
        if video.path.stem == "b" and frame == 6:
            raise WorldError("no room is left")
        add(video, frame, chunk, picture)

    monkeypatch.setattr(VideoFile, "add", full)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "b.mp4").write_bytes(b"of an earlier run")
    jobs = [{"name": name, "script": "w-20"} for name in "abc"]
    code, told = make("--slots", 2, jobs=jobs, world=lambda num_slots: PatternWorld(num_slots=num_slots))
    assert code == 1 and [outcome["error"] for outcome in told] == [None, "no room is left", None]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.mp4", "b.mp4", "c.mp4"]
    assert (tmp_path / "out" / "b.mp4").read_bytes() == b"of an earlier run"
    assert told[0]["digest"] == told[2]["digest"], "the same job, whoever was beside it"


def test_a_clip_is_what_a_bot_would_have_played(eight: list[dict[str, Any]], make: Make, tmp_path: Path) -> None:
    job = eight[0]
    code, (outcome,) = make(jobs=[job])
    plan = BotPlan(
        poses=np.load(tmp_path / job["poses"]), image=(tmp_path / job["image"]).read_bytes(), prompt=job["prompt"],
        seed=job["seed"],
    )  # fmt: skip

    async def live() -> None:
        async with serve_pattern(tiny(), limits=RELAXED, record=Keep(tmp_path)) as app:
            await play(app.play_url, plan)

    asyncio.run(live())
    (path,) = tmp_path.glob("*.mwrec")
    chunks = read(path.read_bytes()).chunks[: outcome["chunks"]]
    total = hashlib.blake2b(b"".join(chunk.digest for chunk in chunks), digest_size=DIGEST_BYTES)
    assert code == 0 and total.hexdigest() == outcome["digest"]


def test_one_clip_needs_no_file_of_jobs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(
        command, "world_loader", lambda path, slots, spread: lambda report: PatternWorld(num_slots=slots)
    )
    out = tmp_path / "new" / "out"
    options = ["--scene", "east", "--seed", "77", "--script", "l-16", "--prompt", "snow", "--name", "turn"]
    assert cli.main(["clip", "--out", str(out), *options]) == 0
    told = capsys.readouterr().out
    assert told.startswith(f"turn: 17 frames in {out / 'turn.mp4'}, latents ")
    packets = []
    with av.open(str(out / "turn.mp4")) as video:
        bare = av.BitStreamFilterContext("h264_mp4toannexb", video.streams.video[0])
        for packet in video.demux(video=0):
            packets += [{"data": bytes(unit)} for unit in bare.filter(packet) if unit.size]
    readings = read_frames(packets)
    assert [reading.frame_index for reading in readings] == list(range(17))
    assert {reading.seed for reading in readings} == {77} and readings[16].yaw_deg == pytest.approx(32, abs=4)


def test_a_wrong_command_is_said_before_a_world_is_loaded(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def never(path: str | None, slots: int, spread: Spread) -> None:
        raise AssertionError("it loads")

    monkeypatch.setattr(command, "world_loader", never)
    (tmp_path / "empty.jsonl").write_text("\n\n")
    (tmp_path / "file").touch()
    for options, code, why in [
        (["--out", tmp_path, "--jobs", tmp_path / "empty.jsonl"], 1, "empty.jsonl holds no job"),
        (["--out", tmp_path, "--jobs", tmp_path / "none.jsonl"], 1, "none.jsonl cannot be read"),
        (["--out", tmp_path / "file", "--seconds", "1"], 1, "file cannot be made"),
        (["--out", tmp_path, "--jobs", tmp_path / "empty.jsonl", "--seed", "1"], 2, "--seed belongs into the file"),
    ]:
        assert cli.main(["clip", *map(str, options)]) == code
        assert why in capsys.readouterr().err
