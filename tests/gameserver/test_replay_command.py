"""Protects the promise: what was played live, by several at once, comes out again to the bit, and nothing else passes.

The world is a tiny model with as many tokens a frame as it takes for two threads to add alike in any company.
"""

from __future__ import annotations

import asyncio
import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import av
import msgspec
import numpy as np
import pytest
import torch
from conftest import RunningServer, get, playing, serve_pattern

from gameserver import cli
from gameserver import replay as command
from gameserver.backpressure import Limits
from gameserver.bot_plan import BotPlan
from gameserver.journal import Keep
from gameserver.player import play
from sessions.recording import encode, read
from sessions.records import Chunk, Record
from tests.world.tiny_world import random_world, tiny_config
from world.chunk import Row, Scene, World, WorldError
from world.config import WorldConfig
from world.model import DiffusionWorld
from world.motion import keyboard_poses, parse_script
from world.sampler import from_sigmas

RELAXED = Limits(late_s=60.0, stall_s=60.0)  # a busy machine must not look like a slow link
FPS = 32


def config(sigma: float = 0.5) -> WorldConfig:
    cfg = tiny_config(width=96, height=64, schedule=from_sigmas((1.0, sigma)))
    return replace(cfg, geometry=replace(cfg.geometry, fps=FPS))


def tiny(num_slots: int = 3, dtype: torch.dtype = torch.float32, cfg: WorldConfig | None = None) -> DiffusionWorld:
    world = random_world(cfg or config(), dtype, num_slots)
    image = np.random.default_rng(1).integers(0, 256, (64, 96, 3)).astype(np.uint8)
    world._scenes = (Scene("noise", "Noise", "a place", image, np.array([80, 80, 48, 32], np.float32)),)
    return world


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three bots live at once: one walks and changes its prompt, one follows poses, one turns and leaves early."""
    directory = tmp_path_factory.mktemp("recordings")
    plans = [
        BotPlan(script=parse_script("w-20,wl-9,none-3,d-24"), seed=1, prompts=((0.5, "snow"),), prompt="a field"),
        BotPlan(poses=keyboard_poses("w-9,wl-17,wj-14"), seed=2),
        BotPlan(script=parse_script("l-11,wi-9"), seed=3),
    ]

    async def live() -> None:
        async with serve_pattern(tiny(), limits=RELAXED, record=Keep(directory)) as app:
            await asyncio.gather(*(play(app.play_url, plan) for plan in plans))

    asyncio.run(live())
    files = sorted(directory.glob("*.mwrec"), key=lambda path: read(path.read_bytes()).header.seed)  # type: ignore[union-attr]
    assert len(files) == 3
    return files


@pytest.fixture
def replay(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Runs the command in a fresh world: (exit status, what it printed)."""

    def run(*arguments: object, make: Callable[[int], World] = tiny) -> tuple[int, str]:
        monkeypatch.setattr(command, "world_loader", lambda path, num_slots, spread: lambda report: make(num_slots))
        code = cli.main(["replay", "--world", "tiny", *map(str, arguments)])
        return code, capsys.readouterr().out

    return run


Replay = Callable[..., tuple[int, str]]


def test_what_was_recorded_is_what_was_played(recorded: list[Path]) -> None:
    walker, poser, turner = (read(path.read_bytes()) for path in recorded)
    for recording in (walker, poser, turner):
        assert recording.verdict.state == "whole" and recording.ended
        assert next(mark.kind for mark in recording.marks) == "join"
        assert recording.header is not None and recording.header.run == walker.header.run  # type: ignore[union-attr]
    assert [mark.text for mark in walker.marks if mark.kind == "prompt"] == ["snow"]
    assert [chunk.prompt for chunk in walker.chunks if chunk.prompt] == ["snow"]
    assert any(chunk.company > 1 for chunk in poser.chunks)
    assert any(chunk.segments and chunk.segments[-1][1][2] == 1.0 for chunk in turner.chunks)
    followed = np.concatenate([np.frombuffer(chunk.poses, "<f4").reshape(-1, 4, 4) for chunk in poser.chunks])
    assert np.array_equal(followed[:41], keyboard_poses("w-9,wl-17,wj-14"))


def test_each_alone_and_all_together_are_equal(recorded: list[Path], replay: Replay) -> None:
    for path in recorded:
        code, told = replay(path, "--verify")
        assert code == 0 and "equal to the bit" in told, told
    rows: list[int] = []

    def watched(num_slots: int) -> World:
        world = tiny(num_slots)
        step = world.step

        def see(due: Sequence[Row]) -> object:
            rows.append(len(due))
            return step(due)

        world.step = see  # type: ignore[assignment, method-assign]
        return world

    code, told = replay(*recorded, "--verify", "--together", make=watched)
    assert code == 0 and told.count("equal to the bit") == 3, told
    assert max(rows) > 1, "they shared no forward"


def test_a_world_is_as_fine_as_the_recordings_say(recorded: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Or as is asked for, and where they differ somebody has to ask."""
    fine = read(recorded[0].read_bytes())
    header = msgspec.structs.replace(fine.records[0], arithmetic={"dtype": "bfloat16+fp8"})
    coarse = replace(fine, records=(header, *fine.records[1:]))
    asked: list[str] = []
    monkeypatch.setattr(
        command, "world_loader", lambda path, num_slots, spread: asked.append(spread.precision) or (lambda report: None)
    )
    plain = cli.parser().parse_args(["replay", "x", "--world", "tiny"])
    for args, recordings in [(plain, [fine]), (plain, [coarse, coarse])]:
        command._load(args, recordings)
    with pytest.raises(WorldError, match="fp8 and native"):
        command._load(plain, [fine, coarse])
    command._load(cli.parser().parse_args(["replay", "x", "--world", "tiny", "--precision", "native"]), [fine, coarse])
    assert asked == ["native", "fp8", "native"]


@pytest.mark.slow
def test_they_are_equal_in_another_process(recorded: list[Path]) -> None:
    program = (
        "import sys; sys.path[:0] = ['.', 'tests/gameserver']\n"
        "import test_replay_command as t; from gameserver import cli, replay\n"
        "replay.world_loader = lambda path, num_slots, spread: lambda report: t.tiny(num_slots)\n"
        "sys.exit(cli.main(['replay', '--world', 'tiny', '--verify', '--together', *sys.argv[1:]]))"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, recorded)], cwd=root, capture_output=True, text=True
    )
    assert done.returncode == 0 and done.stdout.count("equal to the bit") == 3, done.stdout + done.stderr


def altered(path: Path, to: Path, index: int, **fields: object) -> Path:
    """The recording with other fields in chunk `index`, every sum right."""
    records: list[Record] = list(read(path.read_bytes()).records)
    at = next(i for i, record in enumerate(records) if isinstance(record, Chunk) and record.chunk == index)
    records[at] = msgspec.structs.replace(records[at], **fields)
    to.write_bytes(b"".join(encode(record) for record in records))
    return to


def test_a_bit_of_a_control_or_a_pose_makes_it_fail(recorded: list[Path], replay: Replay, tmp_path: Path) -> None:
    recording = read(recorded[0].read_bytes())
    chunk = recording.chunks[3]
    (seconds, axes), *rest = chunk.segments
    bit = np.frombuffer(np.float64(axes[0]).tobytes(), np.uint64)[0] ^ np.uint64(1)
    control = ((seconds, (float(np.array(bit).view(np.float64)), *axes[1:])), *rest)
    rows = bytearray(chunk.rows)
    rows[64] ^= 1
    for fields, name in [({"segments": control}, "control"), ({"rows": bytes(rows)}, "poses")]:
        code, told = replay(altered(recorded[0], tmp_path / "x.mwrec", 3, **fields), "--verify")
        assert code == 1 and "chunk 3" in told and name in told, told
    data = bytearray(recorded[0].read_bytes())
    data[data.rindex(chunk.rows, 0, data.index(chunk.digest)) + 64] ^= 1
    (tmp_path / "x.mwrec").write_bytes(data)
    code, told = replay(tmp_path / "x.mwrec", "--verify")
    assert code == 1 and "damaged" in told and "chunk 3" in told, told


def test_a_bit_of_a_weight_or_a_sigma_makes_it_fail(recorded: list[Path], replay: Replay) -> None:
    def weight(num_slots: int) -> World:
        world = tiny(num_slots)
        next(world.denoiser.dit.parameters()).data.view(-1).view(torch.int32)[5] ^= 1 << 12
        return world

    def sigma(num_slots: int) -> World:
        return tiny(num_slots, cfg=config(float(np.nextafter(np.float32(0.5), np.float32(1)))))

    for make, why in [(weight, "weights"), (sigma, "configuration")]:
        code, told = replay(recorded[2], "--verify", make=make)
        assert code == 1 and "refused" in told and why in told, told

    def unnoticed(change: Callable[[DiffusionWorld], None]) -> Callable[[int], World]:
        def make(num_slots: int) -> World:
            world = tiny(num_slots)
            world.identify(lambda stage, share: None)
            change(world)
            return world

        return make

    def of_weight(world: DiffusionWorld) -> None:
        next(world.denoiser.dit.parameters()).data.view(-1).view(torch.int32)[5] ^= 1 << 12

    def of_sigma(world: DiffusionWorld) -> None:
        world.denoiser.sigma.view(-1).view(torch.int32)[1] ^= 1

    for change in (of_weight, of_sigma):
        code, told = replay(recorded[2], "--verify", make=unnoticed(change))
        assert code == 1 and "DIFFERS. chunk 0" in told and "latents" in told, told


def test_another_arithmetic_and_a_cut_cannot_be_said(recorded: list[Path], replay: Replay, tmp_path: Path) -> None:
    code, told = replay(recorded[2], "--verify", make=lambda num_slots: tiny(num_slots, torch.bfloat16))
    assert code == 3 and "dtype: float32 then, bfloat16 here" in told and "means" in told, told
    data = recorded[2].read_bytes()
    cut = tmp_path / "cut.mwrec"
    cut.write_bytes(data[:-3])
    code, told = replay(cut, "--verify")
    assert code == 3 and "end mark" in told and "cut off" in told, told


def test_what_cannot_be_replayed_is_a_sentence(recorded: list[Path], replay: Replay, tmp_path: Path) -> None:
    foreign = tmp_path / "foreign.mwrec"
    header = read(recorded[0].read_bytes()).header
    assert header is not None
    foreign.write_bytes(encode(msgspec.structs.replace(header, format=2)))
    (tmp_path / "empty.mwrec").touch()
    (tmp_path / "noise.mwrec").write_bytes(bytes(range(256)))
    for path, why in [
        (foreign, "format 2"), (tmp_path / "empty.mwrec", "empty"), (tmp_path / "noise.mwrec", "damaged"),
        (tmp_path / "none.mwrec", "cannot be read"),
    ]:  # fmt: skip
        code, told = replay(path, "--verify")
        assert code == 1 and "refused" in told and why in told, told
    code, told = replay(tmp_path / "none.mwrec", recorded[2], "--verify")
    assert code == 1 and "equal to the bit" in told, "the others are told of all the same"


def test_no_world_for_a_recording_is_a_sentence(recorded: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["replay", str(recorded[0])]) == 1
    assert capsys.readouterr().err == "gameserver: these are recordings of tiny: say with --world where that is\n"


def test_a_video_shows_what_the_player_saw(recorded: list[Path], replay: Replay, tmp_path: Path) -> None:
    recording = read(recorded[2].read_bytes())
    frames = sum(len(chunk.poses) // 64 for chunk in recording.chunks)
    out = tmp_path / "out.mp4"
    for options, count in [((), frames), (("--from", "0.125", "--to", "0.5"), 12)]:
        code, told = replay(recorded[2], "--video", out, *options)
        assert code == 0 and "chunks" in told
        with av.open(str(out)) as video:
            pictures = list(video.decode(video=0))
        assert len(pictures) == count and (pictures[0].width, pictures[0].height) == (96, 64)
        assert float(pictures[1].time - pictures[0].time) == pytest.approx(1 / FPS)  # type: ignore[operator]
    code, told = replay(recorded[2], "--video", out, "--overlay")
    with av.open(str(out)) as video:
        drawn = [picture.to_ndarray(format="gray") for picture in video.decode(video=0)]
    assert code == 0 and len(drawn) == frames
    j_key, l_key = (slice(64 - 15, 64 - 3), slice(58, 68)), (slice(64 - 15, 64 - 3), slice(86, 95))
    assert drawn[8][l_key].mean() > 180 > drawn[8][j_key].mean(), "it turns right"
    assert replay(recorded[2], "--overlay")[0] == 2
    code, told = replay(recorded[2], "--verify", "--to", "0.5")
    assert code == 0 and "5 chunks" in told
    assert replay(*recorded, "--video", out)[0] == 2


def test_a_video_of_nothing_is_said_before_a_world_is_loaded(
    recorded: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def never(num_slots: int) -> World:
        raise AssertionError("it loads")

    (tmp_path / "folder.mp4").mkdir()
    os.mkfifo(tmp_path / "pipe.mp4")
    no_frames = "no frame between --from and --to"
    for name, options, code, why in [
        ("out.mp4", ["--to", "0"], 2, no_frames),
        ("out.mp4", ["--from", "0.5", "--to", "0.5"], 2, no_frames),
        ("out.mp4", ["--from", "99999"], 2, no_frames),
        ("folder.mp4", [], 1, "folder.mp4 cannot be written (Is a directory)"),
        ("none/out.mp4", [], 1, "out.mp4 cannot be written (No such file or directory)"),
        ("pipe.mp4", [], 1, "pipe.mp4 cannot be written (it is not a file)"),
    ]:
        arguments = ["replay", "--world", "tiny", str(recorded[2]), "--video", str(tmp_path / name), *options]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(command, "world_loader", lambda path, num_slots, spread: lambda report: never(num_slots))
            assert cli.main(arguments) == code
        assert why in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder.mp4", "pipe.mp4"]


def test_a_replay_that_is_interrupted_leaves_the_video_before(
    recorded: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.mp4"
    out.write_bytes(b"older")

    def interrupted(done: int, total: int) -> None:
        if done == 2:  # the first chunk is in the video
            raise KeyboardInterrupt

    monkeypatch.setattr(command, "_tell", interrupted)
    monkeypatch.setattr(command, "world_loader", lambda path, num_slots, spread: lambda report: tiny(num_slots))
    with pytest.raises(KeyboardInterrupt):
        command.run(cli.parser().parse_args(["replay", "--world", "tiny", str(recorded[2]), "--video", str(out)]))
    assert out.read_bytes() == b"older" and len(list(tmp_path.iterdir())) == 1


def test_json_has_no_word_for_a_drift_that_is_no_number(recorded: list[Path], replay: Replay) -> None:
    def broken(num_slots: int) -> World:
        world = tiny(num_slots, torch.bfloat16)
        step = world.step

        def nan(due: Sequence[Row]) -> object:
            return [replace(picture, means=picture.means * np.nan) for picture in step(due)]

        world.step = nan  # type: ignore[assignment, method-assign]
        return world

    def strict(word: str) -> float:
        raise AssertionError(f"{word} is no JSON")

    code, told = replay(recorded[2], "--verify", "--json", make=broken)
    (found,) = json.loads(told, parse_constant=strict)["recordings"]
    assert code == 3 and found["drift"] is None and found["drift_chunk"] == 0


def test_json_is_one_line_for_programs(recorded: list[Path], replay: Replay) -> None:
    code, told = replay(*recorded, "--verify", "--json")
    answer = json.loads(told)
    assert code == answer["status"] == 0 and told.count("\n") == 1
    assert [each["file"] for each in answer["recordings"]] == [str(path) for path in recorded]
    first = answer["recordings"][0]
    assert first["outcome"] == "equal" and first["checked"] == first["chunks"] > 3 and first["ended"]
    assert (first["seed"], first["scene"], first["world"]) == (1, "noise", "tiny")


def test_a_connection_that_breaks_and_comes_back_is_marked(running_server: RunningServer, tmp_path: Path) -> None:
    async def scene() -> None:
        async with running_server(limits=RELAXED, record=Keep(tmp_path)) as app:
            async with playing(app, seed=4) as player:
                await player.steer(1.0, 0.0, 0.0, 0.0)
                await player.hear_frames(6)
            session = app.door.lobby[player.welcome["session"]]
            while session is None or session.occupant is not None or len(app.door.mailbox):
                await asyncio.sleep(0)  # until the game knows that the player is gone
            async with playing(app, token=player.welcome["token"]) as again:
                assert again.welcome["resumed"]
                await again.hear_frames(5)
                await again.say("bye")

    asyncio.run(scene())
    (path,) = tmp_path.glob("*.mwrec")
    recording = read(path.read_bytes())
    assert [mark.kind for mark in recording.marks] == ["join", "detach", "reconnect", "end"]
    assert cli.main(["replay", "--verify", str(path)]) == 0


def test_metrics_tell_of_recordings(running_server: RunningServer, tmp_path: Path) -> None:
    async def scene() -> None:
        async with running_server(limits=RELAXED, record=Keep(tmp_path)) as app, playing(app) as player:
            await player.hear_frames(2)
            body = (await get(app, "/metrics"))[2].decode()
            assert "manyworlds_recordings_total 1\n" in body and "manyworlds_recordings_lost_total 0\n" in body

    asyncio.run(scene())


def test_sessions_that_outlive_the_server_end_with_it(running_server: RunningServer, tmp_path: Path) -> None:
    async def scene() -> None:
        async with running_server(limits=RELAXED, record=Keep(tmp_path)) as app, playing(app) as player:
            await player.hear_frames(2)
            (path,) = tmp_path.glob("*.mwrec")
            kept = read(path.read_bytes())
            assert len(kept.chunks) > player.frames[-1]["chunk"], "a frame left before its chunk was written down"
            assert not kept.ended and path.name.endswith(f"{player.welcome['session']}.mwrec")

    asyncio.run(scene())
    (path,) = tmp_path.glob("*.mwrec")
    assert read(path.read_bytes()).ended


def test_a_disk_that_fills_costs_the_recording_and_no_session(
    running_server: RunningServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The real journal, on a disk with room for a few chunks of two players."""
    room = [12_000]
    write = os.write

    def fill(file: int, data: bytes) -> int:
        if room[0] <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fits = min(len(data), room[0])  # the last write is a short one
        room[0] -= fits
        return write(file, bytes(data[:fits]))

    async def scene() -> None:
        async with running_server(limits=RELAXED, record=Keep(tmp_path)) as app:
            monkeypatch.setattr("gameserver.journal.os.write", fill)
            async with playing(app, seed=1) as first, playing(app, seed=2) as second:
                for player in (first, second):
                    await player.hear_frames(60)
                    seen = [frame["frame"] for frame in player.frames]
                    assert seen == list(range(len(seen))), "a frame is missing"
                    assert not [other for other in player.others if other["type"] == "error"]
            counts = app.door.recorder.counts  # type: ignore[union-attr]
            assert (counts.recordings, counts.lost, counts.given_up) == (2, 2, 0)

    asyncio.run(scene())
    (event,) = [record for record in caplog.records if record.levelname in ("ERROR", "WARNING")]
    assert event.getMessage() == f"recordings are being lost in {tmp_path}: No space left on device"
    for path in tmp_path.glob("*.mwrec"):
        kept = read(path.read_bytes())
        assert kept.verdict.state == "whole" and kept.chunks and not kept.ended, "what fitted is good, and no more"
        assert cli.main(["replay", "--verify", str(path)]) == 3
