"""One causal DiT forward over rows of a slab: every row its own player, chunk, step and prompt."""

from __future__ import annotations

import torch
from torch import Tensor

from world.chunk import PATCH
from world.config import WorldConfig
from world.nn.dit import CausalDiT, patchify, unpatchify
from world.nn.rope import rotations
from world.nn.rows import ScaleShift
from world.sampler import clean, renoise
from world.slab import Gathered, Slab, put


class Denoiser:
    """The DiT, the slab it works in, and what depends on the step alone: time embeddings and sigmas, computed once.

    On several ranks each computes its share of every row's tokens, and all have all latents.
    """

    def __init__(self, cfg: WorldConfig, dit: CausalDiT, slab: Slab):
        self.cfg, self.dit, self.slab = cfg, dit, slab
        schedule = cfg.schedule
        device = slab.x.device
        times = torch.tensor([*schedule.timesteps, 0.0], dtype=torch.float64, device=device)
        # One timestep at a time: a linear of one row takes another backend than one of several.
        self.e, self.e0 = (torch.cat(t) for t in zip(*map(dit.time, times.split(1)), strict=True))
        self.sigma = torch.tensor([*schedule.sigmas, 0.0], device=device).view(-1, 1, 1, 1, 1)
        # The level the next step starts from; the last step's is 0: its x0 is kept as it is.
        self.next_sigma = torch.tensor([*schedule.renoise_sigmas[1:], 0.0, 0.0], device=device).view(-1, 1, 1, 1, 1)

    def set_text(self, slot: int, rows: Tensor) -> None:
        """Give a slot the prompt encoded as [n, text_dim]: its cross-attention K and V, once a prompt."""
        for kept, new in zip(self.slab.text, self.dit.text(rows[None]), strict=True):
            for t, value in zip(kept, new, strict=True):
                t[slot] = value[0]

    def begin(self, slots: Tensor, control: Tensor, condition: Tensor, noise: Tensor) -> None:
        """Start a chunk in each slot: control [B, control * 64, f, h, w], condition [B, 20, f, h, w], noise
        [B, 16, f, h, w]. What depends on the camera alone is computed here, once a chunk."""
        put(self.slab.camera, slots, self.dit.camera(self.slab.ranks.mine(patchify(control))))
        self.slab.y.index_copy_(0, slots, condition)
        self.slab.x.index_copy_(0, slots, noise)

    def step(self, slots: Tensor, chunks: Tensor, steps: Tensor, num_outputs: int, fresh: Tensor) -> Tensor:
        """One forward over distinct slots, int64 [B] each; commits (step == num_steps) come after the first
        `num_outputs` rows, whose latents move one step on.

        fresh: noise [outputs, 16, f, h, w] for the next step (ignored at a last step). Returns the flow of those rows.
        """
        slab, geometry = self.slab, self.cfg.geometry
        first_frame = chunks * geometry.chunk_frames
        size = geometry.chunk_frames, geometry.latent_height, geometry.latent_width
        x, ranks = slab.x[slots], slab.ranks
        cos, sin = rotations(first_frame, size[0], size[1] // PATCH, size[2] // PATCH, self.cfg.dit.head_dim)
        tokens = self.dit(
            ranks.mine(patchify(torch.cat([x, slab.y[slots]], dim=1))),
            self.e[steps],
            self.e0[steps],
            [ScaleShift(*pair, slots) for pair in slab.camera],
            Gathered(slab.text, slots),
            (ranks.mine(cos), ranks.mine(sin)),
            slab.view(slots, first_frame),
            num_outputs,
        )
        flow = unpatchify(ranks.whole(tokens, geometry.chunk_tokens), *size)
        slots, steps = slots[:num_outputs], steps[:num_outputs]
        x0 = clean(x[:num_outputs], flow, self.sigma[steps])
        slab.x.index_copy_(0, slots, renoise(x0, fresh, self.next_sigma[steps]))
        return flow
