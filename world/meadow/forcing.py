"""Training the student: every frame of a clip at once, each noisy frame seeing a history of others.

The DiT runs two rows a frame: one that carries the history (t = 0, what a commit leaves in the ring) and one that
denoises. Self-attention goes through `Windows`, which shows each row just what the ring would hold when serving.
The history is the clip itself with noise on it (teacher forcing), or what the student made of it, any number of
generations on (its own rollout).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from world import camera
from world.chunk import PATCH, SPATIAL_STRIDE
from world.config import WorldConfig
from world.meadow.teacher import default_intrinsics
from world.nn.depth import DepthHead
from world.nn.dit import CausalDiT, Pair, patchify, unpatchify
from world.nn.rope import rotations
from world.nn.rows import Keys, ScaleShift
from world.nn.text import ByteTextEncoder
from world.scene import OUTDATED, best_known, moves_between, warp_condition

SCALE = 0.2  # pose units that count as 1
BROAD = 4  # cells of a latent across which its colours are looked at


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """C clips of m latent frames on one device, each with two prompts: the second holds from frame `change` on."""

    latents: Tensor  # float32 [C, m, 16, h, w], normalised
    relative: Tensor  # float32 [C, m, 4, 4], poses as `camera.rays` takes them
    moves: Tensor  # float32 [1 + V, C, m, 4, 4], from each frame's camera to the frame before's and the recalled ones'
    lens: Tensor  # float32 [4], intrinsics in pixels
    recalled: Tensor  # int64 [V, C, m], the frames whose views each frame is shown (world.views)
    seen: Tensor  # float32 [C, m, h, w], the share of every cell's points that the start shows too
    prompt_ids: Tensor  # int64 [2 C, rows], all first ones before all second ones
    change: Tensor  # int64 [C]

    @property
    def size(self) -> tuple[int, int]:
        return picture_size(self.latents)

    def tensors(self) -> list[Tensor]:
        return [getattr(self, f.name) for f in fields(self)]


def picture_size(latents: Tensor) -> tuple[int, int]:
    """Height and width in pixels."""
    height, width = latents.shape[-2:]
    return SPATIAL_STRIDE * height, SPATIAL_STRIDE * width


def batch_of(
    latents: Tensor, poses: Tensor, recalled: Tensor, seen: Tensor, prompt_ids: Tensor, change: Tensor
) -> Batch:  # fmt: skip
    """A batch on the device of its latents, of poses float32 [C, m, 4, 4], recalled frames [C, m, V] and the rest of it
    on the CPU."""
    clips, frames = latents.shape[:2]
    height, width = picture_size(latents)
    device = latents.device
    paths = poses.numpy()
    before = np.broadcast_to(np.maximum(np.arange(frames) - 1, 0), (clips, frames))
    moves = []
    recalled = recalled.movedim(-1, 0)
    for source in (before, *recalled.numpy()):
        of = paths[np.arange(clips)[:, None], source]
        moves.append(moves_between(paths.reshape(-1, 4, 4), of.reshape(-1, 4, 4)).unflatten(0, (clips, frames)))
    relative = np.stack([camera.relative_live(np.concatenate([path[:1], path]), SCALE) for path in paths])
    on_cpu = (torch.from_numpy(relative), torch.stack(moves), default_intrinsics(width, height), recalled, seen.float(),
              prompt_ids, change)  # fmt: skip
    return Batch(latents, *(t.to(device) for t in on_cpu))


def upto(batch: Batch, frames: int) -> Batch:
    """The beginning of every clip."""
    part = slice(0, frames)
    return replace(
        batch, latents=batch.latents[:, part], relative=batch.relative[:, part], moves=batch.moves[:, :, part],
        recalled=batch.recalled[:, :, part], seen=batch.seen[:, part],
    )  # fmt: skip


class Windows:
    """A `Memory` for 2 C m rows, all histories first: row i sees the sink, frames before it in the window, itself."""

    def __init__(self, cfg: WorldConfig, clips: int, frames: int, device: torch.device):
        recent, sink = cfg.window_frames - cfg.sink_frames, cfg.sink_frames
        index = torch.arange(frames, device=device)
        past = index[:, None] - torch.arange(recent - 1, 0, -1, device=device)  # [m, recent - 1]
        tokens = cfg.geometry.frame_tokens
        seen = torch.cat(
            [
                torch.arange(sink, device=device)[None] < index[:, None],
                past >= sink,
                torch.ones(frames, 1, dtype=torch.bool, device=device),
            ],
            dim=1,
        )  # [m, window]
        seen = seen[..., None].expand(-1, -1, tokens).flatten(1)  # [m, S]
        self.mask = seen.repeat(2 * clips, 1)[:, None, None]  # [2 C m, 1, 1, S]
        self.shape, self.recent, self.sink = (2, clips, frames), recent, sink

    def _window(self, x: Tensor) -> Tensor:
        """[2 C m, L, N, d] -> what every row sees [2 C m, window * L, N, d]."""
        x = x.unflatten(0, self.shape)  # [2, C, m, L, N, d]
        history, frames = x[0], x.shape[2]
        padded = F.pad(history, (0, 0, 0, 0, 0, 0, self.recent - 1, 0))  # slices, as an index has a slow gradient
        past = torch.stack([padded[:, k : k + frames] for k in range(self.recent - 1)], dim=2)
        sink = history[:, None, : self.sink].expand(-1, frames, -1, -1, -1, -1)
        shared = torch.cat([sink, past], dim=2).expand(2, -1, -1, -1, -1, -1, -1)  # [2, C, m, window - 1, L, N, d]
        return torch.cat([shared, x[:, :, :, None]], dim=3).flatten(3, 4).flatten(0, 2)

    def attend(self, layer_index: int, q: Tensor, keys: Keys, v: Tensor) -> Tensor:
        k, v = self._window(keys.made()).transpose(1, 2), self._window(v).transpose(1, 2)
        return F.scaled_dot_product_attention(q.transpose(1, 2), k, v, attn_mask=self.mask).transpose(1, 2)


def control(batch: Batch) -> Tensor:
    """Control channels a frame [C m, 384, 1, h, w]."""
    lens = batch.lens.expand(len(batch.relative), 4)
    return camera.rays(batch.relative, lens, *batch.size).transpose(1, 2).flatten(0, 1)[:, :, None]


def condition(history: Tensor, batch: Batch, depth: DepthHead) -> Tensor:
    """The warp condition of frames [C m, 40, 1, h, w]: the frame before and the recalled ones, from a history
    [C, m, 16, h, w]. Frame 0 is shown itself, and the start picture's view is always the true one."""
    views = torch.cat([batch.latents[:, :1], history[:, 1:]], dim=1)
    depths = depth(views.flatten(0, 1)).unflatten(0, views.shape[:2])
    clip = torch.arange(len(history), device=history.device)[:, None]
    index = torch.arange(history.shape[1], device=history.device).expand(len(history), -1)
    change, before, parts = batch.change[:, None], (index - 1).clamp(min=0), []
    for made, moves in zip((before, *batch.recalled), batch.moves, strict=True):
        outdated = (made < change) & (change <= index)
        parts.append(warp_condition(
            views[clip, made].flatten(0, 1), depths[clip, made].flatten(0, 1), moves.flatten(0, 1), batch.lens,
            torch.where(outdated, OUTDATED, 1.0).flatten(),
        ))  # fmt: skip
    newest, *recalled = parts
    return torch.cat([newest, best_known(recalled)]).transpose(0, 1)[:, :, None]


def predict(
    cfg: WorldConfig, dit: CausalDiT, text: ByteTextEncoder, depth: DepthHead, batch: Batch, noisy: Tensor,
    history: Tensor, sigma: Tensor, start_frame: Tensor,
) -> Tensor:  # fmt: skip
    """The flow of every frame [C, m, 16, h, w] from (1 - sigma) clean + sigma noise, in one forward.

    history [C, m, 16, h, w] is what the ring was given, sigma [C, m], and start_frame int64 [C] moves all frames but
    the sink to a later place in the stream, so that no distance to the sink is a stranger.
    """
    clips, frames = noisy.shape[:2]
    geometry, device = cfg.geometry, noisy.device
    y = condition(history, batch, depth)
    x = torch.cat([history, noisy]).flatten(0, 1)[:, :, None]
    x = torch.cat([x, y.repeat(2, 1, 1, 1, 1)], dim=1)
    e, e0 = dit.time(torch.cat([torch.zeros_like(sigma), 1000 * sigma]).flatten())
    index = torch.arange(frames, device=device)
    first = torch.where(index < cfg.sink_frames, index, index + start_frame[:, None]).flatten().repeat(2)
    size = 1, geometry.latent_height, geometry.latent_width
    grid = 1, geometry.latent_height // PATCH, geometry.latent_width // PATCH
    cameras = [ScaleShift(*twice(pair)) for pair in dit.camera(patchify(control(batch)))]
    changed = (index >= batch.change[:, None])[None, ..., None, None, None]  # [1, C, m, 1, 1, 1]
    texts = [(holding(k, changed), holding(v, changed)) for k, v in dit.text(text(batch.prompt_ids))]
    turn = rotations(first, *grid, cfg.dit.head_dim)
    flow = dit(patchify(x), e, e0, cameras, texts, turn, Windows(cfg, clips, frames, device), x.shape[0])
    return unpatchify(flow[clips * frames :], *size)[:, :, 0].unflatten(0, (clips, frames)).float()


def noised(clean: Tensor, sigma: Tensor, noise: Tensor) -> Tensor:
    """(1 - sigma) clean + sigma noise, [C, m, 16, h, w] at levels [C, m]."""
    level = sigma[..., None, None, None]
    return (1 - level) * clean + level * noise


@torch.no_grad()
def next_generation(
    predict: Callable[[Tensor, Tensor], Tensor], sigmas: Sequence[float], like: Tensor
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """What the student makes of every frame, given a history, with the sampler it is served with, and what its last
    step began from; `predict` is the flow of noisy frames [C, m, 16, h, w] at levels [C, m] given that history.

    Applied k times to the true clip it gives, for all frames at once, what rolling out from the truth k frames back
    would: errors k generations old, and from frame k on none of the truth but the start picture.
    """
    clean = noisy = torch.zeros_like(like)
    for value in sigmas:
        sigma = torch.full(like.shape[:2], value, device=like.device)
        noisy = noised(clean, sigma, torch.randn_like(like))
        clean = noisy - value * predict(noisy, sigma)
    return clean, noisy


def flow_loss(clean: Tensor, noise: Tensor, flow: Tensor, fine: Tensor, broad: Tensor) -> Tensor:
    """Mean squared error of the flow n - x0 (flow matching; Lipman et al. 2022), cells weighted by `fine`
    [C, m, h, w]; of its means over squares of BROAD cells, weighted by `broad` [C, m, h, w]; and of its mean over each
    picture: what is left of that adds up to a tint over minutes."""
    error = flow - (noise - clean)
    means = F.avg_pool2d(error.flatten(0, 1), BROAD).unflatten(0, error.shape[:2])
    squares = (means.square() * F.avg_pool2d(broad, BROAD)[:, :, None]).mean()
    tint = error.mean((-2, -1)).square().mean()
    return (error.square() * fine[:, :, None]).mean() + squares + tint


def holding(rows: Tensor, changed: Tensor) -> Tensor:
    """What both prompts of C clips are [2 C, T, N, d] -> what each frame's is [2 C m, T, N, d]."""
    first, second = (half[None, :, None] for half in rows.chunk(2))
    return torch.where(changed, second, first).expand(2, *changed.shape[1:3], *rows.shape[1:]).flatten(0, 2)


def twice(pair: Pair) -> Pair:
    return pair[0].repeat(2, 1, 1), pair[1].repeat(2, 1, 1)
