"""The one attention door: queries of a chunk against the KV ring of each row's slot.

flash-attn's `flash_attn_with_kvcache` reads the ring in place where it is installed and the tensors are on a GPU
(not run on a GPU yet: its call is tested against a pure-torch stand-in). Everywhere else torch's scaled-dot-product
attention runs over the rows' rings with what is not yet written masked, its shape the same from the first frame.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

try:
    from flash_attn import flash_attn_with_kvcache
except ImportError:
    flash_attn_with_kvcache = None

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
    """As `ring_sdpa`, the ring read in place. One split, so that a row's sum has one order whoever shares the call."""
    return flash_attn_with_kvcache(
        q, k_ring, v_ring, cache_seqlens=valid_tokens, cache_batch_idx=slots.int(), causal=False, num_splits=1
    )


def ring_door(device: torch.device, dtype: torch.dtype) -> Ring:
    """The ring attention to use on this device in this dtype."""
    usable = flash_attn_with_kvcache is not None and device.type == "cuda" and dtype in (torch.float16, torch.bfloat16)
    return ring_flash if usable else ring_sdpa
