"""Protects the count of operations: against torch's own counter, and against the published model's figures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tests.world.tiny_world import random_world, tiny_config
from world.flops import attention, count, self_linears
from world.instrument import published_config
from world.model import DiffusionWorld


def counted(work: Callable[[], object]) -> int:
    # Torch counts what it knows: the fused attention of a CPU is not in its list, plain products of matrices are.
    with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


@pytest.fixture(scope="module")
def world() -> DiffusionWorld:
    return random_world(tiny_config("first_frame", chunk_frames=2, window_frames=6, sink_frames=2))


def forward(world: DiffusionWorld, slots: list[int], num_outputs: int) -> Callable[[], object]:
    at = torch.tensor(slots)
    fresh = torch.zeros(num_outputs, *world.slab.x.shape[1:])
    step = torch.tensor([0] * num_outputs + [world.num_steps] * (len(slots) - num_outputs))
    return lambda: world.denoiser.step(at, torch.zeros_like(at), step, num_outputs, fresh)


def test_a_step_is_what_torch_counts(world: DiffusionWorld) -> None:
    flops = count(world.cfg.dit, world.geometry, world.cfg.window_tokens)
    assert counted(forward(world, [1], 1)) == flops.step
    assert counted(forward(world, [1, 2, 3], 3)) == 3 * flops.step


def test_a_commit_leaves_out_what_nobody_reads(world: DiffusionWorld) -> None:
    flops = count(world.cfg.dit, world.geometry, world.cfg.window_tokens)
    assert counted(forward(world, [1], 0)) == flops.commit < flops.step


def test_camera_and_text_are_what_torch_counts(world: DiffusionWorld) -> None:
    cfg, tokens = world.cfg.dit, world.geometry.chunk_tokens
    flops = count(cfg, world.geometry, world.cfg.window_tokens)
    control = torch.zeros(1, tokens, cfg.control_channels * 64 * 4)
    assert counted(lambda: list(world.denoiser.dit.camera(control))) == flops.camera
    assert counted(lambda: world.denoiser.dit.text(torch.zeros(1, 5, cfg.text_dim))) == flops.text


def test_a_chunk_is_its_steps_its_commit_and_its_camera(world: DiffusionWorld) -> None:
    flops = count(world.cfg.dit, world.geometry, world.cfg.window_tokens)
    assert flops.chunk(4) == 4 * flops.step + flops.commit + flops.camera


def test_the_large_model_costs_what_is_known_of_it() -> None:
    """TFLOP of 4,524 tokens over 40 layers of width 5120, as published measurements count them."""
    layers, tokens, dim = 40, 4524, 5120
    assert layers * self_linears(tokens, dim) / 1e12 == pytest.approx(38.0, abs=0.05)
    assert layers * attention(tokens, tokens, dim) / 1e12 == pytest.approx(16.8, abs=0.05)
    assert layers * attention(tokens, 512, dim) / 1e12 == pytest.approx(1.9, abs=0.05)
    cfg = published_config("lingbot-14b")
    flops = count(cfg.dit, cfg.geometry, cfg.window_tokens)
    assert (flops.chunk(4) + flops.step - flops.commit) / 1e12 == pytest.approx(1147, abs=2)  # five whole forwards
    wider = count(replace(cfg.dit, num_layers=80), cfg.geometry, cfg.window_tokens)
    assert wider.step / flops.step == pytest.approx(2.0, rel=0.01)
