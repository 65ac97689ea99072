"""Protects the end: when a rank is gone, stuck or failing, all of them end, with one sentence that says which."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch

from tests.world.test_leader import CHUNKS, load, play, quiet
from tests.world.tiny_world import Life, Player
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
    (tmp_path / "leader.py").write_text(LEADER)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, tmp_path / "leader.py"], env=environment, text=True, **pipes) as leader:
        assert leader.stdout is not None
        pids = [int(pid) for pid in leader.stdout.readline().split()]
        assert len(pids) == 3
        followers = [os.pidfd_open(pid) for pid in pids]
        leader.kill()
        _, told = leader.communicate(timeout=ENDS_S)  # they hold its end of stderr until they have ended
        for follower in followers:
            os.close(follower)
    assert told.splitlines() == ["manyworlds: rank 0 of 4 is gone, so all of them end"]
