"""Trains the built-in world, one command a stage.

`python -m world.meadow.train {clips,vae,latents,dit,pack,preview} --dir RUN`, where a stage is

clips    the teacher draws clips to shards
vae      the VAE learns to hold them
latents  the shards as latents, and their mean and std
dit      DiT and text encoder: first with the clip as history (noise on it), then with the student's own rollouts
pack     averaged weights as one safetensors file, the one that ships
preview  held-out walks, the teacher above the student, as a picture

Every stage resumes where it stopped. Times are budgets in seconds, so that one recipe suits a laptop and a large GPU.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from world.chunk import TEMPORAL_STRIDE
from world.config import WorldConfig
from world.denoiser import Denoiser
from world.meadow import dataset
from world.meadow.config import TEXT, meadow_config
from world.meadow.forcing import Batch, control, flow_loss, predict, turns
from world.meadow.teacher import default_intrinsics, draw_frames
from world.meadow.training import Run
from world.nn.dit import CausalDiT, init_weights
from world.nn.text import ByteTextEncoder
from world.nn.vae import VideoVAE
from world.scene import warp_condition
from world.slab import Slab, put


def shards(run: Path) -> list[Path]:
    return sorted((run / "clips").glob("*.safetensors"))


def autocast(device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16)


def clips(args: argparse.Namespace, device: torch.device) -> None:
    (args.dir / "clips").mkdir(parents=True, exist_ok=True)
    draw = torch.compile(draw_frames) if args.compile else None
    started, frames = time.monotonic(), TEMPORAL_STRIDE * (args.latent_frames - 1) + 1
    for i in range(args.first_shard, args.first_shard + args.shards):
        path = args.dir / "clips" / f"{i:05d}.safetensors"
        if not path.exists():
            dataset.save(dataset.draw_clips(i, args.shard_clips, frames, device, draw=draw), path)
        done = i - args.first_shard + 1
        rate = done * args.shard_clips * frames / (time.monotonic() - started)
        took_s = time.monotonic() - started
        print(f"clips: shard {done} of {args.shards}, {rate:.0f} frames/s, {took_s:.0f} s", flush=True)
        if took_s > args.seconds:
            break


def vae_modules(device: torch.device) -> nn.ModuleDict:
    torch.manual_seed(0)
    return nn.ModuleDict({"vae": VideoVAE(meadow_config().vae)}).to(device)


def vae(args: argparse.Namespace, device: torch.device) -> None:
    modules = vae_modules(device)
    run = Run(args.dir / "vae.pt", modules, args.seconds, lr=1e-3)
    network = modules["vae"]
    rng = np.random.default_rng(run.step)
    known: dict[Path, Tensor] = {}
    video, at, seeing, drawing = torch.zeros(0, 3, 0, 0, 0), 0, None, None
    for share in run.steps():
        if run.step % 500 == 0:  # shards may still be arriving
            known |= {path: dataset.load(path).frames.to(device) for path in shards(args.dir) if path not in known}
        if at >= video.shape[2]:
            frames = list(known.values())[int(rng.integers(len(known)))]
            which = torch.from_numpy(rng.permutation(len(frames))[: args.batch // 2]).to(device)
            video, at, seeing, drawing = dataset.to_video(frames[which], device), 0, None, None
        # A clip is walked through in pieces with both caches carried on: trained on beginnings alone, a VAE of 9 frames
        # fell from 22 to 14 dB at the sixteenth.
        first, length = at == 0, 1 if at == 0 else 2 * TEMPORAL_STRIDE
        piece = video[:, :, at : at + length]
        with autocast(device):
            moments, seeing = network.moments(piece, seeing, first)
            mu, log_var = moments.chunk(2, dim=1)
            log_var = log_var.clamp(-20, 10)
            z = mu + torch.randn_like(mu) * (0.5 * log_var).exp()
            seen, drawing = network.decode(z, drawing, first)
        seeing, drawing, at = [c.detach() for c in seeing], [c.detach() for c in drawing], at + length
        divergence = (mu.square() + log_var.exp() - 1 - log_var).mean()
        edges = sum((seen.diff(dim=d) - piece.diff(dim=d)).abs().mean() for d in (-1, -2))
        run.update((seen - piece).abs().mean() + 2 * F.mse_loss(seen, piece) + edges + 1e-4 * divergence)
        if run.step % 100 == 0:
            psnr = -10 * (F.mse_loss(seen.detach().clamp(-1, 1), piece) / 4).log10().item()
            print(f"vae: step {run.step}, {100 * share:.0f} %, PSNR {psnr:.2f} dB at frame {at - 1}", flush=True)


def trained_vae(args: argparse.Namespace, device: torch.device, cfg: WorldConfig) -> VideoVAE:
    run = Run(args.dir / "vae.pt", vae_modules(device), 1.0, 0.0)
    network = VideoVAE(cfg.vae).to(device)
    network.load_state_dict(run.averaged("vae"))
    return network.requires_grad_(False)


@torch.no_grad()
def latents(args: argparse.Namespace, device: torch.device) -> None:
    (args.dir / "latents").mkdir(exist_ok=True)
    network, sums = trained_vae(args, device, meadow_config()), torch.zeros(3, 16, dtype=torch.float64)
    for path in shards(args.dir):
        target = args.dir / "latents" / path.name
        loaded = dataset.load(path)
        if target.exists():
            z = load_file(target)["latents"].float()
        else:
            with autocast(device):
                z = torch.cat([encode_clip(network, dataset.to_video(f, device)) for f in loaded.frames.split(16)])
            save_file({"latents": z.half().cpu(), "poses": loaded.latent_poses.contiguous()}, target,
                      {"prompts": "\n".join(loaded.prompts)})  # fmt: skip
        flat = z.double().cpu().transpose(1, 2).flatten(2).transpose(0, 1).flatten(1)  # [16, values]
        sums += torch.stack([torch.full((16,), float(flat.shape[1])), flat.sum(1), flat.square().sum(1)])
        if args.drop_frames:
            path.unlink()
    count, total, squares = sums
    mean, std = total / count, (squares / count - (total / count) ** 2).sqrt()
    (args.dir / "statistics.json").write_text(json.dumps({"mean": mean.tolist(), "std": std.tolist()}))
    print(f"latents: std {std.min():.3f} to {std.max():.3f}", flush=True)


def encode_clip(network: VideoVAE, video: Tensor) -> Tensor:
    """[C, 3, n, H, W] -> latents [C, m, 16, h, w], in two calls instead of one a latent frame."""
    head, caches = network.moments(video[:, :, :1], None, first=True)
    tail, _ = network.moments(video[:, :, 1:], caches, first=False)
    return network.normalise(torch.cat([head, tail], dim=2)[:, :16]).transpose(1, 2)


def trained_config(args: argparse.Namespace) -> WorldConfig:
    statistics = json.loads((args.dir / "statistics.json").read_text())
    return meadow_config(tuple(statistics["mean"]), tuple(statistics["std"]))


def dit_modules(cfg: WorldConfig, device: torch.device) -> nn.ModuleDict:
    torch.manual_seed(1)
    modules = nn.ModuleDict({"dit": CausalDiT(cfg.dit), "text": ByteTextEncoder(TEXT)})
    init_weights(modules["dit"])
    return modules.to(device)


def latent_batches(
    args: argparse.Namespace, cfg: WorldConfig, rng: np.random.Generator, device: torch.device
) -> Iterator[Batch]:
    """Endless random crops of all latents, which fit in memory."""
    files = sorted((args.dir / "latents").glob("*.safetensors"))
    mean, std = (torch.tensor(s, device=device).view(1, 1, -1, 1, 1) for s in (cfg.vae.mean, cfg.vae.std))
    tensors, prompts = [load_file(path) for path in files], []
    for path in files:
        with dataset.safe_open(path, "pt") as file:
            prompts += file.metadata()["prompts"].split("\n")
    z = torch.cat([t["latents"] for t in tensors]).to(device)
    poses = torch.cat([t["poses"] for t in tensors])
    ids = dataset.prompt_ids(tuple(prompts), device)
    while True:
        at = torch.from_numpy(rng.integers(len(z), size=args.batch))
        start = int(rng.integers(z.shape[1] - args.crop + 1))
        part = slice(start, start + args.crop)
        yield Batch((z[at.to(device), part].float() - mean) / std, poses[at, part], ids[at.to(device)])


@torch.no_grad()
def rollout(cfg: WorldConfig, dit: CausalDiT, text: ByteTextEncoder, batch: Batch) -> Tensor:
    """What the student makes of a batch's start pictures and paths, through slab and sampler as when serving:
    [C, m, 16, h, w], the first frame its own too."""
    count, frames = batch.latents.shape[:2]
    geometry, device = cfg.geometry, batch.latents.device
    slab = Slab(cfg, count, device, torch.bfloat16, torch.bfloat16)
    denoiser = Denoiser(cfg, dit, slab)
    slots = torch.arange(1, count + 1, device=device)
    put(slab.text, slots, dit.text(text(batch.prompt_ids)))
    channels = control(batch.poses, geometry.height, geometry.width, device).unflatten(0, (count, frames))
    turned, lens = turns(batch.poses).to(device), default_intrinsics(geometry.width, geometry.height).to(device)
    newest, made = batch.latents[:, 0], []
    for i in range(frames):
        y = warp_condition(newest, turned[:, i], lens).transpose(0, 1)[:, :, None]
        denoiser.begin(slots, channels[:, i], y, torch.randn_like(slab.x[1:]))
        at = torch.full_like(slots, i)
        for step in range(cfg.schedule.num_steps):
            denoiser.step(slots, at, torch.full_like(slots, step), count, torch.randn_like(slab.x[1:]))
        newest = slab.x[1:, :, 0].clone()
        made.append(newest)
        denoiser.step(slots, at, torch.full_like(slots, cfg.schedule.num_steps), 0, slab.x[:0])
    return torch.stack(made, dim=1)


def levels(cfg: WorldConfig, like: Tensor) -> Tensor:
    """Noise levels [C, m]: half of them the served ones, half anywhere."""
    served = torch.tensor(cfg.schedule.sigmas, device=like.device)
    picked = served[torch.randint(len(served), like.shape[:2], device=like.device)]
    anywhere = torch.sigmoid(1.2 * torch.randn(like.shape[:2], device=like.device) + 0.4)
    return torch.where(torch.rand_like(anywhere) < 0.5, picked, anywhere)


def dit(args: argparse.Namespace, device: torch.device) -> None:
    cfg = trained_config(args)
    modules = dit_modules(cfg, device)
    run = Run(args.dir / "dit.pt", modules, args.seconds, lr=args.lr)
    network, text = modules["dit"], modules["text"]
    served = CausalDiT(cfg.dit).to(device)  # the same weights for rollouts, whose shapes are not worth compiling
    served.load_state_dict(network.state_dict(), assign=True)
    if args.compile:
        for block in network.blocks:
            block.compile(dynamic=False)
    source = latent_batches(args, cfg, np.random.default_rng(run.step), device)
    torch.manual_seed(run.step)
    own: Tensor | None = None
    began = time.monotonic()
    for share in run.steps():
        self_made = share > args.own_from
        if not self_made or run.step % args.reuse == 0 or own is None:
            batch = next(source)
            if self_made:
                with autocast(device):
                    own = rollout(cfg, served, text, batch).float()
        level = 0.25 * torch.rand(args.batch, 1, 1, 1, 1, device=device)
        level = level * (torch.rand_like(level) < 0.8)
        clean = own if self_made and own is not None else batch.latents
        history = clean + level * (0.2 if self_made else 1.0) * torch.randn_like(clean)
        far = torch.randint(0, 20_000, (args.batch,), device=device) * (torch.rand(args.batch, device=device) < 0.5)
        noise = torch.randn_like(clean)
        with autocast(device):
            flow = predict(cfg, network, text, batch, history, levels(cfg, clean), noise, far)
        loss = flow_loss(batch, noise, flow)
        run.update(loss)
        if run.step % 100 == 0:
            drift = (clean - batch.latents)[:, -1].square().mean().sqrt().item()
            print(f"dit: step {run.step}, {100 * share:.0f} %, loss {loss.item():.4f}, own error at the last frame "
                  f"{drift:.3f}, {time.monotonic() - began:.0f} s", flush=True)  # fmt: skip


def pack(args: argparse.Namespace, device: torch.device) -> None:
    """world.safetensors: DiT, VAE and text encoder in bfloat16, latent statistics in the metadata."""
    cfg = trained_config(args)
    own = Run(args.dir / "dit.pt", dit_modules(cfg, device), 1.0, 0.0)
    vae_weights = trained_vae(args, device, cfg).state_dict()
    tensors = {f"{name}.{key}": t for name in ("dit", "text") for key, t in own.averaged(name).items()}
    tensors |= {f"vae.{key}": t for key, t in vae_weights.items()}
    statistics = json.dumps({"mean": cfg.vae.mean, "std": cfg.vae.std})
    path = args.dir / "world.safetensors"
    kept = {k: t.to("cpu", torch.bfloat16).contiguous() for k, t in tensors.items()}
    save_file(kept, path, {"statistics": statistics})
    print(f"packed {path}, {path.stat().st_size / 1e6:.1f} MB", flush=True)


@torch.no_grad()
def preview(args: argparse.Namespace, device: torch.device) -> None:
    """preview.png: held-out walks, the teacher above the student's own rollout; PSNR a second of play."""
    from world.meadow.contact_sheet import tile, write_png

    cfg = trained_config(args)
    modules = dit_modules(cfg, device)
    own = Run(args.dir / "dit.pt", modules, 1.0, 0.0)
    modules.load_state_dict({**modules.state_dict(), **own.average})
    network = trained_vae(args, device, cfg)
    held = dataset.draw_clips(7, 8, 61, device, held_out=True)
    with autocast(device):
        video = dataset.to_video(held.frames, device)
        z = encode_clip(network, video)
        batch = Batch(z.float(), held.latent_poses, dataset.prompt_ids(held.prompts, device))
        made = rollout(cfg, modules["dit"], modules["text"], batch).float()
        seen = decode_clip(network, made)
        again = decode_clip(network, z.float())
    still = video[:, :, :1].expand_as(video)
    for name, pictures in (("round trip", again), ("student", seen), ("first frame repeated", still)):
        error = ((pictures.clamp(-1, 1) - video) / 2).square().mean((0, 1, 3, 4))
        print(name, " ".join(f"{-10 * e.log10():.1f}" for e in error[[0, 4, 8, 16, 24, 32, 48, 60]]), "dB", flush=True)
    columns = [0, 8, 20, 36, 60]
    rows = torch.stack([video, seen.clamp(-1, 1)], dim=1).flatten(0, 1)
    rows = rows[:, :, columns].transpose(1, 2)  # [16, 5, 3, H, W]
    write_png(args.dir / "preview.png", tile(((rows + 1) * 127.5).to(torch.uint8).cpu().numpy()))


def decode_clip(network: VideoVAE, z: Tensor) -> Tensor:
    first, caches = network.decode(z[:, :1].transpose(1, 2), None, first=True)
    rest, _ = network.decode(z[:, 1:].transpose(1, 2), caches, first=False)
    return torch.cat([first, rest], dim=2)


STAGES = {"clips": clips, "vae": vae, "latents": latents, "dit": dit, "pack": pack, "preview": preview}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--dir", type=Path, required=True, help="where this run lives; give the same to resume")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seconds", type=float, default=600.0, help="time for this stage, over all its sessions")
    parser.add_argument("--shards", type=int, default=8, help="files of clips to draw")
    parser.add_argument("--shard-clips", type=int, default=64)
    parser.add_argument("--first-shard", type=int, default=0)
    parser.add_argument("--latent-frames", type=int, default=24, help="length of a clip")
    parser.add_argument("--crop", type=int, default=16, help="latent frames trained at once")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=8e-4)
    parser.add_argument(
        "--own-from", type=float, default=0.6,
        help="share of the time after which the student's own rollout is the history",
    )  # fmt: skip
    parser.add_argument("--reuse", type=int, default=4, help="steps that share one rollout")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--drop-frames", action="store_true", help="delete a shard's pictures once it is latents")
    args = parser.parse_args(argv)
    torch.set_float32_matmul_precision("high")
    STAGES[args.stage](args, torch.device(args.device))


if __name__ == "__main__":
    main()
