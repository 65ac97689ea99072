"""Protects the end: when a rank is gone, stuck or failing, all of them end, with one sentence that says which."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch

from tests.world.test_leader import CHUNKS, load, play, quiet
from tests.world.tiny_world import Life, Player
from world import followers
from world.chunk import WorldError
from world.leader import RankedWorld
from world.model import DiffusionWorld
from world.ranks import Ranks

ROOT = Path(__file__).parent.parent.parent
ENDS_S = 5.0
DEADLINE_S = 5.0  # a busy machine is not a lost rank


@pytest.fixture(params=["replicated", "sharded"])
def doomed(request: pytest.FixtureRequest) -> Iterator[RankedWorld]:
    """Two ranks, of which a test ends one; where weights are divided, torch itself exchanges too."""
    world = RankedWorld(partial(load, layout=request.param), 2, quiet, deadline_s=DEADLINE_S)
    yield world
    world.end()


def processes(world: RankedWorld) -> list[BaseProcess]:
    return list(world.followers._processes)


def test_a_killed_rank_is_missed_between_ticks(doomed: RankedWorld) -> None:
    doomed.check()
    victim = processes(doomed)[0]
    victim.kill()
    victim.join(ENDS_S)
    for _ in range(2):  # and the second time
        with pytest.raises(WorldError, match=r"^rank 1 of 2 is gone \(signal 9\), so all of them end$"):
            doomed.check()


def test_a_rank_killed_in_a_forward_ends_it(doomed: RankedWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    (victim, *_), player = processes(doomed), Player(Life(0, 1, CHUNKS), 1)
    doomed.open(1, player.life.start(doomed))
    exchanges: list[int] = []
    before = Ranks.exchange

    def exchange(self: Ranks, parts: torch.Tensor) -> torch.Tensor:
        exchanges.append(1)
        if len(exchanges) == 6:
            victim.kill()
        return before(self, parts)

    monkeypatch.setattr(Ranks, "exchange", exchange)
    with pytest.raises(WorldError, match=r"^rank 1 of 2 is gone \(signal 9\), so all of them end$"):
        play(doomed, [player], 99)


def test_a_stuck_rank_is_lost_after_the_deadline(doomed: RankedWorld) -> None:
    victim, player = processes(doomed)[0], Player(Life(0, 1, CHUNKS), 1)
    doomed.open(1, player.life.start(doomed))
    assert victim.pid is not None
    os.kill(victim.pid, signal.SIGSTOP)
    with pytest.raises(WorldError, match=r"^rank 1 of 2 has not answered for 5 s, so all of them end$"):
        play(doomed, [player], 99)
    victim.join(ENDS_S)
    assert victim.exitcode == -signal.SIGKILL, "it does not stay behind"


class Waiting:
    """In place of exchanges between GPUs: rank 0 waits for its own, until it is told to give up."""

    def __init__(self) -> None:
        self.given_up = threading.Event()

    def abort(self) -> None:
        self.given_up.set()

    def close(self, slot: int) -> None:
        assert self.given_up.wait(ENDS_S)


@pytest.fixture
def waiting(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[RankedWorld, Waiting]]:
    world, waiting = RankedWorld(load, 2, quiet), Waiting()
    world.followers.ranks = replace(world.followers.ranks, gpus=waiting)  # type: ignore[arg-type]
    monkeypatch.setattr(world.part, "close", waiting.close)
    yield world, waiting
    world.end()


def test_a_gpu_does_not_wait_for_a_rank_that_is_gone(waiting: tuple[RankedWorld, Waiting]) -> None:
    world, _ = waiting
    (victim,) = processes(world)
    threading.Timer(0.1, victim.kill).start()
    for _ in range(2):  # and the second time
        with pytest.raises(WorldError, match=r"^rank 1 of 2 is gone \(signal 9\), so all of them end$"):
            world.close(1)


def test_a_gpu_does_not_wait_for_ever(waiting: tuple[RankedWorld, Waiting], monkeypatch: pytest.MonkeyPatch) -> None:
    world, _ = waiting
    monkeypatch.setattr(followers, "GPU_VERB_S", 0.1)
    with pytest.raises(WorldError, match=r"^a GPU has waited for 0.1 s for another, so all ranks end$"):
        world.close(1)
    (victim,) = processes(world)
    victim.join(ENDS_S)
    assert victim.exitcode == -signal.SIGKILL, "it does not stay behind"


def test_a_process_whose_gpu_does_not_give_up_ends_with_the_sentence(
    waiting: tuple[RankedWorld, Waiting], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    world, gpus = waiting
    ended: list[int] = []
    monkeypatch.setattr(followers, "GPU_VERB_S", 0.1)
    monkeypatch.setattr(followers, "ABANDON_S", 0.1)
    monkeypatch.setattr(gpus, "abort", lambda: None)
    monkeypatch.setattr(followers.os, "_exit", lambda code: (ended.append(code), gpus.given_up.set()))
    with pytest.raises(WorldError):
        world.close(1)
    assert ended == [1]
    assert capfd.readouterr().err.splitlines() == [
        "manyworlds: a GPU has waited for 0.1 s for another, so all ranks end"
    ]


@contextlib.contextmanager
def leading(directory: Path, source: str) -> Iterator[subprocess.Popen[str]]:
    """A process that leads others, by this source."""
    (directory / "leader.py").write_text(source)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, directory / "leader.py"], env=environment, text=True, **pipes) as leader:
        yield leader


def told_when_killed(leader: subprocess.Popen[str]) -> list[str]:
    """By those that it leads, who hold its end of stderr until they have ended."""
    leader.kill()
    _, told = leader.communicate(timeout=ENDS_S)
    return told.splitlines()


FOLLOWER = """
import multiprocessing, sys, threading
from world.followers import _follow_to_the_end
def wait():
    threading.Thread(target=_follow_to_the_end, args=(1, 2), daemon=True).start()
    print("waiting", flush=True)
    threading.Event().wait()
if __name__ == "__main__":
    multiprocessing.get_context("spawn").Process(target=wait, daemon=True).start()
    sys.stdin.read()
"""


def test_a_follower_that_waits_for_its_gpu_ends_with_the_leader(tmp_path: Path) -> None:
    with leading(tmp_path, FOLLOWER) as leader:
        assert leader.stdout is not None and leader.stdout.readline() == "waiting\n"
        told = told_when_killed(leader)
    assert told == ["manyworlds: rank 0 of 2 is gone, so all of them end"]


def fails_on(index: int, ranks: Ranks, report: object) -> DiffusionWorld:
    if ranks.index == index:
        raise RuntimeError("out of memory")
    return load(ranks, report)


def test_a_rank_that_fails_says_why() -> None:
    with pytest.raises(WorldError, match=r"^rank 1 of 2 failed: RuntimeError: out of memory$"):
        RankedWorld(partial(fails_on, 1), 2, quiet)


def test_a_leader_that_fails_says_it_itself() -> None:
    with pytest.raises(RuntimeError, match=r"^out of memory$"):
        RankedWorld(partial(fails_on, 0), 2, quiet)


LEADER = """
import sys
from tests.world.test_leader import load, quiet
from tests.world.test_followers import processes
from world.leader import RankedWorld
if __name__ == "__main__":
    world = RankedWorld(load, 4, quiet)
    print(*(process.pid for process in processes(world)), flush=True)
    sys.stdin.read()
"""


def test_when_rank_0_is_killed_the_others_end_with_one_sentence(tmp_path: Path) -> None:
    with leading(tmp_path, LEADER) as leader:
        assert leader.stdout is not None
        pids = [int(pid) for pid in leader.stdout.readline().split()]
        assert len(pids) == 3
        followers = [os.pidfd_open(pid) for pid in pids]
        told = told_when_killed(leader)
        for follower in followers:
            os.close(follower)
    assert told == ["manyworlds: rank 0 of 4 is gone, so all of them end"]
