"""What a block does to single tokens between its matrix products: a kernel a pass over memory, not one an operation.

Counterparts of `world.nn.rows` in Triton for inference on a GPU: a program has one token's channels, and reduces them
in one order whoever shares the call. All arithmetic is float32.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

WARPS = 8  # of a token
PROGRAM = 2048  # numbers that a program of pixels has of a frame
TURNED_TOKENS, TURNED_CHANNELS = 128, 64  # of a program that turns them over
Pair = tuple[Tensor, Tensor]


@triton.jit
def _add_norm(
    x_ptr, branch_ptr, gate_ptr, slots_ptr, camera_scale_ptr, camera_shift_ptr, weight_ptr, bias_ptr, sum_ptr, out_ptr,
    channels, length, gate_row, weight_row, bias_row, eps,
    BRANCH: tl.constexpr, GATE: tl.constexpr, CAMERA: tl.constexpr, SLOTS: tl.constexpr, NORM: tl.constexpr,
    WIDTH: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    row = token // length
    c = tl.arange(0, WIDTH)
    there = c < channels
    at = token * channels + c
    x = tl.load(x_ptr + at, mask=there, other=0.0)
    if BRANCH:
        branch = tl.load(branch_ptr + at, mask=there, other=0.0).to(tl.float32)
        if GATE:
            branch *= tl.load(gate_ptr + row * gate_row + c, mask=there, other=0.0)
        x += branch
    if CAMERA:
        of = at
        if SLOTS:
            of = (tl.load(slots_ptr + row) * length + token % length) * channels + c
        scale = tl.load(camera_scale_ptr + of, mask=there, other=0.0).to(tl.float32)
        x = x * (1 + scale) + tl.load(camera_shift_ptr + of, mask=there, other=0.0).to(tl.float32)
    if BRANCH or CAMERA:
        tl.store(sum_ptr + at, x, mask=there)
    if NORM:
        mean = tl.sum(x, 0) / channels
        apart = tl.where(there, x - mean, 0.0)
        normed = apart * tl.rsqrt(tl.sum(apart * apart, 0) / channels + eps)
        normed *= tl.load(weight_ptr + row * weight_row + c, mask=there, other=0.0).to(tl.float32)
        normed += tl.load(bias_ptr + row * bias_row + c, mask=there, other=0.0).to(tl.float32)
        tl.store(out_ptr + at, normed.to(out_ptr.dtype.element_ty), mask=there)


@triton.jit
def _norm_turn(
    x_ptr, v_ptr, weight_ptr, cos_ptr, sin_ptr, at_ptr, out_ptr, v_out_ptr, channels, eps,
    TURN: tl.constexpr, KEEP: tl.constexpr, VALUES: tl.constexpr, PAIRS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    c = tl.arange(0, WIDTH)
    there = c < channels
    at = token * channels + c
    into = at
    x = tl.load(x_ptr + at, mask=there, other=0.0).to(tl.float32)
    if KEEP:
        into = tl.max_contiguous(tl.load(at_ptr + token) * channels + c, 8)  # a thread has eight in a row
        if VALUES:
            tl.store(v_out_ptr + into, tl.load(v_ptr + at, mask=there, other=0.0), mask=there)
    root = tl.rsqrt(tl.sum(x * x, 0) / channels + eps)
    x = x * root * tl.load(weight_ptr + c, mask=there, other=0.0).to(tl.float32)
    if TURN:
        even, odd = tl.split(x.reshape(WIDTH // 2, 2))
        pair = tl.arange(0, WIDTH // 2)
        inside = pair < channels // 2
        cos = tl.load(cos_ptr + token * PAIRS + pair % PAIRS, mask=inside, other=0.0)
        sin = tl.load(sin_ptr + token * PAIRS + pair % PAIRS, mask=inside, other=0.0)
        x = tl.join(even * cos - odd * sin, even * sin + odd * cos).reshape(WIDTH)
    tl.store(out_ptr + into, x.to(out_ptr.dtype.element_ty), mask=there)


@triton.jit
def _turn_over(
    x_ptr, at_ptr, out_ptr, tokens, channels, pitch, RUN: tl.constexpr, TOKENS: tl.constexpr, WIDTH: tl.constexpr
):  # fmt: skip
    """Tokens into places of a ring in which a channel's lie together: a thread stores a run of them at once, and its
    neighbours further runs of the same channel."""
    first = tl.program_id(0).to(tl.int64) * TOKENS
    token = (first + tl.arange(0, TOKENS))[:, None]
    run = first + tl.arange(0, TOKENS // RUN) * RUN
    c = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    inside = c < channels
    x = tl.load(x_ptr + token * channels + c, mask=(token < tokens) & inside, other=0.0).to(tl.float32)
    made = x.to(out_ptr.dtype.element_ty).reshape(TOKENS // RUN, RUN, WIDTH).permute(0, 2, 1)
    place = tl.multiple_of(tl.load(at_ptr + run, mask=run < tokens, other=0), RUN)[:, None, None]
    at = out_ptr + c.to(tl.int64)[:, None] * pitch + place + tl.arange(0, RUN)
    tl.store(at, made, mask=inside[:, None] & (run < tokens)[:, None, None])


@triton.jit
def _frames(
    x_ptr, bias_ptr, stream_ptr, gamma_ptr, past_ptr, at_ptr, sum_ptr, out_ptr, kept_ptr, frames, area, channels, root,
    BIAS: tl.constexpr, STREAM: tl.constexpr, WHOLE: tl.constexpr, NORM: tl.constexpr, SILU: tl.constexpr,
    STACK: tl.constexpr, AT: tl.constexpr, PIXELS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)[:, None]
    row = tl.program_id(1).to(tl.int64)
    c = tl.arange(0, WIDTH)[None, :]
    there = (pixel < area) & (c < channels)
    at, size = pixel * channels + c, area * channels  # in a frame
    dtype = out_ptr.dtype.element_ty
    if BIAS:
        bias = tl.load(bias_ptr + c, mask=c < channels, other=0.0).to(tl.float32)
    if NORM:
        gamma = tl.load(gamma_ptr + c, mask=c < channels, other=0.0).to(tl.float32) * root
    if STACK:
        cache = row
        if AT:
            cache = tl.load(at_ptr + row)
        cache = cache * 2 * size
        old = tl.load(past_ptr + cache + at, mask=there, other=0.0).to(dtype)
        last = tl.load(past_ptr + cache + size + at, mask=there, other=0.0).to(dtype)
    for t in range(frames):
        frame = (row * frames + t) * size
        x = tl.load(x_ptr + frame + at, mask=there, other=0.0).to(tl.float32)
        if BIAS:
            x += bias
        if STREAM:
            x += tl.load(stream_ptr + frame + at, mask=there, other=0.0).to(tl.float32)
        if WHOLE:
            tl.store(sum_ptr + frame + at, x.to(dtype), mask=there)
        if NORM:
            x = x * (1 / tl.maximum(tl.sqrt(tl.sum(x * x, 1)), 1e-12))[:, None] * gamma
        if SILU:
            x = x * tl.sigmoid(x)
        made = x.to(dtype)
        if STACK:
            into = out_ptr + frame * 3 + pixel * 3 * channels + c
            tl.store(into, old, mask=there)
            tl.store(into + channels, last, mask=there)
            tl.store(into + 2 * channels, made, mask=there)
            old = last
            last = made
        else:
            tl.store(out_ptr + frame + at, made, mask=there)
    if STACK:  # nobody else reads or writes these pixels of the cache
        tl.store(kept_ptr + cache + at, old.to(kept_ptr.dtype.element_ty), mask=there)
        tl.store(kept_ptr + cache + size + at, last.to(kept_ptr.dtype.element_ty), mask=there)


@triton.jit
def _doubled(
    x_ptr, bias_ptr, stream_ptr, out_ptr, area, width, parts, channels,
    BIAS: tl.constexpr, STREAM: tl.constexpr, PIXELS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)[:, None]
    image = tl.program_id(1)
    c = tl.arange(0, WIDTH)[None, :]
    there = (pixel < area) & (c < channels)
    part, frame = image % parts, (image // parts).to(tl.int64) * parts * area * channels
    at = (pixel * parts + part) * channels + c
    x = tl.load(x_ptr + frame + at, mask=there, other=0.0).to(tl.float32)
    if BIAS:
        x += tl.load(bias_ptr + part * channels + c, mask=c < channels, other=0.0).to(tl.float32)
    if STREAM:
        x += tl.load(stream_ptr + frame + at, mask=there, other=0.0).to(tl.float32)
    x = x.to(out_ptr.dtype.element_ty)
    across = 2 * width * channels
    into = out_ptr + image.to(tl.int64) * 4 * area * channels
    into += pixel // width * 2 * across + pixel % width * 2 * channels + c
    tl.store(into, x, mask=there)
    tl.store(into + channels, x, mask=there)
    tl.store(into + across, x, mask=there)
    tl.store(into + across + channels, x, mask=there)


@triton.jit
def _quantise(x_ptr, out_ptr, scale_ptr, channels, greatest, least, WIDTH: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    c = tl.arange(0, WIDTH)
    there = c < channels
    x = tl.load(x_ptr + token * channels + c, mask=there, other=0.0).to(tl.float32)
    scale = tl.maximum(tl.max(tl.abs(x), 0) / greatest, least)
    tl.store(out_ptr + token * channels + c, (x / scale).to(out_ptr.dtype.element_ty), mask=there)
    tl.store(scale_ptr + token, scale)


def add_norm(
    x: Tensor, norm: tuple[Tensor, Tensor, float] | None, dtype: torch.dtype | None, branch: Tensor | None,
    gate: Tensor | None, camera: tuple[Tensor, Tensor, Tensor | None] | None,
) -> Pair:  # fmt: skip
    """`world.nn.rows.add_norm` with weight, bias and epsilon as `norm`, or without a norm its first half; scale,
    shift and slots as `camera`."""
    rows, length, channels = x.shape
    x = x.contiguous()
    summed = x if branch is None and camera is None else torch.empty_like(x)
    normed = x if norm is None else torch.empty_like(x, dtype=dtype)
    weight, bias, eps = norm or (x, x, 0.0)
    scale, shift, slots = camera or (x, x, None)
    _add_norm[(rows * length,)](
        x, _given(branch, x), x if gate is None else gate, _given(slots, x), _given(scale, x), _given(shift, x), weight,
        bias, summed, normed, channels, length, _between(gate), _between(weight), _between(bias), eps,
        BRANCH=branch is not None, GATE=gate is not None, CAMERA=camera is not None, SLOTS=slots is not None,
        NORM=norm is not None, WIDTH=triton.next_power_of_2(channels), num_warps=WARPS,
    )  # fmt: skip
    return summed, normed


def norm_turn(x: Tensor, weight: Tensor, eps: float, turn: Pair | None) -> Tensor:
    """`world.nn.rows.norm_turn`, [B, L, C]."""
    x = x.contiguous()
    out = torch.empty_like(x)
    _normed_and_turned(x, weight, eps, turn, out, kept=None)
    return out


def keep(
    x: Tensor, v: Tensor, weight: Tensor, eps: float, turn: Pair | None, k_ring: Tensor, v_ring: Tensor, at: Tensor,
    run: int,
) -> None:  # fmt: skip
    """`norm_turn` of keys [B, L, C] into a ring [T, N, d], and values [B, L, C] as they are into another one, at places
    int64 [B L], of which each `run` (a power of two) follow each other from a multiple of it on. Both are contiguous,
    but for values in FP8, of which a channel's are."""
    assert k_ring.is_contiguous() and (v_ring.is_contiguous() or v_ring.stride(0) == 1)
    v = v.contiguous()
    _normed_and_turned(x.contiguous(), weight, eps, turn, k_ring, kept=(v, v_ring, at))
    if v_ring.itemsize == 1:
        tokens, channels = at.shape[0], v.shape[2]
        grid = triton.cdiv(tokens, TURNED_TOKENS), triton.cdiv(channels, TURNED_CHANNELS)
        _turn_over[grid](
            v, at, v_ring, tokens, channels, v_ring.stride(2),
            RUN=run, TOKENS=TURNED_TOKENS, WIDTH=TURNED_CHANNELS, num_warps=4,
        )  # fmt: skip


def _normed_and_turned(
    x: Tensor, weight: Tensor, eps: float, turn: Pair | None, out: Tensor, kept: tuple[Tensor, Tensor, Tensor] | None
) -> None:
    rows, length, channels = x.shape
    cos, sin = (t.contiguous() for t in turn) if turn is not None else (weight, weight)
    v, v_out, at = kept or (x, out, x)
    _norm_turn[(rows * length,)](
        x, v, weight, cos, sin, at, out, v_out, channels, eps, TURN=turn is not None, KEEP=kept is not None,
        VALUES=v_out.itemsize > 1, PAIRS=cos.shape[-1], WIDTH=triton.next_power_of_2(channels), num_warps=WARPS,
    )  # fmt: skip


def unit_norm(x: Tensor, gamma: Tensor, silu: bool) -> Tensor:
    """`world.nn.rows.unit_norm`."""
    x = x.contiguous()
    out = torch.empty_like(x)
    frames, area, channels = x.shape[:2].numel(), x.shape[2:-1].numel(), x.shape[-1]
    many, grid, width = _pixels(frames, area, channels)
    _frames[grid](
        x, x, x, gamma, x, x, x, out, x, 1, area, channels, channels**0.5,
        BIAS=False, STREAM=False, WHOLE=False, NORM=True, SILU=silu, STACK=False, AT=False,
        PIXELS=many, WIDTH=width, num_warps=4,
    )  # fmt: skip
    return out


def stacked(
    x: Tensor, bias: Tensor | None, stream: Tensor | None, gamma: Tensor | None, past: Tensor, kept: Tensor,
    at: Tensor | None, whole: bool,
) -> Pair:  # fmt: skip
    """`world.nn.rows.stacked`, with the sum of x, bias and stream if it is wanted whole, else x."""
    b, frames, height, width, channels = x.shape
    x = x.contiguous()
    past = kept if past is kept else past.contiguous()
    assert kept.is_contiguous()
    summed = torch.empty_like(x) if whole else x
    out = x.new_empty(b, frames, height, width, 3 * channels)
    many, grid, wide = _pixels(b, height * width, channels)
    _frames[grid](
        x, _given(bias, x), _given(stream, x), _given(gamma, x), past, _given(at, x), summed, out, kept,
        frames, height * width, channels, channels**0.5,
        BIAS=bias is not None, STREAM=stream is not None, WHOLE=whole, NORM=gamma is not None, SILU=gamma is not None,
        STACK=True, AT=at is not None, PIXELS=many, WIDTH=wide, num_warps=4,
    )  # fmt: skip
    return summed, out


def doubled(x: Tensor, bias: Tensor | None, stream: Tensor | None, channels: int) -> Tensor:
    """`world.nn.rows.doubled`."""
    b, frames, height, width, all_channels = x.shape
    x, images = x.contiguous(), frames * all_channels // channels
    out = x.new_empty(b, images, 2 * height, 2 * width, channels)
    many, grid, wide = _pixels(b * images, height * width, channels)
    _doubled[grid](
        x, _given(bias, x), _given(stream, x), out, height * width, width, all_channels // channels, channels,
        BIAS=bias is not None, STREAM=stream is not None, PIXELS=many, WIDTH=wide, num_warps=4,
    )  # fmt: skip
    return out


def _pixels(images: int, area: int, channels: int) -> tuple[int, tuple[int, int], int]:
    """How many pixels a program has, the programs of so many images, and channels as a power of two."""
    width = triton.next_power_of_2(channels)
    many = max(1, PROGRAM // width)
    return many, (triton.cdiv(area, many), images), width


def quantise(x: Tensor, dtype: torch.dtype, greatest: float, least: float) -> Pair:
    """[n, K] -> [n, K] in an FP8 dtype and the scales of rows, float32 [n, 1], `least` or more: a row's greatest number
    becomes `greatest`."""
    tokens, channels = x.shape
    x = x.contiguous()
    out = torch.empty_like(x, dtype=dtype)
    scale = torch.empty(tokens, 1, dtype=torch.float32, device=x.device)
    _quantise[(tokens,)](
        x, out, scale, channels, greatest, least, WIDTH=triton.next_power_of_2(channels), num_warps=WARPS
    )
    return out, scale


def _given(t: Tensor | None, other: Tensor) -> Tensor:
    return other if t is None else t.contiguous()


def _between(t: Tensor | None) -> int:
    """Elements from the channels of one row to those of the next, of [C] or [B, 1, C]."""
    return 0 if t is None or t.dim() == 1 or len(t) == 1 else t.stride(0)
