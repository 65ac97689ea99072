"""What distinguishes one world from another, as data: sizes, window, schedule and conditioning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from world.chunk import Geometry
from world.nn.dit import DiTConfig
from world.nn.vae import VAEConfig
from world.sampler import Schedule


@dataclass(frozen=True, slots=True)
class WorldConfig:
    name: str
    geometry: Geometry
    dit: DiTConfig
    vae: VAEConfig
    schedule: Schedule
    window_frames: int  # latent frames a chunk attends to: sink + recent ones + itself
    sink_frames: int  # the stream's first frames, never evicted
    conditioning: Literal["first_frame", "warp"] = "first_frame"  # see world.scene
    max_rows: int = 8  # rows in one forward

    def __post_init__(self) -> None:
        recent = self.window_frames - self.sink_frames
        if self.sink_frames < 0 or recent < self.geometry.chunk_frames:
            raise ValueError(
                f"a window of {self.window_frames} frames with a sink of {self.sink_frames} has no room for a chunk of "
                f"{self.geometry.chunk_frames}"
            )

    @property
    def window_tokens(self) -> int:
        return self.window_frames * self.geometry.frame_tokens
