"""What a client saw, in numbers. No clock of its own."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

from gameserver.view import Packet

MAX_PENDING = 4096  # controls no frame has answered
MAX_SAMPLES = 100_000  # latencies kept, the newest


@dataclass(frozen=True, slots=True)
class BotReport:
    frames: int
    seconds: float  # from the welcome to the end
    fps: float  # from the first frame of the second chunk to that of the last one; 0 if there were no three chunks
    chunks: int
    chunk_seconds: float  # how much video a chunk is
    bytes: int  # of frame data
    decode_errors: int
    control_to_frame_ms: dict[str, float | None]  # p50, p95: control sent -> first frame computed with it received
    distinct_frames_share: float  # of the decoded frames, those unlike the one before
    skipped: int  # frames the server skipped, by its own count
    keyframes: int
    rtt_ms: float | None  # shortest
    session: str
    seed: int
    world: str
    prompted: list[int]  # chunks at which a prompt took hold
    errors: list[str]  # codes that did not end the session


@dataclass(slots=True)
class Tally:
    frames: int = 0
    chunks: int = 0
    bytes: int = 0
    keyframes: int = 0
    _chunk: int | None = None
    _second: tuple[float, int] | None = None  # (when, frames before) of the second chunk's first frame
    _last: tuple[float, int] | None = None
    _pending: deque[tuple[int, float]] = field(default_factory=lambda: deque(maxlen=MAX_PENDING))
    _latencies_s: deque[float] = field(default_factory=lambda: deque(maxlen=MAX_SAMPLES))
    _decoded: int = 0
    _distinct: int = 0
    _picture: int | None = None

    def steered(self, seq: int, now_s: float) -> None:
        self._pending.append((seq, now_s))

    def received(self, packet: Packet, now_s: float) -> None:
        if packet.chunk != self._chunk:
            self._chunk = packet.chunk
            self.chunks += 1
            if self.chunks == 2:
                self._second = (now_s, self.frames)
            self._last = (now_s, self.frames)
        while self._pending and self._pending[0][0] <= packet.control_seq:
            self._latencies_s.append(now_s - self._pending.popleft()[1])
        self.frames += 1
        self.bytes += len(packet.data)
        self.keyframes += packet.key

    def decoded(self, checksum: int) -> None:
        """A picture, by a checksum of its pixels."""
        self._decoded += 1
        self._distinct += checksum != self._picture
        self._picture = checksum

    @property
    def fps(self) -> float:
        if self._second is None or self._last is None or self._last[0] <= self._second[0]:
            return 0.0
        return (self._last[1] - self._second[1]) / (self._last[0] - self._second[0])

    @property
    def distinct_frames_share(self) -> float:
        return self._distinct / self._decoded if self._decoded else 0.0

    @property
    def control_to_frame_ms(self) -> dict[str, float | None]:
        return {"p50": self._percentile_ms(0.50), "p95": self._percentile_ms(0.95)}

    def _percentile_ms(self, share: float) -> float | None:
        """Nearest rank."""
        ordered = sorted(self._latencies_s)
        return round(1000 * ordered[math.ceil(share * len(ordered)) - 1], 3) if ordered else None
