"""What the published inference code does otherwise, put around a world for as long as a benchmark compares it. Serving
never imports this: it is here so that what each change is worth can be measured in one run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from world.chunk import Picture, Precision, Report, Row, WeightLayout
from world.config import WorldConfig
from world.loader import serving_device, serving_dtype
from world.model import DiffusionWorld
from world.nn.rows import Keys, rounded
from world.random_weights import grey_scene, random_networks
from world.ranks import Ranks
from world.sharding import lay_out
from world.slab import RingView, kv_dtype

Wrap = Callable[..., Any]


@contextmanager
def _instead(owner: Any, name: str, method: Wrap) -> Iterator[None]:
    setattr(owner, name, method)
    try:
        yield
    finally:
        delattr(owner, name)  # the class's method shows again


@contextmanager
def without_prompt_cache(world: DiffusionWorld) -> Iterator[None]:
    """Encodes the prompt for every chunk, and makes the text's K and V in every forward."""
    step, prompt = world.step, world.scenes[0].prompt

    def encoding(rows: Sequence[Row]) -> list[Picture]:
        for row in rows:
            encoded = world.text_encoder.encode(prompt) if row.step_index == 0 else world.encode_prompt(prompt).encoded
            world.denoiser.set_text(row.slot, encoded)
        return step(rows)

    with _instead(world, "step", encoding):
        yield


@contextmanager
def with_value_reads(world: DiffusionWorld) -> Iterator[None]:
    """The host reads a value of every forward's result and waits for it."""
    step = world.denoiser.step

    def reading(*args: Tensor) -> Tensor:
        flow = step(*args)
        world.slab.x[0].flatten()[0].item()
        return flow

    with _instead(world.denoiser, "step", reading):
        yield


class SlicedRing(RingView):
    """Writes K and V row by row and frame by frame, through slices whose bounds the host knows."""

    def __init__(self, rings: RingView, rows: Sequence[Row]):
        cfg = rings.slab.cfg
        self.slab, self.begins, self.valid_tokens = rings.slab, rings.begins, rings.valid_tokens
        frames, tokens = cfg.geometry.chunk_frames, cfg.geometry.frame_tokens
        self.writes: list[tuple[int, slice, slice]] = []  # row, tokens of the chunk, tokens of all rings
        for i, row in enumerate(rows):
            begin = self.slab.ring_begins(row.slot)
            for frame in range(frames):
                index = row.chunk_index * frames + frame
                wrapped = cfg.sink_frames + (index - cfg.sink_frames) % (cfg.window_frames - cfg.sink_frames)
                place = begin + (index if index < cfg.sink_frames else wrapped) * tokens
                self.writes.append((i, slice(frame * tokens, (frame + 1) * tokens), slice(place, place + tokens)))

    def attend(self, layer_index: int, q: Tensor, keys: Keys, v: Tensor) -> Tensor:
        k_ring, v_ring = self.slab.k[layer_index], self.slab.v[layer_index]
        k, v = (rounded(t, k_ring.dtype) for t in (keys.made(), v))
        for i, own, place in self.writes:
            k_ring[place].copy_(k[i, own])
            v_ring[place].copy_(v[i, own])
        return self.seen(layer_index, q)


@contextmanager
def with_sliced_writes(world: DiffusionWorld) -> Iterator[None]:
    step, under_way = world.step, list[Row]()

    def ordered(rows: Sequence[Row]) -> list[Picture]:
        denoising = [row for row in rows if row.step_index < world.num_steps]
        under_way[:] = denoising + [row for row in rows if row.step_index == world.num_steps]
        return step(rows)

    def view(slots: Tensor, first_frame: Tensor) -> SlicedRing:
        return SlicedRing(RingView(world.slab, slots, first_frame), under_way)

    with _instead(world, "step", ordered), _instead(world.slab, "view", view):
        yield


VARIANTS = {"prompt cache": without_prompt_cache, "sync points": with_value_reads, "KV write": with_sliced_writes}


def random_part(
    cfg: WorldConfig, num_slots: int, layout: WeightLayout, precision: Precision, ranks: Ranks, report: Report
) -> DiffusionWorld:
    """A rank's part of a world of random weights, the same ones on every rank."""
    device = serving_device(ranks)
    dit, vae, text = random_networks(cfg, device, serving_dtype(device, precision), precision=precision)
    lay_out(dit, layout, ranks)
    own_text, kept = text if ranks.index == 0 else None, kv_dtype(cfg, precision, device)
    return DiffusionWorld(cfg, dit, vae, own_text, (grey_scene(cfg),), num_slots, ranks=ranks, kv_dtype=kept)
