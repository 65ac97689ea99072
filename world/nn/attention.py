"""The one attention door: queries of a chunk against the KV ring of each row's slot.

On a GPU in half precision torch's own flash attention reads the rings in place, as much of each as is written.
Everywhere else torch's scaled-dot-product attention runs over copies of the rows' rings with what is not yet written
masked, its shape the same from the first frame.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Ring = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Plain attention, no mask: q [B, L, N, d], k and v [B, S, N, d] -> [B, L, N, d]."""
    return F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)).transpose(1, 2)


def ring_sdpa(q: Tensor, k_ring: Tensor, v_ring: Tensor, slots: Tensor, valid_tokens: Tensor) -> Tensor:
    """q [B, L, N, d], rings [slots, S, N, d], slots int64 [B], valid_tokens int32 [B] (a prefix of the ring)."""
    mask = torch.arange(k_ring.shape[1], device=q.device) < valid_tokens[:, None]  # [B, S]
    k, v = k_ring[slots].transpose(1, 2), v_ring[slots].transpose(1, 2)  # [B, N, S, d]
    return F.scaled_dot_product_attention(q.transpose(1, 2), k, v, attn_mask=mask[:, None, None]).transpose(1, 2)


def ring_flash(q: Tensor, k_ring: Tensor, v_ring: Tensor, slots: Tensor, valid_tokens: Tensor) -> Tensor:
    """As `ring_sdpa`, the rings read in place: rows are sequences that begin where their slot's ring does, in all rings
    end to end, and are as long as their valid prefix. A row's sum has one order whoever shares the call."""
    rows, length, room = q.shape[0], q.shape[1], k_ring.shape[1]
    begins = torch.arange(rows + 1, device=q.device, dtype=torch.int32) * length
    # One more than there are rows: ends are not read where lengths are given.
    ring_begins = F.pad((slots * room).int(), (0, 1))
    seen, *_ = torch.ops.aten._flash_attention_forward(
        q.flatten(0, 1), k_ring.flatten(0, 1), v_ring.flatten(0, 1), begins, ring_begins, length, room,
        dropout_p=0.0, is_causal=False, return_debug_mask=False, seqused_k=valid_tokens,
    )  # fmt: skip
    return seen.unflatten(0, (rows, length))


def ring_door(device: torch.device, dtype: torch.dtype) -> Ring:
    """The ring attention to use on this device in this dtype."""
    return ring_flash if device.type == "cuda" and dtype in (torch.float16, torch.bfloat16) else ring_sdpa
