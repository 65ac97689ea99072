"""Muon for every kind of weight that multiplies: linears and, flattened, convolutions."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # coefficients of the quintic, Jordan et al. 2024
MOMENTUM = 0.95


def orthogonalise(g: Tensor) -> Tensor:
    """Matrices [n, O, I] -> nearly the nearest orthogonal ones: all singular values to about 1, in five steps."""
    a, b, c = NEWTON_SCHULZ
    x = g.to(torch.bfloat16 if g.is_cuda else torch.float32)
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    for _ in range(5):
        s = x @ x.mT
        x = a * x + (b * s + c * s @ s) @ x
    return (x.mT if tall else x).to(g.dtype)


class Muon(torch.optim.Optimizer):
    """Nesterov momentum whose every step is orthogonalised (Jordan et al. 2024), as long as AdamW's (Liu et al. 2025).
    torch's own takes two-dimensional weights only, one at a time; here weights of one shape go together.

    Why at all: an AdamW step moves every weight by the learning rate, so a convolution over 3,456 inputs moves its
    output by thousands of it. Before a norm that forgets length, nothing brings it back: at 1e-3 a decoder's features
    grew to 200,000 and its residual branches no longer counted.
    """

    def __init__(self, weights: Iterable[Tensor], lr: float, weight_decay: float = 0.01):
        super().__init__(weights, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            same: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    same[p.shape].append(p)
            for shape, weights in same.items():
                moments = [self.state[p].setdefault("momentum", torch.zeros_like(p)) for p in weights]
                grads = [p.grad for p in weights]
                torch._foreach_lerp_(moments, grads, 1 - MOMENTUM)
                ahead = torch._foreach_lerp(grads, moments, MOMENTUM)
                turned = orthogonalise(torch.stack(ahead).flatten(2)).view(len(weights), *shape)
                length = 0.2 * max(shape[0], shape[1:].numel()) ** 0.5
                torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
                torch._foreach_add_(weights, list(turned.unbind()), alpha=-group["lr"] * length)
