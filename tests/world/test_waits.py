"""Protects what a tick must not do: read a value from the device in the middle of its work, or compile anything."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import numpy as np
import pytest
import torch

from sessions.control import Control
from sessions.tick import Game
from tests.world.tiny_world import Life, random_world, tiny_config
from world.model import DiffusionWorld
from world.waits import compilations, counting

CPU = torch.device("cpu")
TICKS = 200
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_reads_of_values_are_counted(mode: Callable[[], AbstractContextManager[None]]) -> None:
    t = torch.arange(3.0)
    with counting(CPU) as found, mode():
        t.sum().item()
        assert sum(found.values()) == 1
        bool(t.any())
        assert sum(found.values()) == 2
        t[t > 0]
        assert sum(found.values()) >= 3
        seen = sum(found.values())
        torch.equal(t, t)
        t + t[torch.tensor([0, 1, 2])]
    t.sum().item()  # not any more
    assert sum(found.values()) == seen + 1


@pytest.fixture(params=["warp", "first_frame"])
def world(request: pytest.FixtureRequest) -> DiffusionWorld:
    return random_world(tiny_config(request.param), num_slots=4)


def play(world: DiffusionWorld, ticks: int) -> Iterator[Game]:
    """The game after each tick of players who come, steer, change their prompt and go, also in the middle of a chunk,
    and of one who stays while every window fills and wraps."""
    game, rng, lives = Game(world), np.random.default_rng(7), [Life(i, 1, 1).start(world) for i in range(3)]
    game.join("stays", lives[0], "axes", 0.0)
    for tick in range(ticks):
        now_s = 1000.0 * tick
        guests = [session for session in game.roster if session.id != "stays"]
        if len(guests) < 3 and rng.random() < 0.3:
            game.join(f"guest-{tick}", lives[tick % 3], "axes", now_s)
        elif guests and rng.random() < 0.1:
            game.leave(guests[rng.integers(len(guests))].id)
        for session in game.roster:
            session.steer(Control(tick + 1, 50.0 * tick, (1.0, 0.0, float(rng.uniform(-1, 1)), 0.0)))
        if rng.random() < 0.1:
            game.set_prompt("stays", lives[tick % 3].prompt)
        game.tick(now_s, lambda now_s=now_s: now_s)
        yield game


def test_two_hundred_ticks_read_no_value_and_compile_nothing(world: DiffusionWorld) -> None:
    before = compilations()
    with counting(CPU) as found:
        *_, game = play(world, TICKS)
    assert not found
    assert compilations() == before
    assert game.counters.forwards == TICKS and game.counters.mixed > TICKS // 4
    assert set(game.counters.forwards_of) == {1, 2, 3, 4}
    assert game.roster["stays"].chunk_index > 10 * world.cfg.window_frames  # wraps
    assert len({session.id for session in game.roster}) > 1


@pytest.mark.parametrize("broken", ["step", "begin"])
def test_a_read_in_a_tick_would_be_noticed(world: DiffusionWorld, broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = getattr(world.denoiser, broken)

    def reads(*args: torch.Tensor) -> object:
        bool(args[0].sum() > 0)
        return whole(*args)

    monkeypatch.setattr(world.denoiser, broken, reads)
    with counting(CPU) as found:
        games = list(play(world, 6))
    assert games and found["is_nonzero"] >= 2


def test_a_compilation_is_counted() -> None:
    before = compilations()
    torch.compile(lambda x: x * 3, backend="eager")(torch.ones(2))
    assert compilations() == before + 1
