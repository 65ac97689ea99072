"""Runs a folder of reference cases through the code that serves players: `python -m world.parity CASE_DIR --out FILE`.

A folder holds a causal DiT (`diffusion_pytorch_model.safetensors`, config.json, rollout*.safetensors), a VAE
(`Wan2.1_VAE.safetensors`, cases.safetensors), a text encoder (`models_t5.safetensors`, cases.safetensors) or camera
inputs (cases.safetensors alone). Only inputs are read. What is computed is written under the reference's tensor names
without their `out.`: plain for a single rollout, `{file stem}.{name}` for each of several (and for a single one too).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from world.camera import camera_case
from world.checkpoint import dit_config, read_config, vae_config
from world.chunk import SPATIAL_STRIDE, TEMPORAL_STRIDE, Geometry, WorldError
from world.config import WorldConfig
from world.denoiser import Denoiser
from world.nn.dit import CausalDiT, DiTConfig
from world.nn.vae import VAEConfig, VideoVAE
from world.ranks import ALONE, Ranks
from world.sampler import at_timesteps
from world.slab import Slab
from world.text import umt5_case
from world.weights import Stored, load_tensors_into

DIT_FILE, VAE_FILE, UMT5_FILE = "diffusion_pytorch_model.safetensors", "Wan2.1_VAE.safetensors", "models_t5.safetensors"
CASES_FILE = "cases.safetensors"
CPU = torch.device("cpu")
DECODER = VAEConfig(dim=4)  # a slab has room for decoder caches, which a DiT's case does not use


@dataclass(frozen=True, slots=True, eq=False)
class Rollout:
    """The inputs of one rollout file, all float32."""

    stem: str
    noise: Tensor  # [B, 16, F, h, w]
    y: Tensor  # [B, 20, F, h, w]
    control: Tensor  # [B, control * 64, F, h, w]
    renoise: Tensor  # [chunks, steps - 1, B, 16, f, h, w]
    text: tuple[Tensor, ...]  # one [n, text_dim] each of the batch
    chunk_frames: int
    shift: float
    timesteps: tuple[int, ...]

    @property
    def num_chunks(self) -> int:
        return self.noise.shape[2] // self.chunk_frames

    @property
    def kind(self) -> tuple[Any, ...]:
        """Rollouts of one kind share a slab."""
        return self.chunk_frames, *self.noise.shape[3:], self.shift, self.timesteps


@dataclass(slots=True, eq=False)
class Stream:
    """One player's worth of a rollout, and how far it is."""

    rollout: Rollout
    batch_index: int
    slot: int
    starts_at: int  # tick
    chunk_index: int = 0
    step_index: int = 0

    def is_due(self, tick: int) -> bool:
        return tick >= self.starts_at and self.chunk_index < self.rollout.num_chunks

    def chunk(self, whole: Tensor) -> Tensor:
        """[B, c, F, h, w] -> this stream's current chunk [1, c, f, h, w]."""
        frames, b = self.rollout.chunk_frames, self.batch_index
        return whole[b : b + 1, :, self.chunk_index * frames : (self.chunk_index + 1) * frames]

    def fresh(self) -> Tensor:
        """Noise [16, f, h, w] for the step after this one, zeros where none follows."""
        r = self.rollout
        if self.step_index + 1 < len(r.timesteps):
            return r.renoise[self.chunk_index, self.step_index, self.batch_index]
        return torch.zeros_like(self.chunk(r.noise)[0])


def run_case(directory: Path, ranks: Ranks = ALONE) -> dict[str, Tensor]:
    """What a case folder's reference holds, computed from its inputs; a DiT's on several ranks, each of which calls
    this and gets all of it."""
    runners: dict[str, Callable[[Path], dict[str, Tensor]]] = {
        DIT_FILE: partial(dit_case, ranks=ranks),
        VAE_FILE: vae_case,
        UMT5_FILE: umt5_case,
    }
    for file, runner in runners.items():
        if (directory / file).is_file():
            return runner(directory)
    if (directory / CASES_FILE).is_file():
        tensors, meta = read_tensors(directory / CASES_FILE)
        out = camera_case({key: t for key, t in tensors.items() if key.endswith(".poses")}, meta)
        if out:
            return out
    raise WorldError(f"{directory} holds neither a DiT, a VAE or a text encoder with cases nor camera poses")


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A safetensors file and the JSON under `meta` in its metadata."""
    with safe_open(path, "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, json.loads((file.metadata() or {}).get("meta", "{}"))  # noqa: SIM118 (not a dict)


def vae_case(directory: Path) -> dict[str, Tensor]:
    path = directory / VAE_FILE
    weights = load_file(path)
    with torch.device("meta"):
        vae = VideoVAE(vae_config({key: tuple(t.shape) for key, t in weights.items()}, path))
    load_tensors_into(vae, path, weights, lambda key: torch.float32, CPU, lambda stage, share: None)
    cases, _ = read_tensors(directory / CASES_FILE)
    out = {}
    for name, video in (("latent", "video"), ("first_frame_latent", "first_frame_then_zeros")):
        if video in cases:
            whole = (cases[video].shape[2] - 1) // TEMPORAL_STRIDE * TEMPORAL_STRIDE + 1  # a rest makes no latent frame
            out[name] = vae.encode(cases[video][:, :, :whole].float())
    if "z_random" in cases:
        pieces: list[Tensor] = []
        caches: Sequence[Tensor] | None = None
        for z in cases["z_random"].float().split(1, dim=2):
            piece, caches = vae.decode(z, caches, first=not pieces)
            pieces.append(piece)
        out["decoded_unclamped"] = torch.cat(pieces, dim=2)
    return out


def dit_case(directory: Path, ranks: Ranks) -> dict[str, Tensor]:
    path = directory / DIT_FILE
    weights, config = load_file(path), read_config(directory)
    stored = {key: Stored(path, tuple(t.shape)) for key, t in weights.items()}
    cfg = dit_config(stored, config, directory)
    with torch.device("meta"):
        dit = CausalDiT(cfg)
    load_tensors_into(dit, path, weights, lambda key: torch.float32, CPU, lambda stage, share: None)
    rollouts = [read_rollout(file, cfg) for file in sorted(directory.glob("rollout*.safetensors"))]
    if not rollouts:
        raise WorldError(f"{directory} has no rollout*.safetensors")
    out: dict[str, Tensor] = {}
    for kind in dict.fromkeys(r.kind for r in rollouts):
        together = [r for r in rollouts if r.kind == kind]
        for rollout, computed in zip(together, play(dit, together, config, ranks), strict=True):
            out |= {f"{rollout.stem}.{name}": t for name, t in computed.items()}
            if len(rollouts) == 1:
                out |= {name: t.clone() for name, t in computed.items()}
    return out


def read_rollout(path: Path, cfg: DiTConfig) -> Rollout:
    tensors, meta = read_tensors(path)

    def take(name: str, shape: Sequence[int | None]) -> Tensor:
        if name not in tensors:
            raise WorldError(f"{path} lacks the tensor {name}")
        t = tensors[name]
        if t.dim() != len(shape) or any(want not in (None, got) for want, got in zip(shape, t.shape, strict=True)):
            raise WorldError(f"{path}: {name} has shape {list(t.shape)}, not {list(shape)} (None: any)")
        return t.float()

    for key in ("frames_per_chunk", "shift", "timesteps"):
        if key not in meta:
            raise WorldError(f"{path}: its metadata lacks {key}")
    f, timesteps = int(meta["frames_per_chunk"]), tuple(int(t) for t in meta["timesteps"])
    noise = take("in.noise", [None, cfg.out_channels, None, None, None])
    batch, _, frames, h, w = noise.shape
    if f < 1 or frames < 1 or frames % f:
        raise WorldError(f"{path}: in.noise has {frames} latent frames, which are not whole chunks of {f}")
    again = [frames // f, len(timesteps) - 1, batch, cfg.out_channels, f, h, w]
    return Rollout(
        stem=path.stem,
        noise=noise,
        y=take("in.y", [batch, cfg.in_channels - cfg.out_channels, frames, h, w]),
        control=take("in.plucker", [batch, cfg.control_channels * 64, frames, h, w]),
        renoise=take("in.renoise", again) if len(timesteps) > 1 else torch.zeros(again),
        text=tuple(take(f"in.text.{b}", [None, cfg.text_dim]) for b in range(batch)),
        chunk_frames=f,
        shift=float(meta["shift"]),
        timesteps=timesteps,
    )


def play(dit: CausalDiT, rollouts: Sequence[Rollout], config: dict[str, Any], ranks: Ranks) -> list[dict[str, Tensor]]:
    """Rollouts of one kind as the players of one slab. They join a forward apart and one slot beside them is NaN, so
    that rows of a forward are at different chunks and steps, and reading a stranger's state shows."""
    first = rollouts[0]
    window, sink = config.get("local_attn_size", -1), config.get("sink_size", 0)
    if window <= 0:  # unbounded: as long as the longest
        window, sink = max(r.noise.shape[2] for r in rollouts), 0
    height, width = (size * SPATIAL_STRIDE for size in first.noise.shape[3:])
    cfg = WorldConfig(
        name="parity",
        geometry=Geometry(width, height, fps=16, chunk_frames=first.chunk_frames),
        dit=dit.cfg,
        vae=DECODER,
        schedule=at_timesteps(first.shift, first.timesteps),
        window_frames=window,
        sink_frames=sink,
    )
    seats = [(r, b) for r in rollouts for b in range(r.noise.shape[0])]
    streams = [Stream(r, b, slot=i + 2, starts_at=i) for i, (r, b) in enumerate(seats)]
    slab = Slab(cfg, len(streams) + 2, CPU, torch.float32, torch.float32, ranks)
    for stranger in (1, len(streams) + 2):
        slab.poison(stranger)
    denoiser = Denoiser(cfg, dit, slab)
    for stream in streams:
        denoiser.set_text(stream.slot, stream.rollout.text[stream.batch_index])
    flows: dict[tuple[int, int, int], Tensor] = {}  # (slot, chunk, step)
    latents: dict[tuple[int, int], Tensor] = {}  # (slot, chunk)
    tick = 0
    while any(stream.chunk_index < stream.rollout.num_chunks for stream in streams):
        advance(denoiser, [stream for stream in streams if stream.is_due(tick)], flows, latents)
        tick += 1
    return [collect(r, [s.slot for s in streams if s.rollout is r], flows, latents) for r in rollouts]


def advance(
    denoiser: Denoiser,
    due: Sequence[Stream],
    flows: dict[tuple[int, int, int], Tensor],
    latents: dict[tuple[int, int], Tensor],
) -> None:
    """One forward over these streams, each one step further."""
    num_steps = denoiser.cfg.schedule.num_steps
    starting = [s for s in due if s.step_index == 0]
    if starting:
        inputs = (
            torch.cat([s.chunk(getattr(s.rollout, name)) for s in starting]) for name in ("control", "y", "noise")
        )
        denoiser.begin(torch.tensor([s.slot for s in starting]), *inputs)
    denoising = [s for s in due if s.step_index < num_steps]
    rows = [*denoising, *(s for s in due if s.step_index == num_steps)]
    columns = torch.tensor([[s.slot, s.chunk_index, s.step_index] for s in rows]).T.contiguous()
    fresh = torch.stack([s.fresh() for s in denoising]) if denoising else denoiser.slab.x[:0]
    flow = denoiser.step(*columns, len(denoising), fresh)
    for stream, of_stream in zip(denoising, flow, strict=True):
        flows[stream.slot, stream.chunk_index, stream.step_index] = of_stream
        if stream.step_index == num_steps - 1:
            latents[stream.slot, stream.chunk_index] = denoiser.slab.x[stream.slot].clone()
    for stream in due:
        done = stream.step_index == num_steps
        stream.chunk_index, stream.step_index = stream.chunk_index + done, 0 if done else stream.step_index + 1


def collect(
    rollout: Rollout,
    slots: Iterable[int],
    flows: dict[tuple[int, int, int], Tensor],
    latents: dict[tuple[int, int], Tensor],
) -> dict[str, Tensor]:
    """`flow.{chunk}.{step}` [B, 16, f, h, w] and `x0` [B, 16, F, h, w] of one rollout."""
    slots = list(slots)
    out = {
        f"flow.{n}.{i}": torch.stack([flows[slot, n, i] for slot in slots])
        for n in range(rollout.num_chunks)
        for i in range(len(rollout.timesteps))
    }
    whole = [torch.cat([latents[slot, n] for n in range(rollout.num_chunks)], dim=1) for slot in slots]
    return out | {"x0": torch.stack(whole)}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m world.parity", description="Compute a folder of reference cases.")
    parser.add_argument("case", type=Path, metavar="CASE_DIR")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="safetensors file to write")
    options = parser.parse_args(arguments)
    try:
        with torch.inference_mode():
            computed = run_case(options.case)
        save_file({name: t.contiguous() for name, t in computed.items()}, options.out)
    except (WorldError, SafetensorError, OSError, ValueError, TypeError, KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        sentence = reason if isinstance(error, WorldError) else f"{options.case} cannot be computed ({reason})"
        print(sentence, file=sys.stderr)
        return 1
    print(f"{len(computed)} tensors in {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
