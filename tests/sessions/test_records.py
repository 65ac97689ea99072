"""A record holds its inputs bit for bit, and knows when one of them was changed."""

from __future__ import annotations

import math
import re
from pathlib import Path

import msgspec
import numpy as np
import pytest
from recorded_play import play
from session_simulation import Simulation

from sessions.records import INPUTS, Chunk, Header, Mark, StartPicture, floats, header_of, picture_digest

PLAYED = play()
CHUNKS = {name: [record for record in records if isinstance(record, Chunk)] for name, records in PLAYED.items()}


def test_a_chunk_holds_what_the_world_got() -> None:
    steered = CHUNKS["a"][1]
    assert steered.row_poses.shape == (2, 4, 4) and steered.key_planes.tolist() == [[1, 0, 0, 0]]
    assert sum(seconds for seconds, _ in steered.segments) == pytest.approx(4 / 16)
    assert steered.segments[-1][1] == (1.0, 0.0, 0.25, 0.0) and steered.control_seq == 1
    assert floats(steered.poses).reshape(-1, 4, 4)[-1, 2, 3] == pytest.approx(0.2, abs=1e-3)
    posed = CHUNKS["b"][1]
    assert posed.segments == () and posed.control_seq == 3
    looked = CHUNKS["c"][0]
    assert looked.look == (0.0, 0.0) and CHUNKS["c"][1].look == (3.5, -1.25)
    assert [chunk.prompt for chunk in CHUNKS["a"] if chunk.prompt] == ["snow"]
    assert max(chunk.company for chunks in CHUNKS.values() for chunk in chunks) > 1


@pytest.mark.parametrize("name", ["poses", "rows", "keys"])
def test_any_bit_of_poses_and_keys_is_missed(name: str) -> None:
    chunk = CHUNKS["a"][1]
    assert not chunk.altered
    data = bytearray(getattr(chunk, name))
    for at in range(len(data)):
        for bit in range(8):
            data[at] ^= 1 << bit
            try:
                changed = msgspec.structs.replace(chunk, **{name: bytes(data)})
                Chunk.__post_init__(changed)
            except ValueError:
                pass  # not finite
            else:
                assert changed.altered == ("keys" if name == "keys" else "poses",)
            data[at] ^= 1 << bit


def test_the_last_bit_of_a_control_is_missed() -> None:
    chunk = CHUNKS["a"][1]
    (seconds, axes), *rest = chunk.segments
    for number in range(4):
        moved = tuple(math.nextafter(axis, 2.0) if i == number else axis for i, axis in enumerate(axes))
        changed = msgspec.structs.replace(chunk, segments=((seconds, moved), *rest))
        assert changed.altered == ("control",)
    assert msgspec.structs.replace(chunk, look=(-0.0, 0.0)).altered == ("control",)
    assert msgspec.structs.replace(chunk, control_seq=2).altered == ("control",)
    assert msgspec.structs.replace(chunk, prompt="").altered == ("prompt",)
    assert set(INPUTS) == {"control", "poses", "keys", "prompt"}


def test_a_header_holds_the_start() -> None:
    header = PLAYED["c"][0]
    assert isinstance(header, Header)
    simulation = Simulation(num_steps=3)
    start, scene = simulation.start(3), simulation.world.scenes[0]
    assert (header.seed, header.prompt, header.scene, header.control) == (3, "a field", "north", "axes")
    assert np.array_equal(floats(header.intrinsics), start.intrinsics) and header.scale == start.scale
    assert header.picture is None and header.picture_digest == picture_digest(scene.image)
    assert header.prompt_digest != header.image_digest
    assert header.geometry == simulation.geometry


def test_a_picture_that_no_scene_has_is_kept_whole() -> None:
    simulation = Simulation()
    image = np.random.default_rng(5).integers(0, 256, (30, 50, 3)).astype(np.uint8)
    identity = simulation.world.identify(lambda stage, share: None)
    header = header_of(
        simulation.world, identity, simulation.start(), "axes", "own", image, run="r", session="s", protocol=1
    )
    assert header.picture is not None and np.array_equal(header.picture.unpack(), image)
    assert header.picture.unpack().flags.writeable, "torch warns of what it may not write to"
    assert header.picture_digest == picture_digest(image) != picture_digest(image.transpose(1, 0, 2))
    for wrong in (
        StartPicture(50, 31, header.picture.packed),
        StartPicture(50, 29, header.picture.packed),
        StartPicture(50, 30, b"no zlib"),
    ):
        with pytest.raises(ValueError, match="start picture"):
            wrong.unpack()


def test_the_protocol_page_has_every_field() -> None:
    page = (Path(__file__).parents[2] / "PROTOCOL.md").read_text(encoding="utf-8").partition("# Recordings\n")[2]
    for kind in (Header, Chunk, Mark):
        section = page.partition(f"### `{kind.__struct_config__.tag}`\n")[2].partition("\n### ")[0]
        rows = [row.split("|")[1] for row in section.splitlines() if row.startswith("| `")]
        told = [name for row in rows for name in re.findall(r"`(\w+)`", row)]
        assert sorted(told) == sorted(kind.__struct_fields__), kind
