"""Trains the built-in world, one command a stage.

`python -m world.meadow.train {clips,vae,latents,depth,dit,pack,preview,smoke} --dir RUN`, where a stage is

clips    the teacher draws clips to shards, for the VAE
vae      the VAE learns to hold them
latents  the teacher draws more clips, which are kept as latents only
depth    the VAE's head for depth: how far away what a latent shows is
dit      DiT and text encoder: first with the clip as history (noise on it), then with the student's own rollouts
pack     averaged weights as one safetensors file, the one that ships
preview  held-out walks, the teacher above the student, as a picture
smoke    all of these, small: two minutes on two CPU cores that show whether the losses fall

Every stage resumes where it stopped. Times are budgets in seconds, so that one recipe suits a laptop and a large GPU;
`vae`, `depth` and `dit` take up shards that arrive while they run, so the stage before each may still be drawing.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from world.chunk import TEMPORAL_STRIDE
from world.config import WorldConfig
from world.denoiser import Denoiser
from world.meadow import dataset
from world.meadow.config import TEXT, meadow_config
from world.meadow.critic import Critic
from world.meadow.forcing import Batch, batch_of, condition, control, flow_loss, next_generation, noised, predict, upto
from world.meadow.graphed import Graphed
from world.meadow.teacher import PLAIN, Brushes
from world.meadow.training import Run, averaged
from world.nn import vae as nn_vae
from world.nn.depth import DepthHead
from world.nn.dit import CausalDiT, init_weights
from world.nn.text import ByteTextEncoder
from world.nn.vae import Norm, VideoVAE
from world.slab import Slab, decoder_cache_shapes, put

LATENT_SHARDS = 1_000_000  # shards of latents are numbered from here: other clips than the VAE saw
KL = 1e-4  # weight of the divergence
ALIKE = 0.03  # weight of how far four frames' latent is from that of the last of them alone, beside its variance
VIEWINGS = 8  # batches of clips that take turns
PARTS = 0.5  # share of them that are decoded from a part of their latents
ZOOMS = (1.04, 1.3)  # how much larger that part then is: from where it can lie half a cell off
VIEWED = 16  # frames for every clip of a batch, where the head for depth learns
MIDWAY = 20.0  # units within which a share of the depth counts, and beyond which the inverse does
POOL = 12  # batches whose histories grow old together
VISITS = 2  # updates from every generation of a batch's history
INVENTED = 0.15  # weight of what a student has to invent
ADVICE = 0.1  # weight of what the critic says of the invented
HEEDED_AFTER = 500  # updates in which the critic's word grows to that
OLDEST = 24  # generations after which a batch's history begins anew


def shards(run: Path, kind: str) -> list[Path]:
    return sorted((run / kind).glob("*.safetensors"))


def autocast(device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16)


def brushes(args: argparse.Namespace) -> Brushes:
    return PLAIN.compiled() if args.compile else PLAIN


def clips(args: argparse.Namespace, device: torch.device) -> None:
    (args.dir / "clips").mkdir(parents=True, exist_ok=True)
    draw = brushes(args)
    for i in each_shard(args, "clips"):
        drawn = dataset.draw_clips(i, args.shard_clips, args.latent_frames, device, brushes=draw)
        dataset.save(drawn, args.dir / "clips" / f"{i:07d}.safetensors")


def each_shard(args: argparse.Namespace, kind: str) -> Iterator[int]:
    """The numbers of the shards to make that are not there yet, while there is time."""
    started, made = time.monotonic(), 0
    for i in range(args.first_shard, args.first_shard + args.shards):
        if (args.dir / kind / f"{i:07d}.safetensors").exists():
            continue
        yield i
        made, took_s = made + 1, time.monotonic() - started
        rate = made * args.shard_clips * (TEMPORAL_STRIDE * (args.latent_frames - 1) + 1) / took_s
        print(f"{kind}: shard {i} of {args.first_shard + args.shards}, {rate:.0f} frames/s, {took_s:.0f} s", flush=True)
        if took_s > args.seconds:
            break


def vae_modules(device: torch.device) -> nn.ModuleDict:
    torch.manual_seed(0)
    network = VideoVAE(meadow_config().vae)
    nn_vae.init_weights(network)
    head_of(network).requires_grad_(False)
    return nn.ModuleDict({"vae": network}).to(device)


@dataclass(slots=True, eq=False)
class Viewing:
    """Clips the VAE is on its way through, with the caches of its encoder and its decoder."""

    video: Tensor
    part: Tensor  # [C, 2, 3], what of each clip is decoded, as `affine_grid` takes it
    at: int = 0
    caches: list[Tensor] = field(default_factory=list)

    def next_piece(self) -> Tensor:
        """[C, 3, 1 or 4, H, W]."""
        length = 1 if self.at == 0 else TEMPORAL_STRIDE
        self.at += length
        return self.video[:, :, self.at - length : self.at]


def drawn_parts(count: int, rng: np.random.Generator) -> Tensor:
    """[count, 2, 3]: the whole of some pictures and a part of others, anywhere inside, on the cells or between them."""
    share = np.where(rng.random(count) < PARTS, 1 / rng.uniform(*ZOOMS, count), 1.0)
    part = np.zeros((count, 2, 3))
    part[:, 0, 0] = part[:, 1, 1] = share
    part[:, :, 2] = rng.uniform(-1, 1, (count, 2)) * (1 - share[:, None])
    return torch.from_numpy(part.astype(np.float32))


def part_of(x: Tensor, part: Tensor) -> Tensor:
    """[C, K, T, h, w] -> the part [C, 2, 3] of each, bilinearly, in the same size."""
    grid = F.affine_grid(part, [len(x), 1, *x.shape[-2:]], align_corners=False)
    return F.grid_sample(x.flatten(1, 2), grid, padding_mode="border", align_corners=False).view_as(x)


def vae(args: argparse.Namespace, device: torch.device) -> Run:
    """Clips are walked through in pieces with both caches carried on: trained on beginnings alone, a VAE fell from 22
    dB at its ninth frame to 14 at its sixteenth. With the encoder held, latents keep their meaning.

    A part of the latents has to decode to that part of the picture (EQ-VAE; Kouzelis et al. 2025): a world draws
    them anew as its camera moves, between their cells, and so they have to mean something there. And a picture that
    begins a stream should look to the DiT as it would later on.
    """
    modules = vae_modules(device)
    network = modules["vae"]
    if args.begin_from:
        network.load_state_dict(packed(args.begin_from, "vae"))
    if args.hold_encoder:
        for part in (network.encoder, network.conv1):
            part.requires_grad_(False)
    run = Run(args.dir / "vae.pt", modules, args.seconds, lr=args.lr or 1.5e-3)
    if args.compile:
        for module in network.modules():
            if isinstance(module, Norm):
                module.compile(dynamic=False)

    def learning(piece: Tensor, part: Tensor, *caches: Tensor) -> list[Tensor]:
        first, seen_caches = not caches, len(caches) - drawn_caches
        with autocast(device):
            moments, seeing = network.moments(piece, list(caches[:seen_caches]) if caches else None, first)
            mu, log_var = moments.chunk(2, dim=1)
            apart = torch.zeros((), device=device)
            if not (first or args.hold_encoder):
                alone, _ = network.moments(piece[:, :, -1:], None, first=True)
                apart = F.mse_loss(alone[:, : mu.shape[1]], mu) / mu.var().detach()
            log_var = log_var.clamp(-20, 10)
            z = part_of(mu + torch.randn_like(mu) * (0.5 * log_var).exp(), part)
            seen, drawing = network.decode(z, list(caches[seen_caches:]) if caches else None, first)
        piece = part_of(piece, part)
        divergence = (mu.square() + log_var.exp() - 1 - log_var).mean()
        edges = sum((seen.diff(dim=d) - piece.diff(dim=d)).abs().mean() for d in (-1, -2))
        error = F.mse_loss(seen, piece)
        loss = (seen - piece).abs().mean() + 2 * error + edges + KL * divergence
        run.descend(loss + ALIKE * apart)
        return [loss.detach(), error.detach(), apart.detach(), *(c.detach() for c in (*seeing, *drawing))]

    drawn_caches = len(decoder_cache_shapes(meadow_config()))
    begin, go_on = Graphed(learning), Graphed(learning)
    rng = np.random.default_rng(run.step)
    known: dict[Path, Tensor] = {}
    viewings: list[Viewing | None] = [None] * VIEWINGS
    began, psnrs, aparts = time.monotonic(), deque[float](maxlen=50), deque[float](maxlen=50)
    for share in run.steps():
        if run.step % 250 == 0:
            new = [path for path in shards(args.dir, "clips") if path not in known]
            known |= {path: dataset.load(path).pictures.to(device) for path in new}
        viewing = viewings[run.step % VIEWINGS]
        if viewing is None or viewing.at >= viewing.video.shape[2] or rng.random() < 0.1:
            frames = list(known.values())[int(rng.integers(len(known)))]
            which = torch.from_numpy(rng.permutation(len(frames))[: args.batch]).to(device)
            video = dataset.to_video(frames[which], device)
            viewing = viewings[run.step % VIEWINGS] = Viewing(video, drawn_parts(len(video), rng).to(device))
        learn = begin if viewing.at == 0 else go_on
        loss, error, apart, *viewing.caches = learn(viewing.next_piece(), viewing.part, *viewing.caches)
        run.update(loss)
        if run.step % 10 == 0:
            psnrs.append(-10 * (error / 4).log10().item())
            aparts.append(apart.item())
        if run.step % 500 == 0:
            print(f"vae: step {run.step}, {100 * share:.0f} %, PSNR {sum(psnrs) / len(psnrs):.2f} dB, "
                  f"a lone picture {sum(aparts) / len(aparts):.2f} of the variance away, "
                  f"{time.monotonic() - began:.0f} s", flush=True)  # fmt: skip
    return run


def same_latents(args: argparse.Namespace) -> bool:
    """Whether latents mean what they meant in the packed world that this run begins from."""
    return args.begin_from is not None and (args.hold_encoder or not (args.dir / "vae.pt").exists())


def packed_statistics(path: Path) -> str:
    with safe_open(path, "pt") as file:
        return file.metadata()["statistics"]


def packed(path: Path, name: str) -> dict[str, Tensor]:
    """The weights of one network of a packed world, in float32."""
    with safe_open(path, "pt") as file:
        return {key[len(name) + 1 :]: file.get_tensor(key).float() for key in file.keys() if key.startswith(f"{name}.")}  # noqa: SIM118


def vae_weights(args: argparse.Namespace, device: torch.device) -> dict[str, Tensor]:
    """Those of this run, or of the packed world that it begins from; the head for depth is a stage's own."""
    own, head = args.dir / "vae.pt", args.dir / "depth.pt"
    begun = args.begin_from and not own.exists()
    weights = packed(args.begin_from, "vae") if begun else averaged(own, "vae", device)
    told = averaged(head, "depth", device) if head.exists() else {}
    return weights | {f"depth.{key}": value for key, value in told.items()}


def trained_vae(args: argparse.Namespace, device: torch.device, cfg: WorldConfig) -> VideoVAE:
    network = VideoVAE(cfg.vae).to(device)
    network.load_state_dict(vae_weights(args, device))
    return network.requires_grad_(False)


@torch.no_grad()
def latents(args: argparse.Namespace, device: torch.device) -> None:
    """Draws and encodes; the mean and std of the first shard's latents normalise all, unless they are old ones."""
    (args.dir / "latents").mkdir(parents=True, exist_ok=True)
    statistics_file = args.dir / "statistics.json"
    if same_latents(args):
        statistics_file.write_text(packed_statistics(args.begin_from))
    network, draw = trained_vae(args, device, meadow_config()), brushes(args)
    for i in each_shard(args, "latents"):
        drawn = dataset.draw_clips(
            LATENT_SHARDS + i, args.shard_clips, args.latent_frames, device, brushes=draw, keep_on_device=True
        )
        with autocast(device):
            z = torch.cat([encode_clip(network, dataset.to_video(f, device)) for f in drawn.pictures.split(16)])
        if not statistics_file.exists():
            flat = z.double().movedim(2, 0).flatten(1)
            statistics = {"mean": flat.mean(1).tolist(), "std": flat.std(1).tolist()}
            statistics_file.write_text(json.dumps(statistics))
            print(f"latents: std {min(statistics['std']):.3f} to {max(statistics['std']):.3f}", flush=True)
        kept = dataclasses.replace(drawn, pictures=z.half().cpu().contiguous())
        dataset.save(kept, args.dir / "latents" / f"{i:07d}.safetensors")


def encode_clip(network: VideoVAE, video: Tensor) -> Tensor:
    """[C, 3, n, H, W] -> latents [C, m, 16, h, w], in two calls instead of one a latent frame."""
    head, caches = network.moments(video[:, :, :1], None, first=True)
    tail, _ = network.moments(video[:, :, 1:], caches, first=False)
    return network.normalise(torch.cat([head, tail], dim=2)[:, :16]).transpose(1, 2)


def head_of(network: VideoVAE) -> DepthHead:
    assert network.depth is not None, "meadow's tells depth"
    return network.depth


def depth(args: argparse.Namespace, device: torch.device) -> Run:
    """Latents of the teacher's pictures, with noise on them as a student's have errors, against the teacher's depth."""
    cfg = trained_config(args)
    head = head_of(trained_vae(args, device, cfg)).requires_grad_(True)
    run = Run(args.dir / "depth.pt", nn.ModuleDict({"depth": head}), args.seconds, lr=args.lr or 3e-3)
    rng = np.random.default_rng(run.step)
    torch.manual_seed(run.step)

    def learning(seen: Tensor, true: Tensor) -> list[Tensor]:
        with autocast(device):
            told = head(seen)
        loss = ((told + 1 / MIDWAY).log() - (true + 1 / MIDWAY).log()).abs().mean()
        run.descend(loss)
        return [loss.detach()]

    source, learn = latent_shards(args, rng, device), Graphed(learning)
    began = time.monotonic()
    for share in run.steps():
        shard = next(source)
        frames = shard.pictures.flatten(0, 1)
        at = torch.from_numpy(rng.integers(len(frames), size=VIEWED * args.batch)).to(device)
        z = normalised(frames[at][:, None], cfg)[:, 0]
        noise = 0.3 * torch.rand(len(z), 1, 1, 1, device=device) * torch.randn_like(z)
        (loss,) = learn(z + noise, shard.inverse_depth.flatten(0, 1)[at].float())
        run.update(loss)
        if run.step % 200 == 0:
            print(f"depth: step {run.step}, {100 * share:.0f} %, loss {loss.item():.4f}, "
                  f"{time.monotonic() - began:.0f} s", flush=True)  # fmt: skip
    return run


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
    """Endless random clips."""
    for shard in latent_shards(args, rng, device):
        picked = rng.permutation(len(shard.poses))[: args.batch]
        at = torch.from_numpy(picked)
        prompts = [shard.prompts[i][which] for which in (0, 1) for i in picked]
        z = normalised(shard.pictures[at.to(device)], cfg)
        ids = dataset.prompt_ids(prompts)
        yield batch_of(z, shard.poses[at], shard.recalled[at], shard.seen[at], ids, shard.change[at])


def latent_shards(args: argparse.Namespace, rng: np.random.Generator, device: torch.device) -> Iterator[dataset.Clips]:
    """Endless random ones of all, which fit in memory; what is large of them is on the device."""
    known: dict[Path, dataset.Clips] = {}
    for count in itertools.count():
        if count % 20 == 0:
            new = [path for path in shards(args.dir, "latents") if path not in known]
            known |= {path: to_device(dataset.load(path), device) for path in new}
        yield list(known.values())[int(rng.integers(len(known)))]


def to_device(clips: dataset.Clips, device: torch.device) -> dataset.Clips:
    moved = {name: getattr(clips, name).to(device) for name in ("pictures", "inverse_depth")}
    return dataclasses.replace(clips, **moved)


def normalised(latents: Tensor, cfg: WorldConfig) -> Tensor:
    """[C, m, 16, h, w] as a VAE gives them -> float32 as a DiT takes them."""
    mean, std = (torch.tensor(s, device=latents.device).view(1, 1, -1, 1, 1) for s in (cfg.vae.mean, cfg.vae.std))
    return (latents.float() - mean) / std


@torch.no_grad()
def rollout(cfg: WorldConfig, dit: CausalDiT, text: ByteTextEncoder, depth: DepthHead, batch: Batch) -> Tensor:
    """What the student makes of a batch's start pictures and paths, through slab and sampler as when serving:
    [C, m, 16, h, w], the first frame its own too."""
    count, frames = batch.latents.shape[:2]
    device = batch.latents.device
    dtype = torch.bfloat16 if torch.is_autocast_enabled(device.type) else torch.float32
    slab = Slab(cfg, count, device, dtype, dtype)
    denoiser = Denoiser(cfg, dit, slab)
    slots = torch.arange(1, count + 1, device=device)
    prompts = dit.text(text(batch.prompt_ids))
    channels = control(batch).unflatten(0, (count, frames))
    made = batch.latents.clone()  # frames not made yet are not looked at
    for i in range(frames):
        second = (i >= batch.change).long() * count + slots - 1
        put(slab.text, slots, [(k[second], v[second]) for k, v in prompts])
        y = condition(made[:, : i + 1], upto(batch, i + 1), depth).unflatten(0, (count, -1))[:, -1]
        denoiser.begin(slots, channels[:, i], y, torch.randn_like(slab.x[1:]))
        at = torch.full_like(slots, i)
        for step in range(cfg.schedule.num_steps):
            denoiser.step(slots, at, torch.full_like(slots, step), count, torch.randn_like(slab.x[1:]))
        made[:, i] = slab.x[1:, :, 0]
        denoiser.step(slots, at, torch.full_like(slots, cfg.schedule.num_steps), 0, slab.x[:0])
    return made


def levels(served: Tensor, like: Tensor) -> Tensor:
    """Noise levels [C, m]: half of them the served ones, half anywhere."""
    picked = served[torch.randint(len(served), like.shape[:2], device=like.device)]
    anywhere = torch.sigmoid(1.2 * torch.randn(like.shape[:2], device=like.device) + 0.4)
    return torch.where(torch.rand_like(anywhere) < 0.5, picked, anywhere)


@dataclass(slots=True, eq=False)
class Aged:
    """A batch and what the student made of it, `generation` times over."""

    batch: Batch
    history: Tensor
    far: Tensor  # int64 [C], how much later in the stream the clip is played
    before: Tensor  # the history that this one was made from
    draft: Tensor  # what the last step of making it began from
    generation: int = 0
    visits: int = 0  # of this generation


def grow_older(flow: Graphed, cfg: WorldConfig, aged: Aged) -> None:
    """The history that the student makes of a batch's."""

    def predict(noisy: Tensor, sigma: Tensor) -> Tensor:
        return flow(noisy, aged.history, sigma, aged.far, *aged.batch.tensors())[0]

    made, draft = next_generation(predict, cfg.schedule.sigmas, aged.history)
    aged.before, aged.history, aged.draft = aged.history, made, draft
    aged.generation, aged.visits = aged.generation + 1, 0


def worth(aged: Aged) -> tuple[Tensor, Tensor]:
    """Fine and broad weights [C, m, h, w] of the loss. What the start never showed is the student's own invention as
    soon as the history is its own, and held to the teacher's it would learn to blur whatever it has invented. After a
    change of prompt all of a picture has to change, and weighed little it stays half of what it was: then the invented
    is held to the teacher's broad colours, and free in the rest."""
    seen, change = aged.batch.seen, aged.batch.change
    if aged.generation == 0:
        return torch.ones_like(seen), torch.zeros_like(seen)
    fine = INVENTED + (1 - INVENTED) * seen
    changed = torch.arange(seen.shape[1], device=seen.device) >= change[:, None]
    return fine, (1 - fine) * changed[..., None, None]


def fresh(batch: Batch) -> Aged:
    count, device = len(batch.latents), batch.latents.device
    far = torch.randint(0, 20_000, (count,), device=device) * (torch.rand(count, device=device) < 0.5)
    return Aged(batch, batch.latents, far, batch.latents, batch.latents)


def dit(args: argparse.Namespace, device: torch.device) -> Run:
    cfg = trained_config(args)
    modules = dit_modules(cfg, device)
    network, text = modules["dit"], modules["text"]
    if args.begin_from:
        text.load_state_dict(packed(args.begin_from, "text"))
        network.load_state_dict(packed(args.begin_from, "dit"))
    head = head_of(trained_vae(args, device, cfg))
    critic = modules["critic"] = Critic(cfg.geometry.latent_channels).to(device)
    run = Run(args.dir / "dit.pt", modules, args.seconds, lr=args.lr or 1e-3)
    if args.compile:
        for block in network.blocks:
            block.compile()
    source = latent_batches(args, cfg, np.random.default_rng(run.step), device)
    served = torch.tensor(cfg.schedule.sigmas, device=device)
    torch.manual_seed(run.step)

    def flow(noisy: Tensor, history: Tensor, sigma: Tensor, far: Tensor, *batch: Tensor) -> Tensor:
        with autocast(device):
            return predict(cfg, network, text, head, Batch(*batch), noisy, history, sigma, far)

    def loss_of(
        fine: Tensor, broad: Tensor, noise: Tensor, history: Tensor, sigma: Tensor, far: Tensor, *batch: Tensor
    ) -> Tensor:
        clean = batch[0]
        made = flow(noised(clean, sigma, noise), history, sigma, far, *batch)
        return flow_loss(clean, noise, made, fine, broad)

    def learning(*told: Tensor) -> list[Tensor]:
        loss = loss_of(*told)
        run.descend(loss)
        return [loss.detach()]

    def learning_with_advice(
        heed: Tensor, fine: Tensor, broad: Tensor, noise: Tensor, history: Tensor, sigma: Tensor, before: Tensor,
        draft: Tensor, far: Tensor, *batch: Tensor,
    ) -> list[Tensor]:  # fmt: skip
        """Beside the loss, the last step of a generation again: what it makes of the draft is shown to the critic."""
        clean, seen = batch[0], Batch(*batch).seen
        loss = loss_of(fine, broad, noise, history, sigma, far, *batch)
        own = draft - last * flow(draft, before, torch.full_like(sigma, last), far, *batch)
        with autocast(device):
            advice = critic.advice(own.flatten(0, 1), (1 - seen).flatten(0, 1))
            mistaken = critic.mistaken(clean.flatten(0, 1), own.flatten(0, 1))
        run.descend(loss - heed * (own.flatten(0, 1) * advice).mean() + mistaken)
        return [loss.detach(), mistaken.detach()]

    last = cfg.schedule.sigmas[-1]
    learn, advised, make = Graphed(learning), Graphed(learning_with_advice), Graphed(lambda *inputs: [flow(*inputs)])
    mistaken = torch.zeros((), device=device)
    pool: list[Aged] = []
    began = time.monotonic()
    for share in run.steps():
        if share <= args.own_from or len(pool) < POOL:
            aged = fresh(next(source))
            if share > args.own_from:
                pool.append(aged)
        else:
            aged = pool[run.step % POOL]
        level = 0.3 * torch.rand(args.batch, 1, 1, 1, 1, device=device)
        level = level * (torch.rand_like(level) < 0.8) * (1.0 if aged.generation == 0 else 0.3)
        clean = aged.batch.latents
        history, noise = aged.history + level * torch.randn_like(clean), torch.randn_like(clean)
        told = (*worth(aged), noise, history, levels(served, clean))
        if aged.generation > 0 and aged.visits == 0:
            heed = torch.tensor(ADVICE * min(1.0, run.step / HEEDED_AFTER), device=device)
            loss, mistaken = advised(heed, *told, aged.before, aged.draft, aged.far, *aged.batch.tensors())
        else:
            (loss,) = learn(*told, aged.far, *aged.batch.tensors())
        run.update(loss)
        if run.step % 100 == 0:
            error = (aged.history - clean)[:, -1].square().mean().sqrt().item()
            print(f"dit: step {run.step}, {100 * share:.0f} %, loss {loss.item():.4f}, critic {mistaken.item():.2f}, "
                  f"generation {aged.generation} with error {error:.3f}, "
                  f"{time.monotonic() - began:.0f} s", flush=True)  # fmt: skip
        aged.visits += 1
        if share > args.own_from and aged.visits == VISITS:
            grow_older(make, cfg, aged)
            if aged.generation > OLDEST:
                pool[pool.index(aged)] = fresh(next(source))
    return run


def pack(args: argparse.Namespace, device: torch.device) -> None:
    """world.safetensors: DiT, VAE and text encoder in bfloat16, latent statistics in the metadata."""
    cfg = trained_config(args)
    parts = {name: averaged(args.dir / "dit.pt", name, device) for name in ("dit", "text")}
    parts["vae"] = vae_weights(args, device)
    if args.share < 1:  # weights between two have much of both (Wortsman et al. 2022)
        for name, part in parts.items():
            begun = packed(args.begin_from, name)
            parts[name] = {key: begun[key].to(device).lerp(t.float(), args.share) for key, t in part.items()}
    tensors = {f"{name}.{key}": t for name, part in parts.items() for key, t in part.items()}
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
    for name, module in modules.items():
        module.load_state_dict(averaged(args.dir / "dit.pt", name, device))
    network = trained_vae(args, device, cfg)
    held = dataset.draw_clips(7, 12, 24, device, held_out=True)
    prompts = [pair[which] for which in (0, 1) for pair in held.prompts]
    with autocast(device):
        video = dataset.to_video(held.pictures, device)
        z = encode_clip(network, video)
        ids = dataset.prompt_ids(prompts)
        batch = batch_of(z.float(), held.poses, held.recalled, held.seen, ids, held.change)
        made = rollout(cfg, modules["dit"], modules["text"], head_of(network), batch).float()
        seen = decode_clip(network, made)
        again = decode_clip(network, z.float())
    still = video[:, :, :1].expand_as(video)
    for name, pictures in (("round trip", again), ("student", seen), ("first frame repeated", still)):
        error = ((pictures.clamp(-1, 1) - video) / 2).square().mean((0, 1, 3, 4))
        print(
            name, " ".join(f"{-10 * e.log10():.1f}" for e in error[[0, 4, 8, 16, 24, 32, 48, 64, 92]]), "dB", flush=True
        )
    columns = [0, 8, 16, 32, 64, 92]
    rows = torch.stack([video, seen.clamp(-1, 1)], dim=1).flatten(0, 1)
    rows = rows[:, :, columns].transpose(1, 2)  # [24, 6, 3, H, W]
    write_png(args.dir / "preview.png", tile(((rows + 1) * 127.5).to(torch.uint8).cpu().numpy()))


def decode_clip(network: VideoVAE, z: Tensor) -> Tensor:
    first, caches = network.decode(z[:, :1].transpose(1, 2), None, first=True)
    rest, _ = network.decode(z[:, 1:].transpose(1, 2), caches, first=False)
    return torch.cat([first, rest], dim=2)


def smoke(args: argparse.Namespace, device: torch.device) -> None:
    """SystemExit with a sentence where a loss does not fall."""
    small = argparse.Namespace(**{**vars(args), "shards": 1, "shard_clips": 4, "latent_frames": 6, "batch": 2})
    clips(small, device)
    # All of it is warming up.
    for kind, stage, seconds, lr in (("vae", vae, 24.0, 4e-3), ("depth", depth, 6.0, 1e-2), ("dit", dit, 36.0, 1.5e-2)):
        share = stage(argparse.Namespace(**{**vars(small), "seconds": seconds, "lr": lr}), device).fell_to()
        print(f"{kind}: its loss came to {share:.2f} of what it was", flush=True)
        if not share < 1:  # NaN included
            raise SystemExit(f"the loss of {kind} does not fall")
        if kind == "vae":
            latents(small, device)
    pack(small, device)


STAGES = {
    "clips": clips,
    "vae": vae,
    "latents": latents,
    "depth": depth,
    "dit": dit,
    "pack": pack,
    "preview": preview,
    "smoke": smoke,
}


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
    parser.add_argument("--batch", type=int, default=24)
    parser.add_argument("--lr", type=float, help="default: the stage's own")
    parser.add_argument("--begin-from", type=Path, help="a packed world to go on from; give it to every stage")
    parser.add_argument(
        "--share", type=float, default=1.0,
        help="pack: how much of the way from the world that a run began from to where it came",
    )  # fmt: skip
    parser.add_argument(
        "--hold-encoder", action="store_true", help="vae: train the decoder alone; give it to every stage"
    )
    parser.add_argument(
        "--own-from", type=float, default=0.5,
        help="share of the time after which the student's own rollout is the history",
    )  # fmt: skip
    parser.add_argument("--compile", action="store_true")
    args = parser.parse_args(argv)
    if args.share < 1 and not args.begin_from:
        parser.error("--share is of the way from a world: --begin-from says which")
    if args.hold_encoder and not args.begin_from:
        parser.error("--hold-encoder holds the encoder of a world: --begin-from says which")
    torch.set_float32_matmul_precision("high")
    if args.compile:
        torch._dynamo.config.recompile_limit = 64  # one version a shape
    STAGES[args.stage](args, torch.device(args.device))


if __name__ == "__main__":
    main()
