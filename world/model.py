"""A world made of weights: camera in, pictures out, every slot a stream of its own."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from world.beginning import Beginning, begin
from world.camera import relative_live
from world.chunk import (
    DrawStart,
    Geometry,
    Identity,
    Picture,
    Prompt,
    Report,
    Row,
    Scene,
    SlotState,
    Start,
    World,
    spelled,
    usual_start,
)
from world.config import WorldConfig
from world.crossing import Arrivals
from world.denoiser import Denoiser
from world.graphs import graphs_for
from world.identity import arithmetic, config_text, digest, weights_digests
from world.nn.dit import CausalDiT
from world.nn.fp8 import precision_of
from world.nn.vae import VideoVAE
from world.picture import to_i420, to_video
from world.ranks import ALONE, Ranks
from world.sampler import noise
from world.scene import encode_image, first_frame_condition
from world.slab import Slab, store, unstore
from world.text import PromptCache, TextEncoder
from world.views import Shown, Views

USUAL_SCALE = 0.2  # a scene's scale, unless it has its own
SLAB = "slab."  # before the names of a slab's tensors, where others are beside them
PROMPTS_KEPT = 256  # encoded prompts kept, oldest use evicted


@dataclass(frozen=True, slots=True, eq=False)
class _Stream:
    """What an open slot has beside its rows of the slab."""

    seed: int
    image: Tensor  # as prepared
    intrinsics: NDArray[np.float32]  # [4]
    scale: float
    views: Views


class DiffusionWorld:
    """`world.chunk.World` for a causal DiT and its VAE; on one of several ranks, that rank's part of it.

    Each rank opens, steps and closes the same slots, and yields the pictures that it decodes. Prompts are encoded on
    rank 0 only: the others have no text encoder.
    """

    def __init__(
        self,
        cfg: WorldConfig,
        dit: CausalDiT,
        vae: VideoVAE,
        text: TextEncoder | None,
        scenes: Sequence[Scene],
        num_slots: int,
        draw_start: DrawStart | None = None,
        ranks: Ranks = ALONE,
        kv_dtype: torch.dtype | None = None,
    ):
        """`kv_dtype`: as of a `Slab`. WorldError if it does not go with the DiT's linears."""
        self.draw_start = draw_start
        self.cfg, self.vae, self.text_encoder, self._scenes = cfg, vae, text, tuple(scenes)
        self.device = dit.head.modulation.device
        self.ranks = ranks
        if self.device.type == "cuda":
            vae.lay_out()
        self.slab = Slab(cfg, num_slots, self.device, dit.dtype, vae.dtype, ranks, kv_dtype)
        precision_of(dit, self.slab.kv_dtype)
        self.denoiser = Denoiser(cfg, dit, self.slab)
        most = min(num_slots, cfg.max_rows)
        self.graphs = graphs_for(self.device, most, ranks.share(cfg.geometry.chunk_tokens))
        self._num_slots = num_slots
        self._streams: dict[int, _Stream] = {}
        self._text_lock = threading.Lock()
        self._prompts = PromptCache(PROMPTS_KEPT)
        self._weights: tuple[str, str] | None = None  # digests, once somebody asked
        for slot in range(1, num_slots + 1):
            self.slab.poison(slot)

    @property
    def name(self) -> str:
        return self.cfg.name

    @property
    def geometry(self) -> Geometry:
        return self.cfg.geometry

    @property
    def num_slots(self) -> int:
        return self._num_slots

    @property
    def state_bytes(self) -> int:
        return self.slab.state_bytes()

    @property
    def num_steps(self) -> int:
        return self.cfg.schedule.num_steps

    @property
    def max_rows(self) -> int:
        return self.cfg.max_rows

    @property
    def scenes(self) -> Sequence[Scene]:
        return self._scenes

    @property
    def dtype(self) -> str:
        """The arithmetic of linears and attention, for a person to read."""
        dit = self.denoiser.dit
        return spelled(str(dit.dtype).removeprefix("torch."), precision_of(dit, self.slab.kv_dtype))

    def identify(self, report: Report) -> Identity:
        if self._weights is None:
            modules = {"dit": self.denoiser.dit, "vae": self.vae}
            if self.text_encoder is not None:
                modules["text"] = self.text_encoder.network
            self._weights = weights_digests(modules, report)
        return Identity(*self._weights, config_text(self.cfg), arithmetic(self.device, self.dtype, self.ranks.size))

    def prewarm(self, report: Report) -> None:
        warm_up(self, report)

    def check(self) -> None:
        """All of it is in this process."""

    @torch.inference_mode()
    def encode_prompt(self, text: str) -> Prompt:
        return self._prompts.fetch(text, self._encode)

    def _encode(self, text: str) -> Prompt:
        assert self.text_encoder is not None, "prompts are encoded on rank 0"
        with self._text_lock:
            return Prompt(text, self.text_encoder.encode(text).to(self.device))

    @torch.inference_mode()
    def prepare_image(self, image: NDArray[np.uint8]) -> Any:
        video = to_video(image, self.geometry.height, self.geometry.width).to(self.device)
        return encode_image(self.vae, video, then_black=self.cfg.conditioning == "first_frame")

    @torch.inference_mode()
    def digest(self, prepared: Any) -> bytes:
        return digest(prepared)

    @torch.inference_mode()
    def open(self, slot: int, start: Start) -> None:
        self._check_slot(slot)
        self.slab.clean(slot)
        self.denoiser.set_text(slot, start.prompt.encoded)
        views = Views(self.cfg.views, start.prompt.text)
        self._streams[slot] = _Stream(start.seed, start.image, start.intrinsics, start.scale, views)

    @torch.inference_mode()
    def close(self, slot: int) -> None:
        del self._streams[slot]
        self.slab.poison(slot)

    @torch.inference_mode()
    def export(self, slot: int) -> SlotState:
        stream = self._streams[slot]
        tensors = {f"{SLAB}{name}": stored for name, stored in self.slab.export(slot).items()}
        tensors |= {"image": store(stream.image), "intrinsics": store(torch.from_numpy(stream.intrinsics))}
        return SlotState(tensors, {"seed": stream.seed, "scale": stream.scale, "views": stream.views.facts()})

    @torch.inference_mode()
    def restore(self, slot: int, state: SlotState) -> None:
        stream, rows = self._read(slot, state)
        self.slab.restore(slot, rows)
        self._streams[slot] = stream

    @torch.inference_mode()
    def fits(self, slot: int, state: SlotState) -> None:
        """ValueError where `restore` would raise it; nothing changes."""
        self.slab.check(slot, self._read(slot, state)[1])

    def _read(self, slot: int, state: SlotState) -> tuple[_Stream, dict[str, Tensor]]:
        """A state's stream and its rows of the slab."""
        self._check_slot(slot)
        tensors, facts = {name: unstore(stored) for name, stored in state.tensors.items()}, state.facts
        try:
            image, intrinsics = tensors.pop("image").clone(), tensors.pop("intrinsics").numpy().copy()
            seed, scale, views = int(facts["seed"]), float(facts["scale"]), Views.of(self.cfg.views, facts["views"])
        except (KeyError, TypeError) as fault:
            raise ValueError(f"the state of a slot cannot be read: {fault}") from None
        rows = {name.removeprefix(SLAB): row for name, row in tensors.items()}
        return _Stream(seed, image.to(self.device), intrinsics, scale, views), rows

    def _check_slot(self, slot: int) -> None:
        if not 1 <= slot <= self.num_slots:
            raise ValueError(f"slot {slot} is not one of 1 to {self.num_slots}")

    @torch.inference_mode()
    def step(self, rows: Sequence[Row]) -> list[Picture]:
        starting = [row for row in rows if row.step_index == 0]
        if starting:
            self._begin(starting)
        denoising = [row for row in rows if row.step_index < self.num_steps]
        commits = [row for row in rows if row.step_index == self.num_steps]
        self._denoise([*denoising, *commits], len(denoising))
        done = [row for row in denoising if row.step_index == self.num_steps - 1]
        if self.cfg.conditioning == "warp":
            self._remember(done)
        return self._decode([row for row in done if self.ranks.decodes(row.slot)])

    def _denoise(self, rows: Sequence[Row], num_outputs: int) -> None:
        """One forward; the first `num_outputs` rows denoise, the others commit. In a fixed size all rows are outputs
        or none (a commit among them leaves its latents as they are: its sigma is 0), the last of the padding slot."""
        size = self.graphs.size(len(rows))
        outputs = num_outputs if not self.graphs.sizes else size if num_outputs else 0
        columns = np.zeros((3, size), np.int64)  # slots, chunk indices, step indices
        columns[2] = self.num_steps
        idle, fresh = columns.copy(), np.zeros((outputs, *self.slab.x.shape[1:]), np.float32)
        columns[:, : len(rows)] = np.transpose([(row.slot, row.chunk_index, row.step_index) for row in rows])
        for at, row in enumerate(rows[:num_outputs]):
            if row.step_index + 1 < self.num_steps:  # nothing is drawn for a step that is not taken
                fresh[at] = self._noise(row, row.step_index + 1)

        def forward(columns: Tensor, fresh: Tensor) -> None:
            self.denoiser.step(*columns, outputs, fresh)

        self.graphs.run("denoise", forward, (columns, fresh), (idle, np.zeros_like(fresh)))

    def _noise(self, row: Row, step_index: int) -> NDArray[np.float32]:
        """What step `step_index` of the row's chunk starts from."""
        return noise(self._streams[row.slot].seed, row.chunk_index, step_index, tuple(self.slab.x.shape[1:]))

    def _begin(self, rows: Sequence[Row]) -> None:
        for row in rows:
            if row.prompt is not None:
                self.denoiser.set_text(row.slot, row.prompt.encoded)
        begin(self.denoiser, self.vae, [self._beginning(row) for row in rows], self.graphs)

    def _beginning(self, row: Row) -> Beginning:
        """Of a row's chunk. The stream's views know of it then, and the slab has what comes of its start picture."""
        stream, f = self._streams[row.slot], self.geometry.chunk_frames
        path, shown = self._path(row), tuple[Shown, ...]()
        if self.cfg.conditioning == "first_frame":
            self.slab.y[row.slot] = first_frame_condition(stream.image, row.chunk_index * f, f)
        else:
            if not stream.views.kept:
                self.slab.views[row.slot, 0] = stream.image[:, 0]
            prompt = None if row.prompt is None else row.prompt.text
            shown = stream.views.begin(path, row.chunk_index == 0, prompt)
        relative = relative_live(row.poses, stream.scale)
        return Beginning.of(row.slot, self._noise(row, 0), relative, stream.intrinsics, row.keys, path[1:], shown)

    def _path(self, row: Row) -> NDArray[np.float64]:
        """A row's poses where the stream is, in the units of warps and views: USUAL_SCALE of them count as 1 for the
        model."""
        path = row.poses.astype(np.float64)
        path[:, :3, 3] *= USUAL_SCALE / self._streams[row.slot].scale
        return self._streams[row.slot].views.follow(path)

    def _remember(self, rows: Sequence[Row]) -> None:
        """Keep the newest latent of these rows' finished chunks where no view stands for it."""
        for row in rows:
            place = self._streams[row.slot].views.remember(self._path(row)[-1])
            if place is not None:
                self.slab.views[row.slot, place] = self.slab.x[row.slot, :, -1]

    def _decode(self, rows: Sequence[Row]) -> list[Picture]:
        """Rows' finished latents -> pictures, a latent frame of some rows at a time. Rows at the start of a stream
        decode apart for one frame: the first latent gives one picture, every later one four. What one group made is on
        its way to the host before the next group's graph writes into the same memory."""
        if not rows:
            return []
        arrivals = Arrivals(self.device)
        pieces: dict[int, list[Tensor]] = {row.slot: [] for row in rows}
        for i in range(self.geometry.chunk_frames):
            for first in (True, False):
                slots = [row.slot for row in rows if (row.chunk_index == 0 and i == 0) == first]
                for at in range(0, len(slots), self.cfg.decode_rows):
                    group = slots[at : at + self.cfg.decode_rows]
                    frames = arrivals.fetch(self._decode_frame(group, i, first)[: len(group)])
                    for slot, own in zip(group, frames, strict=True):
                        pieces[slot].append(own)
        latents = [arrivals.fetch(self.slab.x[row.slot]) for row in rows]
        arrivals.wait()
        return [self._picture(row, pieces[row.slot], x) for row, x in zip(rows, latents, strict=True)]

    def _picture(self, row: Row, pieces: Sequence[Tensor], latents: Tensor) -> Picture:
        means = latents.numpy().mean(axis=(1, 2, 3), dtype=np.float64).astype(np.float32)
        frames = np.concatenate([piece.numpy() for piece in pieces])
        return Picture(row.slot, row.chunk_index, frames, digest(latents), means)

    def _decode_frame(self, slots: Sequence[int], index: int, first: bool) -> Tensor:
        """Latent frame `index` of these slots' chunks, at most `decode_rows` -> I420 [B, 1 or 4, H * 3 // 2, W], B as a
        graph has it and these rows first; their caches move on."""
        size = min(self.graphs.size(len(slots)), self.cfg.decode_rows)
        columns = np.zeros((3, size), np.int64)  # slots, rows of the caches, latent frames
        idle = columns.copy()
        columns[:, : len(slots)] = np.transpose([(slot, self.ranks.decoder_row(slot), index) for slot in slots])

        def decode(columns: Tensor) -> Tensor:
            slots, at, frames = columns
            z = self.slab.x[slots, :, frames].unsqueeze(2)
            video, _ = self.vae.decode(z, self.slab.decoder, first, at)
            return to_i420(video)

        made: Tensor = self.graphs.run(("decode", first), decode, [columns], [idle])
        return made


def warm_up(world: World, report: Report) -> None:
    """Every number of rows, in a first and in a later chunk: begin, decode and commit. The most come first: the memory
    that they take is then enough for all."""
    start, sizes = usual_start(world), range(1, min(world.num_slots, world.max_rows) + 1)
    for slot in sizes:
        world.open(slot, start)
    for done, size in enumerate(reversed(sizes)):
        report("warming up", done / len(sizes))
        exercise(world, size)
    for slot in sizes:
        world.close(slot)


def exercise(world: World, size: int, chunks: Sequence[int] = (0, 1), steps: Sequence[int] | None = None) -> None:
    """What the first `size` slots, which are open, do together in these chunks: a first and a later one are all."""
    f = world.geometry.chunk_frames
    poses, keys = np.tile(np.eye(4, dtype=np.float32), (f + 1, 1, 1)), np.zeros((f, 4), np.float32)
    for chunk_index in chunks:
        for step in steps or (0, world.num_steps - 1, world.num_steps):
            world.step([Row(slot, chunk_index, step, poses, keys) for slot in range(1, size + 1)])
