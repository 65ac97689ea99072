"""Play without end: thousands of frames change neither memory nor arithmetic, at any distance from the stream's start.

The reference is the model written out plainly: float64 positions as complex numbers, attention over a list of frames.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Mapping

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.world.tiny_world import Life, Player, random_world, tick, tiny_config
from world.camera import act, rays, relative_live
from world.chunk import Row
from world.model import DiffusionWorld
from world.sampler import at_timesteps, from_sigmas, noise

Frame = tuple[Tensor, Tensor]  # K (turned) and V of one latent frame, [tokens, N, d]


pytestmark = pytest.mark.usefixtures("one_thread")


class Reference:
    """One chunk of one stream by the published description, from a copy of what the slab held before it."""

    def __init__(self, world: DiffusionWorld, slot: int, chunk_index: int):
        cfg, slab = world.cfg, world.slab
        self.cfg = cfg
        self.weights: Mapping[str, Tensor] = world.denoiser.dit.state_dict()
        self.first_frame = chunk_index * cfg.geometry.chunk_frames
        rings = {name: own.clone() for name, own in slab.rows(slot)}
        self.past = [self.visible(rings[f"k.{i}"], rings[f"v.{i}"]) for i in range(cfg.dit.num_layers)]

    def visible(self, k: Tensor, v: Tensor) -> list[Frame]:
        """The frames before the chunk that its window holds, by replaying which frame a ring's place was given last."""
        cfg, tokens = self.cfg, self.cfg.geometry.frame_tokens
        room = cfg.window_frames - cfg.sink_frames
        end = self.first_frame + cfg.geometry.chunk_frames
        recent = [frame for frame in range(max(end - room, cfg.sink_frames), self.first_frame)]
        frames = [*range(min(cfg.sink_frames, self.first_frame)), *recent]
        places = [
            frame if frame < cfg.sink_frames else cfg.sink_frames + (frame - cfg.sink_frames) % room for frame in frames
        ]
        return [(k[p * tokens : (p + 1) * tokens], v[p * tokens : (p + 1) * tokens]) for p in places]

    def linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self.weights[f"{name}.weight"].flatten(1), self.weights[f"{name}.bias"])

    def rms(self, name: str, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.weights[f"{name}.weight"]

    def norm(self, x: Tensor) -> Tensor:
        return (x - x.mean(-1, keepdim=True)) * torch.rsqrt(x.var(-1, unbiased=False, keepdim=True) + 1e-6)

    def turn(self, x: Tensor) -> Tensor:
        """RoPE of [L, N, d] in complex128."""
        g, half = self.cfg.geometry, x.shape[-1] // 2
        pairs = (half - 2 * (x.shape[-1] // 6), x.shape[-1] // 6, x.shape[-1] // 6)
        rows, columns = g.latent_height // 2, g.latent_width // 2
        angles = []
        for f in range(g.chunk_frames):
            for r in range(rows):
                for c in range(columns):
                    position = zip((self.first_frame + f, r, c), pairs, strict=True)
                    angles.append(np.concatenate([at * 10000.0 ** (-np.arange(n) / n) for at, n in position]))
        turns = torch.from_numpy(np.exp(1j * np.stack(angles)))[:, None]
        return torch.view_as_real(torch.view_as_complex(x.double().unflatten(-1, (-1, 2))) * turns).flatten(-2).float()

    def attention(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = torch.einsum("lnd,snd->nls", q, k) / q.shape[-1] ** 0.5
        return torch.einsum("nls,snd->lnd", scores.softmax(-1), v).flatten(1)

    def tokens(self, x: Tensor) -> Tensor:
        """[c, f, h, w] -> [L, c * 4]"""
        return torch.stack(
            [
                x[:, f, 2 * r : 2 * r + 2, 2 * c : 2 * c + 2].flatten()
                for f in range(x.shape[1])
                for r in range(x.shape[2] // 2)
                for c in range(x.shape[3] // 2)
            ]
        )

    def flow(self, x: Tensor, y: Tensor, control: Tensor, text: Tensor, t: float) -> tuple[Tensor, list[Frame]]:
        """Latents [16, f, h, w] -> flow, and this chunk's K and V of every layer."""
        dit, heads = self.cfg.dit, (self.cfg.dit.num_heads, self.cfg.dit.head_dim)
        half = dit.freq_dim // 2
        angle = t * 10000.0 ** (-torch.arange(half, dtype=torch.float64) / half)
        s = torch.cat([angle.cos(), angle.sin()]).float()[None]
        e = self.linear("time_embedding.2", F.silu(self.linear("time_embedding.0", s)))
        e0 = self.linear("time_projection.1", F.silu(e)).view(6, -1)
        context = F.pad(text, (0, 0, 0, dit.text_len - text.shape[0]))
        context = self.linear("text_embedding.2", F.gelu(self.linear("text_embedding.0", context), approximate="tanh"))
        c0 = self.linear("patch_embedding_wancamctrl", self.tokens(control))
        c = c0 + self.linear("c2ws_hidden_states_layer2", F.silu(self.linear("c2ws_hidden_states_layer1", c0)))
        h = self.linear("patch_embedding", self.tokens(torch.cat([x, y])))
        written = []
        for i in range(dit.num_layers):
            b = f"blocks.{i}"
            shift_a, scale_a, gate_a, shift_f, scale_f, gate_f = self.weights[f"{b}.modulation"][0] + e0
            u = self.norm(h) * (1 + scale_a) + shift_a
            q = self.turn(self.rms(f"{b}.self_attn.norm_q", self.linear(f"{b}.self_attn.q", u)).unflatten(-1, heads))
            k = self.turn(self.rms(f"{b}.self_attn.norm_k", self.linear(f"{b}.self_attn.k", u)).unflatten(-1, heads))
            v = self.linear(f"{b}.self_attn.v", u).unflatten(-1, heads)
            written.append((k, v))
            ks, vs = (torch.cat([*(frame[j] for frame in self.past[i]), own]) for j, own in ((0, k), (1, v)))
            h = h + gate_a * self.linear(f"{b}.self_attn.o", self.attention(q, ks, vs))
            g = self.linear(f"{b}.cam_injector_layer2", F.silu(self.linear(f"{b}.cam_injector_layer1", c))) + c
            h = (1 + self.linear(f"{b}.cam_scale_layer", g)) * h + self.linear(f"{b}.cam_shift_layer", g)
            n = self.norm(h) * self.weights[f"{b}.norm3.weight"] + self.weights[f"{b}.norm3.bias"]
            q = self.rms(f"{b}.cross_attn.norm_q", self.linear(f"{b}.cross_attn.q", n)).unflatten(-1, heads)
            k = self.rms(f"{b}.cross_attn.norm_k", self.linear(f"{b}.cross_attn.k", context)).unflatten(-1, heads)
            v = self.linear(f"{b}.cross_attn.v", context).unflatten(-1, heads)
            h = h + self.linear(f"{b}.cross_attn.o", self.attention(q, k, v))
            n = self.norm(h) * (1 + scale_f) + shift_f
            h = h + gate_f * self.linear(f"{b}.ffn.2", F.gelu(self.linear(f"{b}.ffn.0", n), approximate="tanh"))
        shift, scale = self.weights["head.modulation"][0] + e
        out = self.linear("head.head", self.norm(h) * (1 + scale) + shift)  # [L, 4 * 16]
        flow, g = torch.empty_like(x), self.cfg.geometry
        columns = g.latent_width // 2
        for at, token in enumerate(out.view(-1, 2, 2, x.shape[0])):
            f, r, col = at // g.frame_tokens, at % g.frame_tokens // columns, at % columns
            flow[:, f, 2 * r : 2 * r + 2, 2 * col : 2 * col + 2] = token.permute(2, 0, 1)
        return flow, written


def distance(got: Tensor, reference: Tensor) -> float:
    return ((got.double() - reference.double()).norm() / reference.double().norm()).item()


def compare_chunk(world: DiffusionWorld, life: Life, slot: int, chunk_index: int) -> None:
    """Step a chunk in the world and by the reference: flows' sum, latents, and the K and V the commit leaves."""
    cfg, schedule, f = world.cfg, world.cfg.schedule, world.geometry.chunk_frames
    start = life.start(world)
    shape = tuple(world.slab.x.shape[1:])
    rows = [
        Row(slot, chunk_index, step, life.poses[: f + 1], life.keys[:f], None) for step in range(schedule.num_steps + 1)
    ]
    relative = torch.from_numpy(relative_live(rows[0].poses, start.scale))[None]
    size = torch.from_numpy(start.intrinsics)[None], world.geometry.height, world.geometry.width
    with_keys = cfg.dit.control_channels == 7
    control = act(relative, torch.from_numpy(rows[0].keys)[None], *size) if with_keys else rays(relative, *size)
    reference = Reference(world, slot, chunk_index)
    x = torch.from_numpy(noise(start.seed, chunk_index, 0, shape))
    for i, row in enumerate(rows[:-1]):
        world.step([row])
        y = world.slab.y[slot]  # as the chunk began
        flow, _ = reference.flow(x, y, control[0], start.prompt.encoded, schedule.timesteps[i])
        x0 = x - schedule.sigmas[i] * flow
        if i + 1 < schedule.num_steps:
            sigma = schedule.renoise_sigmas[i + 1]
            x = (1 - sigma) * x0 + sigma * torch.from_numpy(noise(start.seed, chunk_index, i + 1, shape))
            assert distance(world.slab.x[slot], x) < 1e-5
    assert distance(world.slab.x[slot], x0) < 1e-5
    _, written = reference.flow(x0, y, control[0], start.prompt.encoded, 0.0)
    world.step([rows[-1]])
    room, tokens = cfg.window_frames - cfg.sink_frames, world.geometry.frame_tokens
    rings = dict(world.slab.rows(slot))
    for layer, (k, v) in enumerate(written):
        for i in range(f):
            frame = chunk_index * f + i
            place = frame if frame < cfg.sink_frames else cfg.sink_frames + (frame - cfg.sink_frames) % room
            at, own = slice(place * tokens, (place + 1) * tokens), slice(i * tokens, (i + 1) * tokens)
            assert distance(rings[f"k.{layer}"][at], k[own]) < 1e-5, (layer, frame)
            assert distance(rings[f"v.{layer}"][at], v[own]) < 1e-5, (layer, frame)


def storages(world: DiffusionWorld) -> list[tuple[int, int]]:
    return [(t.data_ptr(), t.untyped_storage().nbytes()) for t in world.slab.tensors()]


def live_tensors() -> int:
    gc.collect()
    return sum(issubclass(type(thing), Tensor) for thing in gc.get_objects())


def test_three_thousand_latent_frames_in_one_session():
    cfg = tiny_config(
        "first_frame", chunk_frames=3, window_frames=9, sink_frames=3, width=32, height=16, schedule=from_sigmas((0.9,))
    )
    world = random_world(cfg, num_slots=1)
    life = Life(5, 3, 1)
    object.__setattr__(life, "num_chunks", 1000)
    world.open(1, life.start(world))
    checked = (0, 1, 2, 3, 341, 342, 700, 999)  # the ring fills and wraps; frames 1023 to 1028; the end
    before, counts, blocks = storages(world), [], []
    for n in range(1000):
        if n in checked:
            compare_chunk(world, life, 1, n)
        else:
            for step in (0, 1):
                pictures = world.step([Row(1, n, step, life.poses[:4], life.keys[:3], None)])
                assert len(pictures) == 1 - step
        if n in (100, 998):
            counts.append(live_tensors())
            blocks.append(sys.getallocatedblocks())
    assert storages(world) == before, "the slab was reallocated"
    assert counts[1] <= counts[0] and blocks[1] - blocks[0] < 900, (counts, blocks)
    assert all(own.isfinite().all() for _, own in world.slab.rows(1))
    assert world.slab.x[1].std() > 0.1, "the stream died on the way"


@pytest.mark.parametrize("conditioning", ["warp", "first_frame"])
@pytest.mark.parametrize("frame", [1020, 10**6])
def test_far_from_the_start_of_a_stream(conditioning, frame):
    """A window's worth of chunks that crosses the published table's end, or starts after 17 hours of play."""
    world = random_world(
        tiny_config(
            conditioning, chunk_frames=2, window_frames=7, sink_frames=3, schedule=at_timesteps(5.0, (999, 957, 702))
        ),
        num_slots=2,
    )
    life = Life(1, 2, 1)
    world.open(2, life.start(world))
    for n in range(frame // 2, frame // 2 + 5):
        compare_chunk(world, life, 2, n)


def test_act_checkpoints_too():
    world = random_world(
        tiny_config("first_frame", chunk_frames=4, window_frames=10, sink_frames=6, control_channels=7), num_slots=1
    )
    life = Life(2, 4, 1)
    world.open(1, life.start(world))
    for n in range(4):  # chunk 1 straddles the end of the sink
        compare_chunk(world, life, 1, n)


def test_rows_of_a_forward_may_all_be_commits():
    world = random_world(tiny_config(), num_slots=2)
    players = [Player(Life(i, 1, 2), i + 1) for i in range(2)]
    for player in players:
        world.open(player.slot, player.life.start(world))
    for _ in range(world.num_steps):
        tick(world, players)
    kept = world.slab.x.clone()
    slots, chunks, steps = torch.tensor([1, 2]), torch.zeros(2, dtype=torch.int64), torch.full((2,), world.num_steps)
    with torch.inference_mode():
        flow = world.denoiser.step(slots, chunks, steps, 0, kept[:0])
    assert flow.shape == (0, 16, 1, 4, 6) and torch.equal(world.slab.x[1:], kept[1:])
