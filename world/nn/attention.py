"""The one attention door: queries of a chunk against the KV ring of each row's slot.

On a GPU in half precision a kernel of our own (`world.nn.ring_kernel`, on a Hopper GPU `world.nn.hopper_kernel`) reads
the rings in place, as much of each as is written. Everywhere else torch's scaled-dot-product attention runs over copies
of the rows' rings with what is not yet written masked, its shape the same from the first frame. Where rings are in FP8,
queries are rounded as keys were.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import torch
import torch.nn.functional as F
from torch import Tensor

from world.nn.rows import as_bytes, rounded

# q [B, L, N, d], k_ring and v_ring [T, N, d], begins int64 [B], room, valid_tokens int32 [B] -> [B, L, N, d]: the ring
# of row i is k_ring[begins[i] : begins[i] + room], of which the first valid_tokens[i] >= 1 are valid. Nothing else may
# show, not even as NaN: a padding row's room reaches past its own short ring, into a stranger's or over the end. Where
# `reads_fp8` says so, rings may be `world.nn.rows.fp8_rings`, and begin at multiples of `world.nn.rows.ALIGNED` then.
Ring = Callable[[Tensor, Tensor, Tensor, Tensor, int, Tensor], Tensor]


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Plain attention, no mask: q [B, L, N, d], k and v [B, S, N, d] -> [B, L, N, d]."""
    return F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)).transpose(1, 2)


def ring_sdpa(q: Tensor, k_ring: Tensor, v_ring: Tensor, begins: Tensor, room: int, valid_tokens: Tensor) -> Tensor:
    """A `Ring` over copies. Behind its valid prefix a row is given its last valid token again and again: a mask wants
    finite values, and beyond a padding row's ring are a stranger's, or nothing."""
    places, valid = torch.arange(room, device=q.device), valid_tokens[:, None]
    at, mask = begins[:, None] + torch.minimum(places, valid - 1), places < valid  # [B, S]
    shape = *at.shape, *k_ring.shape[1:]
    k, v = (as_bytes(t).index_select(0, at.flatten()).view(t.dtype) for t in (k_ring, v_ring))
    k, v = (t.to(q.dtype).view(shape).transpose(1, 2) for t in (k, v))  # [B, N, S, d]
    q = rounded(q, k_ring.dtype).to(q.dtype)
    return F.scaled_dot_product_attention(q.transpose(1, 2), k, v, attn_mask=mask[:, None, None]).transpose(1, 2)


def ring_door(device: torch.device, dtype: torch.dtype) -> Ring:
    """The ring attention to use on this device in this dtype."""
    if device.type == "cuda" and dtype in (torch.float16, torch.bfloat16):
        from world.nn.ring_kernel import ring_triton  # Triton comes with torch for GPUs only

        return _ring_of_hopper(device) or ring_triton
    return ring_sdpa


def reads_fp8(device: torch.device, width: int) -> bool:
    """Whether there is an attention to rings in FP8 with d = width."""
    return device.type != "cuda" or (width in (64, 128) and _ring_of_hopper(device) is not None)


def _ring_of_hopper(device: torch.device) -> Ring | None:
    # A plan may be for a GPU that is not here: a Hopper's attention takes the most memory.
    if not torch.cuda.is_available() or torch.cuda.get_device_capability(device) == (9, 0):
        with suppress(ImportError):  # Gluon is an experiment of Triton's: its names may move
            from world.nn.hopper_kernel import ring_hopper

            return ring_hopper
    return None
