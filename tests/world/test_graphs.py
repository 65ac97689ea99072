"""One capture a shape, whoever comes and goes; replayed work makes the bits of work that is simply done."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from tests.world.tiny_world import Life, Player, alone, random_world, same_bits, tick, tiny_config
from world.chunk import Scene
from world.config import WorldConfig
from world.denoiser import Denoiser
from world.graphs import MANY_TOKENS, Graphs, cuda_capture, graphs_for
from world.model import DiffusionWorld

CPU = torch.device("cpu")
SLOTS, TICKS, CHUNKS = 3, 200, 9
KINDS = {
    "warp": dict(conditioning="warp"),
    "first_frame": dict(
        conditioning="first_frame", chunk_frames=2, window_frames=7, sink_frames=3, control_channels=7
    ),
}  # fmt: skip

pytestmark = pytest.mark.usefixtures("one_thread")
on_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


class Tape:
    """A capture on the CPU, as a GPU's is: work runs when it is captured, reads and writes the same tensors always, and
    Python around it runs at the capture only."""

    def __init__(self) -> None:
        self.captures = 0

    def __call__(self, work: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        self.captures += 1
        made = work()

        def replay() -> None:
            again = work()
            if made is not None:
                made.copy_(again)

        return replay, made


def build(kind: str, graphs: Graphs | None, device: torch.device = CPU) -> DiffusionWorld:
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    world = random_world(tiny_config(**KINDS[kind]), dtype, SLOTS, device=device)
    world._scenes = (Scene("s", "S", "a place", np.zeros((32, 48, 3), np.uint8), np.float32([40, 40, 24, 16])),)
    if graphs is not None:
        world.graphs = graphs
    return world


def crowd(world: DiffusionWorld, ticks: int) -> Iterator[list[Player]]:
    """A tick at a time, who plays: players join, leave in the middle of anything, and stay until their windows wrap."""
    rng = np.random.default_rng(5)
    playing: dict[int, Player] = {}
    for _ in range(ticks):
        toggled = int(rng.integers(1, 8 * SLOTS))
        if toggled in playing:
            world.close(toggled)
            del playing[toggled]
        for slot in range(1, SLOTS + 1):
            if slot in playing and playing[slot].is_over:
                world.close(slot)
                del playing[slot]
            if slot not in playing and (toggled == slot or rng.random() < 0.1):
                life = Life(int(rng.integers(4)), world.geometry.chunk_frames, CHUNKS)
                playing[slot] = Player(life, slot)
                world.open(slot, life.start(world))
        due = [player for player in playing.values() if rng.random() < 0.9]
        if due:
            tick(world, due)
            yield due
    for slot in playing:
        world.close(slot)


def compare(one: DiffusionWorld, other: DiffusionWorld, ticks: int = TICKS) -> None:
    """Two worlds play the same; every picture and the state of every player are equal."""
    met = set()
    for left, right in zip(crowd(one, ticks), crowd(other, ticks), strict=True):
        for a, b in zip(left, right, strict=True):
            assert all(same_bits(x, y) for x, y in zip(a.made, b.made, strict=True)), "pictures differ"
            states = zip(one.slab.rows(a.slot), other.slab.rows(b.slot), strict=True)
            assert all(torch.equal(own, theirs) for (_, own), (_, theirs) in states)
        met.add((len(left), max(player.chunk_index for player in left) > one.cfg.window_frames))
    assert {size for size, _ in met} == {1, 2, 3} and any(wrapped for _, wrapped in met), "too quiet a crowd"


def quiet(stage: str, share: float) -> None:
    """Nobody listens."""


@pytest.mark.parametrize(("kind", "sizes"), [*((kind, (1, 2, 3)) for kind in KINDS), ("warp", (3,))])
def test_two_hundred_ticks_capture_nothing_that_prewarming_has_not(kind, sizes):
    tape = Tape()
    graphs = Graphs(CPU, tape, sizes)
    replayed = build(kind, graphs)
    replayed.prewarm(quiet)
    assert (
        tape.captures == 5 * len(sizes) == len(graphs.captured)
    )  # begin; steps, commits; first and later latent frames
    compare(replayed, build(kind, None))
    assert tape.captures == 5 * len(sizes), "something was captured while people played"


@pytest.mark.parametrize(("rows", "sizes", "shapes"), [(1, (3,), 1), (2, (1, 2, 3), 2)])
def test_large_pictures_are_decoded_in_groups_of_few_shapes(monkeypatch: pytest.MonkeyPatch, rows, sizes, shapes):
    """A group's pictures leave before the next group is decoded into the same memory, and nobody's pixels change."""
    tape = Tape()
    replayed, together = build("warp", Graphs(CPU, tape, sizes)), build("warp", None)
    decoded = []
    decode = together.vae.decode

    def watched(z: torch.Tensor, *rest: Any) -> Any:
        decoded.append(len(z))
        return decode(z, *rest)

    monkeypatch.setattr(together.vae, "decode", watched)
    replayed.cfg = replace(replayed.cfg)  # another object
    monkeypatch.setattr(WorldConfig, "decode_rows", property(lambda cfg: rows if cfg is replayed.cfg else 8))
    replayed.prewarm(quiet)
    assert tape.captures == 3 * len(sizes) + 2 * shapes
    compare(replayed, together)
    assert tape.captures == 3 * len(sizes) + 2 * shapes and max(decoded) == 3


def test_a_capture_while_people_play_is_not_a_step_of_theirs():
    compare(build("warp", Graphs(CPU, Tape(), (1, 2, 3))), build("warp", None))


@pytest.mark.parametrize(
    ("sizes", "rows"),
    [((SLOTS,), [[1, 0, 0], [2, 3, 0]]), (range(1, SLOTS + 1), [[1], [2, 3]]), ((), [[1], [2, 3]])],
)
def test_chunks_begin_together_in_the_sizes_there_are(monkeypatch: pytest.MonkeyPatch, sizes, rows) -> None:
    """So that with one size what a camera makes has the same shapes too, whoever else begins."""
    begun = list[list[int]]()
    begin = Denoiser.begin
    monkeypatch.setattr(
        Denoiser, "begin", lambda self, slots, *rest: (begun.append(slots.tolist()), begin(self, slots, *rest))
    )
    world = build("warp", Graphs(CPU, Tape() if sizes else None, sizes))
    players = [Player(Life(player, 1, 1), player + 1) for player in range(SLOTS)]
    for due, expected in zip((players[:1], players[1:]), rows, strict=True):
        for each in due:
            world.open(each.slot, each.life.start(world))
        tick(world, due)
        assert begun[-1] == expected


def test_padding_rows_write_to_the_dummy_slot_alone():
    world = build("warp", Graphs(CPU, Tape(), (3,)))
    life = Life(0, 1, 2)
    world.open(2, life.start(world))
    player = Player(life, 2)
    while not player.is_over:
        tick(world, [player])
        for slot in range(4):
            finite = slot in (0, 2)
            assert all((own.isfinite() if finite else own.isnan()).all() for _, own in world.slab.rows(slot))
        assert not world.slab.x[0].any(), "the padding row's latents are zeros for good"
    assert dict(world.slab.rows(0))["k.0"].any(), "nothing was padded"


def test_a_size_is_the_next_there_is_a_graph_for():
    graphs = Graphs(CPU, Tape(), (8, 2, 4))
    assert [graphs.size(n) for n in (1, 2, 3, 4, 5, 8, 9)] == [2, 2, 4, 4, 8, 8, 9]
    assert [Graphs(CPU).size(n) for n in (1, 3, 9)] == [1, 3, 9]


def test_each_name_and_shape_is_work_of_its_own():
    tape = Tape()
    graphs = Graphs(CPU, tape)

    def run(name: str, x: np.ndarray) -> list[float]:
        return graphs.run(name, lambda t: t * 2 if name == "twice" else t + 1, [x], [np.zeros_like(x)]).tolist()

    assert run("twice", np.ones(2)) == [2, 2] and run("twice", np.full(2, 3.0)) == [6, 6] and tape.captures == 1
    assert run("twice", np.ones(3)) == [2, 2, 2] and run("more", np.ones(2)) == [2, 2] and tape.captures == 3


def test_on_a_cpu_work_is_simply_done():
    graphs = graphs_for(CPU, 8, 112)
    assert graphs.capture is None and graphs.size(3) == 3
    assert graphs.run("x", lambda t: t + 1, [np.ones(2)], [np.zeros(2)]).tolist() == [2, 2] and not graphs.captured


@on_a_gpu
@pytest.mark.parametrize("kind", KINDS)
def test_on_a_gpu_replayed_bits_are_the_eager_ones(kind):
    device = torch.device("cuda")
    sizes = range(1, SLOTS + 1)
    replayed = build(kind, Graphs(device, cuda_capture(device), sizes), device)
    eager = build(kind, Graphs(device, sizes=sizes), device)
    replayed.prewarm(quiet)
    captured = len(replayed.graphs.captured)
    compare(replayed, eager)
    assert len(replayed.graphs.captured) == captured == 5 * SLOTS


@on_a_gpu
def test_on_a_gpu_few_tokens_have_one_size_and_many_have_all() -> None:
    few, many = (graphs_for(torch.device("cuda"), 8, tokens) for tokens in (112, MANY_TOKENS))
    assert few.sizes == (8,) and many.sizes == tuple(range(1, 9))


@on_a_gpu
@pytest.mark.parametrize("kind", KINDS)
def test_on_a_gpu_a_row_has_the_bits_it_has_alone(kind):
    """As small worlds are served there."""
    world, other = build(kind, None, torch.device("cuda")), build(kind, None, torch.device("cuda"))
    lives = [Life(player, world.geometry.chunk_frames, CHUNKS) for player in range(SLOTS)]
    for slot, life in enumerate(lives, 1):
        world.open(slot, life.start(world))
    players = [Player(life, slot) for slot, life in enumerate(lives, 1)]
    while not all(player.is_over for player in players):
        tick(world, [player for player in players if not player.is_over])
    for player, life in zip(players, lives, strict=True):
        made = list(alone(other, life, 1))
        assert all(same_bits(a, b) for a, b in zip(player.made, made, strict=True))


@on_a_gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
@pytest.mark.parametrize("kind", KINDS)
def test_on_a_gpu_no_tick_waits_for_the_device(kind):
    """Except for the pictures of a finished chunk, by an event, which torch does not count."""
    world = build(kind, None, torch.device("cuda"))
    world.prewarm(quiet)
    lives = [Life(player, world.geometry.chunk_frames, CHUNKS) for player in range(SLOTS)]
    for slot, life in enumerate(lives, 1):
        world.open(slot, life.start(world))
    players = [Player(life, slot) for slot, life in enumerate(lives, 1)]
    for text in {said for life in lives for said in life.prompts if said is not None}:
        world.encode_prompt(text)  # kept; encoding is not of a tick
    for at in range(CHUNKS * (world.num_steps + 1)):
        rows = [player.row(world) for player in players[: 1 + at % SLOTS] if not player.is_over]
        try:
            torch.cuda.set_sync_debug_mode("error")
            world.step(rows)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        for player in players[: 1 + at % SLOTS]:
            if not player.is_over:
                player.advanced(world.num_steps)
    assert players[0].is_over
