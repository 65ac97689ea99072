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
from world.nn.rows import ALIGNED

# A program's queries, those of each of its two warpgroups, a tile's keys, tiles under way, a job's pieces at most. On
# an H200 these reach 718 TFLOP/s with 14B sizes and 719 with 1.3B sizes (in one piece 688 and 565), `ring_triton` 518
# and 492, cuDNN's attention over one whole sequence without a mask 591 with 14B sizes.
QUERIES, PART, KEYS, SPLITS = 128, 64, 128, 8
STAGES = {1: 3, 2: 2}  # by the bytes of a number
REGISTERS, READER_REGISTERS, LOADER_REGISTERS = 168, 240, 24  # a thread's at launch, then: the loader gives some back
TOGETHER = 16  # queries whose pieces a program merges


@gluon.jit
def _bring(stages, k_desc, v_desc, begin, column, tiles):
    """The loader: tiles of keys and values into their stages, the last first, each as soon as its stage is free."""
    k_tiles, v_tiles, k_here, v_here, k_free, v_free = stages
    STAGES: gl.constexpr = k_tiles.shape[0]
    KEYS: gl.constexpr = k_tiles.shape[1]
    COARSE: gl.constexpr = k_desc.dtype.primitive_bitwidth == 8
    for i in range(tiles):
        at = begin + (tiles - 1 - i) * KEYS
        stage, odd = i % STAGES, i // STAGES & 1
        mbarrier.wait(k_free.index(stage), odd ^ 1)
        mbarrier.expect(k_here.index(stage), k_desc.block_type.nbytes)
        k_tile = k_tiles.index(stage)._reinterpret(k_desc.dtype, k_desc.block_type.shape, k_desc.layout)
        k_at = [0, 0, 0, at, column] if COARSE else [at, column]
        tma.async_copy_global_to_shared(k_desc, k_at, k_here.index(stage), k_tile)
        mbarrier.wait(v_free.index(stage), odd ^ 1)
        mbarrier.expect(v_here.index(stage), v_desc.block_type.nbytes)
        v_at = [column, at] if COARSE else [at, column]
        tma.async_copy_global_to_shared(v_desc, v_at, v_here.index(stage), v_tiles.index(stage))


@gluon.jit
def _turn(WAIT: gl.constexpr, PART: gl.constexpr, THREADS: gl.constexpr):
    """Wait for this part's turn at the tensor cores, or give the turn to that part."""
    verb: gl.constexpr = "bar.sync" if WAIT else "bar.arrive"
    gl.inline_asm_elementwise(
        f"{verb} {PART + 10}, {THREADS}; mov.u32 $0, 0;", "=r", [], dtype=gl.int32, is_pure=False, pack=1
    )


@gluon.jit
def _hide(v_tile, there, KEY_DIM: gl.constexpr, WARPS: gl.constexpr):
    """Zeros into a tile of values behind its first `there` keys: they may be NaN, and 0 * NaN is not 0."""
    RUN: gl.constexpr = 128 // v_tile.dtype.primitive_bitwidth
    LANES: gl.constexpr = v_tile.shape[1] // RUN
    layout: gl.constexpr = gl.BlockedLayout([1, RUN], [32 // LANES, LANES], [WARPS, 1], [1, 0])
    key = gl.arange(0, v_tile.shape[KEY_DIM], gl.SliceLayout(1 - KEY_DIM, layout))
    key = key[:, None] if KEY_DIM == 0 else key[None, :]
    v = v_tile.load(layout)
    v_tile.store(gl.where(key < there, v, gl.zeros_like(v)))
    fence_async_shared()
    gl.thread_barrier()


@gluon.jit
def _laid(v_tile):
    """A tile of values [keys, d]. In FP8 the tensor cores want a channel's together in memory."""
    return v_tile if v_tile.dtype.primitive_bitwidth == 16 else v_tile.permute((1, 0))


@gluon.jit
def _kept(weights, like, layout: gl.constexpr):
    """Weights rounded to what values are, for the next round. In FP8 four to a register, as nothing else keeps them so;
    keys lie as `_in_fours` tells, and each four are one thread's."""
    if like.dtype.primitive_bitwidth == 16:
        return gl.convert_layout(weights.to(like.dtype), layout)
    else:
        fours = weights.reshape([weights.shape[0], weights.shape[1] // 16, 2, 4, 2]).permute([0, 1, 3, 2, 4])
        even, odd = gl.split(fours)
        a, c = gl.split(even)
        b, d = gl.split(odd)
        return gl.inline_asm_elementwise(
            """{
            .reg .b16 low, high;
            cvt.rn.satfinite.e4m3x2.f32 low, $2, $1;
            cvt.rn.satfinite.e4m3x2.f32 high, $4, $3;
            mov.b32 $0, {low, high};
            }""",
            "=r,r,r,r,r", [a, b, c, d], dtype=gl.int32, is_pure=True, pack=1,
        )  # fmt: skip


@gluon.jit
def _operand(kept, layout: gl.constexpr):
    """The same as the tensor cores take them, in the order of their keys."""
    if kept.dtype.primitive_bitwidth == 16:
        return kept
    else:
        twice = gl.join(kept, kept)
        each = gl.join(twice, twice).reshape([kept.shape[0], kept.shape[1] * 16])
        return gl.inline_asm_elementwise(
            "mov.b32 $0, $1;", "=r,r,r,r,r", [gl.convert_layout(each, layout)], dtype=gl.float8e4nv, is_pure=True,
            pack=4,
        )  # fmt: skip


@gluon.jit
def _soften(scores, best, total, scale, MORE: gl.constexpr):
    """Of a tile of scores the weights, the running maximum and sum, and by what all before it shrinks; weights and
    their sum are 2 ** MORE times as large."""
    most = gl.maximum(best, gl.max(scores, 1) * scale)
    weights = gl.exp2(scores * scale - (most - MORE)[:, None])
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
    BYTES: gl.constexpr = dtype.primitive_bitwidth // 8
    COARSE: gl.constexpr = BYTES == 1
    MORE: gl.constexpr = 8 if COARSE else 0  # so that weights of 2 ** -17 and up have a number in FP8
    s_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [WARPS, 1], [16, KEYS, 32 // BYTES])
    o_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [WARPS, 1], [16, WIDTH, 32 // BYTES])
    p_layout: gl.constexpr = gl.DotOperandLayout(0, o_layout, 4 // BYTES)
    o_row: gl.constexpr = gl.SliceLayout(1, o_layout)
    nothing = gl.zeros([QUERIES, KEYS], gl.float32, s_layout)
    zeros = gl.zeros([QUERIES, WIDTH], gl.float32, o_layout)
    # In FP8 of the tiles before the last: tensor cores add up to some 14 bits, so a tile's sum is added in float32.
    seen = zeros
    best = gl.full([QUERIES], -float("inf"), gl.float32, gl.SliceLayout(1, s_layout))
    total = gl.zeros([QUERIES], gl.float32, gl.SliceLayout(1, s_layout))

    there = valid - (tiles - 1) * KEYS
    mbarrier.wait(k_here.index(0), 0)
    scores = warpgroup_mma(q_tile, k_tiles.index(0).permute((1, 0)), nothing, use_acc=False, is_async=True)
    scores = warpgroup_mma_wait(0, deps=[scores])
    mbarrier.arrive(k_free.index(0))
    key = gl.arange(0, KEYS, gl.SliceLayout(0, s_layout))[None, :]
    if COARSE:  # as `_in_fours` brought them
        key = (key & -16) | (key >> 1 & 3) << 2 | (key >> 3 & 1) << 1 | key & 1
    weights, best, total, shrunk = _soften(gl.where(key < there, scores, -float("inf")), best, total, scale, MORE)
    p = _kept(weights, q_tile, p_layout)
    mbarrier.wait(v_here.index(0), 0)
    if there < KEYS:
        _hide(v_tiles.index(0), there, 1 if COARSE else 0, WARPS)
    mbarrier.wait(k_here.index(1), 0, pred=tiles > 1)
    if PART == PARTS - 1:
        _turn(False, 0, PAIR)
    for i in range(1, tiles):
        now, before = i % STAGES, (i - 1) % STAGES
        _turn(True, PART, PAIR)
        next_scores = warpgroup_mma(q_tile, k_tiles.index(now).permute((1, 0)), nothing, use_acc=False, is_async=True)
        mbarrier.wait(v_here.index(before), (i - 1) // STAGES & 1)
        next_seen = warpgroup_mma(
            _operand(p, p_layout),
            _laid(v_tiles.index(before)),
            zeros if COARSE else seen,
            use_acc=not COARSE,
            is_async=True,
        )
        _turn(False, (PART + 1) % PARTS, PAIR)
        scores = warpgroup_mma_wait(1, deps=[next_scores])
        mbarrier.arrive(k_free.index(now))
        before_shrunk = shrunk
        weights, best, total, shrunk = _soften(scores, best, total, scale, MORE)
        # The branches of this wait also keep the assembler from waiting for the sum before it takes the exponentials.
        mbarrier.wait(k_here.index((i + 1) % STAGES), (i + 1) // STAGES & 1, pred=i + 1 < tiles)
        part, weights = warpgroup_mma_wait(0, deps=[next_seen, weights])
        mbarrier.arrive(v_free.index(before))
        p = _kept(weights, q_tile, p_layout)
        if COARSE:
            seen = seen * gl.convert_layout(before_shrunk, o_row)[:, None] + part
        else:
            seen = part * gl.convert_layout(shrunk, o_row)[:, None]
    if PART == 0:
        _turn(True, 0, PAIR)  # the turn that the last part gave last
    last = tiles - 1
    mbarrier.wait(v_here.index(last % STAGES), last // STAGES & 1)
    if COARSE:
        part = warpgroup_mma(
            _operand(p, p_layout), _laid(v_tiles.index(last % STAGES)), zeros, use_acc=False, is_async=True
        )
        seen = seen * gl.convert_layout(shrunk, o_row)[:, None] + warpgroup_mma_wait(0, deps=[part])
    else:
        seen = warpgroup_mma(_operand(p, p_layout), _laid(v_tiles.index(last % STAGES)), seen, is_async=True)
        seen = warpgroup_mma_wait(0, deps=[seen])
    best, total = gl.convert_layout(best, o_row), gl.convert_layout(total, o_row)
    place = gl.arange(0, WIDTH, gl.SliceLayout(0, o_layout))[None, :]
    query = PART * QUERIES + gl.arange(0, QUERIES, o_row)
    if slot < 0:
        token = first + query
        at = out_ptr + token[:, None] * stride + place
        gl.store(at, (seen * (1 / total)[:, None]).to(out_ptr.dtype.element_ty), mask=(token < length)[:, None])
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
    STEP: gl.constexpr, READER: gl.constexpr, LOADER: gl.constexpr,
):  # fmt: skip
    job, row = gl.program_id(0), gl.program_id(1)
    begin = gl.load(begins_ptr + row).to(gl.int32)
    if k_desc.dtype.primitive_bitwidth == 8:  # looked at with TRITON_DEBUG=1 only; elsewhere an illegal instruction
        gl.device_assert(begin % STEP == 0, "a ring in FP8 begins at a multiple of 16 tokens: TMA copies from there on")
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
    k_shared: gl.constexpr = gl.NVMMASharedLayout.get_default_for([KEYS, WIDTH], dtype)
    k_tiles = gl.allocate_shared_memory(dtype, [STAGES, KEYS, WIDTH], k_shared)
    v_tiles = gl.allocate_shared_memory(
        dtype, [STAGES, v_desc.block_type.shape[0], v_desc.block_type.shape[1]], v_desc.layout
    )
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
        q_tiles.index(i).store(gl.load(at, mask=token < length, other=0.0).to(dtype))
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
    """How many of a row's jobs to leave whole, and into how many pieces to split each of the rest, `most` at most.

    Those behind the last full round of the multiprocessors would leave most of them idle. A row's share depends on its
    own jobs alone, so its bits do not on who shares the call."""
    left = jobs % places
    splits = min(range(1, most + 1), key=lambda n: math.ceil(left * n / places) / n + n / 64)
    return (jobs - left, splits) if splits > 1 else (jobs, 1)


def _multiprocessors(device: torch.device) -> int:
    """Of an H200 where nothing is run."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 132


def _as_they_lie(k_ring: Tensor, v_ring: Tensor) -> tuple[TensorDescriptor, TensorDescriptor]:
    block = [KEYS, k_ring.shape[2]]
    layout = gl.NVMMASharedLayout.get_default_for(block, gl.bfloat16 if k_ring.dtype == torch.bfloat16 else gl.float16)
    keys, values = (TensorDescriptor.from_tensor(ring.flatten(1), block, layout) for ring in (k_ring, v_ring))
    return keys, values


def _in_fours(k_ring: Tensor, v_ring: Tensor) -> tuple[TensorDescriptor, TensorDescriptor]:
    """Rings in FP8. A thread's scores are of columns 2i and 2i + 1 of each eight, but its weights have to be of keys 4i
    to 4i + 3 of each sixteen. So tiles come with key 4i + 2j + k of each sixteen in row 8j + 2i + k, and no weight goes
    to another thread. A tile of keys begins at any: the tokens' own dimension overlaps the three before it. One of
    values, in whose rows tokens lie together, begins at a multiple of ALIGNED."""
    tokens, heads, width = k_ring.shape
    row, k_block, v_block = heads * width, [KEYS // 16, 2, 4, 2, width], [width, KEYS]
    k_layout, v_layout = (gl.NVMMASharedLayout.get_default_for(block, gl.float8e4nv) for block in (k_block, v_block))
    keys = TensorDescriptor(
        k_ring, [KEYS // 16, 2, 4, tokens, row], [16 * row, 2 * row, 4 * row, row, 1], k_block, k_layout
    )
    return keys, TensorDescriptor.from_tensor(v_ring.permute(1, 2, 0).flatten(0, 1), v_block, v_layout)


def ring_hopper(q: Tensor, k_ring: Tensor, v_ring: Tensor, begins: Tensor, room: int, valid_tokens: Tensor) -> Tensor:
    """A `world.nn.attention.Ring` on a GPU of compute capability 9.0; for d other than 64 and 128 `ring_triton`."""
    rows, length, heads, width = q.shape
    if width not in (64, 128):
        return ring_triton(q, k_ring, v_ring, begins, room, valid_tokens)
    q = q.flatten(2)
    if q.stride(2) != 1:
        q = q.contiguous()
    out = torch.empty(rows, length, heads, width, dtype=q.dtype, device=q.device)
    k_desc, v_desc = _in_fours(k_ring, v_ring) if k_ring.itemsize == 1 else _as_they_lie(k_ring, v_ring)
    jobs = cdiv(length, QUERIES) * heads
    most = max(min(SPLITS, room // (8 * KEYS)), 1)  # a piece has eight tiles or more of a full ring
    whole, splits = _spread(jobs, _multiprocessors(q.device), most)
    split = jobs - whole
    pieces = torch.empty(rows, split * splits, QUERIES, width, device=q.device)
    bests, totals = torch.empty(2, rows, split * splits, QUERIES, device=q.device)
    _attend[(whole + split * splits, rows)](
        q, k_desc, v_desc, out, begins, valid_tokens, pieces, bests, totals,
        math.log2(math.e) / math.sqrt(width), length, heads, q.stride(0), q.stride(1), whole, splits,
        WIDTH=width, QUERIES=QUERIES, PART=PART, KEYS=KEYS, STAGES=STAGES[k_ring.itemsize], STEP=ALIGNED,
        READER=READER_REGISTERS, LOADER=LOADER_REGISTERS, num_warps=PART // 16, maxnreg=REGISTERS,
    )  # fmt: skip
    if split:
        _merge[(split, QUERIES // TOGETHER, rows)](
            pieces, bests, totals, out, length, heads, whole, splits,
            WIDTH=width, QUERIES=QUERIES, TOGETHER=TOGETHER, num_warps=4,
        )  # fmt: skip
    return out
