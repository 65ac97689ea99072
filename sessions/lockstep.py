"""Lockstep: a chunk begins when its steering is here, however long that takes, so a slow agent gets the same world.

The client decides when; the server only makes sure that what it decides does not depend on when. One control, or the
poses of all its video frames, belong to one chunk, in the order in which they came; chunk 0 of a steered session shows
the start and needs none. A prompt takes hold with the first chunk whose steering came after it.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from sessions.control import Control
from sessions.trajectory import AxesTrajectory, ChunkPath, ControlKind, Heading, PoseTrajectory
from world.chunk import Geometry, Prompt

MAX_QUEUED_CONTROLS = 16  # that wait for their chunks
CHUNKS_AHEAD = 2  # chunks under way or with frames that have not left: so many an outbox holds


class ControlQueueFull(Exception):
    """More controls than the queue holds; this one was dropped."""


class SteppedAxes(AxesTrajectory):
    """A control for each chunk from the second on, held for the whole of it."""

    def __init__(self, geometry: Geometry) -> None:
        super().__init__(geometry)
        self.received = 0
        self._waiting: deque[Control] = deque()
        self._last: tuple[int, float] = (0, -math.inf)  # seq and clock of the newest control

    def steered(self, chunk_index: int) -> bool:
        """Whether all that this chunk needs is here."""
        return bool(self._waiting) or chunk_index == 0

    @property
    def taken(self) -> int:
        return self.received - len(self._waiting)

    def steer(self, control: Control) -> None:
        """ValueError: its number or clock goes back. ControlQueueFull: too many wait."""
        if control.seq <= self._last[0] or control.t_ms < self._last[1]:
            raise ValueError(f"control {control.seq} is older than the one before it")
        if len(self._waiting) >= MAX_QUEUED_CONTROLS:
            raise ControlQueueFull(f"{MAX_QUEUED_CONTROLS} controls wait for their chunks")
        self._last = control.seq, control.t_ms
        self._waiting.append(control)
        self.received += 1

    def restart(self) -> None:
        super().restart()
        self._waiting.clear()
        self._last = (0, -math.inf)

    def resume(self, heading: Heading, same_clock: bool) -> None:
        super().resume(heading, same_clock)
        self._waiting.clear()
        hands = self.track.hands
        self._last = hands.seq, -math.inf if hands.t_ms is None else hands.t_ms

    def take(self, chunk_index: int) -> ChunkPath:
        if chunk_index:
            self.track.put(self._waiting.popleft())
        return super().take(chunk_index)


class SteppedPoses(PoseTrajectory):
    """A chunk needs a pose for each of its video frames."""

    def __init__(self, geometry: Geometry) -> None:
        super().__init__(geometry)
        self.received = 0

    def steered(self, chunk_index: int) -> bool:
        """Whether all that this chunk needs is here."""
        return self.queued >= self._geometry.video_frames(chunk_index)

    @property
    def heading(self) -> Heading:
        """Without the poses that wait for their chunks."""
        return replace(super().heading, queue=(), last_seq=self._control_seq)

    @property
    def taken(self) -> int:
        return self.received - self.queued

    def extend(self, seq: int, poses: NDArray[np.float32]) -> None:
        super().extend(seq, poses)
        self.received += len(poses)


class Lockstep:
    """What a session in lockstep waits for, and what its next chunk begins with."""

    def __init__(self, geometry: Geometry, control: ControlKind) -> None:
        self.trajectory = SteppedAxes(geometry) if control == "axes" else SteppedPoses(geometry)
        self.asked = False  # somebody has noticed that the next chunk can begin
        self._left = -1  # the last chunk whose frames have all left
        self._prompts: deque[tuple[int, Prompt]] = deque()  # (steering that had come before it, prompt)

    def may_begin(self, chunk_index: int) -> bool:
        """Whether its steering is here, and room for its frames."""
        return self.trajectory.steered(chunk_index) and chunk_index - self._left <= CHUNKS_AHEAD

    def left(self, chunk_index: int) -> None:
        """All frames of a chunk are on their way; those of earlier ones were before."""
        self._left = max(self._left, chunk_index)

    def resume(self, chunk_index: int, next_prompt: Prompt | None) -> None:
        """This chunk is next, whatever was before, and all frames before it have left."""
        self.asked, self._left = False, chunk_index - 1
        self._prompts.clear()
        if next_prompt is not None:
            self.ask(next_prompt)

    @property
    def next_prompt(self) -> Prompt | None:
        """The newest that is in no chunk yet."""
        return self._prompts[-1][1] if self._prompts else None

    def ask(self, prompt: Prompt) -> bool:
        """For the next steering that comes. Whether it replaces one that no steering came after."""
        replaced = bool(self._prompts) and self._prompts[-1][0] == self.trajectory.received
        if replaced:
            self._prompts.pop()
        self._prompts.append((self.trajectory.received, prompt))
        return replaced

    def prompt(self) -> Prompt | None:
        """Of the chunk whose steering was just taken."""
        prompt: Prompt | None = None
        while self._prompts and self._prompts[0][0] < self.trajectory.taken:
            prompt = self._prompts.popleft()[1]
        return prompt
