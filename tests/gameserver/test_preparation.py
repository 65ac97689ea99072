"""Where a hello starts: in a scene as it is, in a place drawn for it, or in the picture it brings; one at a time."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from gameserver.encoder import encode_still
from gameserver.preparation import KEPT, Preparation
from gameserver.protocol import Hello, ProtocolError
from world.chunk import Scene
from world.pattern import PatternWorld

SEED = 7
PICTURE = encode_still(np.full((64, 112, 3), 90, np.uint8))


class DrawingWorld(PatternWorld):
    """Test pictures that also come from a prompt and a seed: of one colour, the seed's."""

    def __init__(self, on_draw: Callable[[], None] = lambda: None) -> None:
        super().__init__()
        self.drawn: list[tuple[str, int]] = []
        self._on_draw = on_draw

    def draw_start(self, prompt: str, seed: int) -> Scene:  # type: ignore[override]
        self.drawn.append((prompt, seed))
        self._on_draw()
        image = np.full((128, 224, 3), seed % 256, np.uint8)
        return Scene("", "", prompt or f"the words of {seed}", image, self.scenes[0].intrinsics)


def run(world: PatternWorld, work: Callable[[Preparation], Coroutine[Any, Any, Any]]) -> Any:
    with ThreadPoolExecutor(2) as pool:

        async def both() -> Any:
            async with asyncio.timeout(20):
                return await work(Preparation(world, pool))

        return asyncio.run(both())


async def place(preparation: Preparation, session_seed: int = SEED, **hello: Any) -> Scene:
    return await preparation.place(Hello(version=1, **hello), hello.get("prompt") or "", session_seed)


@pytest.mark.parametrize(
    "hello, drawn",
    [
        ({}, None),
        ({"scene": "east"}, None),
        ({"scene": "east", "seed": SEED}, None),
        ({"scene": "east", "prompt": "A test pattern looking east."}, None),
        ({"scene": "east", "prompt": "snow"}, "snow"),
        ({"prompt": "snow"}, "snow"),
        ({"prompt": "A test pattern looking north."}, "A test pattern looking north."),
        ({"seed": SEED}, ""),
    ],
)
def test_a_place_is_drawn_for_who_asks_for_one(hello: dict[str, Any], drawn: str | None) -> None:
    world = DrawingWorld()
    scene = run(world, lambda preparation: place(preparation, **hello))
    if drawn is None:
        assert world.drawn == [] and scene.id == hello.get("scene", "north")
    else:
        assert world.drawn == [(drawn, SEED)] and scene.prompt == (drawn or "the words of 7")
    plain = run(PatternWorld(), lambda preparation: place(preparation, **hello))
    assert plain.id == hello.get("scene", "north"), "a world that does not draw starts from what it has"


def test_the_same_place_is_drawn_and_prepared_once_and_few_are_kept() -> None:
    world = DrawingWorld()
    prepared: list[Any] = []
    world.prepare_image = lambda image: prepared.append(image) or len(prepared)  # type: ignore[method-assign]

    async def work(preparation: Preparation) -> None:
        async def start(seed: int) -> Any:
            hello = Hello(version=1, seed=seed)
            scene = await preparation.place(hello, "", seed)
            return await preparation.start(hello, scene, world.encode_prompt(scene.prompt), seed)

        first, again = await start(1), await start(1)
        assert (first.seed, first.image) == (again.seed, again.image) == (1, 1)
        np.testing.assert_array_equal(prepared[0], 1)
        for seed in range(2, KEPT + 4):
            assert (await start(seed)).image == seed
        assert len(preparation._made) == KEPT
        await start(1)

    run(world, work)
    assert world.drawn == [("", seed) for seed in [*range(1, KEPT + 4), 1]]


def test_a_place_that_many_ask_for_at_once_is_drawn_once() -> None:
    world = DrawingWorld()

    async def work(preparation: Preparation) -> None:
        hellos = [Hello(version=1, seed=seed) for seed in (1, 2, 2, 2)]
        places = await asyncio.gather(*(preparation.place(hello, "", hello.seed or 0) for hello in hellos))
        assert places[1] is places[2] is places[3]

    run(world, work)
    assert sorted(world.drawn) == [("", 1), ("", 2)]


@pytest.mark.parametrize("kind", ["prompt", "image"])
def test_heavy_work_is_done_alone_also_when_its_asker_has_left_and_leaves_a_thread_to_prompts(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    began, go = threading.Semaphore(0), threading.Semaphore(0)
    under_way: list[int] = []
    at_once: list[int] = []

    def work_hard() -> None:
        under_way.append(1)
        at_once.append(len(under_way))
        began.release()
        assert go.acquire(timeout=20)
        under_way.pop()

    def read(*arguments: Any) -> NDArray[np.uint8]:
        work_hard()
        return np.zeros((128, 224, 3), np.uint8)

    monkeypatch.setattr("gameserver.preparation.read_image", read)
    world = DrawingWorld(work_hard)

    async def work(preparation: Preparation) -> None:
        hello = {"prompt": "a"} if kind == "prompt" else {"image": PICTURE}
        first = asyncio.create_task(place(preparation, 1, **hello))
        await asyncio.to_thread(began.acquire)
        others = [asyncio.create_task(place(preparation, seed, **hello)) for seed in (2, 3)]
        await asyncio.sleep(0)  # they wait for their turn
        first.cancel()
        others[0].cancel()
        await asyncio.wait([first, others[0]])
        assert (await preparation.prompt("rain")).text == "rain"
        assert len(at_once) == 1 and not others[1].done()
        go.release(2)
        await others[1]

    run(world, work)
    assert at_once == [1, 1], "who left before its turn costs nothing"


def test_a_picture_that_is_brought_is_a_place_without_words() -> None:
    world = DrawingWorld()
    scene = run(world, lambda preparation: place(preparation, image=PICTURE, seed=3, scene="east"))
    assert (scene.id, scene.prompt, scene.image.shape) == ("", "", (128, 224, 3)) and world.drawn == []
    assert abs(scene.image.mean() - 90) < 2
    np.testing.assert_array_equal(scene.intrinsics, world.scenes[1].intrinsics)
    worded = run(world, lambda preparation: place(preparation, image=PICTURE, prompt="fog"))
    assert worded.prompt == "fog"


def test_a_bad_picture_is_an_error_and_the_next_one_is_read() -> None:
    async def work(preparation: Preparation) -> None:
        for _ in range(3):
            with pytest.raises(ProtocolError) as caught:
                await place(preparation, image=PICTURE[:-200])
            assert caught.value.code == "bad_image"
        assert (await place(preparation, image=PICTURE)).image.shape == (128, 224, 3)
        assert not preparation._made, "nobody else starts there"

    run(DrawingWorld(), work)


def test_a_scene_that_is_not_there_is_an_error() -> None:
    with pytest.raises(ProtocolError) as caught:
        run(PatternWorld(), lambda preparation: place(preparation, scene="atlantis"))
    assert caught.value.code == "unknown_scene"
