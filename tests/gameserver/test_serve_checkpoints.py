"""Protects serving the published layouts: a directory becomes a game that can be steered and told what to show, or one
sentence that names what is wrong with it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import RunningServer
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from gameserver import cli
from gameserver.backpressure import Limits
from gameserver.bot_plan import BotPlan
from gameserver.encoder import VideoFrame
from gameserver.player import BotReport, play
from gameserver.serve import world_loader
from gameserver.view import Packet
from tests.tiny_checkpoints import DIRECTORY, Tiny, write
from world.motion import keyboard_poses, parse_script

FPS = 48  # three times the published: less to wait for
CHUNKS = 5
RELAXED = Limits(late_s=60.0, stall_s=60.0)  # a busy machine must not look like a slow link
PUBLISHED = {
    "v1": Tiny("v1"),
    "v2-14b": Tiny("v2-14b"),
    "v2-1.3b": Tiny("v2-1.3b"),
    "act": Tiny("v2-14b", control_channels=7),
}
Pictures = dict[int, tuple[int, NDArray[np.uint8]]]  # frame -> (chunk, I420)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_layout_plays_obeys_the_camera_and_takes_a_prompt(
    name: str, tmp_path: Path, running_server: RunningServer
) -> None:
    checkpoint = write(tmp_path, PUBLISHED[name], fps=FPS)
    chunk_frames = 12 if name == "v1" else 16
    still = np.tile(np.eye(4, dtype=np.float32), (CHUNKS * chunk_frames - 3, 1, 1))
    plans = {
        "stays": BotPlan(poses=still, seed=7),
        "told": BotPlan(poses=still, seed=7, prompts=((0.3, "the forest at night in summer"),)),
        "turns": BotPlan(poses=keyboard_poses(f"wl-{len(still) - 1}"), seed=7),
        "steers": BotPlan(script=parse_script("wl-9,w-5"), seconds=CHUNKS * chunk_frames / FPS, seed=7),
    }

    async def scene() -> dict[str, tuple[BotReport, Pictures]]:
        load = world_loader(str(checkpoint), len(plans))
        async with running_server(load=load, players=len(plans), limits=RELAXED) as app:
            seen = await asyncio.gather(*(watch(app.play_url, plan) for plan in plans.values()))
            counters = app.door.engine.counters
            assert counters is not None and max(counters.forwards_of) > 1  # they were in one forward
        return dict(zip(plans, seen, strict=True))

    seen = asyncio.run(scene())
    for report, pictures in seen.values():
        assert report.decode_errors == 0 and report.skipped == 0 and report.errors == []
        assert sorted(pictures) == list(range(report.frames)) and report.chunks >= 2
        assert report.world.startswith("lingbot-world-fast")
    assert all(len(seen[who][1]) >= len(still) for who in ("stays", "told", "turns"))

    (changed,) = seen["told"][0].prompted
    stays, told, turns, steers = (seen[who][1] for who in ("stays", "told", "turns", "steers"))
    assert 0 < changed < CHUNKS
    assert max(differences(stays, told, lambda chunk: chunk < changed)) == 0  # seed, prompt and camera decide alone
    assert min(differences(stays, told, lambda chunk: chunk >= changed)) > 0
    assert min(differences(stays, turns, lambda chunk: chunk > 0)) > 0
    assert min(differences(stays, steers, lambda chunk: chunk > 0)) > 0


async def watch(url: str, plan: BotPlan) -> tuple[BotReport, Pictures]:
    pictures: Pictures = {}

    def see(packet: Packet, picture: VideoFrame) -> None:
        pictures[packet.frame] = (packet.chunk, picture.to_ndarray(format="yuv420p"))

    return await play(url, plan, see), pictures


def differences(one: Pictures, other: Pictures, wanted: Callable[[int], bool]) -> list[float]:
    """Mean absolute difference of the frames that both saw, in grey levels."""
    both = [(one[i][1], other[i][1]) for i in sorted(one.keys() & other.keys()) if wanted(one[i][0])]
    return [float(np.abs(a.astype(np.int16) - b).mean()) for a, b in both]


# Refusing.


def shard(checkpoint: Path, number: int = 2) -> Path:
    return checkpoint / DIRECTORY["v1"] / f"diffusion_pytorch_model-0000{number}-of-00003.safetensors"


def a_byte_gone_wrong(checkpoint: Path) -> tuple[Path, str]:
    tensors = load_file(file := shard(checkpoint))
    key = next(key for key in tensors if key.endswith("ffn.0.weight"))
    tensors[key].view(-1)[5] = float("nan")
    save_file(tensors, file)
    return file, key


def a_file_cut_short(checkpoint: Path) -> tuple[Path, str]:
    file = shard(checkpoint)
    file.write_bytes(file.read_bytes()[:-100])
    return file, "cut short"


def a_tensor_left_out(checkpoint: Path) -> tuple[Path, str]:
    tensors = load_file(file := shard(checkpoint, 1))
    key = next(iter(tensors))
    save_file({name: tensor for name, tensor in tensors.items() if name != key}, file)
    return file, key


def another_size(checkpoint: Path) -> tuple[Path, str]:
    tensors = load_file(file := shard(checkpoint))
    key = next(key for key in tensors if key.endswith("ffn.0.weight"))
    save_file(tensors | {key: tensors[key][1:].clone()}, file)
    return file, key


def another_config(checkpoint: Path) -> tuple[Path, str]:
    config = checkpoint / DIRECTORY["v1"] / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"num_layers": 40}))
    return config.parent, "num_layers"


def a_vae_cut_short(checkpoint: Path) -> tuple[Path, str]:
    file = checkpoint / "Wan2.1_VAE.pth"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    return file, "damaged"


DAMAGES = [a_byte_gone_wrong, a_file_cut_short, a_tensor_left_out, another_size, another_config, a_vae_cut_short]


def is_one_sentence(errors: str, file: Path, key: str) -> None:
    (sentence,) = [line for line in errors.splitlines() if line.startswith("gameserver:")]
    assert str(file) in sentence and key in sentence
    assert errors.splitlines()[-1] == sentence and "Traceback" not in errors


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_one_sentence_naming_file_and_key(
    damage: Callable[[Path], tuple[Path, str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, key = damage(write(tmp_path, Tiny("v1")))
    assert cli.main(["serve", "--world", str(tmp_path), "--port", "0", "--players", "1"]) == 1
    told = capsys.readouterr()
    is_one_sentence(told.err, file, key)
    assert told.out == ""


# The command itself.


@contextlib.contextmanager
def command(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    line = [sys.executable, "-m", "gameserver", *arguments]
    process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def test_the_commands_serve_and_play_a_checkpoint_and_refuse_a_damaged_one(tmp_path: Path) -> None:
    good, bad = write(tmp_path / "good", Tiny("v2-1.3b"), fps=FPS), write(tmp_path / "bad", Tiny("v1"))
    file, key = another_size(bad)
    options = ["--port", "0", "--players", "1"]
    with command("serve", "--world", str(bad), *options) as refused:
        _, errors = refused.communicate(timeout=60)
    assert refused.returncode == 1
    is_one_sentence(errors, file, key)
    with command("serve", "--world", str(good), *options) as server:
        assert server.stdout is not None
        url = server.stdout.readline().split()[1]
        words = ["--prompt-at", "0.3", "a castle with red towers"]
        with command("bot", url.replace("http", "ws"), "--script", "wl-64", "--json", *words) as bot:
            said, errors = bot.communicate(timeout=60)
    assert bot.returncode == 0, errors
    report = json.loads(said.splitlines()[-1])
    assert report["decode_errors"] == 0 and report["chunks"] >= 2 and report["errors"] == []
    assert len(report["prompted"]) == 1 and report["world"] == "lingbot-world-fast-v2-1.3b"
