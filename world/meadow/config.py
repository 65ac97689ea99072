"""The built-in world's sizes. Same classes and code path as the published models; only these numbers differ."""

from __future__ import annotations

from dataclasses import replace

from world.chunk import Geometry
from world.config import WorldConfig
from world.nn.dit import DiTConfig
from world.nn.text import ByteTextConfig
from world.nn.vae import VAEConfig
from world.sampler import from_sigmas

TEXT = ByteTextConfig(text_dim=128, dim=128, num_heads=4, num_layers=2, max_bytes=95)
SIGMAS = (1.0, 0.6)  # the student's own: what it is shown leaves few steps to take

_VAE = VAEConfig(
    dim=16, multipliers=(1, 2, 4, 8), encoder_blocks=1, decoder_blocks=1, depth_width=48, mean=(0.0,) * 16,
    std=(1.0,) * 16,
)  # fmt: skip
_DIT = DiTConfig(
    dim=256, num_heads=4, num_layers=8, ffn_dim=1024, text_len=TEXT.max_rows, text_dim=TEXT.text_dim,
    in_channels=56,  # 16 noisy latent + 2 x (4 mask + 16 latent): the newest and a remembered view
)  # fmt: skip


def meadow_config(mean: tuple[float, ...] = _VAE.mean, std: tuple[float, ...] = _VAE.std) -> WorldConfig:
    """One latent frame a chunk, so that control answers within a quarter of a second; a window of a second and a half,
    of which the start picture is the anchor. Mean and std normalise this VAE's latents and come with its weights."""
    return WorldConfig(
        name="meadow",
        geometry=Geometry(width=224, height=128, fps=16, chunk_frames=1),
        dit=_DIT,
        vae=replace(_VAE, mean=mean, std=std),
        schedule=from_sigmas(SIGMAS),
        window_frames=6,
        sink_frames=1,
        conditioning="warp",
    )
