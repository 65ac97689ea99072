"""Functions of tensors that a GPU plays back instead of being told a thousand kernels at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

WARM_UPS = 3  # calls before the capture, in which libraries choose their kernels and compiled parts are compiled

Function = Callable[..., Sequence[Tensor]]


class Graphed:
    """On a GPU captured at its first call as a CUDA graph, on the CPU called as it is. Shapes must not change.

    The function reads and writes tensors only, on one device, without looking at a value; what it does beside what it
    returns (gradients that it adds up) is done again whenever it is called, and three times more at the first call.
    """

    def __init__(self, function: Function):
        self.function = function
        self.graph: torch.cuda.CUDAGraph | None = None
        self.inputs: list[Tensor] = []
        self.outputs: list[Tensor] = []

    def __call__(self, *inputs: Tensor) -> list[Tensor]:
        if not inputs[0].is_cuda:
            return list(self.function(*inputs))
        if self.graph is None:
            self._capture(inputs)
        for held, given in zip(self.inputs, inputs, strict=True):
            held.copy_(given)
        self.graph.replay()
        return [t.clone() for t in self.outputs]

    def _capture(self, inputs: Sequence[Tensor]) -> None:
        self.inputs = [t.clone() for t in inputs]
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(WARM_UPS):
                self.function(*self.inputs)
        torch.cuda.current_stream().wait_stream(aside)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.outputs = list(self.function(*self.inputs))
