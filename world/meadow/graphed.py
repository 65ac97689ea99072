"""Functions of tensors that a GPU plays back instead of being told a thousand kernels at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from world.graphs import Replay, cuda_capture

WARM_UPS = 3  # calls before the capture, in which libraries choose their kernels and compiled parts are compiled

Function = Callable[..., Sequence[Tensor]]


class Graphed:
    """On a GPU captured at its first call as a CUDA graph, on the CPU called as it is. Shapes must not change.

    The function reads and writes tensors only, on one device, without looking at a value; what it does beside what it
    returns (gradients that it adds up) is done again whenever it is called, and three times more at the first call.
    """

    def __init__(self, function: Function):
        self.function = function
        self.replay: Replay | None = None
        self.inputs: list[Tensor] = []
        self.outputs: list[Tensor] = []

    def __call__(self, *inputs: Tensor) -> list[Tensor]:
        if not inputs[0].is_cuda:
            return list(self.function(*inputs))
        if self.replay is None:
            self.inputs = [t.clone() for t in inputs]
            capture = cuda_capture(inputs[0].device, WARM_UPS, errors="global")
            self.replay, self.outputs = capture(lambda: list(self.function(*self.inputs)))
        for held, given in zip(self.inputs, inputs, strict=True):
            held.copy_(given)
        self.replay()
        return [t.clone() for t in self.outputs]
