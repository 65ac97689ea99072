"""Training shows the student exactly what serving will: the same window, positions, condition and camera."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import pytest
import torch

from world.chunk import Geometry, Row, Start
from world.denoiser import Denoiser
from world.meadow.clips import random_poses
from world.meadow.config import TEXT, meadow_config
from world.meadow.forcing import SCALE, Batch, batch_of, condition, control, flow_loss, next_generation, noised, predict
from world.meadow.teacher import default_intrinsics
from world.meadow.train import rollout
from world.model import DiffusionWorld
from world.motion import keyboard_poses
from world.nn.depth import DepthHead
from world.nn.dit import CausalDiT, init_weights
from world.nn.text import ByteTextEncoder
from world.nn.vae import VAEConfig, VideoVAE
from world.sampler import from_sigmas
from world.scene import OUTDATED
from world.slab import Slab, put
from world.text import ByteText
from world.views import recalled_frames

SIGMAS = (1.0, 0.5)
FRAMES = 7


def tiny_world():
    cfg = meadow_config()
    dit = dataclasses.replace(cfg.dit, dim=48, num_heads=2, num_layers=2, ffn_dim=64)
    return dataclasses.replace(
        cfg, geometry=Geometry(48, 32, 16, 1), dit=dit, vae=VAEConfig(dim=4, depth_width=8), window_frames=4,
        schedule=from_sigmas(SIGMAS),
    )  # fmt: skip


def walk(frames: int, clips: int = 2) -> Batch:
    """Clips of noise along random ways, whose prompt changes in the middle of the second."""
    cfg = tiny_world()
    shape = (clips, frames, 16, cfg.geometry.latent_height, cfg.geometry.latent_width)
    poses = random_poses(np.random.default_rng(0), clips, 4 * frames - 3)[:, ::4]
    recalled = torch.from_numpy(np.stack([recalled_frames(path, cfg.views) for path in poses]))
    change = torch.tensor([frames, 3])
    seen = torch.ones(clips, frames, *shape[3:])
    ids = torch.randint(2, 100, (2 * clips, 12))
    return batch_of(torch.randn(shape), torch.from_numpy(poses), recalled, seen, ids, change)


@torch.no_grad()
def test_every_frame_of_a_clip_sees_what_the_ring_would_hold():
    torch.manual_seed(0)
    cfg, batch = tiny_world(), walk(FRAMES)
    dit, text, depth = CausalDiT(cfg.dit), ByteTextEncoder(TEXT), DepthHead(16, 8)
    init_weights(dit)
    torch.nn.init.normal_(dit.head.head.weight, std=0.1)
    history, noise = torch.randn_like(batch.latents), torch.randn_like(batch.latents)
    step = torch.randint(0, len(SIGMAS), (2, FRAMES))
    sigma = torch.tensor(SIGMAS)[step]
    jump = torch.tensor([0, 4998])  # the second clip plays far from its sink, a whole number of rings away
    noisy = noised(batch.latents, sigma, noise)
    trained = predict(cfg, dit, text, depth, batch, noisy, history, sigma, jump)

    slab = Slab(cfg, 2, torch.device("cpu"), torch.float32, torch.float32)
    denoiser, slots = Denoiser(cfg, dit, slab), torch.tensor([1, 2])
    prompts = dit.text(text(batch.prompt_ids))
    channels = control(batch).unflatten(0, (2, FRAMES))
    y = condition(history, batch, depth).unflatten(0, (2, FRAMES))
    for i in range(FRAMES):
        chunks = torch.where(torch.tensor(i) < cfg.sink_frames, torch.tensor([i, i]), i + jump)
        which = torch.tensor([0, 1 if i < 3 else 3])
        put(slab.text, slots, [(k[which], v[which]) for k, v in prompts])
        denoiser.begin(slots, channels[:, i], y[:, i], noisy[:, i, :, None])
        flow = denoiser.step(slots, chunks, step[:, i], 2, torch.zeros_like(slab.x[1:]))
        torch.testing.assert_close(flow[0, :, 0], trained[0, i], rtol=1e-4, atol=1e-5)
        if i > cfg.window_frames:  # until then the far clip sees ring places that a real stream would have filled
            torch.testing.assert_close(flow[1, :, 0], trained[1, i], rtol=1e-4, atol=1e-5)
        slab.x[1:] = history[:, i, :, None]
        denoiser.step(slots, chunks, torch.tensor([len(SIGMAS)] * 2), 0, slab.x[:0])


@torch.no_grad()
def test_the_condition_in_training_is_the_one_that_is_served():
    """Along a way that turns, walks and comes back, so that older views are recalled, some of another prompt."""
    torch.manual_seed(1)
    cfg, frames, change = tiny_world(), 31, 9
    dit, vae = CausalDiT(cfg.dit), VideoVAE(cfg.vae)
    init_weights(dit)
    intrinsics = default_intrinsics(48, 32).numpy()
    poses = keyboard_poses("l-20,w-40,s-40,j-20")[::4]
    world = DiffusionWorld(cfg, dit, vae, ByteText(ByteTextEncoder(TEXT)), [], 1)
    image = torch.randn(16, 1, 4, 6)
    world.open(1, Start(5, world.encode_prompt("a meadow"), image, intrinsics, SCALE))
    night, shown, made = world.encode_prompt("a meadow at night"), [], []
    for chunk in range(frames):
        row = poses[[max(0, chunk - 1), chunk]]
        row[:, :3, 3] -= row[0, :3, 3]  # as the game does: only relative motion counts for a world
        for step in range(world.num_steps + 1):
            world.step([Row(1, chunk, step, row, np.zeros((1, 4), np.float32), night if chunk == change else None)])
            if step == 0:
                shown.append(world.slab.y[1].clone())
            if step == world.num_steps - 1:
                made.append(world.slab.x[1, :, 0].clone())
    history = torch.stack(made)[None]
    truth = torch.cat([image[None, None, :, 0], torch.randn(1, frames - 1, 16, 4, 6)], dim=1)
    recalled = torch.from_numpy(recalled_frames(poses, cfg.views))[None]
    assert len(recalled.unique()) > 2 and (recalled[0].diff(dim=0) < 0).any()  # it did come back
    ids = torch.ones(2, 1, dtype=torch.int64)
    seen = torch.ones(1, frames, 4, 6)
    batch = batch_of(truth, torch.from_numpy(poses)[None], recalled, seen, ids, torch.tensor([change]))
    trusts = {value for y in shown for mask in (y[0], y[20]) for value in mask.unique().tolist()}
    assert trusts >= {0.0, OUTDATED, 1.0}
    assert vae.depth is not None
    trained, served = condition(history, batch, vae.depth), torch.stack(shown)
    same = torch.isclose(trained, served, rtol=1e-4, atol=1e-5).float().mean()
    assert same > 0.97, "all but cells of random depth at whose edges a rounding decides"


@torch.no_grad()
def test_a_scene_of_another_scale_is_conditioned_the_same():
    """Twice as large in its own units, with twice the scale."""
    torch.manual_seed(3)
    cfg = tiny_world()
    world = DiffusionWorld(cfg, CausalDiT(cfg.dit), VideoVAE(cfg.vae), ByteText(ByteTextEncoder(TEXT)), [], 2)
    poses, image = keyboard_poses("wl-24,s-16")[::4], torch.randn(16, 1, 4, 6)
    for slot, size in ((1, 1), (2, 2)):
        prompt, intrinsics = world.encode_prompt("a meadow"), default_intrinsics(48, 32).numpy()
        world.open(slot, Start(5, prompt, image, intrinsics, SCALE * size))
        larger = poses.copy()
        larger[:, :3, 3] *= size
        for chunk in range(len(poses)):
            row = larger[[max(0, chunk - 1), chunk]]
            for step in range(world.num_steps + 1):
                world.step([Row(slot, chunk, step, row, np.zeros((1, 4), np.float32))])
    torch.testing.assert_close(world.slab.y[2], world.slab.y[1], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_generations_are_rollouts_in_parallel(monkeypatch: pytest.MonkeyPatch):
    """m generations on, a clip of m frames is the student's own: the same as frame by frame through the slab."""
    torch.manual_seed(2)
    cfg, frames = tiny_world(), 4
    dit, text, depth, batch = CausalDiT(cfg.dit), ByteTextEncoder(TEXT), DepthHead(16, 8), walk(frames)
    init_weights(dit)
    torch.nn.init.normal_(dit.head.head.weight, std=0.1)
    still = torch.randn(2, 16, 1, 4, 6)  # the same noise in every frame and step

    def same_noise(like: torch.Tensor) -> torch.Tensor:
        return still.clone() if like.shape == still.shape else still.movedim(2, 1).expand_as(like).clone()

    monkeypatch.setattr(torch, "randn_like", same_noise)
    history = batch.latents

    def flow_given(history: torch.Tensor, noisy: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        return predict(cfg, dit, text, depth, batch, noisy, history, sigma, torch.zeros(2, dtype=torch.int64))

    for _ in range(frames):
        history, _ = next_generation(functools.partial(flow_given, history), SIGMAS, history)
    torch.testing.assert_close(rollout(cfg, dit, text, depth, batch), history, rtol=1e-3, atol=1e-4)


def test_the_broad_loss_sees_colours_and_not_detail():
    """What a mean over squares of cells hides costs nothing there, and in the fine loss what it is."""
    zero, one = torch.zeros(1, 2, 8, 8), torch.ones(1, 2, 8, 8)
    nothing = torch.zeros(1, 2, 16, 8, 8)
    chequered = (torch.arange(8)[:, None] + torch.arange(8)) % 2 * 2.0 - 1
    detail, tint = chequered.expand_as(nothing), torch.full_like(nothing, 3.0)
    assert flow_loss(nothing, nothing, detail, zero, one) == 0 and flow_loss(nothing, nothing, detail, one, zero) == 1
    assert flow_loss(nothing, nothing, tint, zero, one) == 18 == flow_loss(nothing, nothing, tint, one, zero)
    assert flow_loss(nothing, nothing, tint, zero, zero) == 9, "a tint costs something wherever one looks"
