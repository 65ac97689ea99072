"""What a world takes of a device's memory, before it is loaded: every number is read off the tensors that loading and
serving would make, on torch's meta device."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from world.chunk import Precision, WeightLayout, WorldError, spelled
from world.config import WorldConfig
from world.model import PROMPTS_KEPT
from world.nn.dit import CausalDiT
from world.ranks import Ranks
from world.rehearsal import Work, num_bytes, rehearsed, rehearsed_work
from world.slab import Slab

GB = 10**9
PREPARING = 2  # start pictures that are encoded beside each other and a forward
SPARED = 0.05  # of free memory, for what is not planned: other libraries' workspaces, the allocator's own
MOST_SLOTS = 2**16
HOPPER_WORKSPACE, WORKSPACE = 32 * 2**20, (8 * 1024 + 128) * 1024  # cuBLAS's of a stream, as torch gives it
KINDS = {"k": "keys and values", "v": "keys and values", "text": "text", "camera": "camera", "decoder": "decoder"}


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Bytes on the device of the rank that has most. Computed, not measured."""

    world: str
    picture: str  # width x height
    dtype: str
    num_slots: int
    num_ranks: int
    max_rows: int
    weights: Mapping[str, int]  # by network
    slot: Mapping[str, int]  # by kind: of one player, in a slab
    spare_bytes: int  # of the slot of padding rows, whose rings are shorter
    prompt_bytes: int  # of the encoded prompts that are kept, each of the greatest length
    work: Work  # of one row, and of one start picture that is encoded
    decode_rows: int  # that are decoded at once
    captured: bool  # into graphs, which keep the memory that they work in: nothing else has it
    library_bytes: int = 0  # what libraries work in, beside tensors

    @property
    def weight_bytes(self) -> int:
        return sum(self.weights.values())

    @property
    def start_bytes(self) -> int:
        """Of one player's start picture, as it is conditioned on."""
        return self.work.start

    @property
    def player_bytes(self) -> int:
        """What one more player takes, beside the activations of a row."""
        return sum(self.slot.values()) + self.start_bytes

    def slab_bytes(self, num_slots: int) -> int:
        """Slots and the spare one. Each of several ranks has the decoder caches of its own slots only."""
        decoder, whole = self.slot["decoder"], sum(self.slot.values())
        return (whole - decoder) * num_slots + decoder * -(-num_slots // self.num_ranks) + self.spare_bytes

    def replayed_bytes(self, num_slots: int) -> int:
        """Activations of the largest forward or decode."""
        rows = min(num_slots, self.max_rows)
        return max(rows * self.work.forward, min(rows, self.decode_rows) * self.work.decode)

    def begun_bytes(self, num_slots: int) -> int:
        """Activations of as many chunks as may begin together."""
        return min(num_slots, self.max_rows) * self.work.begin

    def work_bytes(self, num_slots: int) -> int:
        """At most, with start pictures on their way in. Graphs keep what they work in; that of beginnings is captured
        before what is larger, and counts beside it. Work is tried before it is captured, in memory of its own that is
        given back, beside the graphs that were captured by then."""
        replayed, begun = self.replayed_bytes(num_slots), self.begun_bytes(num_slots)
        coming = PREPARING * self.work.picture
        return replayed + begun + max(coming, replayed) if self.captured else max(replayed, begun) + coming

    def kept_bytes(self, num_slots: int) -> int:
        """Weights, the slab, what players start from, and libraries' workspaces."""
        return self.weight_bytes + self.slab_bytes(num_slots) + num_slots * self.start_bytes + self.library_bytes

    def total_bytes(self, num_slots: int) -> int:
        """What must be there: with room for all prompts that may be kept, and for players who come."""
        return self.kept_bytes(num_slots) + self.prompt_bytes + self.work_bytes(num_slots)

    def peak_bytes(self, num_slots: int) -> int:
        """Of tensors that are alive at once while nobody prepares beside a step, as torch counts them: what graphs keep
        between two replays is not among them, and of prompts there are few."""
        done = self.replayed_bytes(num_slots), self.begun_bytes(num_slots), self.work.picture
        return self.kept_bytes(num_slots) + max(done)

    def players(self, budget_bytes: int) -> int:
        """How many fit. None (0) where the world itself does not."""
        return max(0, bisect_right(range(MOST_SLOTS), budget_bytes, key=self.total_bytes) - 1)

    def fitted(self, budget_bytes: int) -> MemoryPlan:
        """Of as many slots as fit, at least one."""
        return replace(self, num_slots=max(1, min(self.num_slots, self.players(budget_bytes))))

    def check(self, budget_bytes: int) -> None:
        """WorldError, a sentence, if not all slots fit."""
        fit = self.players(budget_bytes)
        if fit >= self.num_slots:
            return
        has = f"{gb(budget_bytes)} of free memory"
        if fit == 0:
            raise WorldError(f"{has} do not hold {self.world}: it takes {gb(self.total_bytes(1))} with one player")
        raise WorldError(
            f"{has} hold {fit} player{'s' * (fit != 1)} of {self.world}, not {self.num_slots}: "
            f"{gb(self.weight_bytes)} of weights, {gb(self.player_bytes)} a player (--players {fit})"
        )

    def sentence(self, budget_bytes: int | None) -> str:
        """For the start of a server."""
        n = self.num_slots
        parts = {
            "weights": self.weight_bytes,
            f"{n} player{'s' * (n != 1)} and a spare slot": self.slab_bytes(n) + n * self.start_bytes,
            "prompts": self.prompt_bytes,
            "activations at most": self.work_bytes(n),
            "libraries": self.library_bytes,
        }
        told = ", ".join(f"{name} {gb(size)}" for name, size in parts.items() if size)
        holds = "" if budget_bytes is None else f", and {gb(budget_bytes)} hold {self.players(budget_bytes)} players"
        many = f" on each of {self.num_ranks} ranks" if self.num_ranks > 1 else ""
        return f"Memory, computed: {gb(self.total_bytes(n))}{many} ({told}); {gb(self.player_bytes)} a player{holds}."


def plan(
    cfg: WorldConfig,
    dtype: torch.dtype,
    text: nn.Module | None,
    text_dtype: torch.dtype,
    num_slots: int,
    device: torch.device,
    num_ranks: int = 1,
    layout: WeightLayout = "replicated",
    precision: Precision = "native",
) -> MemoryPlan:
    """For DiT and VAE in `dtype`, and this text encoder (of any device). WorldError if its heads do not divide among
    the ranks. A rank's activations are counted as if it were alone, which is more than it has."""
    ranks = Ranks(0, num_ranks)
    world = rehearsed(cfg, dtype, 1, text_dtype, ranks, precision)
    dit, vae = world.denoiser.dit, world.vae
    weights = {"DiT": _laid_out(dit, layout, num_ranks), "VAE": num_bytes(dict(vae.named_parameters()))}
    if text is not None:
        weights["text encoder"] = sum(p.numel() for p in text.parameters()) * text_dtype.itemsize
    slot = slot_bytes(world.slab)
    return MemoryPlan(
        world=cfg.name,
        picture=f"{cfg.geometry.width}x{cfg.geometry.height}",
        dtype=spelled(str(dtype).removeprefix("torch."), precision),
        num_slots=num_slots,
        num_ranks=num_ranks,
        max_rows=cfg.max_rows,
        weights=weights,
        slot=slot,
        spare_bytes=num_bytes(list(world.slab.tensors())) - sum(slot.values()),
        prompt_bytes=PROMPTS_KEPT * num_bytes([world.encode_prompt("").encoded]),
        work=rehearsed_work(cfg, dtype, device, precision),
        decode_rows=cfg.decode_rows,
        captured=device.type == "cuda",
        library_bytes=library_bytes(device),
    )


def library_bytes(device: torch.device) -> int:
    """Of a device of this kind, an H200 where there is none: cuBLAS's workspaces, of the stream that serves and of the
    one on which graphs are captured."""
    if device.type != "cuda":
        return 0
    here = torch.cuda.is_available()
    return 2 * (WORKSPACE if here and torch.cuda.get_device_capability(device)[0] != 9 else HOPPER_WORKSPACE)


def slot_bytes(slab: Slab) -> dict[str, int]:
    """What one player takes of a slab, by kind."""
    kinds = dict.fromkeys([*KINDS.values(), "latents and views"], 0)
    for name, row in slab.rows(1):
        kinds[KINDS.get(name.partition(".")[0], "latents and views")] += row.nbytes
    return kinds


def _laid_out(dit: CausalDiT, layout: WeightLayout, num_ranks: int) -> int:
    """Bytes of a DiT's weights on the rank that has most of them, while it computes."""
    whole = num_bytes(dict(dit.named_parameters()))
    if num_ranks == 1 or layout == "replicated":
        return whole
    share = sum(math.ceil(len(p) / num_ranks) * p[0].numel() * p.element_size() for p in dit.parameters())
    if layout == "gathered":
        return share + whole
    blocks = [num_bytes(dict(block.named_parameters())) for block in dit.blocks]
    rest = whole - sum(blocks)
    return share + rest + 2 * max(blocks)  # the block that computes, and the next one on its way


def available_bytes(device: torch.device, meminfo: Path = Path("/proc/meminfo")) -> int | None:
    """What may be planned of a device's free memory; None where nothing says how much that is."""
    if device.type == "cuda":
        return _spare(torch.cuda.mem_get_info(device)[0])
    try:
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        free = int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError, IndexError):
        return None
    limit, used = (_number(Path("/sys/fs/cgroup") / name) for name in ("memory.max", "memory.current"))
    return _spare(free if limit is None or used is None else min(free, max(0, limit - used)))


def _spare(free_bytes: int) -> int:
    return int(free_bytes * (1 - SPARED))


def _number(path: Path) -> int | None:
    """Of a file that holds one, None for one that does not, or is not there."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def gb(size: int) -> str:
    """Three digits, for people."""
    for unit, name in ((GB, "GB"), (10**6, "MB"), (10**3, "kB")):
        if size >= unit:
            value = size / unit
            return f"{value:.0f} {name}" if value >= 100 else f"{value:.3g} {name}"
    return f"{size} bytes"
