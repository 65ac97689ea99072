"""What each change against the published inference code is worth here: every row is measured with it and without.

Off and on take turns wherever they can, so that a machine that slows down slows both. The device is waited for after
every chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass

from gameserver.bench_stages import Crowd, middle
from world.chunk import WeightLayout
from world.instrument import DoesNotFit, Instrument

Tell = Callable[[str], None]

NEEDS_RANKS = "needs ranks: --ranks 2"
CPU_RANKS = "not measured: several ranks compute on the CPU only"
STARTS = 3  # of the rows that are about first chunks
WORDS = {  # change -> (off, on)
    "prewarm": ("first chunk of a process", "first chunk after prewarm"),
    "persistent world": ("weights and slab made anew for a start", "a slot of the world that is there"),
    "prompt cache": ("prompt encoded a chunk, its K and V made a forward", "both once a prompt"),
    "sync points": ("the host reads a value of each forward", "it reads none"),
    "KV write": ("slices, row by row", "one indexed copy"),
    "resharding": ("weights gathered for each forward and given back", "gathered once and kept"),
    "batch of two": ("two players one after another", "both in one forward"),
}


@dataclass(frozen=True, slots=True)
class Ablated:
    """A chunk's milliseconds without a change (off) and with it. `missing`: why there are none."""

    change: str
    off: str
    on: str
    off_ms: float | None = None  # median
    off_ms_p95: float | None = None
    off_times: int = 0
    on_ms: float | None = None
    on_ms_p95: float | None = None
    on_times: int = 0
    ratio: float | None = None  # off over on
    missing: str | None = None


def measure(instrument: Instrument, num_chunks: int, num_ranks: int, tell: Tell) -> Iterator[Ablated]:
    """One row after another. The first is the first thing that this process does on the device."""
    for change, work in (
        ("prewarm", lambda: _prewarm(instrument)),
        ("persistent world", lambda: _persistent(instrument)),
        ("prompt cache", lambda: _in_turn(instrument, "prompt cache", num_chunks)),
        ("sync points", lambda: _in_turn(instrument, "sync points", num_chunks)),
        ("KV write", lambda: _in_turn(instrument, "KV write", num_chunks)),
        ("resharding", lambda: _resharding(instrument, num_chunks, num_ranks)),
        ("batch of two", lambda: _batch(instrument, num_chunks)),
    ):
        tell(f"{change}: measuring")
        off, on = WORDS[change]
        if change == "resharding" and (num_ranks < 2 or instrument.device.type != "cpu"):
            yield Ablated(change, off, on, missing=NEEDS_RANKS if num_ranks < 2 else CPU_RANKS)
            continue
        try:
            instrument.free()
            off_ms, on_ms = instrument.attempt(work)
        except DoesNotFit as fault:
            yield Ablated(change, off, on, missing=str(fault))
            continue
        a, b = middle(off_ms), middle(on_ms)
        yield Ablated(change, off, on, *a, len(off_ms), *b, len(on_ms), a[0] / b[0])


Times = tuple[list[float], list[float]]  # milliseconds off, and on


def _timed(instrument: Instrument, work: Callable[[], object]) -> float:
    instrument.watch.wait()
    began_s = instrument.clock()
    work()
    instrument.watch.wait()
    return 1000 * (instrument.clock() - began_s)


def _first_chunk(crowd: Crowd) -> None:
    """Of a player who comes, alone, and goes again."""
    crowd.join(0)
    crowd.chunk()
    crowd.leave(0)


def _prewarm(instrument: Instrument) -> Times:
    """A process begins once: there is one such time. Of both the start picture is prepared before."""
    world = instrument.world(1)
    crowd = Crowd(world, instrument.clock)
    cold = _timed(instrument, lambda: _first_chunk(crowd))
    world.prewarm(lambda stage, share: None)
    return [cold], [_timed(instrument, lambda: _first_chunk(crowd)) for _ in range(STARTS)]


def _persistent(instrument: Instrument) -> Times:
    """Of both the start picture is prepared within the time. Random weights are made on the device, quicker than a disk
    could bring them: off is the least it would cost."""

    def anew() -> None:
        instrument.remake()
        _first_chunk(Crowd(instrument.world(1), instrument.clock))

    off = [_timed(instrument, anew) for _ in range(STARTS)]
    world = instrument.world(1)
    return off, [_timed(instrument, lambda: _first_chunk(Crowd(world, instrument.clock))) for _ in range(STARTS)]


def _in_turn(instrument: Instrument, change: str, num_chunks: int) -> Times:
    """One player of a full window."""
    world = instrument.world(1)
    crowd = Crowd(world, instrument.clock)
    crowd.join(0)
    for _ in range(instrument.chunks_to_fill):
        crowd.chunk()
    off, on = list[float](), list[float]()
    for turn in range(num_chunks + 1):  # the first of each is not counted: its shapes are new
        for times, variant in ((off, instrument.without(change, world)), (on, nullcontext())):
            with variant:
                ms = _timed(instrument, crowd.chunk)
            if turn:
                times.append(ms)
    return off, on


def _resharding(instrument: Instrument, num_chunks: int, num_ranks: int) -> Times:
    layouts: tuple[WeightLayout, ...] = ("sharded", "gathered")
    both = list[list[float]]()
    for layout in layouts:
        world = instrument.ranked(num_ranks, 1, layout, lambda stage, share: None)
        try:
            crowd = Crowd(world, instrument.clock)
            both.append(_chunks(instrument, crowd, 1, num_chunks))
        finally:
            world.end()
    return both[0], both[1]


def _batch(instrument: Instrument, num_chunks: int) -> Times:
    off, on = (
        _chunks(instrument, Crowd(instrument.world(2), instrument.clock, max_rows), 2, num_chunks)
        for max_rows in (1, None)
    )
    return off, on


def _chunks(instrument: Instrument, crowd: Crowd, num_players: int, num_chunks: int) -> list[float]:
    """Everybody's next chunk, when all windows are full."""
    for player in range(num_players):
        crowd.join(player)
    for _ in range(instrument.chunks_to_fill):
        crowd.chunk()
    return [_timed(instrument, crowd.chunk) for _ in range(num_chunks)]
