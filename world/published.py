"""The published models' sizes as data: what their files would say, for planning and measuring without the files."""

from __future__ import annotations

from pathlib import Path

from world.checkpoint import Layout, layouts
from world.chunk import WorldError
from world.config import WorldConfig
from world.nn.dit import DiTConfig
from world.nn.vae import VAEConfig
from world.text import UMT5Sizes

UMT5_XXL = UMT5Sizes(vocabulary=256384, dim=4096, head_dim=64, ffn_dim=10240, num_layers=24, num_heads=64, buckets=32)
WAN_VAE = VAEConfig()

# Name -> the release, and the sizes of its DiT. 14B is LingBot-World-Fast (v1), 1.3B its second version.
_MODELS = {
    "lingbot-14b": ("lingbot-world-fast-v1", 5120, 40, 40, 13824),
    "lingbot-1.3b": ("lingbot-world-fast-v2-1.3b", 1536, 12, 30, 8960),
}
PUBLISHED = tuple(_MODELS)


def published_layout(name: str) -> Layout:
    """The release's window, chunk and schedule. WorldError for a name that is not one of PUBLISHED."""
    if name not in _MODELS:
        raise WorldError(f"{name} is not one of the published models: {', '.join(PUBLISHED)}")
    release = _MODELS[name][0]
    return next(layout for layout in layouts(Path(name)) if layout.name == release)


def published_config(name: str) -> WorldConfig:
    """As `world.loader.load_published` makes it from the files of a checkpoint that overrides nothing."""
    layout = published_layout(name)
    _, dim, num_heads, num_layers, ffn_dim = _MODELS[name]
    dit = DiTConfig(
        dim, num_heads, num_layers, ffn_dim, text_len=512, text_dim=UMT5_XXL.dim, control_channels=6, freq_dim=256,
        in_channels=36, out_channels=16, eps=1e-6,
    )  # fmt: skip
    return layout.world_config(dit, WAN_VAE)
