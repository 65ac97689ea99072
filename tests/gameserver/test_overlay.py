"""Keys and pose can be read off a picture, whatever is behind them and however large it is; the rest is untouched."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from gameserver import overlay
from sessions.records import chunk_of, floats
from tests.sessions.session_simulation import Simulation
from world.motion import KEY_AXES, key_axes, keyboard_poses

UNIT = {128: 1, 256: 2, 464: 3}
WIDE = {128: 224, 256: 448, 464: 832}


def picture(height: int, level: int = 120) -> NDArray[np.uint8]:
    return np.full((height * 3 // 2, WIDE[height]), level, np.uint8)


def text_at(drawn: NDArray[np.uint8], height: int, row: int, length: int) -> str:
    """The letters of a line, found by comparing cells with the glyphs."""
    unit = UNIT[height]
    top, left = (3 + row * (overlay.ROWS + 4)) * unit, 3 * unit
    said = ""
    for n in range(length):
        x = left + n * 6 * unit
        cell = drawn[top : top + 7 * unit : unit, x : x + 5 * unit : unit] > 200
        rows = tuple(int(value) for value in np.packbits(np.pad(cell, ((0, 0), (3, 0))), axis=1)[:, 0])
        said += {glyph: letter for letter, glyph in overlay.GLYPHS.items()}.get(rows, "?")
    return said


@pytest.mark.parametrize("height", [128, 256, 464])
@pytest.mark.parametrize("level", [16, 120, 235])
def test_position_and_heading_can_be_read(height: int, level: int) -> None:
    pose = keyboard_poses("w-20,lk-16,d-90")[-1]
    drawn = overlay.draw(picture(height, level), None, pose)
    x, y, z = pose[:3, 3]
    for row, line in enumerate([f"X {x:.2f} Y {y:.2f} Z {z:.2f}", "YAW 32 PITCH -32"]):
        assert text_at(drawn, height, row, len(line)) == line


@given(st.sets(st.sampled_from(sorted(KEY_AXES))))
def test_exactly_the_keys_that_lean_are_lit(keys: set[str]) -> None:
    height = 128
    axes = key_axes("".join(keys))
    drawn = overlay.draw(picture(height), axes, np.eye(4, dtype=np.float32))
    corners = {key: drawn[height - (1 + (2 - row) * 14), 3 + column * 14] for key, column, row in overlay.PADS}
    opposite = dict(zip("wsadikjl", "swdakilj", strict=True))
    assert {key for key, level in corners.items() if level == overlay.WHITE} == {
        key for key in keys if opposite[key] not in keys
    }


@given(st.integers(3, 12), st.integers(3, 16), st.floats(-1e6, 1e6))
def test_any_size_takes_it_and_keeps_the_rest(rows: int, columns: int, x: float) -> None:
    height, width = 16 * rows, 16 * columns
    before = np.full((height * 3 // 2, width), 90, np.uint8)
    pose = np.eye(4, dtype=np.float32)
    pose[0, 3] = x
    drawn = overlay.draw(before, (1.0, 0.0, 0.0, 0.0), pose)
    assert drawn.shape == before.shape and drawn.dtype == np.uint8 and (before == 90).all()
    if height >= 128 and width >= 128:
        assert (drawn[height // 2 - 4 : height // 2, :] == 90).all(), "the middle is nobody's"


def test_what_was_held_is_told_for_every_frame_of_a_recording() -> None:
    game = Simulation(chunk_frames=3)
    game.join("a")
    game.steer("a", 1.0, 0.0, 0.5)
    game.run(1.0)
    game.steer("a", -0.5)
    game.now_s += 0.1
    game.steer("a")
    game.run(2.0)
    chunks = [chunk_of(chunk) for chunk in game.finished]
    for chunk in chunks:
        axes = overlay.held_axes(chunk, 16)
        assert axes.shape == (len(floats(chunk.poses)) // 16, 4)
    walked = np.concatenate([overlay.held_axes(chunk, 16) for chunk in chunks])
    moved = np.concatenate([floats(chunk.poses).reshape(-1, 4, 4) for chunk in chunks])
    steps = np.linalg.norm(np.diff(moved[:, :3, 3], axis=0), axis=1)
    assert steps == pytest.approx(np.abs(walked[1:, 0]) * 0.05, abs=1e-6), "a frame moves by what it says was held"
    assert walked[0].max() == 0 and walked[:, 0].max() == 1
