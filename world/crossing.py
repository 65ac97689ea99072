"""What crosses between the host and the device of a world: packed, pinned, and waited for by nobody.

A copy from pageable memory makes the host wait for all that the device has to do. Pinned memory comes from torch's own
cache, which gives a block again only when the copies from it are done.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

ALIGNED_BYTES = 16  # where in a packed buffer an array may begin

Array = NDArray[Any]


def send(device: torch.device, *arrays: Array) -> list[Tensor]:
    """Arrays as tensors on the device, by one copy for all of them. On the CPU they share the arrays' memory."""
    if device.type == "cpu":
        return [torch.from_numpy(array) for array in arrays]
    return unpack(pack(device, arrays).to(device, non_blocking=True), arrays)


def pack(device: torch.device, arrays: Sequence[Array]) -> Tensor:
    """uint8 [n] on the host, ready to go to the device: the bytes of arrays one after another."""
    starts, num_bytes = _places(arrays)
    packed = torch.empty(num_bytes, dtype=torch.uint8, pin_memory=device.type == "cuda")
    bytes_of = packed.numpy()
    for start, array in zip(starts, arrays, strict=True):
        bytes_of[start : start + array.nbytes] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return packed


def unpack(packed: Tensor, like: Sequence[Array]) -> list[Tensor]:
    """Views of what `pack` made of arrays like these, wherever it is now."""
    starts, _ = _places(like)
    return [
        packed[start : start + array.nbytes].view(torch.from_numpy(np.empty(0, array.dtype)).dtype).view(array.shape)
        for start, array in zip(starts, like, strict=True)
    ]


class Arrivals:
    """Tensors on their way to the host: each is copied when the device comes to it, and one wait is for all."""

    def __init__(self, device: torch.device):
        self.device = device

    def fetch(self, t: Tensor) -> Tensor:
        """A copy on the host that holds the tensor of this moment, once `wait` has returned."""
        kept = torch.empty(t.shape, dtype=t.dtype, pin_memory=self.device.type == "cuda")
        return kept.copy_(t, non_blocking=True)

    def wait(self) -> None:
        if self.device.type == "cuda":
            done = torch.cuda.Event()
            done.record(torch.cuda.current_stream(self.device))
            done.synchronize()


def _places(arrays: Sequence[Array]) -> tuple[list[int], int]:
    """Where each array begins, and the bytes of all."""
    starts, end = [], 0
    for array in arrays:
        starts.append(end)
        end += -(-array.nbytes // ALIGNED_BYTES) * ALIGNED_BYTES
    return starts, end
