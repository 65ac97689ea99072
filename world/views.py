"""What a stream remembers beyond its window: views it made, kept where its camera had not been and recalled when it
comes back. Here is the bookkeeping, by pose; the latents of the views lie in the slab. numpy only."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Pose = NDArray[np.floating]  # [4, 4] camera-to-world
NEWEST = -1  # in place of a place: the last frame of the chunk before, which no view holds


@dataclass(frozen=True, slots=True)
class ViewRules:
    """When two cameras count as seeing the same: both shares, of the turn and of the way between them, add up to 1."""

    capacity: int = 32
    turn_deg: float = 20.0
    walk_units: float = 0.75
    shown: int = 3  # views recalled at once
    reach: float = 4.0  # how far apart a view may be to be recalled before the nearest

    def apart(self, one: Pose, other: Pose) -> float:
        """0 for the same camera, 1 where a view stops standing for another."""
        a, b = np.asarray(one, np.float64), np.asarray(other, np.float64)
        cosine = float((a[:3, :3] * b[:3, :3]).sum() - 1) / 2
        turned_deg = math.degrees(math.acos(min(1.0, max(-1.0, cosine))))
        return turned_deg / self.turn_deg + math.dist(a[:3, 3], b[:3, 3]) / self.walk_units


@dataclass(frozen=True, slots=True, eq=False)
class View:
    pose: Pose
    prompt: str  # that it was made under


@dataclass(frozen=True, slots=True, eq=False)
class Shown:
    """What a chunk is shown as it begins."""

    place: int  # where its latent lies, or NEWEST
    pose: Pose
    is_current: bool  # made under the prompt that the chunk is


@dataclass(slots=True)
class Views:
    """The views one stream has, by the place in the slab where each one's latent lies. Place 0 is the start picture's
    and is never given away; of the others the oldest makes room."""

    rules: ViewRules
    prompt: str = ""  # that the stream's newest picture was made under
    kept: dict[int, View] = field(default_factory=dict)  # by place, the oldest first
    position: NDArray[np.float64] = field(default_factory=lambda: np.zeros(3))  # where the stream has come to

    def facts(self) -> dict[str, Any]:
        """All of it but the rules, as JSON, to the bit."""
        kept = [[at, np.asarray(view.pose, np.float64).tolist(), view.prompt] for at, view in self.kept.items()]
        return {"prompt": self.prompt, "kept": kept, "position": self.position.tolist()}

    @classmethod
    def of(cls, rules: ViewRules, facts: Mapping[str, Any]) -> Views:
        """ValueError if they are not `facts`."""
        try:
            kept = {int(at): View(np.array(pose, np.float64).reshape(4, 4), str(p)) for at, pose, p in facts["kept"]}
            views = cls(rules, str(facts["prompt"]), kept, np.array(facts["position"], np.float64).reshape(3))
        except (KeyError, TypeError) as fault:
            raise ValueError(f"the views cannot be read: {fault}") from None
        if sorted(kept) != list(range(len(kept))) or len(kept) > rules.capacity:
            raise ValueError("the views are not in places of their own")
        return views

    def follow(self, path: NDArray[np.float64]) -> NDArray[np.float64]:
        """A chunk's poses [n, 4, 4] moved to begin where the stream is: a row tells relative motion only."""
        moved = path.copy()
        moved[:, :3, 3] += self.position - path[0, :3, 3]
        return moved

    def begin(self, path: NDArray[np.float64], is_first: bool, prompt: str | None) -> tuple[Shown, ...]:
        """The stream begins a chunk, its first one or another, on a path [1 + f, 4, 4] from the pose before it, under a
        new prompt or none: it is shown the newest picture and the recalled ones. A start picture is remembered
        first."""
        if not self.kept:
            self.remember(path[1])
        newest = (0, path[1]) if is_first else (NEWEST, path[0])
        made_under, recalled = self.prompt, [(place, self.kept[place]) for place in self.recall(path[-1])]
        if prompt is not None:
            self.prompt = prompt
        views = (Shown(place, view.pose, view.prompt == self.prompt) for place, view in recalled)
        return Shown(*newest, made_under == self.prompt), *views

    def recall(self, pose: Pose) -> tuple[int, ...]:
        """The places of the views to show for a pose, the oldest first (the fewer steps a view is away from the start
        picture, the less it has drifted): the nearest, and the oldest that are within reach. Where there are fewer, one
        of them more often."""
        apart = {place: self.rules.apart(pose, view.pose) for place, view in self.kept.items()}
        nearest = min(apart, key=apart.__getitem__)
        within = [place for place, far in apart.items() if far <= self.rules.reach and place != nearest]
        chosen = {nearest, *within[: self.rules.shown - 1]}
        oldest_first = [place for place in self.kept if place in chosen]
        return *oldest_first, *[nearest] * (self.rules.shown - len(oldest_first))

    def remember(self, pose: Pose) -> int | None:
        """The stream has come to a pose: where to keep the view made there, or None where another stands for it."""
        self.position = np.array(pose[:3, 3], np.float64)
        if any(self.rules.apart(pose, view.pose) <= 1 for view in self.kept.values()):
            return None
        place = len(self.kept)
        if place == self.rules.capacity:
            place = next(p for p in self.kept if p != 0)
            del self.kept[place]
        self.kept[place] = View(np.array(pose), self.prompt)
        return place


def recalled_frames(poses: NDArray[np.floating], rules: ViewRules) -> NDArray[np.int64]:
    """For every frame of a clip [m, 4, 4] the earlier frames (0: the start picture) whose views a stream would recall
    [m, rules.shown]."""
    views, frame_at, recalled = Views(rules), dict[int, int](), []
    for i, pose in enumerate(poses):
        if i == 0:
            views.remember(pose)
            frame_at[0] = 0
        recalled.append([frame_at[place] for place in views.recall(pose)])
        place = views.remember(pose) if i > 0 else None
        if place is not None:
            frame_at[place] = i
    return np.array(recalled, np.int64)
