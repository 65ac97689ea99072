"""What a player held and where the camera stood, drawn onto a picture: small capital letters on a darkened plate."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sessions.control import Segment
from sessions.records import POSE_BYTES, Chunk
from sessions.trajectory import frame_axes
from world.motion import KEY_AXES, pitch_deg, yaw_deg

# Five bits a row, seven rows: the highest bit is the left one.
GLYPHS = {
    "0": (14, 17, 19, 21, 25, 17, 14), "1": (4, 12, 4, 4, 4, 4, 14), "2": (14, 17, 1, 2, 4, 8, 31),
    "3": (31, 2, 4, 2, 1, 17, 14), "4": (2, 6, 10, 18, 31, 2, 2), "5": (31, 16, 30, 1, 1, 17, 14),
    "6": (6, 8, 16, 30, 17, 17, 14), "7": (31, 1, 2, 4, 8, 8, 8), "8": (14, 17, 17, 14, 17, 17, 14),
    "9": (14, 17, 17, 15, 1, 2, 12), "-": (0, 0, 0, 31, 0, 0, 0), ".": (0, 0, 0, 0, 0, 12, 12),
    " ": (0, 0, 0, 0, 0, 0, 0), "A": (14, 17, 17, 31, 17, 17, 17), "C": (14, 17, 16, 16, 16, 17, 14),
    "D": (28, 18, 17, 17, 17, 18, 28), "H": (17, 17, 17, 31, 17, 17, 17), "I": (14, 4, 4, 4, 4, 4, 14),
    "J": (7, 2, 2, 2, 2, 18, 12), "K": (17, 18, 20, 24, 20, 18, 17), "L": (16, 16, 16, 16, 16, 16, 31),
    "P": (30, 17, 17, 30, 16, 16, 16), "S": (15, 16, 16, 14, 1, 1, 30), "T": (31, 4, 4, 4, 4, 4, 4),
    "W": (17, 17, 17, 21, 21, 27, 17), "X": (17, 17, 10, 4, 10, 17, 17), "Y": (17, 17, 10, 4, 4, 4, 4),
    "Z": (31, 1, 2, 4, 8, 16, 31),
}  # fmt: skip
ROWS, COLUMNS = 7, 5
CAP = 13  # a key's side, in pixels of a glyph
PADS = ("w", 1, 0), ("a", 0, 1), ("s", 1, 1), ("d", 2, 1), ("i", 5, 0), ("j", 4, 1), ("k", 5, 1), ("l", 6, 1)
BLACK, WHITE, NEUTRAL = 16, 235, 128
PICTURE_ROWS = 128  # for so many rows of a picture a glyph's pixel is one pixel


def draw(
    picture: NDArray[np.uint8], axes: Sequence[float] | NDArray[np.float64] | None, pose: NDArray[np.float32]
) -> NDArray[np.uint8]:
    """I420 [H * 3 // 2, W], the axes held (None where poses move the camera) and the pose [4, 4] -> the picture with
    keys in its lower left corner and position and heading in its upper one. What does not fit is cut off."""
    height, width = picture.shape[0] * 2 // 3, picture.shape[1]
    unit = max(1, height // PICTURE_ROWS)
    luma = picture[:height].copy()
    chroma = picture[height:].reshape(2, height // 2, width // 2).copy()
    x, y, z = (round(float(value), 2) + 0.0 for value in pose[:3, 3])  # + 0.0: never -0.00
    _plate(luma, chroma, _text(f"X {x:.2f} Y {y:.2f} Z {z:.2f}"), (2 * unit, 2 * unit), unit)
    turned = _text(f"YAW {round(yaw_deg(pose))} PITCH {round(pitch_deg(pose))}")
    _plate(luma, chroma, turned, (2 * unit, (4 + ROWS + 2) * unit), unit)
    if axes is not None:
        for key, column, row in PADS:
            at = (2 + column * (CAP + 1)) * unit, height - (2 + (2 - row) * (CAP + 1)) * unit
            held = any(way and way * lean > 0 for way, lean in zip(KEY_AXES[key], axes, strict=True))
            _plate(luma, chroma, _cap(key.upper()), at, unit, held)
    return np.concatenate([luma.ravel(), chroma.ravel()]).reshape(picture.shape)


def held_axes(chunk: Chunk, fps: int) -> NDArray[np.float64]:
    """The mean axes [n, 4] held in each video frame of a recorded chunk."""
    frames = len(chunk.poses) // POSE_BYTES
    axes = np.zeros((frames, 4))
    moving = frames - (chunk.chunk == 0)  # a stream begins with a frame that stands still
    if chunk.segments and moving:
        segments = tuple(Segment(duration_s, held) for duration_s, held in chunk.segments)
        axes[frames - moving :] = frame_axes(segments, moving, fps)
    return axes


def _text(text: str) -> NDArray[np.bool_]:
    """[rows, columns], with a margin of one pixel."""
    letters = [np.unpackbits(np.array(GLYPHS[letter], np.uint8)[:, None], axis=1)[:, 2:] for letter in text]
    return np.pad(np.concatenate(letters, axis=1), ((1, 1), (0, 1))).astype(np.bool_)


def _cap(letter: str) -> NDArray[np.bool_]:
    """A letter in the middle of a key."""
    mask = np.zeros((CAP, CAP), np.bool_)
    mask[2:11, 3:10] = _text(letter)
    return mask


def _plate(
    luma: NDArray[np.uint8], chroma: NDArray[np.uint8], mask: NDArray[np.bool_], at: tuple[int, int], unit: int,
    lit: bool = False,
) -> None:  # fmt: skip
    """Draw a mask with its upper left corner `at` (x, y), light on a darkened plate or, lit, dark on a light one."""
    left, top = min(luma.shape[1], at[0]), max(0, at[1])
    large = mask.repeat(unit, 0).repeat(unit, 1)[: luma.shape[0] - top, : luma.shape[1] - left]
    bottom, right = top + large.shape[0], left + large.shape[1]
    ground = luma[top:bottom, left:right]
    plate = np.full_like(ground, WHITE) if lit else BLACK + (ground - np.minimum(ground, BLACK)) // 3
    luma[top:bottom, left:right] = np.where(large, BLACK if lit else WHITE, plate)
    chroma[:, top // 2 : (bottom + 1) // 2, left // 2 : (right + 1) // 2] = NEUTRAL
