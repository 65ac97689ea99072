"""Training shows the student exactly what serving will: the same window, positions, condition and camera."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from world.chunk import Geometry
from world.denoiser import Denoiser
from world.meadow.clips import random_poses
from world.meadow.config import TEXT, meadow_config
from world.meadow.forcing import Batch, condition, control, predict
from world.nn.dit import CausalDiT, init_weights
from world.nn.text import ByteTextEncoder
from world.nn.vae import VAEConfig
from world.sampler import from_sigmas
from world.slab import Slab, put

SIGMAS = (1.0, 0.5)
FRAMES = 7


def tiny_world():
    cfg = meadow_config()
    dit = dataclasses.replace(cfg.dit, dim=48, num_heads=2, num_layers=2, ffn_dim=64)
    return dataclasses.replace(
        cfg, geometry=Geometry(48, 32, 16, 1), dit=dit, vae=VAEConfig(dim=4), window_frames=4,
        schedule=from_sigmas(SIGMAS),
    )  # fmt: skip


@torch.no_grad()
def test_every_frame_of_a_clip_sees_what_the_ring_would_hold():
    torch.manual_seed(0)
    cfg = tiny_world()
    dit, text = CausalDiT(cfg.dit), ByteTextEncoder(TEXT)
    init_weights(dit)
    torch.nn.init.normal_(dit.head.head.weight, std=0.1)
    shape = (2, FRAMES, 16, cfg.geometry.latent_height, cfg.geometry.latent_width)
    latents, history, noise = (torch.randn(shape) for _ in range(3))
    poses = torch.from_numpy(random_poses(np.random.default_rng(0), 2, 4 * FRAMES - 3))[:, ::4]
    batch = Batch(latents, poses, torch.randint(2, 100, (2, 12)))
    step = torch.randint(0, len(SIGMAS), (2, FRAMES))
    sigma = torch.tensor(SIGMAS)[step]
    jump = torch.tensor([0, 4998])  # the second clip plays far from its sink, a whole number of rings away
    trained = predict(cfg, dit, text, batch, history, sigma, noise, jump)

    slab = Slab(cfg, 2, torch.device("cpu"), torch.float32, torch.float32)
    denoiser, slots = Denoiser(cfg, dit, slab), torch.tensor([1, 2])
    put(slab.text, slots, dit.text(text(batch.prompt_ids)))
    channels = control(poses, 32, 48, torch.device("cpu")).unflatten(0, (2, FRAMES))
    y = condition(history, poses, 48, 32).unflatten(0, (2, FRAMES))
    for i in range(FRAMES):
        level = sigma[:, i, None, None, None]
        noisy = (1 - level) * latents[:, i] + level * noise[:, i]
        chunks = torch.where(torch.tensor(i) < cfg.sink_frames, torch.tensor([i, i]), i + jump)
        denoiser.begin(slots, channels[:, i], y[:, i], noisy[:, :, None])
        flow = denoiser.step(slots, chunks, step[:, i], 2, torch.zeros_like(slab.x[1:]))
        torch.testing.assert_close(flow[0, :, 0], trained[0, i], rtol=1e-4, atol=1e-5)
        if i > cfg.window_frames:  # until then the far clip sees ring places that a real stream would have filled
            torch.testing.assert_close(flow[1, :, 0], trained[1, i], rtol=1e-4, atol=1e-5)
        slab.x[1:] = history[:, i, :, None]
        denoiser.step(slots, chunks, torch.tensor([len(SIGMAS)] * 2), 0, slab.x[:0])
