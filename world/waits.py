"""Where the host waits for the device in the middle of its work: counted, in a benchmark and in tests.

On a GPU torch itself says so (`torch.cuda.set_sync_debug_mode`): every copy to or from ordinary memory, and every value
that the host reads. On a CPU nothing is ever waited for, but the same reads of values show as operations: `.item()`,
`bool(tensor)`, and the operations whose result has a shape that depends on values.
"""

from __future__ import annotations

import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

READS = frozenset(
    [
        "item",
        "is_nonzero",
        "_local_scalar_dense",
        "equal",
        "allclose",
        "nonzero",
        "argwhere",
        "masked_select",
        "repeat_interleave",
        "unique_dim",
        "_unique2",
        "unique_consecutive",
    ]
)  # in inference mode the first two are seen whole, elsewhere what they are made of
BY_MASK = frozenset({"index", "index_put", "index_put_"})  # reads a mask, but no indices
SYNCHRONISING = "called a synchronizing CUDA operation"


class _Reads(TorchDispatchMode):
    def __init__(self, found: Counter[str]):
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in READS or (name in BY_MASK and any(t is not None and t.dtype == torch.bool for t in args[1])):
            self.found[name] += 1
        return func(*args, **(kwargs or {}))


@contextmanager
def counting(device: torch.device) -> Iterator[Counter[str]]:
    """What makes the host wait while inside, and how often; complete once it is left. One thread's, on a CPU."""
    found: Counter[str] = Counter()
    if device.type != "cuda":
        with _Reads(found):
            yield found
        return
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield found
        finally:
            torch.cuda.set_sync_debug_mode(before)
    for warning in told:
        if SYNCHRONISING in str(warning.message):
            found[f"{warning.filename.rpartition('/')[2]}:{warning.lineno}"] += 1


def compilations() -> int:
    """Graphs that torch has compiled in this process."""
    dynamo = sys.modules.get("torch._dynamo.utils")
    return 0 if dynamo is None else int(dynamo.counters["stats"]["unique_graphs"])
