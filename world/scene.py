"""Conditioning that streams: what the channels y = [mask 4, latent 16] of a chunk hold.

`first_frame` (published checkpoints): the VAE's encoding of [image, black, black ...]. The encoder sees a bounded past,
so from latent frame 29 on it is one constant: a stream needs one bounded encode and then repeats its last frame.

`warp` (the built-in world): the newest latent the player has, and below it the view its camera remembers best (see
world.views), each drawn anew for the camera's known motion as if all it saw were flat ground and far sky. The first of
the mask's channels says what is known, and half known is what was made under another prompt: where things are, but not
their colours. The other three say how far the camera has moved since: where the ground is not flat and things stand on
it, the model must put them right.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from world.chunk import SPATIAL_STRIDE, TEMPORAL_STRIDE
from world.nn.vae import VideoVAE

MASK_CHANNELS = 4
FAR_UNITS = 25.0  # where the ground of a warp ends and what is beyond stands still
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
    latents: Tensor, moves: Tensor, down: Tensor, intrinsics: Tensor, eye_units: float, trust: Tensor
) -> Tensor:  # fmt: skip
    """y [20, f, h, w] of f frames from the latent each is seen from [f, 16, h, w].

    moves [f, 4, 4] takes points from the new camera to that latent's, down [f, 3] is the world's down in the new
    camera's axes, intrinsics [4] or [f, 4] are in pixels, the ground is `eye_units` below the camera, and trust [f] is
    what the mask says of cells that are known: 1, or OUTDATED. Every cell takes (bilinearly) what the old view holds of
    the point that its ray meets.
    """
    h, w = latents.shape[-2:]
    fx, fy, cx, cy = (intrinsics / SPATIAL_STRIDE)[..., None, None].unbind(-3)  # [1, 1] or [f, 1, 1]
    u = torch.arange(w, dtype=torch.float32, device=latents.device) + 0.5
    v = torch.arange(h, dtype=torch.float32, device=latents.device)[:, None] + 0.5
    x, y = (u - cx) / fx, (v - cy) / fy
    d = down[:, :, None, None]
    falls = d[:, 0] * x + d[:, 1] * y + d[:, 2]  # [f, h, w]
    depth = eye_units / falls.clamp(min=eye_units / FAR_UNITS)
    r = moves[:, :3, :, None, None]
    x, y, z = (depth * (r[:, i, 0] * x + r[:, i, 1] * y + r[:, i, 2]) + r[:, i, 3] for i in range(3))
    ahead = z.clamp(min=1e-3)
    grid = torch.stack([2 * (fx * x / ahead + cx) / w - 1, 2 * (fy * y / ahead + cy) / h - 1], dim=-1)
    known = ((grid.abs() <= 1).all(-1) & (z > 1e-3)).to(latents.dtype)[:, None]  # [f, 1, h, w]
    seen = F.grid_sample(latents, grid, padding_mode="border", align_corners=False)
    moved = moves[:, :3, 3]
    moved = (moved / (1 + moved.abs()))[:, :, None, None].expand(-1, -1, h, w)
    trust = trust[:, None, None, None].expand_as(known)
    return (torch.cat([trust, moved, seen], dim=1) * known).transpose(0, 1)


def moves_between(new: NDArray[np.floating], old: NDArray[np.floating]) -> tuple[Tensor, Tensor]:
    """Camera-to-world poses [n, 4, 4] -> float32 moves [n, 4, 4] from the new camera to the old, and down [n, 3] in the
    new camera's axes. Positions are subtracted first, so that a small step keeps its bits far from the origin."""
    new, old = np.asarray(new, np.float64), np.asarray(old, np.float64)
    back = old[:, :3, :3].mT
    moves = np.tile(np.eye(4), (len(new), 1, 1))
    moves[:, :3, :3] = back @ new[:, :3, :3]
    moves[:, :3, 3] = (back @ (new[:, :3, 3:] - old[:, :3, 3:]))[..., 0]
    return torch.from_numpy(moves.astype(np.float32)), torch.from_numpy(new[:, 1, :3].astype(np.float32))
