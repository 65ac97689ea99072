"""Worlds as gymnasium environments: a session in lockstep, an action and an observation a chunk.

    env = gymnasium.make("gameserver.gym:Manyworlds-v0", url="ws://localhost:8000")
    envs = ManyworldsVectorEnv("ws://localhost:8000", num_envs=16)  # all controls out, then all frames in

An action is what a player holds for one chunk: forward, right, turn and pitch in -1..1. These are the protocol's own
axes, so nothing is rounded to keys; `world.motion.key_axes` turns keys into them. Needs the extra `gym`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from gameserver.bot import Bot, Chunk, connect
from gameserver.bot_sync import LoopThread
from gameserver.dial import stream_size

Reward = Callable[[NDArray[np.uint8], NDArray[np.float32]], float]  # (frames [n, H, W, 3], pose [4, 4]) of a chunk
Info = dict[str, Any]
Stepped = tuple[NDArray[np.uint8], float, bool, bool, Info]

MAX_CHUNKS = 240  # a minute of four frames a chunk
MAX_SEED = 2**53 - 1


def no_reward(frames: NDArray[np.uint8], pose: NDArray[np.float32]) -> float:
    return 0.0


class Episodes:
    """One session after another on one server. Belongs to one event loop."""

    def __init__(self, url: str, scene: str | None, prompt: str | None, max_chunks: int, reward: Reward) -> None:
        self._url = url
        self._start = {"scene": scene, "prompt": prompt}
        self._max_chunks = max_chunks
        self._reward = reward
        self._session: Any = None  # the context that ends it
        self._bot: Bot | None = None
        self.frame: NDArray[np.uint8] | None = None  # the last one seen [H, W, 3]

    async def begin(self, seed: int, options: Info) -> tuple[NDArray[np.uint8], Info]:
        """Another session, whose world is a function of seed, scene and prompt. BotError."""
        unknown = options.keys() - self._start.keys()
        if unknown:
            raise ValueError(f"reset takes the options scene and prompt, not {', '.join(sorted(unknown))}")
        await self.end()
        session = connect(self._url, seed=seed, lockstep=True, codecs=("raw",), **self._start | options)
        self._bot = await session.__aenter__()
        self._session = session
        chunk = await self._bot.chunk()
        return self._see(chunk), self._about(chunk)

    async def advance(self, action: NDArray[np.float32]) -> Stepped:
        """One chunk. BotError."""
        if self._bot is None:
            raise gymnasium.error.ResetNeeded("step comes after reset")
        forward, right, turn, pitch = (float(axis) for axis in action)
        chunk = await self._bot.step(forward, right, turn, pitch)
        reward = float(self._reward(chunk.frames, chunk.pose))
        return self._see(chunk), reward, False, chunk.index >= self._max_chunks, self._about(chunk)

    async def end(self) -> None:
        """Leave the server; the seat is free when this returns."""
        session, self._session, self._bot = self._session, None, None
        if session is not None:
            await session.__aexit__(None, None, None)

    @property
    def chunk_frames(self) -> int:
        """Video frames in a chunk after the first."""
        if self._bot is None:
            raise gymnasium.error.ResetNeeded("what a step is shows after reset")
        return self._bot.welcome.chunk_frames

    def _see(self, chunk: Chunk) -> NDArray[np.uint8]:
        self.frame = chunk.views[-1].rgb
        return self.frame.copy()

    def _about(self, chunk: Chunk) -> Info:
        assert self._bot is not None
        return {"pose": chunk.pose.copy(), "chunk": chunk.index, "seed": self._bot.welcome.seed}


def spaces_of(url: str) -> tuple[spaces.Space[Any], spaces.Space[Any]]:
    """(of observations, of actions). BotError if the server does not say its size."""
    width, height = stream_size(url)
    return spaces.Box(0, 255, (height, width, 3), np.uint8), spaces.Box(-1.0, 1.0, (4,), np.float32)


class ManyworldsEnv(gymnasium.Env[NDArray[np.uint8], NDArray[np.float32]]):
    """One world. Truncated after `max_chunks`, never terminated; `reward` sees the frames and the last pose of a chunk.

    Observation: the last frame of the chunk, uint8 [H, W, 3]. Info: its `pose` float32 [4, 4], the `chunk`'s index, the
    session's `seed`. reset: `seed` is the world's; options `scene` and `prompt` go before those given here.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 4}  # noqa: RUF012 - gymnasium's way

    def __init__(
        self, url: str, *, scene: str | None = None, prompt: str | None = None, max_chunks: int = MAX_CHUNKS,
        reward: Reward = no_reward, render_mode: str | None = None,
    ) -> None:  # fmt: skip
        self.render_mode = render_mode
        self.observation_space, self.action_space = spaces_of(url)
        self._episodes = Episodes(url, scene, prompt, max_chunks, reward)
        self._thread = LoopThread()

    def reset(self, *, seed: int | None = None, options: Info | None = None) -> tuple[NDArray[np.uint8], Info]:
        super().reset(seed=seed)
        world = _drawn(self.np_random) if seed is None else seed
        return self._thread.run(self._episodes.begin(world, options or {}))

    def step(self, action: NDArray[np.float32]) -> Stepped:
        _check(self.action_space, action)
        return self._thread.run(self._episodes.advance(action))

    def render(self) -> NDArray[np.uint8] | None:
        if self.render_mode is None or self._episodes.frame is None:
            return None
        return self._episodes.frame.copy()

    def close(self) -> None:
        self._thread.run(self._episodes.end())
        self._thread.close()


class ManyworldsVectorEnv(VectorEnv[NDArray[np.uint8], NDArray[np.float32], NDArray[Any]]):
    """Several worlds on one server: a step sends every control before it waits for any frame, so that they share ticks.

    Where an episode was truncated, the next step begins another one and its action does not count.
    """

    metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP, "render_modes": ["rgb_array"]}  # noqa: RUF012

    def __init__(
        self, url: str, num_envs: int = 1, *, scene: str | None = None, prompt: str | None = None,
        max_chunks: int = MAX_CHUNKS, reward: Reward = no_reward, render_mode: str | None = None,
    ) -> None:  # fmt: skip
        self.num_envs = num_envs
        self.render_mode = render_mode
        self.single_observation_space, self.single_action_space = spaces_of(url)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._episodes = [Episodes(url, scene, prompt, max_chunks, reward) for _ in range(num_envs)]
        self._chances = [seeding.np_random()[0] for _ in range(num_envs)]  # each has its own
        self._over = np.zeros(num_envs, np.bool_)
        self._thread = LoopThread()

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: Info | None = None
    ) -> tuple[NDArray[np.uint8], Info]:
        """Seeds: one for each, or the first of as many in a row. The option `reset_mask` [num_envs] picks some."""
        options = dict(options or {})
        picked = options.pop("reset_mask", None)
        chosen = np.ones(self.num_envs, np.bool_) if picked is None else np.asarray(picked)
        if chosen.shape != (self.num_envs,) or chosen.dtype != np.bool_ or not chosen.any():
            raise ValueError(f"reset_mask is not {self.num_envs} booleans with a True among them")
        seeds = [seed + i for i in range(self.num_envs)] if isinstance(seed, int) else seed or [None] * self.num_envs
        if len(seeds) != self.num_envs:
            raise ValueError(f"{len(seeds)} seeds for {self.num_envs} environments")
        for i, given in enumerate(seeds):
            if given is not None and chosen[i]:
                self._chances[i], _ = seeding.np_random(given)

        async def begin(i: int) -> Stepped:
            return await self._begin(i, seeds[i], options) if chosen[i] else self._last(i)

        observations, _, _, _, infos = self._batch([begin(i) for i in range(self.num_envs)])
        self._over[chosen] = False
        return observations, infos

    def step(
        self, actions: NDArray[np.float32]
    ) -> tuple[NDArray[np.uint8], NDArray[Any], NDArray[Any], NDArray[Any], Info]:
        _check(self.action_space, actions)

        async def advance(i: int) -> Stepped:
            return await (self._begin(i, None, {}) if self._over[i] else self._episodes[i].advance(actions[i]))

        stepped = self._batch([advance(i) for i in range(self.num_envs)])
        self._over = stepped[2] | stepped[3]
        return stepped

    def render(self) -> tuple[NDArray[np.uint8], ...] | None:
        if self.render_mode is None:
            return None
        return tuple(each.frame.copy() for each in self._episodes if each.frame is not None)

    def close_extras(self, **options: Any) -> None:
        async def end() -> None:
            await asyncio.gather(*(each.end() for each in self._episodes))

        self._thread.run(end())
        self._thread.close()

    @property
    def chunk_frames(self) -> int:
        """Video frames in a step."""
        return self._episodes[0].chunk_frames

    async def _begin(self, i: int, seed: int | None, options: Info) -> Stepped:
        world = _drawn(self._chances[i]) if seed is None else seed
        observation, info = await self._episodes[i].begin(world, options)
        return observation, 0.0, False, False, info

    def _last(self, i: int) -> Stepped:
        frame = self._episodes[i].frame
        if frame is None:
            raise gymnasium.error.ResetNeeded(f"environment {i} was never reset")
        return frame.copy(), 0.0, False, False, {}

    def _batch(
        self, work: Sequence[Coroutine[Any, Any, Stepped]]
    ) -> tuple[NDArray[np.uint8], NDArray[Any], NDArray[Any], NDArray[Any], Info]:
        async def together() -> list[Stepped]:
            outcomes = await asyncio.gather(*work, return_exceptions=True)  # nothing goes on behind a failure
            for outcome in outcomes:
                if isinstance(outcome, BaseException):
                    raise outcome
            return [outcome for outcome in outcomes if not isinstance(outcome, BaseException)]

        done = self._thread.run(together())
        observations, rewards, terminated, truncated, infos = zip(*done, strict=True)
        told: Info = {}
        for i, info in enumerate(infos):
            told = self._add_info(told, info, i)
        return np.stack(observations), np.array(rewards), np.array(terminated), np.array(truncated), told


def _drawn(chance: np.random.Generator) -> int:
    return int(chance.integers(MAX_SEED))


def _check(space: spaces.Space[Any], action: Any) -> None:
    if not space.contains(action):
        raise gymnasium.error.InvalidAction(f"{action!r} is not in {space}")


gymnasium.register(
    "Manyworlds-v0",
    entry_point="gameserver.gym:ManyworldsEnv",
    vector_entry_point="gameserver.gym:ManyworldsVectorEnv",
)
