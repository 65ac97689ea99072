"""The ring attention of a Hopper GPU (sm_90a) in half precision, written in Gluon.

Tiled online softmax as in FlashAttention-3 (Shah et al. 2024): one warp brings tiles of keys and values, two warpgroups
share them, and one's softmax runs while its own last weighted sum and the other's products are in the tensor cores. A
row's keys are gone through in one order, the last tile first, and in tiles of one size: a row has the same bits whoever
shares the call. Other GPUs have other numbers of multiprocessors, by which jobs are split, and so other bits.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton import cdiv
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from world.nn.ring_kernel import ring_triton

# A program's queries, those of each of its two warpgroups, a tile's keys, tiles under way, a job's pieces at most. On
# an H200 these reach 718 TFLOP/s with 14B sizes and 719 with 1.3B sizes (in one piece 688 and 565), `ring_triton` 518
# and 492, cuDNN's attention over one whole sequence without a mask 591 with 14B sizes.
QUERIES, PART, KEYS, STAGES, SPLITS = 128, 64, 128, 2, 8
REGISTERS, READER_REGISTERS, LOADER_REGISTERS = 168, 240, 24  # a thread's at launch, then: the loader gives some back
TOGETHER = 16  # queries whose pieces a program merges


@gluon.jit
def _bring(stages, k_desc, v_desc, begin, column, tiles):
    """The loader: tiles of keys and values into their stages, the last first, each as soon as its stage is free."""
    k_tiles, v_tiles, k_here, v_here, k_free, v_free = stages
    STAGES: gl.constexpr = k_tiles.shape[0]
    KEYS: gl.constexpr = k_tiles.shape[1]
    for i in range(tiles):
        at = begin + (tiles - 1 - i) * KEYS
        stage, odd = i % STAGES, i // STAGES & 1
        mbarrier.wait(k_free.index(stage), odd ^ 1)
        mbarrier.expect(k_here.index(stage), k_desc.block_type.nbytes)
        tma.async_copy_global_to_shared(k_desc, [at, column], k_here.index(stage), k_tiles.index(stage))
        mbarrier.wait(v_free.index(stage), odd ^ 1)
        mbarrier.expect(v_here.index(stage), v_desc.block_type.nbytes)
        tma.async_copy_global_to_shared(v_desc, [at, column], v_here.index(stage), v_tiles.index(stage))


@gluon.jit
def _turn(WAIT: gl.constexpr, PART: gl.constexpr, THREADS: gl.constexpr):
    """Wait for this part's turn at the tensor cores, or give the turn to that part."""
    verb: gl.constexpr = "bar.sync" if WAIT else "bar.arrive"
    gl.inline_asm_elementwise(
        f"{verb} {PART + 10}, {THREADS}; mov.u32 $0, 0;", "=r", [], dtype=gl.int32, is_pure=False, pack=1
    )


@gluon.jit
def _hide(v_tile, there, WARPS: gl.constexpr):
    """Zeros into a tile of values behind its first `there` keys: they may be NaN, and 0 * NaN is not 0."""
    LANES: gl.constexpr = v_tile.shape[1] // 8
    layout: gl.constexpr = gl.BlockedLayout([1, 8], [32 // LANES, LANES], [WARPS, 1], [1, 0])
    key = gl.arange(0, v_tile.shape[0], gl.SliceLayout(1, layout))[:, None]
    v = v_tile.load(layout)
    v_tile.store(gl.where(key < there, v, gl.zeros_like(v)))
    fence_async_shared()
    gl.thread_barrier()


@gluon.jit
def _soften(scores, best, total, scale):
    """Of a tile of scores the weights, the running maximum and sum, and by what all before it shrinks."""
    most = gl.maximum(best, gl.max(scores, 1) * scale)
    weights = gl.exp2(scores * scale - most[:, None])
    shrunk = gl.exp2(best - most)
    return weights, most, total * shrunk + gl.sum(weights, 1), shrunk


@gluon.jit
def _read(q_tile, stages, rest, first, PART: gl.constexpr, PARTS: gl.constexpr):
    """A part's queries through all tiles: the scores of a tile are under way before the weighted sum of the last.

    The result goes out, or with a `slot` of the pieces its sums and the maximum that they refer to go there."""
    k_tiles, v_tiles, k_here, v_here, k_free, v_free = stages
    tiles, valid, scale, out_ptr, length, stride, slot, pieces_ptr, bests_ptr, totals_ptr = rest
    WARPS: gl.constexpr = gl.num_warps()
    STAGES: gl.constexpr = k_tiles.shape[0]
    KEYS: gl.constexpr = k_tiles.shape[1]
    WIDTH: gl.constexpr = k_tiles.shape[2]
    QUERIES: gl.constexpr = q_tile.shape[0]
    PAIR: gl.constexpr = 2 * 32 * WARPS  # the threads of one part and the next
    dtype: gl.constexpr = q_tile.dtype
    s_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [WARPS, 1], [16, KEYS, 16])
    o_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [WARPS, 1], [16, WIDTH, 16])
    p_layout: gl.constexpr = gl.DotOperandLayout(0, o_layout, 2)
    o_row: gl.constexpr = gl.SliceLayout(1, o_layout)
    nothing = gl.zeros([QUERIES, KEYS], gl.float32, s_layout)
    seen = gl.zeros([QUERIES, WIDTH], gl.float32, o_layout)
    best = gl.full([QUERIES], -float("inf"), gl.float32, gl.SliceLayout(1, s_layout))
    total = gl.zeros([QUERIES], gl.float32, gl.SliceLayout(1, s_layout))

    there = valid - (tiles - 1) * KEYS
    mbarrier.wait(k_here.index(0), 0)
    scores = warpgroup_mma(q_tile, k_tiles.index(0).permute((1, 0)), nothing, use_acc=False, is_async=True)
    scores = warpgroup_mma_wait(0, deps=[scores])
    mbarrier.arrive(k_free.index(0))
    key = gl.arange(0, KEYS, gl.SliceLayout(0, s_layout))[None, :]
    weights, best, total, shrunk = _soften(gl.where(key < there, scores, -float("inf")), best, total, scale)
    p = gl.convert_layout(weights.to(dtype), p_layout)
    mbarrier.wait(v_here.index(0), 0)
    if there < KEYS:
        _hide(v_tiles.index(0), there, WARPS)
    mbarrier.wait(k_here.index(1), 0, pred=tiles > 1)
    if PART == PARTS - 1:
        _turn(False, 0, PAIR)
    for i in range(1, tiles):
        now, before = i % STAGES, (i - 1) % STAGES
        _turn(True, PART, PAIR)
        next_scores = warpgroup_mma(q_tile, k_tiles.index(now).permute((1, 0)), nothing, use_acc=False, is_async=True)
        mbarrier.wait(v_here.index(before), (i - 1) // STAGES & 1)
        next_seen = warpgroup_mma(p, v_tiles.index(before), seen, is_async=True)
        _turn(False, (PART + 1) % PARTS, PAIR)
        scores = warpgroup_mma_wait(1, deps=[next_scores])
        mbarrier.arrive(k_free.index(now))
        weights, best, total, shrunk = _soften(scores, best, total, scale)
        # The branches of this wait also keep the assembler from waiting for the sum before it takes the exponentials.
        mbarrier.wait(k_here.index((i + 1) % STAGES), (i + 1) // STAGES & 1, pred=i + 1 < tiles)
        seen, weights = warpgroup_mma_wait(0, deps=[next_seen, weights])
        mbarrier.arrive(v_free.index(before))
        p = gl.convert_layout(weights.to(dtype), p_layout)
        seen = seen * gl.convert_layout(shrunk, o_row)[:, None]
    if PART == 0:
        _turn(True, 0, PAIR)  # the turn that the last part gave last
    last = tiles - 1
    mbarrier.wait(v_here.index(last % STAGES), last // STAGES & 1)
    seen = warpgroup_mma(p, v_tiles.index(last % STAGES), seen, is_async=True)
    seen = warpgroup_mma_wait(0, deps=[seen])
    best, total = gl.convert_layout(best, o_row), gl.convert_layout(total, o_row)
    place = gl.arange(0, WIDTH, gl.SliceLayout(0, o_layout))[None, :]
    query = PART * QUERIES + gl.arange(0, QUERIES, o_row)
    if slot < 0:
        token = first + query
        at = out_ptr + token[:, None] * stride + place
        gl.store(at, (seen * (1 / total)[:, None]).to(dtype), mask=(token < length)[:, None])
    else:
        query += slot * (PARTS * QUERIES)
        gl.store(pieces_ptr + query[:, None] * WIDTH + place, seen)
        gl.store(bests_ptr + query, best)
        gl.store(totals_ptr + query, total)


# One kernel for every length, and wherever a call's rows begin in a longer table of begins.
@gluon.jit(do_not_specialize=["length", "whole", "splits"], do_not_specialize_on_alignment=["begins_ptr", "valid_ptr"])
def _attend(
    q_ptr, k_desc, v_desc, out_ptr, begins_ptr, valid_ptr, pieces_ptr, bests_ptr, totals_ptr,
    scale, length, heads, row_stride, token_stride, whole, splits,
    WIDTH: gl.constexpr, QUERIES: gl.constexpr, PART: gl.constexpr, KEYS: gl.constexpr, STAGES: gl.constexpr,
    READER: gl.constexpr, LOADER: gl.constexpr,
):  # fmt: skip
    job, row = gl.program_id(0), gl.program_id(1)
    begin = gl.load(begins_ptr + row).to(gl.int32)
    valid = gl.load(valid_ptr + row).to(gl.int32)
    tiles = gl.cdiv(valid, KEYS)
    place, slot = job, -1
    if job >= whole:  # a piece of the tiles: the first has some, and one that has none weighs nothing
        piece = (job - whole) % splits
        place, slot = whole + (job - whole) // splits, row * (gl.num_programs(0) - whole) + job - whole
        before, after = gl.cdiv(piece * tiles, splits), gl.cdiv((piece + 1) * tiles, splits)
        begin += before * KEYS
        valid, tiles = gl.minimum(valid, after * KEYS) - before * KEYS, gl.maximum(after - before, 1)
    PARTS: gl.constexpr = QUERIES // PART
    WARPS: gl.constexpr = gl.num_warps()
    dtype: gl.constexpr = k_desc.dtype
    q_shared: gl.constexpr = gl.NVMMASharedLayout.get_default_for([PART, WIDTH], dtype)
    q_tiles = gl.allocate_shared_memory(dtype, [PARTS, PART, WIDTH], q_shared)
    k_tiles = gl.allocate_shared_memory(dtype, [STAGES, KEYS, WIDTH], k_desc.layout)
    v_tiles = gl.allocate_shared_memory(dtype, [STAGES, KEYS, WIDTH], v_desc.layout)
    k_here = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    v_here = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    k_free = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    v_free = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(STAGES):
        mbarrier.init(k_here.index(i), 1)
        mbarrier.init(v_here.index(i), 1)
        mbarrier.init(k_free.index(i), PARTS)
        mbarrier.init(v_free.index(i), PARTS)
    across = gl.cdiv(length, QUERIES)
    first, column = place % across * QUERIES, place // across * WIDTH
    q_ptr += row.to(gl.int64) * row_stride + column
    layout: gl.constexpr = gl.BlockedLayout([1, 8], [256 // WIDTH, WIDTH // 8], [WARPS, 1], [1, 0])
    for i in gl.static_range(PARTS):
        token = (first + i * PART + gl.arange(0, PART, gl.SliceLayout(1, layout)))[:, None]
        at = q_ptr + token * token_stride + gl.arange(0, WIDTH, gl.SliceLayout(0, layout))[None, :]
        q_tiles.index(i).store(gl.load(at, mask=token < length, other=0.0))
    fence_async_shared()
    gl.thread_barrier()
    stride = heads * WIDTH
    out_ptr += row.to(gl.int64) * length * stride + column
    stages = (k_tiles, v_tiles, k_here, v_here, k_free, v_free)
    rest = (tiles, valid, scale, out_ptr, length, stride, slot, pieces_ptr, bests_ptr, totals_ptr)
    gl.warp_specialize([
        (_read, (q_tiles.index(0), stages, rest, first, 0, PARTS)),
        (_read, (q_tiles.index(1), stages, rest, first, 1, PARTS)),
        (_bring, (stages, k_desc, v_desc, begin, column, tiles)),
    ], [WARPS, 1], [READER, LOADER])  # fmt: skip


@triton.jit
def _merge(
    pieces_ptr, bests_ptr, totals_ptr, out_ptr, length, heads, whole, splits,
    WIDTH: tl.constexpr, QUERIES: tl.constexpr, TOGETHER: tl.constexpr,
):  # fmt: skip
    """The pieces of some queries into one result, in the order of their keys."""
    left, part, row = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    query = part * TOGETHER + tl.arange(0, TOGETHER)
    place = tl.arange(0, WIDTH)[None, :]
    best = tl.full([TOGETHER], -float("inf"), tl.float32)
    total = tl.zeros([TOGETHER], tl.float32)
    seen = tl.zeros([TOGETHER, WIDTH], tl.float32)
    for piece in range(splits):
        at = ((row * tl.num_programs(0) + left) * splits + piece) * QUERIES + query
        its_best = tl.load(bests_ptr + at)
        most = tl.maximum(best, its_best)
        old, new = tl.exp2(best - most), tl.exp2(its_best - most)
        weighs = its_best > -float("inf")
        total = total * old + tl.load(totals_ptr + at, mask=weighs, other=0.0) * new
        its = tl.load(pieces_ptr + at[:, None] * WIDTH + place, mask=weighs[:, None], other=0.0)
        seen = seen * old[:, None] + its * new[:, None]
        best = most
    across = tl.cdiv(length, QUERIES)
    token = (whole + left) % across * QUERIES + query
    at = (row.to(tl.int64) * length + token[:, None]) * (heads * WIDTH) + (whole + left) // across * WIDTH + place
    tl.store(out_ptr + at, (seen / total[:, None]).to(out_ptr.dtype.element_ty), mask=(token < length)[:, None])


def _spread(jobs: int, places: int, most: int) -> tuple[int, int]:
    """How many of a row's jobs to leave whole, and into how many pieces, `most` or fewer, to split each of the rest.

    Those behind the last full round of the multiprocessors would leave most of them idle. A row's share depends on its
    own jobs alone, so its bits do not on who shares the call."""
    left = jobs % places
    splits = min(range(1, most + 1), key=lambda n: math.ceil(left * n / places) / n + n / 64)
    return (jobs - left, splits) if splits > 1 else (jobs, 1)


def _multiprocessors(device: torch.device) -> int:
    """Of an H200 where nothing is run."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 132


def ring_hopper(q: Tensor, k_ring: Tensor, v_ring: Tensor, begins: Tensor, room: int, valid_tokens: Tensor) -> Tensor:
    """A `world.nn.attention.Ring` on a GPU of compute capability 9.0; for d other than 64 and 128 `ring_triton`."""
    rows, length, heads, width = q.shape
    if width not in (64, 128):
        return ring_triton(q, k_ring, v_ring, begins, room, valid_tokens)
    q = q.flatten(2)
    if q.stride(2) != 1:
        q = q.contiguous()
    out = torch.empty(rows, length, heads, width, dtype=q.dtype, device=q.device)
    block = [KEYS, width]
    layout = gl.NVMMASharedLayout.get_default_for(block, gl.bfloat16 if q.dtype == torch.bfloat16 else gl.float16)
    rings = [TensorDescriptor.from_tensor(ring.flatten(1), block, layout) for ring in (k_ring, v_ring)]
    jobs = cdiv(length, QUERIES) * heads
    most = max(min(SPLITS, room // (8 * KEYS)), 1)  # a piece has eight tiles or more of a full ring
    whole, splits = _spread(jobs, _multiprocessors(q.device), most)
    split = jobs - whole
    pieces = torch.empty(rows, split * splits, QUERIES, width, device=q.device)
    bests, totals = torch.empty(2, rows, split * splits, QUERIES, device=q.device)
    _attend[(whole + split * splits, rows)](
        q, *rings, out, begins, valid_tokens, pieces, bests, totals,
        math.log2(math.e) / math.sqrt(width), length, heads, q.stride(0), q.stride(1), whole, splits,
        WIDTH=width, QUERIES=QUERIES, PART=PART, KEYS=KEYS, STAGES=STAGES, READER=READER_REGISTERS,
        LOADER=LOADER_REGISTERS, num_warps=PART // 16, maxnreg=REGISTERS,
    )  # fmt: skip
    if split:
        _merge[(split, QUERIES // TOGETHER, rows)](
            pieces, bests, totals, out, length, heads, whole, splits,
            WIDTH=width, QUERIES=QUERIES, TOGETHER=TOGETHER, num_warps=4,
        )  # fmt: skip
    return out
