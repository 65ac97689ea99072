"""A critic of pictures: it learns to tell the teacher's latents from the student's, and so in which direction the
student's would have to change to pass (Goodfellow et al. 2014; hinge losses and spectral norm: Miyato et al. 2018).

What a student has to invent it is not told: held to the teacher's by a mean square alone, its best answer is a blur.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

WIDTH = 128
HAZE = 0.1  # noise on all that is judged: finer differences than this do not count


class Critic(nn.Module):
    """Latents [n, channels, h, w] -> a score for every patch of four cells, greater the more like the teacher's."""

    def __init__(self, channels: int):
        super().__init__()
        self.judge = nn.Sequential(
            spectral_norm(nn.Conv2d(channels, WIDTH, 3, padding=1)),
            nn.LeakyReLU(0.2),
            spectral_norm(nn.Conv2d(WIDTH, WIDTH, 3, padding=1)),
            nn.LeakyReLU(0.2),
            spectral_norm(nn.Conv2d(WIDTH, 2 * WIDTH, 4, stride=2, padding=1)),
            nn.LeakyReLU(0.2),
            spectral_norm(nn.Conv2d(2 * WIDTH, 2 * WIDTH, 3, padding=1)),
            nn.LeakyReLU(0.2),
            spectral_norm(nn.Conv2d(2 * WIDTH, 1, 3, padding=1)),
        )

    def forward(self, latents: Tensor) -> Tensor:
        scores: Tensor = self.judge(latents + HAZE * torch.randn_like(latents))
        return scores

    def mistaken(self, true: Tensor, made: Tensor) -> Tensor:
        """How far it is from telling latents [n, channels, h, w] apart: what its own weights are to lessen."""
        return F.relu(1 - self(true)).mean() + F.relu(1 + self(made.detach())).mean()

    def advice(self, made: Tensor, where: Tensor) -> Tensor:
        """The direction [n, channels, h, w] that would raise the scores of `made`, in the cells of `where` [n, h, w]
        (weights) alone; its mean square is 1 however sure the critic is."""
        probe = made.detach().requires_grad_()
        (direction,) = torch.autograd.grad(self(probe).sum(), probe)
        direction = direction * where[:, None]
        return direction / direction.square().mean().sqrt().clamp(min=1e-12)
