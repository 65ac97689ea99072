"""What a benchmark needs of torch: a published model with random weights on the device, its stages in milliseconds, its
operations, and the most that this device multiplies. Nothing here is part of serving."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import TypeVar

import torch

from world.ablation import VARIANTS, random_part
from world.chunk import Precision, Report, WeightLayout, World, WorldError, spelled
from world.config import WorldConfig
from world.flops import Flops, count
from world.leader import RankedWorld
from world.loader import serving_device, serving_dtype
from world.meadow.config import meadow_config
from world.memory import plan
from world.model import DiffusionWorld
from world.nn.dit import CausalDiT
from world.nn.vae import VideoVAE
from world.published import published_config
from world.random_weights import RandomText, grey_scene, random_networks
from world.rehearsal import rehearsed
from world.slab import kv_dtype
from world.stopwatch import Clock, Stopwatch, watching
from world.waits import compilations, counting

__all__ = [
    "DoesNotFit",
    "Instrument",
    "compilations",
    "published_config",
]  # all that a bench imports of the world

T = TypeVar("T")

CHANGES = tuple(VARIANTS)  # that `Instrument.without` can take back

PEAK_SIDE = {"cuda": 8192, "cpu": 1024}  # of the square matrices whose product is the measured peak
PEAK_REPEATS = 20


def config_of(name: str) -> WorldConfig:
    """Of a published model, or of the built-in one."""
    return meadow_config() if name == "meadow" else published_config(name)


class DoesNotFit(WorldError):
    """The device's memory is too small for what was tried."""


class Instrument:
    """One model on one device; worlds of any number of slots share its weights. Of several ranks, each on a device of
    this kind, every world's make their own, and what is measured is rank 0's."""

    def __init__(
        self,
        cfg: WorldConfig,
        clock: Clock,
        report: Report,
        device: torch.device | None = None,
        precision: Precision = "native",
        num_ranks: int = 1,
    ):
        self.cfg, self.clock, self.precision, self.num_ranks = cfg, clock, precision, num_ranks
        self.device = device or serving_device()
        self.dtype = serving_dtype(self.device, precision)
        report("making random weights", 0.0)
        self.dit, self.vae, self.text = self.attempt(self._networks)
        self.watch = Stopwatch(self.device, clock)

    @property
    def about(self) -> dict[str, object]:
        cuda = self.device.type == "cuda"
        return {
            "device": torch.cuda.get_device_name(self.device) if cuda else "cpu",
            "dtype": spelled(str(self.dtype).removeprefix("torch."), self.precision),
            "torch": str(torch.__version__),
            "threads": torch.get_num_threads(),
            **({"ranks": self.num_ranks} if self.num_ranks > 1 else {}),
            "parameters": sum(p.numel() for p in self.dit.parameters()),
            "weights_bytes": sum(p.numel() * p.element_size() for m in (self.dit, self.vae) for p in m.parameters()),
        }

    @property
    def chunks_to_fill(self) -> int:
        """After which a stream's window is full."""
        return -(-self.cfg.window_frames // self.cfg.geometry.chunk_frames)

    def world(self, num_slots: int) -> World:
        """DoesNotFit if the slots do not. Of several ranks one at a time."""
        if self.num_ranks > 1:
            on_gpus, quiet = self.device.type == "cuda", lambda stage, share: None
            return self.attempt(lambda: self.ranked(self.num_ranks, num_slots, "replicated", quiet, on_gpus))
        networks, scenes = (self.dit, self.vae, self.text), (grey_scene(self.cfg),)
        kept = kv_dtype(self.cfg, self.precision, self.device)
        return self.attempt(lambda: DiffusionWorld(self.cfg, *networks, scenes, num_slots, kv_dtype=kept))

    def without(self, change: str, world: World) -> AbstractContextManager[None]:
        """While inside, the world works as if one of CHANGES had not been made."""
        assert isinstance(world, DiffusionWorld)
        return VARIANTS[change](world)

    def remake(self) -> None:
        """All weights anew. Whoever still has a world of the old ones keeps their memory."""
        del self.dit, self.vae, self.text
        self.free()
        self.dit, self.vae, self.text = self.attempt(self._networks)

    def _networks(self) -> tuple[CausalDiT, VideoVAE, RandomText | None]:
        if self.num_ranks > 1:  # their sizes are all that is asked of these
            shapes = rehearsed(self.cfg, self.dtype, 1, precision=self.precision, device=self.device)
            return shapes.denoiser.dit, shapes.vae, None
        return random_networks(self.cfg, self.device, self.dtype, precision=self.precision)

    def ranked(
        self, num_ranks: int, num_slots: int, layout: WeightLayout, report: Report, on_gpus: bool = False
    ) -> RankedWorld:
        """The same on several processes of this machine's CPU, or on a GPU each. To be ended, or forgotten."""
        load = partial(random_part, self.cfg, num_slots, layout, self.precision)
        return RankedWorld(load, num_ranks, report, on_gpus=on_gpus)

    def watching(self, world: World) -> AbstractContextManager[None]:
        return watching(_part(world), self.watch)

    def slot_bytes(self, world: World) -> int:
        """What one player takes of its slab."""
        return _part(world).slab.slot_bytes()

    def counting(self) -> AbstractContextManager[Counter[str]]:
        return counting(self.device)

    def attempt(self, work: Callable[[], T]) -> T:
        """DoesNotFit instead of torch's error, with what was in the way given back."""
        try:
            return work()
        except (RuntimeError, WorldError) as fault:  # another rank's comes as a sentence
            known = "ALLOC_FAILED", torch.OutOfMemoryError.__name__
            if not isinstance(fault, torch.OutOfMemoryError) and not any(name in str(fault) for name in known):
                raise
            why = str(fault).split(". ")[0]
        self.free()
        raise DoesNotFit(f"does not fit: {why}")

    def free(self) -> None:
        """What is no longer used goes back to the device, and the peak counts anew."""
        gc.collect()
        if self.device.type == "cuda":
            torch._C._cuda_clearCublasWorkspaces()  # every world captures on a stream of its own
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)

    def peak_bytes(self) -> int | None:
        """The most memory that was in use at once since `free`; None where torch does not count it."""
        return torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else None

    def reserved_bytes(self) -> int | None:
        """The most that torch had of the device at once since `free`, in use or not; None where it is not counted."""
        return torch.cuda.max_memory_reserved(self.device) if self.device.type == "cuda" else None

    def planned_bytes(self, num_slots: int) -> int:
        """What the memory plan says that `peak_bytes` will be with so many players, who all start from the same."""
        planned = plan(
            self.cfg, self.dtype, None, self.dtype, num_slots, self.device, self.num_ranks, precision=self.precision
        )
        return planned.peak_bytes(num_slots)

    def flops(self) -> Flops:
        """Of one player; every window is full."""
        return count(self.cfg.dit, self.cfg.geometry, self.cfg.window_tokens)

    @torch.inference_mode()
    def peak_tflops(self) -> float:
        """Of a large product of square matrices in the dtype that all but FP8 is in, so that shares of it compare: the
        median of twenty, one after another."""
        side = PEAK_SIDE[self.device.type]
        generator = torch.Generator(self.device).manual_seed(0)
        a, b = (
            torch.empty(side, side, device=self.device, dtype=self.dtype).normal_(generator=generator) for _ in range(2)
        )
        marks = []
        for _ in range(PEAK_REPEATS + 3):
            began = self.watch.mark()
            a @ b
            marks.append((began, self.watch.mark()))
        self.watch.wait()
        ms = sorted(self.watch.between(*pair) for pair in marks[3:])
        return 2 * side**3 / ms[len(ms) // 2] / 1e9


def _part(world: World) -> DiffusionWorld:
    """Of several ranks, rank 0's."""
    part = world.part if isinstance(world, RankedWorld) else world
    assert isinstance(part, DiffusionWorld)
    return part
