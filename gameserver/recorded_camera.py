"""Recorded cameras from .npy files: poses and intrinsics. Every failure is a BotError, one sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gameserver.bot_error import BotError


def read_poses(path: Path) -> NDArray[np.float32]:
    """[n, 4, 4] from a .npy file."""
    poses = _load(path)
    if poses.ndim != 3 or poses.shape[1:] != (4, 4) or not len(poses):
        raise BotError(f"{path} holds an array of shape {list(poses.shape)}, not poses [n, 4, 4]")
    return poses.astype(np.float32)


def read_intrinsics(path: Path) -> tuple[float, float, float, float]:
    """fx, fy, cx, cy from a .npy file of [4], [n, 4] (the first one counts) or [3, 3]."""
    given = _load(path)
    if given.shape == (3, 3):
        given = given[[0, 1, 0, 1], [0, 1, 2, 2]]
    elif given.ndim == 2 and given.shape[1] == 4 and len(given):
        given = given[0]
    if given.shape != (4,) or not np.isfinite(given).all() or (given <= 0).any():
        raise BotError(f"{path} holds an array of shape {list(given.shape)}, not intrinsics [4], [n, 4] or [3, 3]")
    fx, fy, cx, cy = (float(value) for value in given)
    return fx, fy, cx, cy


def scale_intrinsics(
    given: tuple[float, float, float, float], of_size: tuple[float, float], to_size: tuple[float, float]
) -> tuple[float, float, float, float]:
    """Intrinsics of one picture size (width, height) for another."""
    x, y = to_size[0] / of_size[0], to_size[1] / of_size[1]
    return given[0] * x, given[1] * y, given[2] * x, given[3] * y


def _load(path: Path) -> NDArray[Any]:
    try:
        array = np.load(path, allow_pickle=False)
    except OSError as error:
        raise BotError(f"cannot read {path}: {error.strerror or error}") from None
    except (ValueError, EOFError) as error:
        raise BotError(f"{path} is not a .npy file: {error}") from None
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiu":
        raise BotError(f"{path} does not hold one array of numbers")
    return array
