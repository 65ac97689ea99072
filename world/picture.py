"""Pictures in and out of a world: resizing a start picture, and decoded frames as I420."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor


def to_video(image: NDArray[np.uint8], height: int, width: int) -> Tensor:
    """[h, w, 3] RGB of any size -> float32 [1, 3, 1, height, width] in -1..1; bicubic, no antialias, as published."""
    x = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None].float() / 127.5 - 1.0
    if x.shape[-2:] != (height, width):
        x = F.interpolate(x, size=(height, width), mode="bicubic", align_corners=False)
    return x[:, :, None]


def to_i420(video: Tensor) -> Tensor:
    """Video [B, 3, n, H, W] RGB, clamped here to -1..1 -> uint8 [B, n, H * 3 // 2, W], BT.601 limited range."""
    r, g, b = ((video.clamp(-1, 1) + 1) / 2).unbind(1)  # [B, n, H, W]
    luma = 16 + 65.481 * r + 128.553 * g + 24.966 * b
    chroma = [128 - 37.797 * r - 74.203 * g + 112.0 * b, 128 + 112.0 * r - 93.786 * g - 18.214 * b]
    width = luma.shape[-1]
    planes = [luma, *(F.avg_pool2d(c, 2).flatten(-2).unflatten(-1, (-1, width)) for c in chroma)]
    return torch.cat(planes, dim=-2).round().to(torch.uint8)
