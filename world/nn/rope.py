"""Three-axis rotary positions (Wan 2.1, LingBot-World): pairs of a head split over frame, row and column.

Angles come from float64 positions each time instead of a table, so a stream has no last frame: only differences of
frame indices enter attention, and cos and sin of a float64 angle stay exact to float32 for longer than anybody plays.
"""

from __future__ import annotations

import torch
from torch import Tensor


def axis_pairs(head_dim: int) -> tuple[int, int, int]:
    """Pairs of adjacent elements that turn with (frame, row, column): d/2 - 2 (d/6), d/6, d/6."""
    side = head_dim // 6
    return head_dim // 2 - 2 * side, side, side


def _angles(position: Tensor, pairs: int) -> Tensor:
    """float64 [...] -> [..., pairs]: position * 10000^(-j / pairs)."""
    j = torch.arange(pairs, dtype=torch.float64, device=position.device)
    return position.double()[..., None] * 10000.0 ** (-j / pairs)


def rotations(first_frame: Tensor, frames: int, rows: int, columns: int, head_dim: int) -> tuple[Tensor, Tensor]:
    """int64 [B] absolute index of each row's first latent frame -> cos, sin float32 [B, L, 1, d/2]."""
    device = first_frame.device
    t, h, w = axis_pairs(head_dim)
    frame = first_frame[:, None] + torch.arange(frames, device=device)  # [B, f]
    shape = (first_frame.shape[0], frames, rows, columns)
    angles = torch.cat(
        [
            _angles(frame, t)[:, :, None, None].expand(*shape, t),
            _angles(torch.arange(rows, device=device), h)[None, None, :, None].expand(*shape, h),
            _angles(torch.arange(columns, device=device), w)[None, None, None].expand(*shape, w),
        ],
        dim=-1,
    ).flatten(1, 3)[:, :, None]
    return angles.cos().float(), angles.sin().float()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """[B, L, N, d] with pairs adjacent, turned in float32; the dtype of x comes back."""
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2).to(x.dtype)
