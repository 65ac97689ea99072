"""Protects the engine thread: it plays by the clock, tells what it does, and ends with a sentence instead of a mess."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import pytest

from gameserver.engine import STUCK_S, Engine, Phase
from gameserver.mailbox import Extend, Join, Leave, Mailbox, Presence, PromptChange, Steer
from gameserver.notes import Ended, Frames, Joined, Note, Refused
from sessions.control import Control
from world.chunk import Report, Row, Start, World, WorldError
from world.pattern import PatternWorld

WAIT_S = 20.0


class Clock:
    """Runs by itself while nobody looks, and can be turned."""

    def __init__(self) -> None:
        self.offset_s = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self.offset_s


class Desk:
    """Where notes arrive."""

    def __init__(self) -> None:
        self.notes: queue.Queue[Note | None] = queue.Queue()

    def deliver(self, notes: Sequence[Note]) -> None:
        for note in notes or [None]:
            self.notes.put(note)

    def next(self, kind: type[Note]) -> Note:
        while not isinstance(note := self.notes.get(timeout=WAIT_S), kind):
            pass
        return note


@contextmanager
def running_engine(world: World, clock: Clock | None = None) -> Iterator[tuple[Engine, Desk]]:
    desk = Desk()
    engine = Engine(lambda report: world, desk.deliver, Mailbox(8), clock or Clock())
    engine.start()
    try:
        yield engine, desk
    finally:
        assert engine.stop(WAIT_S)


def start(world: World, seed: int = 1) -> Start:
    scene = world.scenes[0]
    return Start(seed, world.encode_prompt("rain"), world.prepare_image(scene.image), scene.intrinsics, 0.2)


def test_letters_become_notes_and_chunks() -> None:
    world = PatternWorld()
    with running_engine(world) as (engine, desk):
        engine.mailbox.put(Join("a", start(world), "axes"))
        assert desk.next(Joined) == Joined("a")
        engine.mailbox.put(Steer("a", Control(7, 1.0, (1.0, 0.0, 0.0, 0.0))))
        engine.mailbox.put(PromptChange("a", world.encode_prompt("snow")))
        chunks = [desk.next(Frames) for _ in range(4)]
        assert [note.chunk.chunk_index for note in chunks if isinstance(note, Frames)] == [0, 1, 2, 3]
        assert chunks[-1].chunk.control_seq == 7  # type: ignore[attr-defined]
        assert [note.chunk.prompt.text for note in chunks if note.chunk.prompt] == ["snow"]  # type: ignore[attr-defined]
        assert engine.phase is Phase.READY and engine.ticks >= 4 * 4 and engine.loops >= engine.ticks
    assert engine.phase is Phase.STOPPED and engine.unhealthy(0.0) is not None


def test_what_the_game_refuses_goes_back_to_its_sender_only() -> None:
    world = PatternWorld(num_slots=2)
    with running_engine(world) as (engine, desk):
        for name in "abc":
            engine.mailbox.put(Join(name, start(world), "poses" if name == "b" else "axes"))
        full = desk.next(Refused)
        assert isinstance(full, Refused) and (full.session_id, full.code) == ("c", "full")
        engine.mailbox.put(Extend("b", 1, np.tile(np.eye(4, dtype=np.float32), (1000, 1, 1))))
        engine.mailbox.put(Extend("b", 2, np.tile(np.eye(4, dtype=np.float32), (200, 1, 1))))
        over = desk.next(Refused)
        assert isinstance(over, Refused) and (over.session_id, over.code) == ("b", "pose_queue_full")
        engine.mailbox.put(Steer("b", Control(3, 0.0, (1.0, 0.0, 0.0, 0.0))))
        wrong = desk.next(Refused)
        assert isinstance(wrong, Refused) and (wrong.session_id, wrong.code) == ("b", "out_of_order")
        engine.mailbox.put(Leave("nobody"))
        engine.mailbox.put(Presence("nobody", False))
        assert desk.next(Frames)  # and it still plays


def test_a_fault_in_a_step_ends_everybody_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    def fault(rows: Sequence[Row]) -> None:
        raise RuntimeError("out of memory")

    world = PatternWorld(on_step=fault)
    with running_engine(world) as (engine, desk):
        engine.mailbox.put(Join("a", start(world), "axes"))
        assert desk.next(Ended) == Ended()
        assert engine.phase is Phase.FAILED
        assert engine.unhealthy(0.0) == "RuntimeError: out of memory"
    assert [record.getMessage() for record in caplog.records] == ["the engine failed"]


def test_a_world_that_is_gone_is_missed_between_ticks(caplog: pytest.LogCaptureFixture) -> None:
    """Nobody plays, so no step would find out."""

    class Gone(PatternWorld):
        def check(self) -> None:
            raise WorldError("rank 1 of 2 is gone")

    with running_engine(Gone()) as (engine, desk):
        assert desk.next(Ended) == Ended()
        assert engine.phase is Phase.FAILED and engine.failure == "rank 1 of 2 is gone" and not caplog.records


def test_a_world_that_cannot_be_loaded_is_one_sentence(caplog: pytest.LogCaptureFixture) -> None:
    def load(report: Report) -> World:
        raise WorldError("model.safetensors lacks the key head.head.weight")

    desk = Desk()
    engine = Engine(load, desk.deliver, Mailbox(1))
    engine.start()
    desk.next(Ended)
    assert engine.failure == "model.safetensors lacks the key head.head.weight"
    assert engine.stop(WAIT_S) and not caplog.records


def test_a_stuck_step_shows_and_passes() -> None:
    entered, release, clock = threading.Event(), threading.Event(), Clock()

    def block(rows: Sequence[Row]) -> None:
        entered.set()
        release.wait(WAIT_S)

    world = PatternWorld(on_step=block)
    with running_engine(world, clock) as (engine, desk):
        engine.mailbox.put(Join("a", start(world), "axes"))
        assert entered.wait(WAIT_S)
        assert engine.unhealthy(engine.now_s()) is None
        clock.offset_s = STUCK_S + 5
        assert "stuck" in (engine.unhealthy(engine.now_s()) or "")
        release.set()
        desk.next(Frames)
        assert engine.unhealthy(engine.now_s()) is None


def test_progress_is_told_and_loading_can_be_stopped() -> None:
    waiting, told = threading.Event(), []

    def load(report: Report) -> World:
        report("weights", 0.5)
        told.append(engine.progress)
        waiting.set()
        while True:
            report("weights", 0.6)

    engine = Engine(load, Desk().deliver, Mailbox(1))
    engine.start()
    assert waiting.wait(WAIT_S)
    assert engine.phase is Phase.LOADING and (told[0].stage, told[0].share) == ("weights", 0.5)
    assert engine.stop(WAIT_S)
    assert engine.phase is Phase.STOPPED
