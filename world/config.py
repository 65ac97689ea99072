"""What distinguishes one world from another, as data: sizes, window, schedule and conditioning."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from world.chunk import Geometry
from world.nn.dit import DiTConfig
from world.nn.vae import VAEConfig
from world.sampler import Schedule
from world.views import ViewRules

CONDITION_CHANNELS = {"first_frame": 20, "warp": 40}  # see world.scene
DECODED_PIXELS = 2**18  # of all pictures that are decoded at once: 9 of 224x128


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
    views: ViewRules = field(default_factory=ViewRules)  # what a warped stream remembers
    max_rows: int = 8  # rows in one forward

    def __post_init__(self) -> None:
        if (self.conditioning == "warp") != (self.vae.depth_width > 0):
            raise ValueError("a warped condition needs a VAE that tells depth, and no other does")
        latent, y = self.geometry.latent_channels, CONDITION_CHANNELS[self.conditioning]
        if self.dit.in_channels != latent + y:
            raise ValueError(f"{self.dit.in_channels} input channels are not {latent} latent and {y} of the condition")
        recent = self.window_frames - self.sink_frames
        if self.sink_frames < 0 or recent < self.geometry.chunk_frames:
            raise ValueError(
                f"a window of {self.window_frames} frames with a sink of {self.sink_frames} has no room for a chunk of "
                f"{self.geometry.chunk_frames}"
            )

    @property
    def window_tokens(self) -> int:
        return self.window_frames * self.geometry.frame_tokens

    @property
    def decode_rows(self) -> int:
        """Rows that are decoded at once. A large picture fills a device by itself, and is decoded alone: what a decode
        works with grows with the rows, 2.5 GB each at 832x480."""
        return min(self.max_rows, max(1, DECODED_PIXELS // (self.geometry.width * self.geometry.height)))
