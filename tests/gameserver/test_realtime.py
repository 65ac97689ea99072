"""Protects the promise of real time: what is measured is what a chunk costs, and no more than that holds are let in."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from conftest import RunningServer, open_socket, playing

from gameserver.backpressure import Limits
from gameserver.engine import Engine, Phase
from gameserver.mailbox import Mailbox
from gameserver.realtime import SHARE, RealTime, held, measure
from world.chunk import Geometry, Row
from world.pattern import PatternWorld

CHUNK_S = 0.25  # of the pattern world


class Machine:
    """A world whose forwards take time by a clock of its own."""

    def __init__(self, forward_s: float, row_s: float, num_slots: int = 8, max_rows: int = 8) -> None:
        self.now_s = 0.0
        self.sizes: list[int] = []

        def spend(rows: Sequence[Row]) -> None:
            self.now_s += forward_s + row_s * len(rows)
            self.sizes.append(len(rows))

        self.world = PatternWorld(Geometry(64, 48, 16, 1), num_slots, 4, max_rows, on_step=spend)

    def measured(self) -> RealTime:
        return measure(self.world, lambda: self.now_s, lambda stage, share: None)


def test_a_chunk_is_measured_with_its_commit_up_to_the_first_that_is_too_slow() -> None:
    machine = Machine(0.01, 0.01)  # n players: five forwards of 10 + 10 n ms, and 225 are real time
    real_time = machine.measured()
    assert real_time.chunk_s == CHUNK_S
    assert real_time.costs_s == pytest.approx([0.1, 0.15, 0.2, 0.25])
    assert real_time.players == 3
    assert machine.sizes == [8] * 4 + [n for n in (1, 2, 3, 4) for _ in range(5)]
    assert machine.measured().players == 3, "the slots are free again"
    assert real_time.sentence == (
        "In real time: 3 players (a chunk of 250 ms takes 100 ms for 1, 150 ms for 2, 200 ms for 3, 250 ms for 4)."
    )


def test_more_than_a_forward_holds_take_turns() -> None:
    assert Machine(0.0, 0.01, num_slots=8, max_rows=2).measured().players == int(2 * SHARE * CHUNK_S / 0.1) == 4
    assert Machine(0.0, 0.001, num_slots=8, max_rows=2).measured().players == 8, "no more than there are slots"
    assert held([0.0], 1.0, 1, 5) == 5


def test_a_machine_that_is_too_slow_for_anybody_says_so() -> None:
    machine = Machine(0.1, 0.0)
    assert machine.measured().sentence.startswith("In real time: nobody (a chunk of 250 ms takes 500 ms for 1)")
    engine = Engine(
        lambda report: machine.world, lambda notes: None, Mailbox(1), lambda: machine.now_s, pledge="enforced"
    )
    engine.start()
    engine._thread.join(20)
    assert engine.phase is Phase.FAILED
    assert (engine.failure or "").startswith("this machine is too slow for --realtime-only. In real time: nobody")


@pytest.mark.parametrize("pledge, code", [("enforced", "not_real_time"), ("advised", None)])
def test_one_player_too_many_is_refused_only_where_real_time_is_promised(
    pledge: str, code: str | None, running_server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gameserver.engine.measure", lambda *_: RealTime(0.25, (0.2, 0.4), 1))

    async def scene() -> None:
        relaxed = Limits(late_s=60.0, stall_s=60.0)
        async with running_server(players=3, limits=relaxed, pledge=pledge) as app, playing(app) as first:
            await first.hear_frames(1)
            async with open_socket(app) as second:
                await second.say("hello", version=1)
                answer = await second.hear()
                assert (answer.get("code"), answer.get("fatal")) == (code, code and True)
                if code:
                    assert answer["message"] == "this server holds 1 player in real time: one more would slow all"
            await first.hear_frames(9)

    asyncio.run(scene())


def test_where_slots_are_fewer_than_time_allows_it_is_full(
    running_server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gameserver.engine.measure", lambda *_: RealTime(0.25, (0.01,), 1))

    async def scene() -> None:
        async with running_server(players=1, pledge="enforced") as app, playing(app) as first:
            await first.hear_frames(1)
            async with open_socket(app) as second:
                await second.say("hello", version=1)
                assert (await second.hear())["code"] == "full"

    asyncio.run(scene())
