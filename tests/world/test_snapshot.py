"""A state that was kept goes on with the bits it would have had, in any slot and company, and no other file passes."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from tests.world.tiny_world import Life, Made, Player, random_world, same_bits, tick, tiny_config
from world.chunk import Identity, SlotState, Stored
from world.model import DiffusionWorld
from world.snapshot import Snapshot, SnapshotError, check_maker, decode, encode, maker, read, write

CHUNKS, KEPT = 12, 7  # of a life, and where it is kept: views are full by then, and the ring has wrapped
WORLDS = {
    "warp-float32": (dict(conditioning="warp"), torch.float32, "native"),
    "warp-bfloat16": (dict(conditioning="warp"), torch.bfloat16, "native"),
    "warp-fp8-kv": (dict(conditioning="warp"), torch.bfloat16, "fp8-kv"),
    "first_frame-float32": (
        dict(conditioning="first_frame", chunk_frames=2, window_frames=5, sink_frames=1, control_channels=7),
        torch.float32,
        "native",
    ),
}


pytestmark = pytest.mark.usefixtures("one_thread")


def chunk(world: DiffusionWorld, *players: Player) -> None:
    for _ in range(world.num_steps + 1):
        tick(world, players)


def finish(world: DiffusionWorld, *players: Player) -> None:
    while any(not player.is_over for player in players):
        tick(world, [player for player in players if not player.is_over])


def through_a_file(state: SlotState, path: Path) -> SlotState:
    write(path, Snapshot(state, {}))
    return read(path).state


@pytest.mark.parametrize("name", WORLDS)
def test_played_on_restored_and_played_again_it_is_the_same(name: str, tmp_path: Path) -> None:
    sizes, dtype, precision = WORLDS[name]
    world = random_world(tiny_config(**sizes), dtype, num_slots=3, precision=precision)
    life, other = (Life(player, world.geometry.chunk_frames, CHUNKS) for player in (0, 1))
    player = Player(life, 1)
    world.open(1, life.start(world))
    for _ in range(KEPT):
        chunk(world, player)
    state = through_a_file(world.export(1), tmp_path / "a.safetensors")
    finish(world, player)

    def again(slot: int) -> Player:
        world.restore(slot, state)
        return Player(life, slot, chunk_index=KEPT)

    rewound = again(1)
    finish(world, rewound)
    assert all(map(same_bits, rewound.made, player.made[KEPT:])) and len(rewound.made) == CHUNKS - KEPT
    # a fork beside its parent, and a stranger
    stranger = Player(other, 3)
    world.open(3, other.start(world))
    parent, fork = again(1), again(2)
    chunk(world, parent, stranger)
    finish(world, fork, parent, stranger)
    for each in (parent, fork):
        assert all(map(same_bits, each.made, player.made[KEPT:])) and len(each.made) == CHUNKS - KEPT
    alone = Player(other, 1)
    world.open(1, other.start(world))
    finish(world, alone)
    assert all(map(same_bits, stranger.made, alone.made)), "a restored slot is nobody else's business"


def test_a_state_before_the_first_chunk_and_in_a_slot_that_was_closed() -> None:
    world = random_world(tiny_config(), num_slots=2)
    life = Life(0, 1, 3)
    world.open(1, life.start(world))
    state = world.export(1)
    beside = sum(state.tensors[name].data.size for name in ("image", "intrinsics"))
    assert world.state_bytes == state.num_bytes - beside, "what it takes is known before it is copied"
    first, second = Player(life, 1), Player(life, 2)
    finish(world, first)
    world.restore(2, state)
    finish(world, second)
    assert all(map(same_bits, first.made, second.made))


def test_views_are_part_of_a_state() -> None:
    world = random_world(tiny_config(), num_slots=1)
    player = Player(Life(0, 1, CHUNKS), 1)
    world.open(1, player.life.start(world))
    for _ in range(KEPT):
        chunk(world, player)
    state = world.export(1)
    assert len(state.facts["views"]["kept"]) == 3
    made: list[Made] = []
    for facts in (
        state.facts,
        {**state.facts, "views": {**state.facts["views"], "kept": [[0, np.eye(4).tolist(), ""]]}},
    ):
        world.restore(1, SlotState(state.tensors, facts))
        again = Player(player.life, 1, chunk_index=KEPT)
        chunk(world, again)
        made += again.made
    assert not same_bits(*made), "nobody would notice if views were lost"


def test_a_state_of_another_shape_is_refused_and_changes_nothing() -> None:
    world, other = random_world(tiny_config(), num_slots=1), random_world(tiny_config(width=64), num_slots=1)
    life = Life(0, 1, 3)
    for each in (world, other):
        each.open(1, life.start(each))
    before, strange = world.export(1), other.export(1)
    lacking = SlotState({name: t for name, t in before.tensors.items() if name != "slab.k.0"}, before.facts)
    for state in (strange, lacking, SlotState(before.tensors, {}), SlotState({}, before.facts)):
        with pytest.raises(ValueError):
            world.restore(1, state)
    after = world.export(1)
    assert all(np.array_equal(t.data, after.tensors[name].data) for name, t in before.tensors.items())
    with pytest.raises(ValueError, match="slot 2"):
        world.restore(2, before)


SMALL = Snapshot(
    SlotState(
        {
            "b": Stored("BF16", (3,), np.arange(6, dtype=np.uint8)),
            "f": Stored("F32", (2, 1), np.arange(8, dtype=np.uint8)),
            "none": Stored("F32", (0, 4), np.zeros(0, np.uint8)),
        },
        {"seed": 7, "scale": 0.1},
    ),
    {"world": "w", "weights": "x"},
    {"session": b"\x00\xff", "recording": b""},
)
SMALL_BYTES = b"".join(encode(SMALL))


def test_what_was_written_is_what_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    assert write(path, SMALL) == path.stat().st_size == len(SMALL_BYTES)
    assert [file.name for file in tmp_path.iterdir()] == [path.name] and path.stat().st_mode & 0o777 == 0o600
    back = read(path)
    assert (back.of, back.parts, back.state.facts) == (SMALL.of, SMALL.parts, SMALL.state.facts)
    for name, stored in SMALL.state.tensors.items():
        copy = back.state.tensors[name]
        assert (copy.dtype, copy.shape, copy.data.tobytes()) == (stored.dtype, stored.shape, stored.data.tobytes())
    assert load_file(path)["world.b"].dtype == torch.bfloat16, "other readers of the format open it"


def test_a_disk_that_is_full_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.safetensors"
    write(path, SMALL)

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError):
        write(path, Snapshot(SlotState({}, {}), {}))
    assert path.read_bytes() == SMALL_BYTES and [file.name for file in tmp_path.iterdir()] == [path.name]


def test_every_truncation_and_every_flipped_bit_is_refused() -> None:
    for length in range(len(SMALL_BYTES)):
        with pytest.raises(SnapshotError):
            decode(np.frombuffer(SMALL_BYTES[:length], np.uint8))
    for bit in range(8 * len(SMALL_BYTES)):
        altered = bytearray(SMALL_BYTES)
        altered[bit // 8] ^= 1 << bit % 8
        with pytest.raises(SnapshotError):
            decode(np.frombuffer(altered, np.uint8))


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300), st.integers(0, 300), st.booleans())
def test_bytes_that_say_they_are_whole_are_not_believed(noise: bytes, length: int, framed: bool) -> None:
    """A right digest over anything at all: refused in a sentence, or read; never anything else."""
    body = (length.to_bytes(8, "little") if framed else b"") + noise
    data = body + hashlib.blake2b(body, digest_size=32).digest()
    try:
        decode(np.frombuffer(data, np.uint8))
    except SnapshotError as fault:
        assert str(fault)


HEADERS = st.recursive(
    st.none() | st.integers(-9, 99) | st.sampled_from(["F32", "U8", "1", "{}", "x"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["__metadata__", "format", "facts", "dtype", "shape", "data_offsets", "world.a", "part.b"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None)
@given(HEADERS)
def test_headers_that_make_no_sense_are_refused(header: object) -> None:
    text = json.dumps(header).encode()
    body = len(text).to_bytes(8, "little") + text + bytes(64)
    try:
        decode(np.frombuffer(body + hashlib.blake2b(body, digest_size=32).digest(), np.uint8))
    except SnapshotError as fault:
        assert str(fault)


def test_a_snapshot_of_another_world_is_refused_with_the_reason() -> None:
    identity = Identity("weights", "rounded", "config", {"threads": "1"})
    mine = maker("w", identity)
    check_maker(Snapshot(SMALL.state, mine), mine)
    others = [
        (maker("v", identity), "world v"),
        (maker("w", Identity("other", "rounded", "config", {"threads": "1"})), "weights other"),
        (maker("w", Identity("weights", "rounded", "another", {"threads": "1"})), "config"),
        (maker("w", Identity("weights", "rounded", "config", {"threads": "2"})), "threads"),
        ({}, "None"),
    ]
    for other, why in others:
        with pytest.raises(SnapshotError, match=why):
            check_maker(Snapshot(SMALL.state, other), mine)
    text = b"".join(encode(Snapshot(SMALL.state, {"format": "2"})))
    with pytest.raises(SnapshotError, match="format 2"):
        decode(np.frombuffer(text, np.uint8))
