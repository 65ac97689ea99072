"""Conditioning that streams: what the channels y = [mask 4, latent 16] of a chunk hold.

`first_frame` (published checkpoints): the VAE's encoding of [image, black, black ...]. The encoder sees a bounded past,
so from latent frame 29 on it is one constant: a stream needs one bounded encode and then repeats its last frame.

`warp` (the built-in world): the newest latent the player has, turned by the camera's known rotation since; the mask
says where the turned picture still knows something. Distance is left to the model: a rotation needs no depth.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from world.chunk import SPATIAL_STRIDE, TEMPORAL_STRIDE
from world.nn.vae import VideoVAE

MASK_CHANNELS = 4
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


def warp_condition(latents: Tensor, turns: Tensor, intrinsics: Tensor) -> Tensor:
    """y [20, f, h, w] of f frames from the latent each is seen from [f, 16, h, w], the rotation [f, 3, 3] from the new
    camera to that latent's, and intrinsics [4] in pixels: every cell takes what the old view holds in its direction
    (bilinear)."""
    h, w = latents.shape[-2:]
    fx, fy, cx, cy = (intrinsics / SPATIAL_STRIDE).unbind()
    u = torch.arange(w, dtype=torch.float32, device=latents.device) + 0.5
    v = torch.arange(h, dtype=torch.float32, device=latents.device)[:, None] + 0.5
    x, y = ((u - cx) / fx).expand(h, w), ((v - cy) / fy).expand(h, w)
    r = turns[:, :, :, None, None]
    x, y, z = (r[:, i, 0] * x + r[:, i, 1] * y + r[:, i, 2] for i in range(3))  # [f, h, w] in the old camera
    ahead = z.clamp(min=1e-3)
    grid = torch.stack([2 * (fx * x / ahead + cx) / w - 1, 2 * (fy * y / ahead + cy) / h - 1], dim=-1)
    known = ((grid.abs() <= 1).all(-1) & (z > 1e-3)).to(latents.dtype)  # [f, h, w]
    turned = F.grid_sample(latents, grid, padding_mode="border", align_corners=False)
    return torch.cat([known[:, None].expand(-1, MASK_CHANNELS, -1, -1), turned * known[:, None]], dim=1).transpose(0, 1)
