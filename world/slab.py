"""All state of all players: one preallocated tensor a layer and kind, a row a slot. Slot 0 is that of padding rows.

The KV rings of a layer lie end to end, [tokens, N, d]: all are a window long but that of slot 0, a chunk, since padding
rows play nothing but chunk 0. A ring holds the stream's first frames (the sink) and then the most recent ones: keys are
rotated before they are stored and attention does not care about order, so evicting is overwriting, nothing ever moves.
Kept in FP8, keys and values have no scales: an e4m3 has 3 bits behind its first from 2^-6 to 448, whatever its size.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from world.chunk import Precision, Stored, WorldError
from world.config import WorldConfig
from world.nn.attention import Ring, reads_fp8, ring_door
from world.nn.dit import Memory, Pair
from world.nn.fp8 import E4M3
from world.nn.rows import ALIGNED, Keys, fp8_rings
from world.nn.vae import VideoVAE
from world.ranks import ALONE, Ranks
from world.ulysses import Ulysses

RINGS = ("k.", "v.")  # names of what has tokens of all slots end to end, where others have a row a slot
APART = (*RINGS, "camera.")  # names of what each of several ranks has another part of
# As safetensors names them.
DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", E4M3: "F8_E4M3"}
Slots = TypeVar("Slots", int, Tensor)


def ring_frames(frames: Tensor, sink_frames: int, window_frames: int) -> Tensor:
    """Where in the ring the frames of a stream live, by their index in it."""
    wrapped = sink_frames + (frames - sink_frames) % (window_frames - sink_frames)
    return torch.where(frames < sink_frames, frames, wrapped)


def decoder_cache_shapes(cfg: WorldConfig) -> list[torch.Size]:
    """Shapes [1, 2, H, W, C] of one stream's decoder caches, read off a run on the meta device."""
    geometry = cfg.geometry
    with torch.device("meta"):
        z = torch.empty(1, geometry.latent_channels, 1, geometry.latent_height, geometry.latent_width)
        return [cache.shape for cache in VideoVAE(cfg.vae).decode(z, None, first=True)[1]]


def kv_dtype(cfg: WorldConfig, precision: Precision, device: torch.device) -> torch.dtype | None:
    """In what keys and values are kept: None for the DiT's own. WorldError if the device cannot attend to them so."""
    if precision != "fp8-kv":
        return None
    if not reads_fp8(device, cfg.dit.head_dim):
        raise WorldError(
            f"keys of {cfg.dit.head_dim} numbers a head cannot be kept in FP8 here: of GPUs those of "
            "compute capability 9.0 take 64 or 128"
        )
    return E4M3


class RingView:
    """The rings of one forward's rows, as the DiT's memory."""

    def __init__(self, slab: Slab, slots: Tensor, first_frame: Tensor):
        cfg, device = slab.cfg, slots.device
        tokens = cfg.geometry.frame_tokens
        frames = first_frame[:, None] + torch.arange(cfg.geometry.chunk_frames, device=device)  # [B, f]
        self.slab, self.begins = slab, slab.ring_begins(slots)
        places = self.begins[:, None] + ring_frames(frames, cfg.sink_frames, cfg.window_frames) * tokens  # [B, f]
        self.at = (places[:, :, None] + torch.arange(tokens, device=device)).flatten()  # [B L]
        self.run = math.gcd(tokens, slab.step)  # so many of them follow each other from a multiple of it on
        held = (first_frame + cfg.geometry.chunk_frames).clamp(max=cfg.window_frames)
        self.valid_tokens = (held * tokens).int()  # [B], a prefix: the ring fills in order

    def attend(self, layer_index: int, q: Tensor, keys: Keys, v: Tensor) -> Tensor:
        keys.keep(v, self.slab.k[layer_index], self.slab.v[layer_index], self.at, self.run)
        return self.seen(layer_index, q)

    def seen(self, layer_index: int, q: Tensor) -> Tensor:
        """What the first rows see of their rings as they are."""
        rows, slab = q.shape[0], self.slab
        if rows == 0:
            return q
        k_ring, v_ring, room = slab.k[layer_index], slab.v[layer_index], slab.cfg.window_tokens
        return slab.ring_attention(q, k_ring, v_ring, self.begins[:rows], room, self.valid_tokens[:rows])


class Slab:
    """On several ranks each has its heads of the rings, its tokens of what a chunk's camera makes, the decoder caches
    of the slots that it decodes, and all of the rest."""

    def __init__(
        self,
        cfg: WorldConfig,
        num_slots: int,
        device: torch.device,
        dit_dtype: torch.dtype,
        vae_dtype: torch.dtype,
        ranks: Ranks = ALONE,
        kv_dtype: torch.dtype | None = None,
    ):
        """`kv_dtype`: FP8, if keys and values are to be kept in it and not in the DiT's."""
        geometry, dit = cfg.geometry, cfg.dit
        rows, heads = num_slots + 1, (dit.num_heads, dit.head_dim)
        size = (geometry.chunk_frames, geometry.latent_height, geometry.latent_width)

        def zeros(*shape: int, dtype: torch.dtype = dit_dtype, rows: int = rows) -> Tensor:
            return torch.zeros(rows, *shape, dtype=dtype, device=device)

        self.cfg, self.ranks, self.kv_dtype = cfg, ranks, kv_dtype or dit_dtype
        # Rings begin at multiples of so many tokens: in FP8 one is a byte of a row that tiles of values are copied of.
        self.step = ALIGNED if self.kv_dtype.itemsize == 1 else 1
        token, tokens = (ranks.heads(dit.num_heads), dit.head_dim), self.ring_begins(rows)  # where one more would begin

        def rings() -> Pair:
            if kv_dtype is None:
                return zeros(*token, rows=tokens), zeros(*token, rows=tokens)
            return fp8_rings(tokens, *token, kv_dtype, device)

        pairs = [rings() for _ in range(dit.num_layers)]
        self.k, self.v = [k for k, _ in pairs], [v for _, v in pairs]
        self.text: list[Pair] = [(zeros(dit.text_len, *heads), zeros(dit.text_len, *heads)) for _ in self.k]
        chunk = ranks.share(geometry.chunk_tokens), dit.dim
        self.camera: list[Pair] = [(zeros(*chunk), zeros(*chunk)) for _ in self.k]
        self.x = zeros(geometry.latent_channels, *size, dtype=torch.float32)  # the chunk's latents, noisy then clean
        self.y = zeros(dit.in_channels - geometry.latent_channels, *size, dtype=torch.float32)
        views = cfg.views.capacity if cfg.conditioning == "warp" else 0
        self.views = zeros(views, geometry.latent_channels, *size[1:], dtype=torch.float32)
        decoded = ranks.share(num_slots) + 1
        self.decoder = [zeros(*shape[1:], dtype=vae_dtype, rows=decoded) for shape in decoder_cache_shapes(cfg)]
        self.ring_attention: Ring = ring_door(device, dit_dtype)

    def named_tensors(self) -> Iterator[tuple[str, Tensor]]:
        yield from (("x", self.x), ("y", self.y), ("views", self.views))
        for name, layers in (("k", self.k), ("v", self.v), ("decoder", self.decoder)):
            yield from ((f"{name}.{i}", t) for i, t in enumerate(layers))
        for name, pairs in (("text", self.text), ("camera", self.camera)):
            yield from ((f"{name}.{i}.{j}", t) for i, pair in enumerate(pairs) for j, t in enumerate(pair))

    def tensors(self) -> Iterator[Tensor]:
        yield from (t for _, t in self.named_tensors())

    def ring_begins(self, slots: Slots) -> Slots:
        """Where in a layer's k and v the rings of slots begin, in tokens: int64 for int64. Behind some there are tokens
        that are nothing's, fewer than `step`."""
        lengths = self.cfg.geometry.chunk_tokens, self.cfg.window_tokens
        chunk, window = (-(-length // self.step) * self.step for length in lengths)
        return (slots > 0) * (chunk + (slots - 1) * window)

    def rows(self, slot: int) -> Iterator[tuple[str, Tensor]]:
        """All that is kept here of a slot."""
        for name, t in self.named_tensors():
            if name.startswith(RINGS):
                yield name, t[self.ring_begins(slot) : self.ring_begins(slot + 1)]
            elif not name.startswith("decoder."):
                yield name, t[slot]
            elif self.ranks.decodes(slot):
                yield name, t[self.ranks.decoder_row(slot)]

    def slot_bytes(self) -> int:
        """Memory one player takes; of several ranks, of the first, which decodes slot 1."""
        return sum(row.nbytes for _, row in self.rows(1))

    def state_bytes(self) -> int:
        """What all ranks together keep of one player."""
        return sum(row.nbytes * (self.ranks.size if name.startswith(APART) else 1) for name, row in self.rows(1))

    def clean(self, slot: int) -> None:
        for _, row in self.rows(slot):
            row.zero_()

    def poison(self, slot: int) -> None:
        """NaN everywhere, so that reading a stranger's state shows."""
        for _, row in self.rows(slot):
            row.fill_(float("nan"))

    def export(self, slot: int) -> dict[str, Stored]:
        """What is kept here of a slot. Where each of several ranks has another part, the names tell whose it is."""
        return {label(name, self.ranks.index): store(row) for name, row in self.rows(slot)}

    def check(self, slot: int, rows: Mapping[str, Tensor]) -> None:
        """ValueError if these are not the rows of a slot, of all ranks of a slab like this one."""
        kept = {label(name, self.ranks.index): row for name, row in self.rows(slot)}
        known = {label(name, rank) for name, _ in self.named_tensors() for rank in range(self.ranks.size)}
        if rows.keys() != known:
            raise ValueError(f"a slot of this world has no {sorted(rows.keys() ^ known)[0]}, or lacks it")
        for name in kept:
            row = rows[name]
            if row.shape != kept[name].shape or row.dtype != kept[name].dtype:
                raise ValueError(f"{name} is {row.dtype}{list(row.shape)}, not that of a slot of this world")

    def restore(self, slot: int, rows: Mapping[str, Tensor]) -> None:
        """ValueError, and nothing changes, if these are not the rows of a slab like this one."""
        self.check(slot, rows)
        for name, row in self.rows(slot):
            row.copy_(rows[label(name, self.ranks.index)])

    def view(self, slots: Tensor, first_frame: Tensor) -> Memory:
        rings = RingView(self, slots, first_frame)
        return rings if self.ranks.size == 1 else Ulysses(self.ranks, self.cfg.geometry.chunk_tokens, rings)


def label(name: str, rank: int) -> str:
    """In a state of a slot, of what a rank has of a tensor."""
    return f"{name}@{rank}" if rank > 0 and name.startswith(APART) else name


def store(t: Tensor) -> Stored:
    """A copy of a tensor, off its device: from a GPU into pinned memory, which its copy engine reaches by itself."""
    whole = torch.empty(t.shape, dtype=t.dtype, pin_memory=t.is_cuda).copy_(t)
    return Stored(DTYPES[t.dtype], tuple(t.shape), whole.reshape(-1).view(torch.uint8).numpy())


def unstore(stored: Stored) -> Tensor:
    """ValueError if its bytes are not what it says. May share memory with it."""
    dtype = next((dtype for dtype, name in DTYPES.items() if name == stored.dtype), None)
    if dtype is None or stored.data.size != math.prod(stored.shape) * dtype.itemsize:
        raise ValueError(f"{stored.data.size} bytes are no {stored.dtype}{list(stored.shape)}")
    return torch.from_numpy(stored.data).view(dtype).reshape(stored.shape)


class Gathered(Sequence[Pair]):
    """The slots' rows of what a slab keeps per layer, copied when a layer asks: all at once would take as much memory
    as the players do."""

    def __init__(self, pairs: Sequence[Pair], slots: Tensor):
        self.pairs, self.slots = pairs, slots

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, layer_index: int) -> Pair:  # type: ignore[override]
        a, b = self.pairs[layer_index]
        return a[self.slots], b[self.slots]


def put(pairs: Sequence[Pair], slots: Tensor, new: Iterable[Pair]) -> None:
    for kept, fresh in zip(pairs, new, strict=True):
        for t, value in zip(kept, fresh, strict=True):
            t.index_copy_(0, slots, value.to(t.dtype))
