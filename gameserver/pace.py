"""How one player's stream goes: what the once-a-second message says.

Frames come in chunks, and a chunk may last as long as the time between two messages: rates are over a few of those.
"""

from __future__ import annotations

from collections import deque

from gameserver.backpressure import Backpressure
from gameserver.lobby import Lobby
from gameserver.notes import Frames
from gameserver.protocol import Stats
from sessions.tick import Counters

INTERVALS = 4


class Pace:
    def __init__(self, now_s: float) -> None:
        self._marks = deque([(now_s, 0, 0)], maxlen=INTERVALS)  # (when, frames, bytes) at the last messages
        self._frames = 0
        self._bytes = 0
        self._forwards = 0
        self._rows = 0
        self._played_s = 0.0
        self._late_s = 0.0
        self._speed = 1.0
        self._chunk_ms = 0.0
        self._poses_queued = 0
        self._mean_rows = 0.0

    def sent_frame(self) -> None:
        self._frames += 1

    def sent_bytes(self, num_bytes: int) -> None:
        self._bytes += num_bytes

    def chunk(self, frames: Frames, fps: int) -> None:
        chunk = frames.chunk
        self._chunk_ms = (chunk.finished_s - chunk.started_s) * 1000
        self._played_s += len(chunk.picture.frames) / fps
        self._late_s += chunk.late_s
        self._poses_queued = frames.poses_queued

    def stats(self, now_s: float, backpressure: Backpressure, lobby: Lobby, counters: Counters | None) -> Stats:
        """Starts a new interval. Speed is play time over what it took: lateness is what stretched it."""
        since_s, frames, num_bytes = self._marks[0]
        seconds = max(1e-6, now_s - since_s)
        self._marks.append((now_s, self._frames, self._bytes))
        if counters is not None:
            forwards, rows = counters.forwards, counters.rows
            if self._forwards and forwards > self._forwards:
                self._mean_rows = (rows - self._rows) / (forwards - self._forwards)
            self._forwards, self._rows = forwards, rows
        if self._played_s > 0:
            self._speed = self._played_s / (self._played_s + self._late_s)
        stats = Stats(
            players=len(lobby), capacity=lobby.capacity, fps=(self._frames - frames) / seconds, chunk_ms=self._chunk_ms,
            rows=self._mean_rows, speed=self._speed, kbps=(self._bytes - num_bytes) * 8 / 1000 / seconds,
            bitrate_kbps=backpressure.bitrate_bps // 1000, skipped=backpressure.skipped_frames,
            poses_queued=self._poses_queued,
        )  # fmt: skip
        self._played_s = self._late_s = 0.0
        return stats
