"""A process's place among those that compute one world together, and which part of everything is its own.

Outside of attention each of P ranks holds 1/P of every row's tokens, in attention 1/P of the heads of all tokens
(`world.ulysses`). Whoever computes alone is the only one of one, for whom all of this is the identity.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from world.chunk import WorldError

# torch takes lengths of time as timedelta, whose module is a clock too, which the world does not read.
ONE_SECOND = dist.default_pg_timeout / dist.default_pg_timeout.total_seconds()
JOIN_S = 120.0  # for all processes to find each other, once all of them run
LOAD_S = 3600.0  # that one may load for longer than another
GPU_S = 120.0  # that torch waits for GPUs; who is missed is found out before (`world.followers`)
CPU = torch.device("cpu")


class PeerLost(Exception):
    """Another rank did not do its part of an exchange: it is gone, or does not answer."""


@dataclass(frozen=True, slots=True)
class Ranks:
    """Ranks count from 0; rank 0 leads."""

    index: int = 0
    size: int = 1  # P
    group: dist.ProcessGroup | None = None  # of all of them, for what is in the CPU's memory; None where there is one
    gpus: dist.ProcessGroup | None = None  # the same, for what is on GPUs; None where they compute on the CPU

    @property
    def device(self) -> torch.device:
        """On which this one of several computes."""
        return CPU if self.gpus is None else torch.device("cuda", self.index)

    def heads(self, num_heads: int) -> int:
        """How many of a model's heads each rank attends with. WorldError if they do not divide."""
        if num_heads % self.size:
            raise WorldError(f"the {num_heads} heads of this model do not divide among {self.size} ranks")
        return num_heads // self.size

    def share(self, num: int) -> int:
        """The most of `num` things that a rank has."""
        return -(-num // self.size)

    def decodes(self, slot: int) -> bool:
        """Whether this rank decodes a slot's latents: slots 1 to P are decoded by ranks 0 to P - 1, and so on."""
        return (slot - 1) % self.size == self.index

    def decoder_row(self, slot: int) -> int:
        """Of the rank that decodes it."""
        return (slot - 1) // self.size + 1

    def mine(self, tokens: Tensor) -> Tensor:
        """All tokens [B, L, ...] -> this rank's [B, l, ...]; l is the same everywhere, the last ones' end is zeros."""
        if self.size == 1:
            return tokens
        own = self.share(tokens.shape[1])
        part = tokens[:, self.index * own : (self.index + 1) * own]
        return F.pad(part, (*(0, 0) * (part.dim() - 2), 0, own - part.shape[1]))

    def whole(self, own: Tensor, num_tokens: int) -> Tensor:
        """Every rank's own tokens [B, l, ...] -> all of them [B, L, ...], on every rank."""
        if self.size == 1:
            return own
        parts = own.new_empty(self.size, *own.shape)
        if own.numel():
            with _Exchange():
                dist.all_gather(list(parts), own.contiguous(), group=self._around(own))
        return parts.movedim(0, 1).flatten(1, 2)[:, :num_tokens].contiguous()

    def exchange(self, parts: Tensor) -> Tensor:
        """parts[i] goes to rank i [P, ...] -> [i] is what came from rank i [P, ...]."""
        got = torch.empty_like(parts)
        with _Exchange():
            dist.all_to_all_single(_bytes(got), _bytes(parts), group=self._around(parts))
        return got

    def meet(self) -> None:
        """Wait for all others to come here too, patiently: loading takes as long as it takes."""
        with _Exchange():
            dist.monitored_barrier(self.group, timeout=LOAD_S * ONE_SECOND)

    def broadcast(self, data: Tensor) -> None:
        """Rank 0's goes to all, in place."""
        with _Exchange():
            dist.broadcast(data, group_src=0, group=self._around(data))

    def send(self, data: Tensor, to: int) -> None:
        with _Exchange():
            dist.send(data, group_dst=to, group=self._around(data))

    def receive(self, data: Tensor, source: int) -> None:
        with _Exchange():
            dist.recv(data, group_src=source, group=self._around(data))

    def abandon(self) -> None:
        """What this process's GPU waits for does not come: it waits no more, and exchanges on GPUs fail from now on.
        Returns when no graph is left that such an exchange was captured in."""
        if self.gpus is not None:
            with suppress(RuntimeError):  # it was abandoned before
                self.gpus.abort()

    def _around(self, data: Tensor) -> dist.ProcessGroup | None:
        """The group that exchanges what is where this is. Exchanges on GPUs are one thread's, in one order on all."""
        return self.gpus if data.is_cuda else self.group


ALONE = Ranks()


def join(index: int, size: int, store: dist.Store, deadline_s: float, on_gpus: bool = False) -> Ranks:
    """Find the others, who do the same with stores of one server. Whoever then lets an exchange in the CPU's memory,
    through gloo, wait for longer than `deadline_s` is lost. on_gpus: each computes on the GPU of its index, the calling
    thread's from now on, and they exchange through NCCL too."""
    dist.init_process_group("gloo", store=store, rank=index, world_size=size, timeout=JOIN_S * ONE_SECOND)
    ranks = Ranks(index, size, dist.new_group(timeout=deadline_s * ONE_SECOND))
    if not on_gpus:
        return ranks
    os.environ["TORCH_NCCL_ASYNC_ERROR_HANDLING"] = "0"  # torch would end processes by itself, without a sentence
    device = torch.device("cuda", index)
    torch.cuda.set_device(device)
    # With its device the communicator is made here, where everybody is, and not in the first exchange.
    return replace(ranks, gpus=dist.new_group(timeout=GPU_S * ONE_SECOND, backend="nccl", device_id=device))


def leave() -> None:
    """Undo `join`, if it was done."""
    if dist.is_initialized():
        dist.destroy_process_group()


def is_peer_lost(fault: Exception) -> bool:
    """Exchanges that FSDP makes are not ours to watch; but the backend that raises names itself."""
    named = any(backend in str(fault) for backend in ("gloo", "NCCL"))
    return isinstance(fault, PeerLost) or (isinstance(fault, RuntimeError) and named)


class _Exchange:
    """What a backend raises when a peer is gone, and its timeouts, as PeerLost."""

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type | None, fault: BaseException | None, trace: object) -> None:
        if isinstance(fault, RuntimeError):
            raise PeerLost(str(fault)) from fault


def _bytes(t: Tensor) -> Tensor:
    """Contiguous [P, ...] -> [P, n] uint8: backends differ in the dtypes that they know."""
    return t.flatten(1).view(torch.uint8)
