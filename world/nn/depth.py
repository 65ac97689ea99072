"""How near what a latent shows is, told from the latent alone: a small head beside a VAE's decoder."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FINER = 2  # points a cell, each way
DILATIONS = (1, 1, 2, 4, 1)  # a tower is as far away as its foot, many cells below


class DepthHead(nn.Module):
    """Latents [n, z, h, w], normalised -> inverse depth float32 [n, 2 h, 2 w], along the camera's axis, of a unit of
    length; 0 is infinitely far."""

    def __init__(self, z_dim: int, width: int):
        super().__init__()
        layers: list[nn.Module] = []
        for i, dilation in enumerate(DILATIONS):
            conv = nn.Conv2d(z_dim if i == 0 else width, width, 3, padding=dilation, dilation=dilation)
            layers += [conv, nn.SiLU()]
        self.layers = nn.Sequential(*layers, nn.Conv2d(width, FINER**2, 3, padding=1))

    def forward(self, latents: Tensor) -> Tensor:
        latents = latents.to(self.layers[0].weight.dtype, memory_format=torch.channels_last)  # as in world.nn.vae
        told = self.layers(latents).float()
        return F.pixel_shuffle(F.softplus(told), FINER)[:, 0]
