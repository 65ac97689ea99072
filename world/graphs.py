"""Work of fixed shapes, captured once and replayed: a GPU is given a tick as one graph instead of thousands of kernels.

A graph reads what a tick brings from one buffer, which one asynchronous copy fills, and the state of players through
index tensors in it: who plays, where and at what step is data, and nothing is captured again when it changes. On a CPU
the work is simply done.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from world.crossing import Array, pack, send, unpack

# From so many a row on, products of one row and of several are the same kernels: with 585, an eighth of the 14B's, and
# more an H200 gave rows the same bits in company of one and two, with 112 other ones.
MANY_TOKENS = 512

Replay = Callable[[], None]  # does it again, into the tensors that the capture returned
Capture = Callable[[Callable[[], Any]], tuple[Replay, Any]]


@dataclass(frozen=True, slots=True, eq=False)
class _Captured:
    inputs: Tensor  # uint8 [n], packed
    replay: Replay
    made: Any


class Graphs:
    """Captured work, by name and size.

    `sizes` are the numbers of rows that work is done for; what has fewer rows is filled up with rows of the padding
    slot. Every number up to the most rows costs the least time a tick. One size alone gives every row the same shapes,
    and so the same bits, whoever shares its forward, also where libraries choose kernels by the number of rows. Without
    sizes work may have any shape.
    """

    def __init__(self, device: torch.device, capture: Capture | None = None, sizes: Sequence[int] = ()):
        """Without a `capture` work is simply done."""
        self.device, self.capture, self.sizes = device, capture, tuple(sorted(sizes))
        self.captured: dict[Hashable, _Captured] = {}

    def size(self, num_rows: int) -> int:
        """The number of rows that so many are filled up to."""
        return next((size for size in self.sizes if size >= num_rows), num_rows)

    def run(self, name: Hashable, work: Callable[..., Any], arrays: Sequence[Array], idle: Sequence[Array]) -> Any:
        """What `work` makes of the arrays, as tensors on the device: valid until this name and shape run again.

        idle: arrays of the same shapes with which `work` changes no player's state: a capture tries it with them.
        """
        if self.capture is None:
            return work(*send(self.device, *arrays))
        key = (name, *(array.shape for array in arrays))
        if key not in self.captured:
            inputs = pack(self.device, idle).to(self.device, copy=True)
            replay, made = self.capture(lambda: work(*unpack(inputs, idle)))
            self.captured[key] = _Captured(inputs, replay, made)
        graph = self.captured[key]
        graph.inputs.copy_(pack(self.device, arrays), non_blocking=True)
        graph.replay()
        return graph.made


def graphs_for(device: torch.device, max_rows: int, row_tokens: int) -> Graphs:
    """As a world on this device is served, of up to so many rows of so many tokens in a forward."""
    if device.type != "cuda":
        return Graphs(device)
    sizes = range(1, max_rows + 1) if row_tokens >= MANY_TOKENS else (max_rows,)
    return Graphs(device, cuda_capture(device), sizes)


def cuda_capture(
    device: torch.device, warm_ups: int = 1, errors: Literal["global", "thread_local"] = "thread_local"
) -> Capture:
    """Graphs of this device. They share memory for what they compute with: one at a time runs, and what it made is
    read before the next runs. Capturing large ones first lets smaller ones fit into their memory. With `errors` of one
    thread others, which encode prompts, may go on meanwhile."""
    pool, stream = torch.cuda.graph_pool_handle(), torch.cuda.Stream(device)

    def capture(work: Callable[[], Any]) -> tuple[Replay, Any]:
        current = torch.cuda.current_stream(device)
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            for _ in range(warm_ups):
                work()  # libraries choose kernels and take their workspaces first, which cannot be captured
        current.wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode=errors):
            made = work()
        return graph.replay, made

    return capture
