"""Test pictures can be read back after compression, and the pattern world refuses every broken rule."""

from __future__ import annotations

from dataclasses import replace

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from world.chunk import Geometry, Picture, Row, Start, World
from world.motion import keyboard_poses
from world.pattern import Misuse, PatternWorld, Reading, draw_pattern, prompt_mark, read_pattern

SMALL = Geometry(64, 48, 16, 1)


def start(world: PatternWorld, seed: int = 7) -> Start:
    scene = world.scenes[0]
    image = world.prepare_image(scene.image)
    return Start(seed, world.encode_prompt("a field"), image, scene.intrinsics, scene.scale)


def row(world: PatternWorld, chunk: int = 0, step: int = 0, slot: int = 1) -> Row:
    f = world.geometry.chunk_frames
    return Row(slot, chunk, step, np.tile(np.eye(4, dtype=np.float32), (f + 1, 1, 1)), np.zeros((f, 4), np.float32))


def opened(f: int = 1) -> PatternWorld:
    world = PatternWorld(Geometry(64, 48, 16, f), num_slots=3, num_steps=2)
    world.open(1, start(world))
    return world


def angle_between(a: float, b: float) -> float:
    return abs((a - b + 180) % 360 - 180)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**24 - 1), st.integers(1, 255), st.integers(0, 2**24 - 1), st.integers(0, 2**53 - 1),
    st.floats(-180, 180), st.sampled_from([SMALL, Geometry(224, 128, 16, 1), Geometry(832, 480, 16, 1)]),
)  # fmt: skip
def test_a_picture_reads_back(frame: int, slot: int, chunk: int, seed: int, yaw: float, geometry: Geometry) -> None:
    read = read_pattern(draw_pattern(geometry, Reading(frame, slot, chunk, seed, 77, yaw)))
    assert (read.frame_index, read.slot, read.chunk_index, read.seed) == (frame, slot, chunk, seed % 65536)
    assert read.prompt == 77
    assert angle_between(read.yaw_deg, yaw) < 2


@pytest.mark.parametrize("width, height", [(224, 128), (448, 256), (300, 171)])
def test_it_survives_h264_and_scaling(width: int, height: int) -> None:
    geometry = Geometry(224, 128, 16, 1)
    encoder = av.CodecContext.create("libx264", "w")
    encoder.width, encoder.height, encoder.pix_fmt, encoder.framerate = 224, 128, "yuv420p", 16
    encoder.bit_rate = 300_000
    encoder.options = {"preset": "superfast", "tune": "zerolatency"}
    decoder = av.CodecContext.create("h264", "r")
    yaws = [i * 8.0 for i in range(24)]
    pictures = [draw_pattern(geometry, Reading(i, 3, i, 9, 5, yaw)) for i, yaw in enumerate(yaws)]
    packets = [p for y in pictures for p in encoder.encode(av.VideoFrame.from_ndarray(y, "yuv420p"))]
    frames = [f for p in [*packets, None] for f in decoder.decode(p)]
    assert len(frames) == len(yaws)
    for i, frame in enumerate(frames):
        read = read_pattern(frame.to_ndarray(format="rgb24", width=width, height=height))
        assert (read.frame_index, read.slot) == (i, 3)
        assert angle_between(read.yaw_deg, yaws[i]) < 8


def test_turning_left_moves_the_picture_right() -> None:
    geometry = Geometry(224, 128, 16, 1)
    before, after = (draw_pattern(geometry, Reading(0, 1, 0, 0, 0, yaw))[80].astype(int) for yaw in (0.0, -5.0))
    shifts = {shift: np.abs(after[20:-20] - np.roll(before, shift)[20:-20]).sum() for shift in range(-18, 19)}
    assert min(shifts, key=lambda s: shifts[s]) == pytest.approx(5 / 90 * 224, abs=1)


def test_damage_is_noticed() -> None:
    picture = draw_pattern(SMALL, Reading(5, 1, 2, 0, 0, 0.0))
    picture[4:8, :4] = 251 - picture[4:8, :4]
    with pytest.raises(ValueError, match="damaged"):
        read_pattern(picture)
    with pytest.raises(ValueError, match="damaged"):
        read_pattern(np.zeros((48, 64, 3), np.uint8))


@pytest.mark.parametrize("f", [1, 3])
def test_chunks_come_out_after_the_last_denoise_step(f: int) -> None:
    world: World = opened(f)
    pictures: list[Picture] = []
    for chunk in range(3):
        for step in range(3):
            new = world.step([row(world, chunk, step)])  # type: ignore[arg-type]
            assert len(new) == (step == 1)
            pictures += new
    frames = [read_pattern(frame) for picture in pictures for frame in picture.frames]
    assert [r.frame_index for r in frames] == list(range(12 * f - 3))
    assert [len(p.frames) for p in pictures] == [world.geometry.video_frames(c) for c in range(3)]
    assert {(r.slot, r.seed) for r in frames} == {(1, 7)}


def test_every_frame_shows_the_heading_of_its_own_pose() -> None:
    world = opened(3)
    poses = keyboard_poses("l-20")  # [21, 4, 4]
    shown = []
    for chunk, latents in enumerate(([0, 0, 4, 8], [8, 12, 16, 20])):
        for step in range(3):
            turning = replace(row(world, chunk, step), poses=poses[latents])
            shown += [read_pattern(f).yaw_deg for p in world.step([turning]) for f in p.frames]
    assert np.allclose(shown, 2.0 * np.arange(21), atol=2)


def test_a_new_prompt_and_a_reopened_slot() -> None:
    world = opened()
    night = world.encode_prompt("night")
    world.step([replace(row(world), prompt=night)])
    (picture,) = world.step([row(world, 0, 1)])
    assert read_pattern(picture.frames[0]).prompt == prompt_mark("night")
    world.close(1)
    world.open(1, start(world, seed=8))
    world.step([row(world)])
    (picture,) = world.step([row(world, 0, 1)])
    read = read_pattern(picture.frames[0])
    assert (read.seed, read.prompt) == (8, prompt_mark("a field"))


NAN = np.full((2, 4, 4), np.nan, np.float32)
EYE = np.tile(np.eye(4, dtype=np.float32), (2, 1, 1))
MOVED = EYE.copy()
MOVED[1, 0, 3] = 1


@pytest.mark.parametrize(
    "change, rule",
    [
        ({"slot": 2}, "not open"),
        ({"slot": 0}, "not open"),
        ({"chunk_index": 1}, "at \\(chunk, step\\)"),
        ({"step_index": 1}, "at \\(chunk, step\\)"),
        ({"poses": EYE[:1]}, "poses are"),
        ({"poses": EYE.astype(np.float64)}, "float32"),
        ({"poses": NAN}, "finite"),
        ({"poses": EYE * 2}, "rigid"),
        ({"poses": MOVED}, "first chunk differ"),
        ({"keys": np.zeros((1, 3), np.float32)}, "keys are"),
        ({"keys": np.full((1, 4), 0.5, np.float32)}, "0 or 1"),
        ({"prompt": replace(PatternWorld(SMALL).encode_prompt("x"), encoded=None)}, "encode_prompt"),
    ],
)
def test_a_bad_row_is_refused_and_nothing_moves(change: dict[str, object], rule: str) -> None:
    world = opened()
    with pytest.raises(Misuse, match=rule):
        world.step([replace(row(world), **change)])  # type: ignore[arg-type]
    world.step([row(world)])


def test_other_broken_rules() -> None:
    world = opened()
    good = row(world)
    with pytest.raises(Misuse, match="two rows of one slot"):
        world.step([good, good])
    with pytest.raises(Misuse, match="0 rows"):
        world.step([])
    with pytest.raises(Misuse, match="open already"):
        world.open(1, start(world))
    with pytest.raises(Misuse, match="not one of"):
        world.open(0, start(world))
    with pytest.raises(Misuse, match="not open"):
        world.close(2)
    with pytest.raises(Misuse, match="prepare_image"):
        world.open(2, replace(start(world), image=None))
    world.step([good])
    with pytest.raises(Misuse, match="middle of a chunk"):
        world.step([replace(row(world, 0, 1), poses=MOVED)])
    world.step([row(world, 0, 1)])
    world.step([row(world, 0, 2)])
    with pytest.raises(Misuse, match="before ended"):
        world.step([replace(row(world, 1, 0), poses=keyboard_poses("l-9")[[5, 9]])])


def test_a_fault_before_the_forward_changes_nothing() -> None:
    faults = [RuntimeError("out of memory")]

    def on_step(rows: object) -> None:
        if faults:
            raise faults.pop()

    world = PatternWorld(SMALL, on_step=on_step)
    world.open(1, start(world))
    with pytest.raises(RuntimeError):
        world.step([row(world)])
    world.step([row(world)])
