"""What a bot is asked to do, and how it says that it could not."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gameserver.protocol import VERSION
from world.motion import Script


class BotError(Exception):
    """The session did not end well; the message is one sentence, `code` the server's error code if it gave one."""

    def __init__(self, sentence: str, code: str | None = None) -> None:
        super().__init__(sentence)
        self.code = code


@dataclass(frozen=True, slots=True, eq=False)
class BotPlan:
    """What to do. Without `seconds`: the script or the poses once, else ten seconds. With it, a script repeats."""

    seconds: float | None = None
    script: Script | None = None  # keys held for a number of video frames
    poses: NDArray[np.float32] | None = None  # [n, 4, 4], one a video frame, instead of a script
    intrinsics: tuple[float, ...] | None = None  # fx, fy, cx, cy in pixels of the stream's picture
    scale: float | None = None
    image: bytes | None = None  # a JPEG or PNG file to start from
    name: str = "bot"
    scene: str | None = None
    prompt: str | None = None
    prompts: tuple[tuple[float, str], ...] = ()  # (seconds after the welcome, another prompt)
    seed: int | None = None
    token: str | None = None
    codecs: tuple[str, ...] = ("h264", "jpeg")
    save: Path | None = None  # an MP4 file of what was received

    def hello(self) -> dict[str, Any]:
        fields = {
            "type": "hello",
            "version": VERSION,
            "name": self.name,
            "codecs": self.codecs,
            "control": "axes" if self.poses is None else "poses",
            "scene": self.scene,
            "prompt": self.prompt,
            "seed": self.seed,
            "token": self.token,
            "intrinsics": self.intrinsics,
            "scale": self.scale,
            "image": self.image,
        }
        return {name: value for name, value in fields.items() if value is not None}
