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
PROGRAM = 4096  # numbers that a program of small tokens has
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
    TURN: tl.constexpr, KEEP: tl.constexpr, PAIRS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    c = tl.arange(0, WIDTH)
    there = c < channels
    at = token * channels + c
    into = at
    x = tl.load(x_ptr + at, mask=there, other=0.0).to(tl.float32)
    if KEEP:
        into = tl.load(at_ptr + token) * channels + c
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
def _unit_norm(
    x_ptr, gamma_ptr, out_ptr, pixels, channels, root, frames, area, SILU: tl.constexpr, STACK: tl.constexpr,
    PIXELS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    pixel = tl.program_id(0).to(tl.int64) * PIXELS + tl.arange(0, PIXELS)[:, None]
    c = tl.arange(0, WIDTH)[None, :]
    there = (pixel < pixels) & (c < channels)
    x = tl.load(x_ptr + pixel * channels + c, mask=there, other=0.0).to(tl.float32)
    size = tl.maximum(tl.sqrt(tl.sum(x * x, 1)), 1e-12)
    gamma = tl.load(gamma_ptr + c, mask=c < channels, other=0.0).to(tl.float32) * root
    x = x / size[:, None] * gamma
    if SILU:
        x = x * tl.sigmoid(x)
    frame = pixel // area % frames
    for k in tl.static_range(STACK):  # a frame is the newest of its own stack and older in the next ones
        at = ((pixel + k * area) * STACK + (STACK - 1 - k)) * channels + c
        tl.store(out_ptr + at, x.to(out_ptr.dtype.element_ty), mask=there & (frame + k < frames))


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
    x: Tensor, v: Tensor, weight: Tensor, eps: float, turn: Pair | None, k_ring: Tensor, v_ring: Tensor, at: Tensor
) -> None:
    """`norm_turn` of keys [B, L, C] into a ring [T, C], and values [B, L, C] as they are into another one, at places
    int64 [B L]. Both rings are contiguous."""
    assert k_ring.is_contiguous() and v_ring.is_contiguous()
    _normed_and_turned(x.contiguous(), weight, eps, turn, k_ring, kept=(v.contiguous(), v_ring, at))


def _normed_and_turned(
    x: Tensor, weight: Tensor, eps: float, turn: Pair | None, out: Tensor, kept: tuple[Tensor, Tensor, Tensor] | None
) -> None:
    rows, length, channels = x.shape
    cos, sin = (t.contiguous() for t in turn) if turn is not None else (weight, weight)
    v, v_out, at = kept or (x, out, x)
    _norm_turn[(rows * length,)](
        x, v, weight, cos, sin, at, out, v_out, channels, eps, TURN=turn is not None, KEEP=kept is not None,
        PAIRS=cos.shape[-1], WIDTH=triton.next_power_of_2(channels), num_warps=WARPS,
    )  # fmt: skip


def unit_norm(x: Tensor, gamma: Tensor, silu: bool) -> Tensor:
    """`world.nn.rows.unit_norm`."""
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    _normed_into(out, x, gamma, silu, stack=1)
    return out


def stacked_norm(x: Tensor, gamma: Tensor, past: Tensor) -> Tensor:
    """Unit norm and SiLU of frames [B, T, H, W, C], each behind the two before it [B, T, H, W, 3 C]; `past`
    [B, 2, H, W, C] are those before the first, normed already."""
    b, frames, height, width, channels = x.shape
    out = x.new_empty(b, frames, height, width, 3, channels)
    _normed_into(out, x, gamma, silu=True, stack=3)
    out[:, 0, ..., :2, :] = past.movedim(1, -2)
    if frames > 1:
        out[:, 1, ..., 0, :] = past[:, 1]
    return out.flatten(-2)


def _normed_into(out: Tensor, x: Tensor, gamma: Tensor, silu: bool, stack: int) -> None:
    channels, frames, area = x.shape[-1], x.shape[1], x.shape[2:-1].numel()
    width = triton.next_power_of_2(channels)
    many, pixels = max(1, PROGRAM // width), x.numel() // channels
    _unit_norm[(triton.cdiv(pixels, many),)](
        x.contiguous(), gamma, out, pixels, channels, channels**0.5, frames, area, SILU=silu, STACK=stack,
        PIXELS=many, WIDTH=width, num_warps=4,
    )  # fmt: skip


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
