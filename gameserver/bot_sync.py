"""The verbs of `gameserver.bot` without `await`: they run on a thread of their own, also where a loop runs already.

with connect("ws://localhost:8000", seed=7) as bot:
    bot.steer(forward=1.0)
    for view in bot: ...
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from gameserver import bot
from gameserver.bot import Bot, Chunk, View
from gameserver.protocol import Welcome

T = TypeVar("T")


class LoopThread:
    """An event loop that starts with the first thing it is to run: until then there is no thread for a fork to lose."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Its result, or what it raises. Interrupted, it is cancelled."""
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            self._thread = threading.Thread(target=self._loop.run_forever, name="bot", daemon=True)
            self._thread.start()
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def close(self) -> None:
        if self._loop is not None and self._thread is not None:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()
            self._loop = self._thread = None


@contextmanager
def connect(url: str, **hello: Any) -> Iterator[SyncBot]:
    """As `gameserver.bot.connect`."""
    thread = LoopThread()
    session = bot.connect(url, **hello)
    try:
        playing = thread.run(session.__aenter__())
        try:
            yield SyncBot(playing, thread)
        finally:
            thread.run(session.__aexit__(None, None, None))
    finally:
        thread.close()


class SyncBot:
    """`Bot`, verb by verb."""

    def __init__(self, playing: Bot, thread: LoopThread) -> None:
        self.bot = playing
        self._run = thread.run

    @property
    def welcome(self) -> Welcome:
        return self.bot.welcome

    def steer(
        self, forward: float = 0.0, right: float = 0.0, turn: float = 0.0, pitch: float = 0.0,
        look: tuple[float, float] = (0.0, 0.0),
    ) -> int:  # fmt: skip
        return self._run(self.bot.steer(forward, right, turn, pitch, look))

    def follow(self, poses: NDArray[np.floating]) -> int:
        return self._run(self.bot.follow(poses))

    def prompt(self, text: str) -> None:
        self._run(self.bot.prompt(text))

    def save(self) -> str:
        return self._run(self.bot.save())

    def load(self, save: str) -> int:
        return self._run(self.bot.load(save))

    def view(self) -> View:
        return self._run(self.bot.view())

    def chunk(self) -> Chunk:
        return self._run(self.bot.chunk())

    def step(
        self, forward: float = 0.0, right: float = 0.0, turn: float = 0.0, pitch: float = 0.0,
        look: tuple[float, float] = (0.0, 0.0),
    ) -> Chunk:  # fmt: skip
        return self._run(self.bot.step(forward, right, turn, pitch, look))

    def __iter__(self) -> Iterator[View]:
        while True:
            yield self.view()

    def chunks(self) -> Iterator[Chunk]:
        while True:
            yield self.chunk()

    def bye(self) -> None:
        self._run(self.bot.bye())
