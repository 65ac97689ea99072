"""What networks do to single tokens or pixels between their matrix products: by kernels of its own where a GPU serves
(`world.nn.row_kernels`), everywhere else in torch's operations."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from world.nn.rope import rotate

Pair = tuple[Tensor, Tensor]
TILE = 128  # tokens that a GPU fetches at once
ALIGNED = 16  # bytes: at multiples of them begins each tile that it copies (by TMA), and each row that those are of
LEAST_SCALE = torch.finfo(torch.float32).tiny  # so that zeros are divided by something


@dataclass(frozen=True, slots=True, eq=False)
class ScaleShift:
    """What moves rows of tokens: scale and shift [R, L, C]. Row i takes row i of them or, with slots int64 [B], row
    slots[i], which kernels read where it lies."""

    scale: Tensor
    shift: Tensor
    slots: Tensor | None = None

    def first(self, rows: int) -> ScaleShift:
        if self.slots is None:
            return ScaleShift(self.scale[:rows], self.shift[:rows])
        return ScaleShift(self.scale, self.shift, self.slots[:rows])

    def pair(self) -> Pair:
        """Each row's own [B, L, C]."""
        return (self.scale, self.shift) if self.slots is None else (self.scale[self.slots], self.shift[self.slots])


def add(x: Tensor, branch: Tensor, gate: Tensor) -> Tensor:
    """x float32 [B, L, C] + gate float32 [B, 1, C] * branch [B, L, C]."""
    return _kernels().add_norm(x, None, None, branch, gate, None)[0] if fused(x) else x + gate * branch


def add_norm(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype, branch: Tensor | None = None,
    gate: Tensor | None = None, camera: ScaleShift | None = None,
) -> Pair:  # fmt: skip
    """The residual stream x float32 [B, L, C] with a branch [B, L, C] added to it, through a gate float32 [B, 1, C] if
    there is one, then moved by the camera; and its layer norm, with weight and bias float32
    [B, 1, C] or [C], in a dtype."""
    if fused(x):
        moved = None if camera is None else (camera.scale, camera.shift, camera.slots)
        return _kernels().add_norm(x, (weight, bias, eps), dtype, branch, gate, moved)
    if branch is not None:
        x = x + (branch if gate is None else gate * branch)
    if camera is not None:
        scale, shift = camera.pair()
        x = (1 + scale) * x + shift
    return x, (F.layer_norm(x, x.shape[-1:], eps=eps) * weight + bias).to(dtype)


def norm_turn(x: Tensor, weight: Tensor, eps: float, heads: int, turn: Pair | None) -> Tensor:
    """RMS norm of queries or keys [B, L, C] over all heads, which are then turned by cos and sin float32
    [B, L, 1, d / 2]: [B, L, N, d] in their dtype."""
    if fused(x):
        return _kernels().norm_turn(x, weight, eps, turn).unflatten(-1, (heads, -1))
    normed = F.rms_norm(x.float(), weight.shape, weight.float(), eps).to(x.dtype).unflatten(-1, (heads, -1))
    return normed if turn is None else rotate(normed, *turn)


def rounded(x: Tensor, dtype: torch.dtype) -> Tensor:
    """As a ring of this dtype keeps it: in FP8 what is beyond the greatest number becomes that."""
    most = torch.finfo(dtype).max
    return x.clamp(-most, most).to(dtype) if dtype.itemsize == 1 else x


def as_bytes(x: Tensor) -> Tensor:
    """A tensor in FP8 as what any device can copy by places; others as they are."""
    return x.view(torch.uint8) if x.itemsize == 1 else x


def fp8_rings(tokens: int, heads: int, width: int, dtype: torch.dtype, device: torch.device) -> Pair:
    """For keys and values [T, N, d], zeros. In memory the values of a channel lie together, as FP8 cores want them, and
    behind the keys there is a tile more, so that one may be fetched from any token on."""
    apart = -(-tokens // ALIGNED) * ALIGNED
    keys = torch.zeros(tokens + TILE, heads, width, dtype=dtype, device=device)
    values = torch.zeros(heads, width, apart, dtype=dtype, device=device)
    return keys[:tokens], values[..., :tokens].permute(2, 0, 1)


@dataclass(frozen=True, slots=True, eq=False)
class Keys:
    """Keys [B, L, N, d] and what is left to do to them: `norm_turn`, best done on the way to where they are kept."""

    x: Tensor
    norm: tuple[Tensor, float] | None = None  # weight [C] and epsilon; without one there is nothing to do
    turn: Pair | None = None

    def made(self) -> Tensor:
        return self.x if self.norm is None else norm_turn(self.x.flatten(2), *self.norm, self.x.shape[2], self.turn)

    def keep(self, v: Tensor, k_ring: Tensor, v_ring: Tensor, at: Tensor, run: int = 1) -> None:
        """Write them and values [B, L, N, d] into rings [T, N, d], which may be `fp8_rings`, at places int64 [B L], of
        which each `run` (a power of two) follow each other from a multiple of it on."""
        if self.norm is not None and fused(self.x):
            return _kernels().keep(self.x.flatten(2), v.flatten(2), *self.norm, self.turn, k_ring, v_ring, at, run)
        for ring, x in ((k_ring, self.made()), (v_ring, v)):
            x = rounded(x, ring.dtype).flatten(0, 1)
            as_bytes(ring).index_copy_(0, at, as_bytes(x))


def unit_norm(x: Tensor, gamma: Tensor, silu: bool) -> Tensor:
    """x / ||x|| over channels [B, T, H, W, C], times sqrt(C) and gamma [C]; then SiLU if asked."""
    if fused(x):
        return _kernels().unit_norm(x, gamma, silu)
    normed = F.normalize(x.float(), dim=-1).to(x.dtype) * (gamma * x.shape[-1] ** 0.5).to(x.dtype)
    return F.silu(normed) if silu else normed


@dataclass(frozen=True, slots=True, eq=False)
class Sum:
    """Frames [B, T, H, W, C] and what is left to be added to them, best done on the way to what reads them."""

    x: Tensor
    bias: Tensor | None = None  # [C]
    stream: Tensor | None = None  # [B, T, H, W, C]

    def made(self) -> Tensor:
        x = self.x if self.bias is None else self.x + self.bias
        return x if self.stream is None else x + self.stream


def stacked(
    x: Sum, gamma: Tensor | None, past: Tensor, kept: Tensor, at: Tensor | None, whole: bool
) -> tuple[Sum, Tensor]:
    """Where `fused`: each frame behind the two before it [B, T, H, W, 3 C], after unit norm and SiLU if there is a
    gamma [C]; and x, with `whole` added up. The two before the first are in past, and the last two go to kept, which
    may be the same: [B, 2, H, W, C], or [R, 2, H, W, C] of which row i has row at[i]."""
    whole = whole and (x.bias is not None or x.stream is not None)
    summed, made = _kernels().stacked(x.x, x.bias, x.stream, gamma, past, kept, at, whole)
    return (Sum(summed) if whole else x), made


def doubled(x: Sum, channels: int) -> Tensor:
    """Where `fused`: [B, T, H, W, n channels] -> [B, n T, 2 H, 2 W, channels]: n frames that lie one after another in
    channels, each pixel four times."""
    return _kernels().doubled(x.x, x.bias, x.stream, channels)


@dataclass(frozen=True, slots=True, eq=False)
class Quantised:
    """Tokens in an FP8 dtype [..., K] and the scale of each, float32 [..., 1]. In e4m3 their product is what they were
    but for 1/16 of each number, or 2^-10 scales."""

    values: Tensor
    scale: Tensor

    def __getitem__(self, rows: slice) -> Quantised:
        return Quantised(self.values[rows], self.scale[rows])


def quantise(x: Tensor, dtype: torch.dtype) -> Quantised:
    """Tokens [..., K]: the greatest number of each becomes the dtype's. One of zeros stays one, of a scale
    LEAST_SCALE; of one with NaN or an infinity in it NaN is made."""
    greatest = torch.finfo(dtype).max
    if fused(x):
        values, scale = _kernels().quantise(x.flatten(0, -2), dtype, greatest, LEAST_SCALE)
        return Quantised(values.unflatten(0, x.shape[:-1]), scale.unflatten(0, x.shape[:-1]))
    scale = (x.abs().amax(-1, keepdim=True).float() / greatest).clamp(min=LEAST_SCALE)
    return Quantised((x / scale).to(dtype).contiguous(), scale)


def linear_gelu(layer: nn.Module, x: Tensor) -> Tensor:
    """GELU (its tanh form) of a linear."""
    if fused(x) and x.is_cuda and type(layer) is nn.Linear:  # the product's last pass does it; a CPU's is another GELU
        made = torch._addmm_activation(layer.bias, x.flatten(0, -2), layer.weight.t(), use_gelu=True)
        return made.unflatten(0, x.shape[:-1])
    return F.gelu(layer(x), approximate="tanh")


def fused(x: Tensor) -> bool:
    """Whether kernels are there for it: they have no gradients."""
    return x.is_cuda and torch.is_inference_mode_enabled()


def _kernels():  # type: ignore[no-untyped-def]  # a module; Triton comes with torch for GPUs only
    from world.nn import row_kernels

    return row_kernels
