"""Clips: streams of known length along known cameras, as many side by side as the world has slots.

They are sessions as any other, moved by poses, in a game whose clock jumps: nobody watches, so everything is due.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sessions.tick import Finished, Game
from sessions.trajectory import check_poses
from world.chunk import Start, World

BEHIND_S = 1000.0  # the clock jumps by this each tick, so that nobody waits for a deadline
POSES_AHEAD = 256  # queued for a clip at least, while it has so many left


@dataclass(frozen=True, slots=True, eq=False)
class Clip:
    """A stream to be made. ValueError if its poses are not rigid matrices, or there is nothing to make."""

    start: Start
    poses: NDArray[np.float32]  # [n, 4, 4], one a video frame; the camera stands still at the last one
    num_frames: int  # of video

    def __post_init__(self) -> None:
        check_poses(self.poses)
        if self.num_frames <= 0:
            raise ValueError("a clip has at least one frame")


@dataclass(slots=True)
class _Take:
    """A clip under way."""

    clip: Clip
    poses_sent: int = 0
    frames_made: int = 0


class Clips:
    """Begin clips while there is room; tick; chunks come out until each clip is long enough, then it leaves."""

    def __init__(self, world: World) -> None:
        self._game = Game(world)
        self._takes: dict[str, _Take] = {}
        self._now_s = 0.0

    def __len__(self) -> int:
        """Clips under way."""
        return len(self._takes)

    def __contains__(self, name: str) -> bool:
        return name in self._takes

    @property
    def has_room(self) -> bool:
        return len(self._game.roster) < self._game.roster.num_slots

    def begin(self, name: str, clip: Clip) -> None:
        """Full if there is no room, DuplicateSession if one of that name is under way."""
        self._game.join(name, clip.start, "poses", self._now_s)
        self._takes[name] = _Take(clip)
        self._feed(name)

    def drop(self, name: str) -> None:
        """Nobody wants the rest of it."""
        del self._takes[name]
        self._game.leave(name)

    def tick(self) -> tuple[Finished, ...]:
        """One forward for all; the chunks that it finished. A clip is gone when its last chunk comes out."""
        self._now_s += BEHIND_S
        finished = self._game.tick(self._now_s, lambda: self._now_s).finished
        for chunk in finished:
            take = self._takes[chunk.session_id]
            take.frames_made = chunk.first_frame + len(chunk.picture.frames)
            if take.frames_made >= take.clip.num_frames:
                self.drop(chunk.session_id)
            else:
                self._feed(chunk.session_id)
        return finished

    def _feed(self, name: str) -> None:
        """Queue poses well before they are wanted; the queue is too short for all of a long clip."""
        take = self._takes[name]
        end = take.frames_made + 2 * POSES_AHEAD
        if end - take.poses_sent >= POSES_AHEAD and take.poses_sent < len(take.clip.poses):
            piece = take.clip.poses[take.poses_sent : end]
            take.poses_sent += len(piece)
            self._game.extend(name, take.poses_sent, piece)
