"""Protects the numbers a player is shown: rates over real intervals, and a speed that is lateness and nothing else."""

from __future__ import annotations

import numpy as np
import pytest

from gameserver.backpressure import Backpressure
from gameserver.lobby import Lobby
from gameserver.notes import Frames
from gameserver.pace import Pace
from sessions.control import Steer
from sessions.tick import Counters, Finished, RowMark
from sessions.trajectory import ChunkPath
from world.chunk import Picture


def chunk(index: int, late_s: float = 0.0) -> Frames:
    picture = Picture(1, index, np.zeros((4, 24, 16), np.uint8), bytes(16), np.zeros(16, np.float32))
    poses = np.tile(np.eye(4, dtype=np.float32), (4, 1, 1))
    path = ChunkPath(poses, poses[:2], np.zeros((1, 4), np.float32), Steer((), (0.0, 0.0), 0))
    return Frames("a", Finished("a", picture, index, 4 * index, path, False, None, 0, 1, 1.0, 1.05, 1.1, late_s), 7)


def test_rates_speed_and_rows_of_the_last_while() -> None:
    pace, backpressure, lobby, counters = Pace(10.0), Backpressure(1_000_000, 16), Lobby(8), Counters()
    for index in range(4):
        pace.chunk(chunk(index), 16)
        for _ in range(4):
            pace.sent_frame()
            pace.sent_bytes(1000)
    counters.count((RowMark(1, 0, 0),))
    first = pace.stats(11.0, backpressure, lobby, counters)
    assert (first.fps, first.kbps, first.speed) == pytest.approx((16.0, 128.0, 1.0))
    assert first.chunk_ms == pytest.approx(50.0) and first.poses_queued == 7
    for index in range(4, 6):  # half a second of play that took another half
        pace.chunk(chunk(index, late_s=0.25), 16)
        for _ in range(4):
            pace.sent_frame()
    counters.count((RowMark(1, 1, 0), RowMark(2, 4, 3), RowMark(3, 9, 1)))
    second = pace.stats(12.0, backpressure, lobby, counters)
    assert second.speed == pytest.approx(0.5) and second.rows == 3.0
    assert second.fps == pytest.approx(12.0)  # 24 frames in two seconds


def test_a_pause_is_not_slowness() -> None:
    pace, backpressure, lobby = Pace(0.0), Backpressure(1_000_000, 16), Lobby(8)
    assert pace.stats(1.0, backpressure, lobby, None).speed == 1.0
    for now in range(2, 8):
        assert pace.stats(float(now), backpressure, lobby, None).fps == 0.0
