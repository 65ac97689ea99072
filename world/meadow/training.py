"""What every training stage shares: a time budget that survives interruption, its learning rate, averaged weights."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from world.meadow.muon import Muon

SAVE_EVERY_S = 60.0
WARMUP_STEPS = 200
LAYER = re.compile(r"\b(blocks|layers|encoder|decoder)\..*weight$")  # what Muon takes, where it has two dimensions
AVERAGE = 0.998  # decay of the averaged weights, the ones that are kept


class Run:
    """Optimises modules for a number of seconds in all, over any number of sessions; the learning rate follows a cosine
    of the share spent. `average` holds the weights to keep."""

    def __init__(
        self, path: Path, modules: nn.ModuleDict, seconds: float, lr: float, log: Callable[[str], None] = print
    ):
        self.path, self.modules, self.seconds, self.lr, self.log = path, modules, seconds, lr, log
        weights = list(modules.parameters())
        free = {name: p for name, p in modules.named_parameters() if p.requires_grad}
        inner = [p for name, p in free.items() if p.dim() > 1 and LAYER.search(name)]
        rest = [p for name, p in free.items() if not (p.dim() > 1 and LAYER.search(name))]
        self.optimizers: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(rest, lr=lr, betas=(0.9, 0.98), weight_decay=0.01, fused=weights[0].is_cuda)
        ]
        if inner:
            self.optimizers.append(Muon(inner, lr))
        self.average = {name: p.detach().clone() for name, p in modules.named_parameters()}
        self.step, self.spent = 0, 0.0
        self.losses: list[Tensor] = []  # of this session, one a step; not looked at here, so that a GPU need not wait
        if path.exists():
            state = torch.load(path, weights_only=True, map_location=weights[0].device)
            modules.load_state_dict(state["modules"])
            for optimizer, kept in zip(self.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(kept)
            self.average, self.step, self.spent = state["average"], state["step"], state["spent"]
            log(f"resumed {path.name} at step {self.step}, {self.spent:.0f} of {seconds:.0f} s")

    @property
    def share(self) -> float:
        return min(1.0, self.spent / self.seconds)

    def fell_to(self) -> float:
        """The mean loss of the last fifth of this session's steps, as a share of the first fifth's."""
        fifth = max(1, len(self.losses) // 5)
        first, last = (torch.stack(part).mean().item() for part in (self.losses[:fifth], self.losses[-fifth:]))
        return last / first

    def save(self) -> None:
        half = self.path.with_suffix(".part")
        torch.save(
            {
                "modules": self.modules.state_dict(),
                "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
                "average": self.average,
                "step": self.step,
                "spent": self.spent,
            },
            half,
        )
        half.replace(self.path)

    def steps(self) -> Iterator[float]:
        """The share of the time spent, once a step, until it is spent; saves now and then and at the end."""
        started = saved = time.monotonic()
        before = self.spent
        while self.spent < self.seconds:
            yield self.share
            now = time.monotonic()
            self.spent = before + now - started
            if now - saved > SAVE_EVERY_S:
                self.save()
                saved = now
        self.save()

    def descend(self, loss: Tensor) -> None:
        """The gradients of this loss alone. They stay where they are from step to step, so that a graph may hold it."""
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=False)
        loss.backward()

    def update(self, loss: Tensor) -> None:
        """One step along the gradients of this loss."""
        warm = min(1.0, (self.step + 1) / WARMUP_STEPS)
        self.losses.append(loss.detach())
        nn.utils.clip_grad_norm_(self.modules.parameters(), 1.0)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.lr * warm * (0.02 + 0.98 * (0.5 + 0.5 * math.cos(math.pi * self.share)))
            optimizer.step()
        self.step += 1
        decay = min(AVERAGE, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            weights = [p.detach() for p in self.modules.parameters()]
            torch._foreach_lerp_(list(self.average.values()), weights, 1 - decay)


def averaged(path: Path, name: str, device: torch.device) -> dict[str, Tensor]:
    """The averaged weights of one module of a saved run, by its own names."""
    average = torch.load(path, weights_only=True, map_location=device)["average"]
    return {key[len(name) + 1 :]: p for key, p in average.items() if key.startswith(name + ".")}
