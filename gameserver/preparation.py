"""What a session needs before it can begin, made outside the tick: prompts, start pictures, places nobody saw yet."""

from __future__ import annotations

import asyncio
import math
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Executor
from functools import partial
from typing import Any, cast

import numpy as np

from gameserver.protocol import Hello, ProtocolError
from gameserver.upload import read_image
from world.chunk import Prompt, Scene, Start, World, WorldError

KEPT = 64  # prompts, places and pictures; the longest unused goes first


class Preparation:
    """Bounded caches in front of a world's thread-safe verbs. Belongs to the event loop."""

    def __init__(self, world: World, pool: Executor) -> None:
        self._world = world
        self._pool = pool
        self._scenes = {scene.id: scene for scene in world.scenes}
        self._made: OrderedDict[Hashable, asyncio.Future[Any]] = OrderedDict()
        self._turn = asyncio.Semaphore(1)  # drawing and decoding: one at a time leaves a thread to the rest

    def scene(self, scene_id: str | None) -> Scene:
        """ProtocolError `unknown_scene`."""
        if scene_id is None:
            return self._world.scenes[0]
        if scene_id not in self._scenes:
            raise ProtocolError("unknown_scene", f"no scene is called {scene_id!r}")
        return self._scenes[scene_id]

    async def place(self, hello: Hello, words: str, seed: int) -> Scene:
        """Where a hello starts, `words` being its prompt or nothing: in the picture it brings, in a scene as it is, or
        in a place drawn from words and seed where the world can draw. ProtocolError `unknown_scene`, `bad_image`."""
        scene, geometry = self.scene(hello.scene), self._world.geometry
        if hello.image is not None:
            read = partial(read_image, hello.image, geometry.width, geometry.height)
            image = await asyncio.shield(await self._begin_alone(read))
            return Scene("", "", words, image, scene.intrinsics_in(geometry), scene.scale)
        own = hello.scene is None and bool(words or hello.seed is not None)
        draw = self._world.draw_start
        if draw is None or not (own or words not in ("", scene.prompt)):
            return scene
        return cast(Scene, await self._once(("place", words, seed), partial(draw, words, seed), alone=True))

    async def prompt(self, text: str) -> Prompt:
        """ProtocolError `bad_prompt`."""
        try:
            return cast(Prompt, await self._once(("prompt", text), lambda: self._world.encode_prompt(text)))
        except (WorldError, ValueError) as fault:
            raise ProtocolError("bad_prompt", str(fault)) from None

    async def start(self, hello: Hello, scene: Scene, prompt: Prompt, seed: int) -> Start:
        """ProtocolError `bad_message` for a camera that cannot be."""
        geometry = self._world.geometry
        intrinsics = scene.intrinsics_in(geometry) if hello.intrinsics is None else hello.intrinsics
        scale = scene.scale if hello.scale is None else hello.scale
        if not all(map(math.isfinite, (*intrinsics, scale))) or min(*intrinsics[:2], scale) <= 0:
            raise ProtocolError("bad_message", "intrinsics and scale must be finite, focal lengths and scale positive")
        prepare = partial(self._world.prepare_image, scene.image)
        if hello.image is None:
            image = await self._once(("image", scene), prepare)
        else:  # nobody else starts there
            image = await asyncio.shield(await self._begin_alone(prepare))
        return Start(seed, prompt, image, np.array(intrinsics, np.float32), scale)

    async def _once(self, key: Hashable, make: Callable[[], Any], alone: bool = False) -> Any:
        """Made in the pool, once for everybody who waits; a failure is not kept."""
        future = self._kept(key)
        if future is None and alone:
            await self._turn.acquire()
            future = self._kept(key)  # somebody may have made it meanwhile
            if future is None:
                future = self._made[key] = self._begin_turn(make)
            else:
                self._turn.release()
        elif future is None:
            future = self._made[key] = self._begin(make)
        self._made.move_to_end(key)
        if len(self._made) > KEPT:
            self._made.popitem(last=False)
        return await asyncio.shield(future)

    def _kept(self, key: Hashable) -> asyncio.Future[Any] | None:
        future = self._made.get(key)
        failed = future is not None and future.done() and (future.cancelled() or future.exception() is not None)
        return None if failed else future

    async def _begin_alone(self, make: Callable[[], Any]) -> asyncio.Future[Any]:
        """Begins when nothing else that was begun this way runs, whether or not its asker still waits for that."""
        await self._turn.acquire()
        return self._begin_turn(make)

    def _begin_turn(self, make: Callable[[], Any]) -> asyncio.Future[Any]:
        future = self._begin(make)
        future.add_done_callback(lambda _: self._turn.release())
        return future

    def _begin(self, make: Callable[[], Any]) -> asyncio.Future[Any]:
        return asyncio.get_running_loop().run_in_executor(self._pool, make)
