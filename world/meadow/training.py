"""What every training stage shares: a time budget that survives interruption, its learning rate, averaged weights."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

SAVE_EVERY_S = 60.0
WARMUP_STEPS = 200
AVERAGE = 0.998  # decay of the averaged weights, the ones that are kept


class Run:
    """Optimises modules for a number of seconds in all, over any number of sessions; the learning rate follows a cosine
    of the share spent. `average` holds the weights to keep."""

    def __init__(
        self, path: Path, modules: nn.ModuleDict, seconds: float, lr: float, log: Callable[[str], None] = print
    ):
        self.path, self.modules, self.seconds, self.lr, self.log = path, modules, seconds, lr, log
        weights = list(modules.parameters())
        fused = weights[0].is_cuda
        self.optimizer = torch.optim.AdamW(weights, lr=lr, betas=(0.9, 0.98), weight_decay=0.01, fused=fused)
        self.average = {name: p.detach().clone() for name, p in modules.named_parameters()}
        self.step, self.spent = 0, 0.0
        if path.exists():
            state = torch.load(path, weights_only=True, map_location=weights[0].device)
            modules.load_state_dict(state["modules"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.average, self.step, self.spent = state["average"], state["step"], state["spent"]
            log(f"resumed {path.name} at step {self.step}, {self.spent:.0f} of {seconds:.0f} s")

    @property
    def share(self) -> float:
        return min(1.0, self.spent / self.seconds)

    def save(self) -> None:
        half = self.path.with_suffix(".part")
        torch.save(
            {
                "modules": self.modules.state_dict(),
                "optimizer": self.optimizer.state_dict(),
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

    def update(self, loss: Tensor) -> None:
        warm = min(1.0, (self.step + 1) / WARMUP_STEPS)
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr * warm * (0.02 + 0.98 * (0.5 + 0.5 * math.cos(math.pi * self.share)))
        loss.backward()
        nn.utils.clip_grad_norm_(self.modules.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        decay = min(AVERAGE, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            weights = [p.detach() for p in self.modules.parameters()]
            torch._foreach_lerp_(list(self.average.values()), weights, 1 - decay)

    def averaged(self, name: str) -> dict[str, Tensor]:
        """The averaged weights of one module, by its own names."""
        return {key[len(name) + 1 :]: p for key, p in self.average.items() if key.startswith(name + ".")}
