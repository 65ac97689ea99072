"""The ring attention of a GPU in half precision: one Triton kernel that reads every row's ring in place.

Tiled online softmax (FlashAttention-2; Dao 2023). A program has a tile of one row's queries in one head and goes
through the row's valid keys in one order and tiles of one size: a row has the same bits whoever shares the call.

Of rings in FP8 (COARSE) queries are rounded too, and scores are scaled once they are there. Values become float16, the
fastest that holds them exactly; their scales, with the greatest as the unit, go into probabilities.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from world.nn.rows import LEAST_SCALE, Kept, Quantised

# Of a program. On an H200 with 14B sizes these reach 521 TFLOP/s (128 x 128 in 8 warps 498, 128 x 64 464), torch's own
# flash attention 354, cuDNN's over one whole sequence without a mask 566.
QUERIES, KEYS, WARPS, STAGES = 64, 64, 4, 3
SCALES = tl.constexpr(2048)  # that a program looks at together


@triton.jit
def _greatest(scale_ptr, count, least):
    """Of scales: in units of it they are 1 at most, and times probabilities too, as float16 needs it."""
    found = tl.full([SCALES], 0.0, tl.float32)
    place = tl.arange(0, SCALES)
    for n in tl.range(0, count, SCALES):
        found = tl.maximum(found, tl.load(scale_ptr + n + place, mask=n + place < count, other=0.0))
    return tl.maximum(tl.max(found, 0), least)


@triton.jit
def _tile(
    q, k_desc, v_desc, k_scale_desc, v_scale_desc, at, column, head, seen, best, total, scale, per_unit, valid,
    PARTLY: tl.constexpr, COARSE: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """One tile of keys into a tile of queries' running maximum, sum and mean (in FP8 in units of 1 / per_unit)."""
    scores = tl.dot(q, k_desc.load([at, column]).T)
    if COARSE:
        scores *= k_scale_desc.load([head, at])
    if PARTLY:
        scores = tl.where(tl.arange(0, KEYS)[None, :] < valid, scores, -float("inf"))
    most = tl.maximum(best, tl.max(scores, 1) * scale)
    p = tl.exp2(scores * (scale[:, None] if COARSE else scale) - most[:, None])
    shrunk = tl.exp2(best - most)
    total = total * shrunk + tl.sum(p, 1)
    v = v_desc.load([at, column])
    if COARSE:
        v, v_scale = v.to(tl.float16), v_scale_desc.load([head, at])
        if PARTLY:
            v_scale = tl.where(tl.arange(0, KEYS)[None, :] < valid, v_scale, 0.0)
        p *= v_scale * per_unit
    if PARTLY:  # what lies behind the valid keys may be NaN, and 0 * NaN is not 0
        v = tl.where(tl.arange(0, KEYS)[:, None] < valid, v, 0.0).to(v.dtype)
    seen = tl.dot(p.to(v.dtype), v, seen * shrunk[:, None])
    return seen, most, total


@triton.jit
def _attend(
    q_ptr, k_desc, v_desc, k_scale_desc, v_scale_desc, v_scale_ptr, out_ptr, begins_ptr, valid_ptr, scale, greatest,
    least, length, row_stride, token_stride, scale_stride,
    COARSE: tl.constexpr, WIDTH: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    tile, head, row = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    begin = tl.load(begins_ptr + row).to(tl.int32)
    valid = tl.load(valid_ptr + row).to(tl.int32)
    token = tile * QUERIES + tl.arange(0, QUERIES)
    place = tl.arange(0, WIDTH)
    column = head * WIDTH
    there = (token < length)[:, None]
    q_at = q_ptr + row.to(tl.int64) * row_stride + token[:, None] * token_stride + column + place[None, :]
    q = tl.load(q_at, mask=there, other=0.0)
    if COARSE:
        q = q.to(tl.float32)
        q_scale = tl.maximum(tl.max(tl.abs(q), 1) / greatest, least)
        q = (q / q_scale[:, None]).to(k_desc.dtype)
        scale *= q_scale
        unit = _greatest(v_scale_ptr + head * scale_stride + begin, valid, least)
        per_unit = 1 / unit
    else:
        per_unit = 1.0
    best = tl.full([QUERIES], -float("inf"), tl.float32)
    total = tl.zeros([QUERIES], tl.float32)
    seen = tl.zeros([QUERIES, WIDTH], tl.float32)
    whole = valid // KEYS * KEYS
    for n in tl.range(0, whole, KEYS, num_stages=STAGES):
        seen, best, total = _tile(
            q, k_desc, v_desc, k_scale_desc, v_scale_desc, begin + n, column, head, seen, best, total, scale, per_unit,
            KEYS, False, COARSE, KEYS,
        )  # fmt: skip
    if whole < valid:
        seen, best, total = _tile(
            q, k_desc, v_desc, k_scale_desc, v_scale_desc, begin + whole, column, head, seen, best, total, scale,
            per_unit, valid - whole, True, COARSE, KEYS,
        )  # fmt: skip
    if COARSE:
        seen *= unit
    heads = tl.num_programs(1)
    out_at = out_ptr + (row.to(tl.int64) * length + token[:, None]) * (heads * WIDTH) + column + place[None, :]
    tl.store(out_at, (seen / total[:, None]).to(out_ptr.dtype.element_ty), mask=there)


def ring_triton(q: Tensor, k_ring: Kept, v_ring: Kept, begins: Tensor, room: int, valid_tokens: Tensor) -> Tensor:
    """A `world.nn.attention.Ring`, for d a power of two from 16 on. For rings in FP8: from 32 on, scales as `scales_of`
    lays them out, and every ring begins at a multiple of SCALES_ALIGNED."""
    rows, length, heads, width = q.shape
    q = q.flatten(2)
    if q.stride(2) != 1:
        q = q.contiguous()
    out = torch.empty(rows, length, heads, width, dtype=q.dtype, device=q.device)
    v_scale, scales, greatest = q, [q, q], 0.0
    if coarse := isinstance(k_ring, Quantised) and isinstance(v_ring, Quantised):
        k_scale, v_scale = (ring.scale.squeeze(2).t() for ring in (k_ring, v_ring))  # [N, T]
        scales = [TensorDescriptor.from_tensor(scale, [1, KEYS]) for scale in (k_scale, v_scale)]
        k_ring, v_ring = k_ring.values, v_ring.values
        greatest = torch.finfo(k_ring.dtype).max
    rings = [TensorDescriptor.from_tensor(ring.flatten(1), [KEYS, width]) for ring in (k_ring, v_ring)]
    grid = triton.cdiv(length, QUERIES), heads, rows
    _attend[grid](
        q, *rings, *scales, v_scale, out, begins, valid_tokens, math.log2(math.e) / math.sqrt(width), greatest,
        LEAST_SCALE, length, q.stride(0), q.stride(1), v_scale.stride(0), COARSE=coarse, WIDTH=width, QUERIES=QUERIES,
        KEYS=KEYS, STAGES=STAGES, num_warps=WARPS,
    )  # fmt: skip
    return out
