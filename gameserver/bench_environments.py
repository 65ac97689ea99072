"""Steps a second of gymnasium environments that share a server of their own: sockets, raw frames and all."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from gameserver.gym import ManyworldsVectorEnv
from world.chunk import WorldError


@dataclass(frozen=True, slots=True)
class Stepped:
    """So many environments, each stepped as often, by random actions."""

    environments: int
    steps_a_second: float  # of all
    frames_a_second: float
    ms_a_step: float  # of all at once


@contextmanager
def serving(world: str | None, players: int) -> Iterator[str]:
    """A server process; its address. WorldError if it does not come up, after it has said why."""
    command = [sys.executable, "-m", "gameserver", "serve", "--port", "0", "--no-record", "--players", str(players)]
    command += [] if world is None else ["--world", world]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            said = re.search(r"http(://\S+)/", server.stdout.readline())
            if said is None:
                raise WorldError("the server to be measured did not start")
            yield f"ws{said[1]}"
        finally:
            server.terminate()


def measure(
    url: str, num_envs: int, num_steps: int, warmup_steps: int, clock: Callable[[], float] = time.perf_counter
) -> Stepped:
    envs = ManyworldsVectorEnv(url, num_envs, max_chunks=warmup_steps + num_steps + 1)
    try:
        envs.reset(seed=1)
        envs.action_space.seed(1)
        actions = [envs.action_space.sample() for _ in range(warmup_steps + num_steps)]
        for action in actions[:warmup_steps]:
            envs.step(action)
        before_s = clock()
        for action in actions[warmup_steps:]:
            envs.step(action)
        seconds = clock() - before_s
        chunk_frames = envs.chunk_frames
    finally:
        envs.close()
    steps = num_envs * num_steps
    return Stepped(num_envs, steps / seconds, steps * chunk_frames / seconds, 1000 * seconds / num_steps)


def table(world: str | None, counts: Sequence[int], num_steps: int, warmup_steps: int) -> Iterator[Stepped]:
    with serving(world, max(counts)) as url:
        for num_envs in counts:
            yield measure(url, num_envs, num_steps, warmup_steps)
