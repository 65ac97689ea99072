"""Protects players from each other: four of them share forwards at different places of different worlds, get the same
pace, and what one sees does not depend on who else is there. The world is a tiny checkpoint, in the dtype served."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest
from conftest import RunningServer, get
from numpy.typing import NDArray

from gameserver.backpressure import Limits
from gameserver.bot_plan import BotPlan
from gameserver.encoder import VideoFrame
from gameserver.player import BotReport, play
from gameserver.view import Packet
from sessions.control import Control
from sessions.tick import Finished, Game, RowMark
from tests.tiny_checkpoints import Tiny, write
from world.chunk import Picture, Row, usual_start
from world.loader import load_world
from world.model import DiffusionWorld
from world.motion import keyboard_poses

CHUNKS = 12  # of the one who stays: the window of five frames wraps twice
WALK = keyboard_poses(f"w-9,wl-7,wj-8,wi-5,l-6,wd-{4 * CHUNKS - 38}")
RELAXED = Limits(late_s=60.0, stall_s=60.0)  # a busy machine must not look like a slow link


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DiffusionWorld]:
    """Four slots; a new game of each test opens them anew."""
    directory = write(
        tmp_path_factory.mktemp("tiny"), Tiny("v2-14b"), chunk_frames=1, window_frames=5, sink_frames=1, fps=32
    )
    loaded = load_world(str(directory), 4, lambda stage, share: None)
    assert isinstance(loaded, DiffusionWorld)
    yield loaded


@dataclass
class Play:
    """A game on a clock that moves while a forward runs, or to the next one that is due."""

    world: DiffusionWorld
    forward_s: float = 0.01
    now_s: float = 50.0
    finished: dict[str, list[tuple[Finished, NDArray[np.float32]]]] = field(default_factory=lambda: defaultdict(list))

    def __post_init__(self) -> None:
        self.game = Game(self.world)

    def join(self, number: int, walk: bool = False) -> str:
        """A player with a scene, a seed and a prompt of their own."""
        name = f"player {number}"
        scene = self.world.scenes[number % len(self.world.scenes)]
        start = usual_start(self.world, 100 + number, scene)
        self.game.join(name, start, "poses" if walk else "axes", self.now_s)
        if walk:
            self.game.extend(name, 1, WALK)
        else:
            self.game.steer(name, Control(1, self.now_s * 1000, (1.0, 0.0, number / 4 - 0.5, 0.0)))
        return name

    def tick(self) -> None:
        due_s = self.game.due_s(self.now_s)
        assert due_s is not None
        self.now_s = max(self.now_s, due_s)
        for chunk in self.game.tick(self.now_s, self._spend).finished:
            latents = self.world.slab.x[chunk.picture.slot].numpy().copy()
            self.finished[chunk.session_id].append((chunk, latents))

    def _spend(self) -> float:
        self.now_s += self.forward_s
        return self.now_s

    def tick_until(self, name: str, chunks: int) -> None:
        while len(self.finished[name]) < chunks:
            self.tick()

    def end(self) -> None:
        for session in list(self.game.roster):
            self.game.leave(session.id)


def test_three_who_come_and_go_change_nothing_for_the_fourth(world: DiffusionWorld) -> None:
    def stay(company: bool) -> list[tuple[Finished, NDArray[np.float32]]]:
        play = Play(world)
        if company:
            visitors = [play.join(1)]
            play.tick_until(visitors[0], 2)
            play.tick()
            visitors.append(play.join(2))  # and so begins its chunks together with the fourth
        name = play.join(0, walk=True)
        for chunks in range(1, CHUNKS + 1):
            if company and chunks == 3:
                visitors.append(play.join(3))
            for other in visitors if company else ():
                play.game.set_prompt(other, world.encode_prompt(f"the snow {chunks}"))
            if company and chunks in (6, 7, 9):  # in the middle of whatever they are at
                play.tick()
                play.game.leave(visitors.pop(0))
            if chunks == 5:
                play.game.set_prompt(name, world.encode_prompt("the forest at night"))
            play.tick_until(name, chunks)
        rows = play.game.counters.forwards_of
        assert max(rows) == (4 if company else 1) and rows[1] > 0
        assert (play.game.counters.mixed > 0) is company
        play.end()
        return play.finished[name]

    alone, together = stay(company=False), stay(company=True)
    assert alone[0][0].picture.slot != together[0][0].picture.slot
    for (one, x), (other, y) in zip(alone, together, strict=True):
        assert one.chunk_index == other.chunk_index and (one.prompt is None) == (other.prompt is None)
        assert np.array_equal(one.poses, other.poses)
        assert np.array_equal(x, y), f"latents of chunk {one.chunk_index}"
        assert np.array_equal(one.picture.frames, other.picture.frames), f"pictures of chunk {one.chunk_index}"
    assert len({x.tobytes() for _, x in alone}) == CHUNKS


@pytest.mark.parametrize("forward_s", [0.004, 0.05], ids=["in time", "overloaded"])
def test_everybody_gets_the_same_pace(world: DiffusionWorld, forward_s: float) -> None:
    play = Play(world, forward_s)
    names = []
    for number in range(4):  # each comes when the one before is in the middle of something
        names.append(play.join(number))
        play.tick_until(names[0], 1 + 2 * number)
        for _ in range(number):
            play.tick()
    since_s, before = play.now_s, {name: len(play.finished[name]) for name in names}
    play.tick_until(names[0], len(play.finished[names[0]]) + 20)
    seconds = play.now_s - since_s
    rates = {name: 4 * (len(play.finished[name]) - before[name]) / seconds for name in names}
    assert min(rates.values()) >= 0.9 * max(rates.values()), rates
    wanted = world.geometry.fps
    assert max(rates.values()) < 0.9 * wanted if forward_s == 0.05 else min(rates.values()) > 0.9 * wanted
    late = play.game.counters.late_chunks
    assert late > 20 if forward_s == 0.05 else late == 0
    play.end()


def test_four_bots_on_the_server_are_in_one_forward_at_different_places(
    world: DiffusionWorld, running_server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = world.step

    def work(rows: Sequence[Row]) -> list[Picture]:
        time.sleep(0.015)  # of a model that is not tiny: four players one by one would need more than a chunk lasts
        return step(rows)

    monkeypatch.setattr(world, "step", work)

    async def scene() -> None:
        async with running_server(world, limits=RELAXED) as app:
            going = asyncio.Condition()
            frames = [0] * 4

            async def bot(number: int) -> BotReport:
                def see(packet: Packet, picture: VideoFrame) -> None:
                    frames[number] += 1
                    asyncio.get_running_loop().create_task(tell())

                async def tell() -> None:
                    async with going:
                        going.notify_all()

                return await play(app.play_url, BotPlan(poses=WALK, seed=number), see)

            bots = []
            for number in range(4):
                bots.append(asyncio.create_task(bot(number)))
                async with asyncio.timeout(20), going:  # each comes when the one before has played two chunks
                    await going.wait_for(lambda n=number: frames[n] > 5)
            reports = await asyncio.gather(*bots)
            assert all(report.decode_errors == 0 and report.frames >= len(WALK) for report in reports)
            counters = app.door.engine.counters
            assert counters is not None
            assert any(all_apart(rows) for rows in counters.recent), "no forward of players at different places"
            _, _, body = await get(app, "/metrics")
            told = dict(line.rsplit(" ", 1) for line in body.decode().splitlines() if not line.startswith("#"))
            (mixed,) = [float(value) for name, value in told.items() if name.endswith("forwards_mixed_total")]
            assert mixed == counters.mixed > 0

    asyncio.run(scene())


def all_apart(rows: tuple[RowMark, ...]) -> bool:
    """Different players, and among them different chunks and different steps."""
    slots, chunks, steps = ({getattr(row, name) for row in rows} for name in ("slot", "chunk_index", "step_index"))
    return len(slots) == len(rows) >= 3 and len(chunks) > 1 and len(steps) > 1
