"""The clock of one stream: when the player needs each chunk.

Deadlines count video frames, because a first chunk is shorter than the others. A late chunk shifts the clock by its
lateness and nothing is made up for later, so overload slows a stream and never makes it rush.
"""

from __future__ import annotations

import math
from collections import deque

from world.chunk import Geometry

REPORTS = 8  # finished chunks whose slack may still be reported
EARLIER_GAIN, LATER_GAIN = 0.5, 0.25  # a reported slack that is short is believed sooner than one that is long


class Pacing:
    def __init__(self, geometry: Geometry, now_s: float) -> None:
        self._geometry = geometry
        self._predicted: deque[tuple[int, float]] = deque(maxlen=REPORTS)  # (chunk index, slack in s)
        self._chunk_s = 0.0  # duration of the last chunk
        self._finished_s = now_s
        self.late_s = 0.0  # how far overload has shifted the clock, in all
        self.restart(0, now_s)

    def restart(self, chunk_index: int, now_s: float) -> None:
        """Nothing plays at the client: this chunk is wanted at once, and the clock starts at the one after it."""
        self._predicted.clear()
        self._needed_s = now_s
        self._earliest_s = now_s
        self._settled_index = chunk_index + 2

    def ask(self, chunk_index: int, now_s: float) -> None:
        """The client waits for this chunk and plays nothing. It may be finished at once and is never late; that it is
        needed a chunk later lets those who play in real time go first, and nobody wait for ever."""
        self.restart(chunk_index, now_s)
        self._needed_s = now_s + self._geometry.video_frames(chunk_index) / self._geometry.fps

    @property
    def deadline_s(self) -> float:
        """When the next chunk's first frame is needed."""
        return self._needed_s

    @property
    def earliest_s(self) -> float:
        """The next chunk may not be finished before: the one before it plays then, so never more than one waits."""
        return self._earliest_s

    def finished(self, chunk_index: int, at_s: float) -> float:
        """The frames of the awaited chunk are out; returns its lateness in seconds, 0 when in time."""
        late_s = max(0.0, at_s - self._needed_s) if chunk_index >= self._settled_index else 0.0
        self.late_s += late_s
        shown_s = max(self._needed_s, at_s)
        self._predicted.append((chunk_index, shown_s - at_s))
        self._finished_s = at_s
        self._earliest_s = shown_s
        self._chunk_s = self._geometry.video_frames(chunk_index) / self._geometry.fps
        self._needed_s = shown_s + self._chunk_s
        return late_s

    def report(self, slack_s: float, chunk_index: int | None = None) -> None:
        """The client says how early a chunk's first frame came (default: the last one's); correct the clock by it.

        The clock never gets ahead of a chunk shown as soon as it was finished, so no report buys priority.
        """
        if not math.isfinite(slack_s):
            return
        for index, predicted_s in reversed(self._predicted):
            if chunk_index in (None, index):
                self._predicted.remove((index, predicted_s))  # one report a chunk
                error_s = min(max(slack_s, 0.0), self._chunk_s) - predicted_s
                shift_s = error_s * (EARLIER_GAIN if error_s < 0 else LATER_GAIN)
                shown_s = max(self._finished_s, self._earliest_s + shift_s)
                self._needed_s += shown_s - self._earliest_s
                self._earliest_s = shown_s
                return
