"""What a bot is asked to do."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gameserver.policies import Hold, Policy, scripted, walk
from world.motion import Script

DEFAULT_SECONDS = 10.0


@dataclass(frozen=True, slots=True, eq=False)
class BotPlan:
    """What to do. Without `seconds`: the script or the poses once, else ten seconds. With it, a script repeats."""

    seconds: float | None = None
    script: Script | None = None  # keys held for a number of video frames
    policy: Iterable[Hold] | None = None  # instead of a script
    poses: NDArray[np.float32] | None = None  # [n, 4, 4], one a video frame, instead of a script
    intrinsics: tuple[float, ...] | None = None  # fx, fy, cx, cy in pixels of the stream's picture
    scale: float | None = None
    image: bytes | None = None  # a JPEG or PNG file to start from
    name: str = "bot"
    scene: str | None = None
    prompt: str | None = None
    prompts: tuple[tuple[float, str], ...] = ()  # (seconds after the welcome, in lockstep of play; another prompt)
    seed: int | None = None
    token: str | None = None
    codecs: tuple[str, ...] = ("h264", "jpeg")
    lockstep: bool = False
    save: Path | None = None  # an MP4 file of what was received

    def hello(self) -> dict[str, Any]:
        """Fields of the message."""
        names = ["intrinsics", "scale", "image", "name", "scene", "prompt", "seed", "token", "codecs", "lockstep"]
        return {"control": "axes" if self.poses is None else "poses"} | {name: getattr(self, name) for name in names}

    def holds(self) -> Policy:
        """What is held, one thing after another, where no poses are sent."""
        if self.script is not None:
            return scripted(self.script, repeat=self.seconds is not None)
        return walk() if self.policy is None else iter(self.policy)

    def duration_s(self, fps: int, chunk_frames: int) -> float | None:
        """None: until the last pose was shown."""
        if self.seconds is not None or self.poses is not None:
            return self.seconds
        if self.script is not None:
            return (sum(frames for _, frames in self.script) + 2 * chunk_frames) / fps  # to see its end
        return DEFAULT_SECONDS
