"""Protects worlds as environments: gymnasium's own checker, and equal observations for equal seeds and actions, whether
they are stepped alone, one after another or all at once."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

gymnasium = pytest.importorskip("gymnasium", reason="the extra `gym` is not installed")

from gymnasium.utils.env_checker import check_env  # noqa: E402
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv  # noqa: E402

from gameserver import cli  # noqa: E402
from gameserver.bench_environments import Stepped, measure  # noqa: E402
from gameserver.bot import BotError  # noqa: E402
from gameserver.gym import ManyworldsEnv, ManyworldsVectorEnv  # noqa: E402

NUM = 3


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A server of test pictures with a seat for each environment and not one more."""
    command = [sys.executable, "-m", "gameserver", "serve", "--world", "pattern", "--port", "0", "--no-record"]
    with subprocess.Popen([*command, "--players", str(NUM)], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        said = re.search(r"http(://\S+)/", server.stdout.readline())
        assert said
        yield f"ws{said[1]}"
        server.terminate()


def actions(steps: int, num: int = NUM) -> np.ndarray:
    return np.random.default_rng(1).uniform(-1, 1, (steps, num, 4)).astype(np.float32)


Run = list[tuple[np.ndarray, Any, Any, Any]]  # observations, rewards, truncated, seeds


def play(envs: Any, steps: int = 8, seed: Any = 11) -> Run:
    observations, infos = envs.reset(seed=seed)
    run: Run = [(observations.copy(), None, None, infos["seed"].tolist())]
    for action in actions(steps):
        observations, rewards, terminated, truncated, infos = envs.step(action)
        assert not terminated.any()
        run.append((observations.copy(), rewards.tolist(), truncated.tolist(), infos["seed"].tolist()))
    envs.close()
    return run


def without_slot(run: Run) -> list[Any]:
    """The pattern paints its slot, and a sum of all it paints, above the middle."""
    return [(seen[:, 64:].tobytes(), *rest) for seen, *rest in run]


def reward(frames: np.ndarray, pose: np.ndarray) -> float:
    assert frames.shape == (4, 128, 224, 3)
    return float(pose[2, 3])


def test_gymnasiums_own_checker_passes_without_a_warning(url: str) -> None:
    env = gymnasium.make("gameserver.gym:Manyworlds-v0", url=url, max_chunks=5, render_mode="rgb_array")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(env.unwrapped)
    env.close()


def test_equal_seeds_and_actions_make_equal_observations_and_others_do_not(url: str) -> None:
    seen = []
    for seed, sign in ((5, 1), (5, 1), (6, 1), (5, -1)):
        env = ManyworldsEnv(url)
        observation, info = env.reset(seed=seed)
        assert (info["seed"], info["chunk"]) == (seed, 0) and observation.shape == (128, 224, 3)
        observations = [observation] + [env.step(sign * action[0])[0] for action in actions(5)]
        seen.append(np.stack(observations))
        env.close()
    first, again, other_seed, other_actions = seen
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other_seed) and not np.array_equal(first, other_actions)
    assert len(np.unique(first, axis=0)) == 6


def test_an_action_moves_the_camera_and_the_hook_rewards_it(url: str) -> None:
    env = ManyworldsEnv(url, max_chunks=2, reward=reward, render_mode="rgb_array")
    env.reset(seed=1)
    ahead = np.array([1, 0, 0, 0], np.float32)
    observation, gained, terminated, truncated, info = env.step(ahead)
    assert gained == pytest.approx(0.2) and info["pose"][2, 3] == pytest.approx(0.2)
    assert (terminated, truncated, info["chunk"]) == (False, False, 1)
    assert env.step(ahead)[3] is True, "two chunks were allowed"
    assert np.array_equal(env.render(), env._episodes.frame) and observation.dtype == np.uint8
    env.close()


def test_places_are_options_and_mistakes_are_named(url: str) -> None:
    env = ManyworldsEnv(url)
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(np.zeros(4, np.float32))
    north, _ = env.reset(seed=1)
    east, _ = env.reset(seed=1, options={"scene": "east", "prompt": "fog"})
    assert not np.array_equal(north, east)
    with pytest.raises(gymnasium.error.InvalidAction):
        env.step(np.full(4, 1.5, np.float32))
    with pytest.raises(ValueError, match="scene and prompt, not weather"):
        env.reset(options={"weather": "rain"})
    with pytest.raises(BotError) as caught:
        env.reset(options={"scene": "atlantis"})
    assert caught.value.code == "unknown_scene"
    env.reset(seed=2)  # and it can go on
    env.close()
    with pytest.raises(BotError, match="cannot read"):
        ManyworldsEnv("ws://127.0.0.1:1")


def test_worlds_stepped_at_once_are_those_stepped_one_after_another(url: str) -> None:
    """Also over the end of an episode, where each draws the seed of its next world by itself."""
    at_once = play(ManyworldsVectorEnv(url, NUM, max_chunks=3, reward=reward))
    one_by_one = play(SyncVectorEnv([lambda: ManyworldsEnv(url, max_chunks=3, reward=reward)] * NUM))
    assert without_slot(at_once) == without_slot(one_by_one)
    truncated = [step[2] for step in at_once[1:]]
    assert truncated == [[False] * NUM, [False] * NUM, [True] * NUM, [False] * NUM] * 2
    assert at_once[0][3] == [11, 12, 13] and len({seed for step in at_once for seed in step[3]}) == 3 * NUM
    given = play(ManyworldsVectorEnv(url, NUM, max_chunks=3, reward=reward), seed=[11, 12, 13])
    assert without_slot(given) == without_slot(at_once)


def test_environments_in_processes_of_their_own_work_too(url: str) -> None:
    envs = AsyncVectorEnv([lambda: ManyworldsEnv(url, max_chunks=3, reward=reward)] * NUM, context="fork")
    in_processes = without_slot(play(envs, 4))
    assert in_processes == without_slot(play(ManyworldsVectorEnv(url, NUM, max_chunks=3, reward=reward), 4))


def test_some_can_be_reset_while_the_others_stay(url: str) -> None:
    envs = ManyworldsVectorEnv(url, NUM, max_chunks=50, render_mode="rgb_array")
    with pytest.raises(gymnasium.error.ResetNeeded):
        envs.reset(options={"reset_mask": np.array([True, False, True])})
    before, _ = envs.reset(seed=1)
    envs.step(actions(1)[0])
    stayed = envs.render()
    after, infos = envs.reset(seed=1, options={"reset_mask": np.array([True, False, True])})
    assert np.array_equal(after[0, 64:], before[0, 64:]) and np.array_equal(after[1], stayed[1])
    assert infos["chunk"].tolist() == [0, 0, 0] and infos["_chunk"].tolist() == [True, False, True]
    assert envs.step(actions(1)[0])[4]["chunk"].tolist() == [1, 2, 1]
    with pytest.raises(ValueError, match="reset_mask"):
        envs.reset(options={"reset_mask": np.zeros(NUM, np.bool_)})
    with pytest.raises(ValueError, match="2 seeds"):
        envs.reset(seed=[1, 2])
    envs.close()


def test_the_bench_counts_steps_by_its_clock(url: str) -> None:
    ticks = iter([10.0, 14.0])
    assert measure(url, 2, 6, 1, lambda: next(ticks)) == Stepped(2, 3.0, 12.0, 4000 / 6)


def test_the_bench_serves_a_world_and_prints_a_line_of_json(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--world", "pattern", "--environments", "1,2", "--chunks", "3", "--warmup", "1", "--json"]
    assert cli.main(["bench", *options]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [result["environments"] for result in told["results"]] == [1, 2] and told["world"] == "pattern"
    assert all(result["steps_a_second"] > 0 for result in told["results"]) and told["commit"] and told["cpu"]


def test_controls_of_all_go_out_before_anybody_waits(running_server: Any) -> None:
    """So that rows of several share forwards, though each step waits for all."""

    def step(address: str) -> None:
        envs = ManyworldsVectorEnv(address, NUM)
        play(envs, 6)

    async def scene() -> None:
        async with running_server(players=NUM) as app:
            await asyncio.to_thread(step, app.play_url)
            counters = app.door.engine.counters
            assert counters is not None and counters.forwards_of[NUM] > 0 and counters.rows > 1.5 * counters.forwards

    asyncio.run(scene())
