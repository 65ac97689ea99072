"""When frames are due at a client. No clock of its own."""

from __future__ import annotations

MARGIN_S = 0.03  # between a chunk's first frame and its being due, when the clock starts


class DueClock:
    """When frames are due, by PROTOCOL.md: it starts at the second chunk, and a late one moves it."""

    def __init__(self, fps: float) -> None:
        self._interval_s = 1.0 / fps
        self._chunk: int | None = None
        self._chunks = 0
        self._due: tuple[int, float] | None = None  # (frame, when)
        self.speed = 1.0  # as the server last said

    def slack_s(self, chunk: int, frame: int, now_s: float) -> float | None:
        """How early a chunk's first frame came; None for the others and until the clock runs."""
        if chunk == self._chunk:
            return None
        self._chunk = chunk
        self._chunks += 1
        if self._due is None:
            if self._chunks == 2:
                self._due = (frame, now_s + MARGIN_S)
            return None
        due_s = self._due[1] + (frame - self._due[0]) * self._interval_s / min(1.0, max(0.2, self.speed))
        self._due = (frame, due_s if due_s >= now_s else now_s + MARGIN_S)
        return due_s - now_s
