"""Protects play on several ranks as a whole: what two played comes out of two again to the bit, and a server that has
lost a rank tells its players, says which in a sentence and ends."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from conftest import playing, serve_pattern

from gameserver import bench, cli
from gameserver import replay as command
from gameserver.backpressure import Limits
from gameserver.bot_plan import BotPlan
from gameserver.journal import Keep
from gameserver.player import play
from gameserver.serve import Spread, spread_of, world_loader
from sessions.recording import read
from tests.world.ranked import load_small
from world.leader import RankedWorld
from world.motion import parse_script

ROOT = Path(__file__).parents[2]
RELAXED = Limits(late_s=60.0, stall_s=60.0)  # a busy machine must not look like a slow link
ENDS_S = 5.0


pytestmark = pytest.mark.usefixtures("one_thread")


@contextmanager
def two_ranks() -> Iterator[RankedWorld]:
    world = RankedWorld(load_small, 2, lambda stage, share: None, deadline_s=60.0)
    try:
        yield world
    finally:
        world.end()


def test_what_two_ranks_played_two_ranks_verify(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plans = [
        BotPlan(script=parse_script("w-20,wl-9,none-3"), seed=1, prompts=((0.3, "snow"),), prompt="a field"),
        BotPlan(script=parse_script("l-11,wi-9"), seed=2),
    ]

    async def live(world: RankedWorld) -> None:
        async with serve_pattern(world, players=2, limits=RELAXED, record=Keep(tmp_path)) as app:
            await asyncio.gather(*(play(app.play_url, plan) for plan in plans))

    with two_ranks() as world:
        asyncio.run(live(world))
    files = sorted(map(str, tmp_path.glob("*.mwrec")))
    headers = [read(Path(file).read_bytes()).header for file in files]
    assert [header.arithmetic["ranks"] for header in headers if header is not None] == ["2", "2"]
    asked: list[Spread] = []
    with two_ranks() as again:
        monkeypatch.setattr(
            command, "world_loader", lambda path, num_slots, spread: asked.append(spread) or (lambda report: again)
        )
        verify = ["replay", "--world", "tiny", "--verify", "--together", "--ranks", "2", *files]
        assert cli.main(verify) == 0
    assert capsys.readouterr().out.count("equal to the bit") == 2 and asked == [Spread(ranks=2)]


def test_players_are_told_when_a_rank_is_gone() -> None:
    async def live(world: RankedWorld) -> None:
        async with serve_pattern(world, players=2, limits=RELAXED) as app, playing(app) as player:
            await player.hear_frames(3)
            world.followers._processes[0].kill()
            told = await player.hear_until("error")
            assert told["code"] == "internal" and told["message"] == "the world has stopped"
            assert app.door.engine.failure == "rank 1 of 2 is gone (signal 9), so all of them end"

    with two_ranks() as world:
        asyncio.run(live(world))


def follower_of(process: subprocess.Popen[str]) -> int:
    """The process that computes beside a server's own."""
    children = " ".join(path.read_text() for path in Path(f"/proc/{process.pid}/task").glob("*/children")).split()
    (follower,) = [int(pid) for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    return follower


def test_a_server_ends_with_its_rank_in_time_and_in_one_sentence() -> None:
    """Nobody plays: it is missed between ticks."""
    line = [sys.executable, "-m", "gameserver", "serve", "--ranks", "2", "--players", "1", "--port", "0"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([*line, "--no-record", "--no-save"], cwd=ROOT, text=True, **pipes) as server:  # type: ignore[call-overload]
        try:
            assert server.stdout.readline().startswith("Open http://localhost:")
            os.kill(follower_of(server), signal.SIGKILL)
            _, told = server.communicate(timeout=ENDS_S)
        finally:
            server.kill()
    assert server.returncode == 1
    assert told.splitlines()[-1] == "gameserver: rank 1 of 2 is gone (signal 9), so all of them end"
    assert "Traceback" not in told and told.count("rank 1") == 1


@pytest.mark.parametrize(
    "there, asked, sentence",
    [
        (0, "8", "--gpus 8: torch finds no GPUs on this machine (--ranks 8 spreads a world over processes on the CPU)"),
        (1, "2", "--gpus 2: torch finds 1 GPU on this machine (--ranks 2 spreads a world over processes on the CPU)"),
    ],
)
def test_gpus_that_cannot_serve_are_a_sentence(
    there: int, asked: str, sentence: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: there)
    assert cli.main(["bench", "--players", "1", "--gpus", asked]) == 1
    assert capsys.readouterr().err.splitlines()[-1] == f"gameserver: {sentence}"


@pytest.mark.parametrize(
    "options, ranks",
    [("", None), ("--gpus 1", None), ("--gpus 3", (3, True)), ("--ranks 3", (3, False))],
)
def test_a_rank_for_each_gpu_and_no_rank_for_one(
    options: str, ranks: tuple[int, bool] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, bool]] = []

    class Stop(Exception): ...

    def several(load: object, num_ranks: int, report: object, on_gpus: bool) -> None:
        asked.append((num_ranks, on_gpus))
        raise Stop

    def one(*args: object) -> None:
        raise Stop

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr("world.loader.RankedWorld", several)
    monkeypatch.setattr("world.loader.load_part", one)
    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    with pytest.raises(Stop):
        world_loader(None, 1, spread_of(parser.parse_args(options.split())))(lambda stage, share: None)
    assert asked == ([] if ranks is None else [ranks])


@pytest.mark.parametrize(
    "world, sentence",
    [
        ("meadow", "the 4 heads of this model do not divide among 3 ranks"),
        ("pattern", "the pattern world has no weights that several ranks could compute with"),
    ],
)
def test_worlds_that_cannot_be_spread_are_a_sentence(
    world: str, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["bench", "--players", "1", "--ranks", "3", "--world", world]) == 1
    told = capsys.readouterr().err
    assert told.splitlines()[-1] == f"gameserver: {sentence}" and "Traceback" not in told
