"""Protects the comparison with the published code: its variants do other work, make the same bits, leave no trace."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from sessions.tick import Game
from tests.world.tiny_world import tiny_config
from world.ablation import VARIANTS, SlicedRing
from world.chunk import Start
from world.instrument import CHANGES, Instrument
from world.model import DiffusionWorld
from world.slab import RingView
from world.waits import counting

CPU = torch.device("cpu")
CFG = tiny_config("first_frame", chunk_frames=2, window_frames=7, sink_frames=3)  # chunks lie across the ring's ends
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def instrument() -> Instrument:
    return Instrument(CFG, lambda: 0.0, lambda stage, share: None, CPU)


def digests(world: DiffusionWorld, ticks: int = 24) -> list[bytes]:
    """Of what two players see, one of whom comes while the other is in the middle of a chunk."""
    scene, game, made = world.scenes[0], Game(world), []
    prompt, image = world.encode_prompt(scene.prompt), world.prepare_image(scene.image)
    for tick in range(ticks):
        if tick < 2:
            game.join(str(tick), Start(tick, prompt, image, scene.intrinsics, scene.scale), "axes", 0.0)
        made += [chunk.picture.digest for chunk in game.tick(1000.0 * tick, lambda: 0.0).finished]
    for session_id in "01":
        game.leave(session_id)
    return made


@pytest.mark.parametrize("change", CHANGES)
def test_a_variant_makes_the_same_bits_and_leaves_no_trace(instrument: Instrument, change: str) -> None:
    world = instrument.world(2)
    served = digests(world)
    before = [set(vars(owner)) for owner in (world, world.denoiser, world.slab)]
    with instrument.without(change, world):
        assert [set(vars(owner)) for owner in (world, world.denoiser, world.slab)] != before
        assert digests(world) == served
    assert [set(vars(owner)) for owner in (world, world.denoiser, world.slab)] == before
    assert len(served) == 16


def calls(monkeypatch: pytest.MonkeyPatch, owner: type, name: str) -> Callable[[], int]:
    counted = [0]
    method = getattr(owner, name)

    def counting_method(*args: object) -> object:
        counted[0] += 1
        return method(*args)

    monkeypatch.setattr(owner, name, counting_method)
    return lambda: counted[0]


def test_each_variant_does_what_it_says(instrument: Instrument, monkeypatch: pytest.MonkeyPatch) -> None:
    world = instrument.world(2)
    texts = calls(monkeypatch, type(world.denoiser), "set_text")
    encoded = calls(monkeypatch, type(instrument.text), "encode")
    sliced = calls(monkeypatch, SlicedRing, "attend")
    indexed = calls(monkeypatch, RingView, "attend")
    ticks, rows, layers = 24, 24 + 23, CFG.dit.num_layers
    digests(world, ticks)
    assert (texts(), encoded(), sliced(), indexed()) == (2, 1, 0, ticks * layers)  # a prompt is encoded once
    with VARIANTS["prompt cache"](world):
        digests(world, ticks)
    assert (texts(), encoded()) == (2 + 2 + rows, 1 + 16)
    with VARIANTS["KV write"](world):
        digests(world, ticks)
    assert (sliced(), indexed()) == (ticks * layers, 2 * ticks * layers)
    with counting(CPU) as waits, VARIANTS["sync points"](world):
        digests(world, ticks)
    assert sum(waits.values()) == ticks
