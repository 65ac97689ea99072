"""A world of the true architecture with weights that nobody trained, made on the device: speed depends on shapes, not
on values. What it draws is noise; no figure of quality can come from it."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from world.chunk import Precision, Scene
from world.config import WorldConfig
from world.nn.dit import CausalDiT, served_dtypes
from world.nn.fp8 import when_placed
from world.nn.vae import VideoVAE
from world.weights import DtypeOf, Placed, untold

PROMPT_ROWS = 64  # of a prompt, before it is padded to text_len


class RandomText:
    """`world.text.TextEncoder`: rows of the right shape, the same ones for every text."""

    def __init__(
        self, num_rows: int, text_dim: int, device: torch.device, dtype: torch.dtype, generator: torch.Generator
    ):
        self.network = nn.Module()
        self.rows = torch.empty(num_rows, text_dim, device=device, dtype=dtype).normal_(generator=generator)

    @property
    def text_dim(self) -> int:
        return self.rows.shape[1]

    def encode(self, text: str) -> Tensor:
        return self.rows


def fill_randomly(
    module: nn.Module,
    dtype_of: DtypeOf,
    device: torch.device,
    generator: torch.Generator,
    placed: Placed = untold,
) -> None:
    """Give every parameter of a module on the meta device its memory, one after another in the dtype it is served in:
    normal with deviation 0.5 / sqrt(inputs) where it multiplies, 1 for a norm's scale, 0 for a bias."""
    for name in list(module.state_dict()):
        parent, _, leaf = name.rpartition(".")
        owner = module.get_submodule(parent)
        shape = getattr(owner, leaf).shape
        own = torch.empty(shape, dtype=dtype_of(name), device=device)
        if leaf == "bias":
            own.zero_()
        elif leaf == "gamma" or (leaf == "weight" and len(shape) == 1):
            own.fill_(1.0)
        else:
            own.normal_(0.0, 0.5 * shape[1:].numel() ** -0.5, generator=generator)
        setattr(owner, leaf, nn.Parameter(own, requires_grad=False))
        placed(name)


def random_networks(
    cfg: WorldConfig, device: torch.device, dtype: torch.dtype, seed: int = 0, precision: Precision = "native"
) -> tuple[CausalDiT, VideoVAE, RandomText]:
    """In the dtypes that a checkpoint is served in. In FP8 they are the same numbers, rounded."""
    generator = torch.Generator(device).manual_seed(seed)
    with torch.device("meta"):
        dit, vae = CausalDiT(cfg.dit), VideoVAE(cfg.vae)
    fill_randomly(dit, served_dtypes(dtype), device, generator, when_placed(dit, precision, device))
    fill_randomly(vae, lambda key: dtype, device, generator)
    return (
        dit.eval(),
        vae.eval(),
        RandomText(min(PROMPT_ROWS, cfg.dit.text_len), cfg.dit.text_dim, device, dtype, generator),
    )


def grey_scene(cfg: WorldConfig) -> Scene:
    """A start that needs no drawing."""
    w, h = cfg.geometry.width, cfg.geometry.height
    image = np.full((h, w, 3), 128, np.uint8)
    return Scene("grey", "Grey", "nothing", image, np.array([0.8 * w, 0.8 * w, w / 2, h / 2], np.float32))
