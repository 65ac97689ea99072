"""A world on torch's meta device, which has shapes and no memory: what service would allocate, found by running it."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from world.chunk import Precision, Scene, usual_start
from world.config import WorldConfig
from world.graphs import Graphs
from world.model import DiffusionWorld, exercise
from world.nn.attention import ring_door
from world.nn.dit import CausalDiT, served_dtypes
from world.nn.fp8 import to_fp8
from world.nn.vae import VideoVAE
from world.ranks import ALONE, Ranks
from world.slab import kv_dtype

META = torch.device("meta")
COMPOSITE = torch._C.DispatchKey.CompositeImplicitAutograd  # operations that are made of others everywhere


class LongestPrompt:
    """In place of a text encoder: a prompt of all the rows a DiT takes."""

    network = nn.Module()

    def __init__(self, cfg: WorldConfig, dtype: torch.dtype):
        self.cfg, self.dtype = cfg, dtype

    @property
    def text_dim(self) -> int:
        return self.cfg.dit.text_dim

    def encode(self, text: str) -> Tensor:
        return torch.empty(self.cfg.dit.text_len, self.text_dim, dtype=self.dtype, device=META)


def rehearsed(
    cfg: WorldConfig,
    dtype: torch.dtype,
    num_slots: int,
    text_dtype: torch.dtype = torch.float32,
    ranks: Ranks = ALONE,
    precision: Precision = "native",
    device: torch.device = META,
) -> DiffusionWorld:
    """The world that would be served on a device, one black start scene its only one. WorldError if heads and ranks do
    not fit."""
    with META:
        dit, vae = CausalDiT(cfg.dit), VideoVAE(cfg.vae)
    cast(dit, served_dtypes(dtype))
    if precision != "native":
        to_fp8(dit, device)
    cast(vae, lambda key: dtype)
    for module in (dit, vae):
        module.eval().requires_grad_(False)
    black = np.zeros((cfg.geometry.height, cfg.geometry.width, 3), np.uint8)
    scene = Scene("black", "", "", black, np.ones(4, np.float32))
    kept, text = kv_dtype(cfg, precision, device), LongestPrompt(cfg, text_dtype)
    return DiffusionWorld(cfg, dit, vae, text, (scene,), num_slots, ranks=ranks, kv_dtype=kept)


def cast(module: nn.Module, dtype_of: Callable[[str], torch.dtype]) -> None:
    for key, parameter in module.named_parameters():
        parameter.data = parameter.data.to(dtype_of(key))


def num_bytes(tensors: Mapping[str, Tensor] | list[Tensor]) -> int:
    """Of their storages, each counted once."""
    every = tensors.values() if isinstance(tensors, Mapping) else tensors
    storages = {storage._cdata: storage.nbytes() for storage in (t.untyped_storage() for t in every)}
    return sum(storages.values())


@dataclass(frozen=True, slots=True)
class Work:
    """The most bytes that are allocated at once by what is done for one row, beside weights and slab. Every tensor
    grows with the rows at most in proportion, so n rows take at most n times as much."""

    begin: int  # a chunk: its camera, condition and first noise
    forward: int
    decode: int  # a latent frame, to pictures
    picture: int  # a start picture, encoded
    start: int  # what is kept of it


def rehearsed_work(cfg: WorldConfig, dtype: torch.dtype, device: torch.device, precision: Precision = "native") -> Work:
    """On a device of this kind."""
    world = rehearsed(cfg, dtype, 1, precision=precision, device=device)
    world.slab.ring_attention = ring_door(device, dtype)
    with taken_for(device):
        with Peak() as picture:
            start = usual_start(world)
        world.open(1, start)
        with Peak() as rest:  # of a beginning, what is no captured work
            world.graphs = apart = _Apart(rest)
            exercise(world, 1, chunks=(1,), steps=(0, world.num_steps - 1))  # a first chunk and a commit do less
    begin = max(apart.most_bytes["begin"], rest.most_bytes)
    forward, decode = apart.most_bytes["denoise"], apart.most_bytes["decode", False]
    return Work(begin, forward, decode, picture.most_bytes, num_bytes([start.image]))


@contextmanager
def taken_for(device: torch.device) -> Iterator[None]:
    """Within it tensors of the meta device are taken for those of a device of this kind. On a GPU what goes around
    kernels of our own runs, with all that it allocates, and no kernel is launched."""
    if device.type != "cuda":
        yield
        return
    from triton.runtime import KernelInterface  # Triton comes with torch for GPUs only

    launched = KernelInterface.__getitem__
    KernelInterface.__getitem__ = lambda kernel, grid: lambda *args, **kwargs: None
    try:
        with _OnGPU():
            yield
    finally:
        KernelInterface.__getitem__ = launched


class Peak:
    """Within it, storages on a device are counted from the operation that makes them to their last reference.

    On the meta device fused attention makes its output and nothing else, as flash kernels do, and what leaves the
    device becomes zeros. What operations use inside and give back is not seen: workspaces of libraries.
    """

    def __init__(self, device: torch.device = META) -> None:
        self.device = device
        self.live_bytes = self.most_bytes = 0
        self._live: dict[int, weakref.ref[Any]] = {}
        self._modes: list[Any] = []

    def __enter__(self) -> Peak:
        self._modes = [_Allocations(self), _FusedAttention()] if self.device == META else [_Allocations(self)]
        for mode in self._modes:
            mode.__enter__()
        return self

    def __exit__(self, *fault: Any) -> None:
        for mode in reversed(self._modes):
            mode.__exit__(*(fault or (None, None, None)))

    def made(self, t: Tensor) -> None:
        storage = t.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._live:
            return

        def gone(_: object) -> None:
            self.live_bytes -= size
            del self._live[key]

        self._live[key] = weakref.ref(storage, gone)
        self.live_bytes += size
        self.most_bytes = max(self.most_bytes, self.live_bytes)


class _Apart(Graphs):
    """What is captured where there is a GPU counts by name, and not in `rest`, which is entered."""

    def __init__(self, rest: Peak) -> None:
        super().__init__(META)
        self.rest = rest
        self.most_bytes: dict[Hashable, int] = {}

    def run(self, name: Hashable, *work: Any) -> Any:
        self.rest.__exit__()
        with Peak() as peak:
            made = super().run(name, *work)
        self.most_bytes[name] = max(peak.most_bytes, self.most_bytes.get(name, 0))
        self.rest.__enter__()
        return made


class _Allocations(TorchDispatchMode):
    def __init__(self, peak: Peak) -> None:
        super().__init__()
        self.peak = peak

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        target = kwargs.get("device")
        if func is torch.ops.aten._to_copy.default and given[0].is_meta and target not in (None, META):
            return torch.zeros(given[0].shape, dtype=kwargs.get("dtype") or given[0].dtype, device=target)
        if func is torch.ops.aten.copy_.default and given[1].is_meta and not given[0].is_meta:
            return given[0].zero_()
        if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), COMPOSITE.name):
            with self:  # in inference mode operations come whole; Python's decompositions are not what a device runs
                return func._op_dk(COMPOSITE, *args, **kwargs)
        made = func(*args, **kwargs)
        device = self.peak.device
        old = {t.untyped_storage()._cdata for t in given}
        for t in tree_leaves(made):
            if isinstance(t, Tensor) and t.device == device and t.untyped_storage()._cdata not in old:
                self.peak.made(t)
        return made


class _FusedAttention(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            q, _, v = args
            return q.new_empty(*q.shape[:-1], v.shape[-1])
        return func(*args, **(kwargs or {}))


class _OnGPU(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func == torch.Tensor.is_cuda.__get__ or func(*args, **(kwargs or {}))
