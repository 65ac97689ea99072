"""Conditioning that streams: what the channels y = [mask 4, latent 16] of a chunk hold.

`first_frame` (published checkpoints): the VAE's encoding of [image, black, black ...]. The encoder sees a bounded past,
so from latent frame 29 on it is one constant: a stream needs one bounded encode and then repeats its last frame.

`warp` (the built-in world): the newest latent the player has, and below it what the views it remembers (world.views)
know, each drawn anew for the camera's known motion by its own depth. The first of the mask's channels says what is
known and how well: half where it was made under another prompt (where things are, but not their colours), and less the
more it had to be magnified. The other three say how far the camera has moved since.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from world.chunk import SPATIAL_STRIDE, TEMPORAL_STRIDE
from world.nn.vae import VideoVAE

MASK_CHANNELS = 4
NEAR_UNITS, FAR_UNITS, BEYOND_UNITS = 0.1, 25.0, 1000.0  # between the first two, and last at the third, rays are probed
SLICES = 32  # from near to far
# By how much the inverse depth of a point may not be what the old view has there, and by what share of it.
CLOSE_ENOUGH = 0.04, 0.1
MAGNIFIED = 2.0  # how many times nearer than to the old camera a point may be before it is trusted less
OUTDATED = 0.5  # how well a view is known that another prompt than the present one made
CONSTANT_FROM = 29  # latent index from which [image, black ...] encodes to a constant (Wan 2.1's receptive field)


def encode_image(vae: VideoVAE, video: Tensor, then_black: bool) -> Tensor:
    """[1, 3, 1, H, W] -> latents [16, 1, h, w], or [16, 30, h, w] with the frames black after the first."""
    black = TEMPORAL_STRIDE * CONSTANT_FROM if then_black else 0
    return vae.encode(F.pad(video, (0, 0, 0, 0, 0, black)))[0]


def first_frame_condition(latents: Tensor, first_frame: int, frames: int) -> Tensor:
    """y [20, f, h, w] of the chunk whose first latent frame has this index: mask 1 on the stream's first frame only."""
    index = torch.arange(first_frame, first_frame + frames, device=latents.device)
    picked = latents[:, index.clamp(max=latents.shape[1] - 1)]
    mask = (index == 0).to(latents.dtype)[None, :, None, None].expand(MASK_CHANNELS, -1, *latents.shape[2:])
    return torch.cat([mask, picked])


def warp_condition(
    latents: Tensor, inverse_depth: Tensor, moves: Tensor, intrinsics: Tensor, trust: Tensor
) -> Tensor:  # fmt: skip
    """y [20, f, h, w] of f frames from the latent each is seen from [f, 16, h, w].

    inverse_depth [f, H, W], of any size, is the latents' own (`world.nn.depth`); moves [f, 4, 4] takes points from the
    new camera to that latent's, intrinsics [4] or [f, 4] are in pixels, and trust [f] is what the mask says of cells
    that are known: 1, or OUTDATED. Every cell takes (bilinearly) what the old view holds of the point that its ray
    meets: rays are probed from near to far, and end between two probes where the second is behind what the old view saw
    (relief mapping; Policarpo et al. 2005). A point that the old view did not see, because something stood before it or
    it was out of sight, is not known.
    """
    h, w = latents.shape[-2:]
    lens = intrinsics / SPATIAL_STRIDE
    probed = torch.linspace(math.log(1 / NEAR_UNITS), math.log(1 / FAR_UNITS), SLICES, device=latents.device).exp()
    probes = F.pad(probed, (0, 1), value=1 / BEYOND_UNITS)[:, None, None].expand(len(latents), -1, h, w)

    at, inverse, ahead = _projected(1 / probes, moves, lens)
    behind = torch.where(ahead, _looked_up(inverse_depth, at) - inverse, -1.0)  # [f, SLICES + 1, h, w]
    met = (behind >= 0).int().argmax(1, keepdim=True)
    met = torch.where(met == 0, SLICES, met)  # nowhere, as nothing is nearer than the first: beyond
    before, after = behind.gather(1, met - 1), behind.gather(1, met)
    share = torch.where(after > 0, -before / (after - before).clamp(min=1e-9), 1.0).clamp(0, 1)
    point = torch.lerp(probes.gather(1, met - 1), probes.gather(1, met), share)  # [f, 1, h, w]

    at, inverse, ahead = _projected(1 / point, moves, lens)
    absolute, relative = CLOSE_ENOUGH
    apart = (_looked_up(inverse_depth, at, "nearest") - inverse).abs()
    known = ahead & (at.abs() <= 1).all(-1) & (apart <= absolute + relative * inverse)
    trusts = trust[:, None, None, None] * (MAGNIFIED * inverse / point).clamp(max=1)
    moved = moves[:, :3, 3]
    moved = (moved / (1 + moved.abs()))[:, :, None, None].expand(-1, -1, h, w)
    seen = F.grid_sample(latents, at[:, 0], padding_mode="border", align_corners=False)
    return (torch.cat([trusts, moved, seen], dim=1) * known).transpose(0, 1)


def _projected(depth: Tensor, moves: Tensor, lens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of the points at depths [f, n, h, w] of the new camera's cells: where the old camera sees them [f, n, h, w, 2],
    as `grid_sample` takes it, their inverse depth there, and whether they are before it."""
    h, w = depth.shape[-2:]
    fx, fy, cx, cy = lens[..., None, None, None].unbind(-4)  # [1, 1, 1] or [f, 1, 1, 1]
    u = torch.arange(w, dtype=torch.float32, device=depth.device) + 0.5
    v = torch.arange(h, dtype=torch.float32, device=depth.device)[:, None] + 0.5
    x, y = (u - cx) / fx, (v - cy) / fy
    r = moves[:, :3, :, None, None, None]
    x, y, z = (depth * (r[:, i, 0] * x + r[:, i, 1] * y + r[:, i, 2]) + r[:, i, 3] for i in range(3))
    ahead = z.clamp(min=1e-3)
    at = torch.stack([2 * (fx * x / ahead + cx) / w - 1, 2 * (fy * y / ahead + cy) / h - 1], dim=-1)
    return at, 1 / ahead, z > 1e-3


def _looked_up(inverse_depth: Tensor, at: Tensor, mode: str = "bilinear") -> Tensor:
    """[f, H, W] at places [f, n, h, w, 2] -> [f, n, h, w]."""
    places = at.flatten(1, 2)
    found = F.grid_sample(inverse_depth[:, None], places, mode, padding_mode="border", align_corners=False)
    return found[:, 0].view(at.shape[:-1])


def best_known(views: Sequence[Tensor]) -> Tensor:
    """Of conditions y [20, f, h, w] one: every cell of the first view that is trusted most there."""
    best = views[0]
    for y in views[1:]:
        best = torch.where(y[:1] > best[:1], y, best)
    return best


def moves_between(new: NDArray[np.floating], old: NDArray[np.floating]) -> Tensor:
    """Camera-to-world poses [n, 4, 4] -> float32 moves [n, 4, 4] from the new camera to the old. Positions are
    subtracted first, so that a small step keeps its bits far from the origin."""
    new, old = np.asarray(new, np.float64), np.asarray(old, np.float64)
    back = old[:, :3, :3].mT
    moves = np.tile(np.eye(4), (len(new), 1, 1))
    moves[:, :3, :3] = back @ new[:, :3, :3]
    moves[:, :3, 3] = (back @ (new[:, :3, 3:] - old[:, :3, 3:]))[..., 0]
    return torch.from_numpy(moves.astype(np.float32))
