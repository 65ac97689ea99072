"""Linears in FP8 (Micikevicius et al. 2022, e4m3): each output channel of a weight and each token of an activation is
scaled so that its greatest number is the greatest there is, 448, and rounded. If asked, the keys and values that
streams keep are rounded too, as they are (`world.slab`).

A token's scale comes from that token alone, when it is multiplied (by several linears: once): what is made of a row
does not depend on the rows beside it, and nothing is calibrated. Of a DiT those linears of its blocks are replaced that
are large and run in every forward or, for the camera, in every chunk; prompts, embeddings, time and head stay as they
are, and so do the dtypes between linears.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from world.chunk import Precision, WorldError
from world.nn.dit import CausalDiT
from world.nn.rows import Quantised, quantise

E4M3 = torch.float8_e4m3fn
UNIT = 16  # numbers, of which a GPU takes whole ones

# In every block, by their names in it.
LINEARS = (
    *(f"self_attn.{name}" for name in ("q", "k", "v", "o")),
    *(f"cross_attn.{name}" for name in ("q", "o")),
    "ffn.0",
    "ffn.2",
    *(f"cam_injector_layer{i}" for i in (1, 2)),
    "cam_scale_layer",
    "cam_shift_layer",
)

# x e4m3 [M, K], its scales float32 [M, 1], weight e4m3 [N, K], its scales float32 [N, 1], bias bfloat16 [N]
# -> bfloat16 [M, N]
Product = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


def scaled_product(x: Tensor, x_scale: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor) -> Tensor:
    """By the tensor cores of a GPU (Hopper or later)."""
    return torch._scaled_mm(
        x, weight.t(), scale_a=x_scale, scale_b=weight_scale.t(), bias=bias, out_dtype=torch.bfloat16,
        use_fast_accum=True,
    )  # fmt: skip


def plain_product(x: Tensor, x_scale: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor) -> Tensor:
    """The same in float32: it rounds what is multiplied as much, and is no faster than without FP8."""
    made = F.linear(x.float(), weight.float())
    return made.mul_(x_scale).mul_(weight_scale.t()).add_(bias).bfloat16()


def product_door(device: torch.device) -> Product:
    """The product to use on this device. On CPUs torch's own takes a scale a row with some instruction sets only."""
    return scaled_product if device.type == "cuda" else plain_product


class Float8Linear(nn.Module):
    """A linear with its weight in FP8: bfloat16 [..., K], rounded already or not, -> bfloat16 [..., N]."""

    def __init__(self, linear: nn.Linear, product: Product):
        super().__init__()
        weight = quantise(linear.weight.detach(), E4M3)
        self.weight = nn.Parameter(weight.values, requires_grad=False)  # [N, K]
        self.scale = nn.Parameter(weight.scale, requires_grad=False)  # [N, 1]
        self.bias = nn.Parameter(linear.bias.detach().bfloat16(), requires_grad=False)  # [N]
        self.product = product

    def forward(self, x: Tensor | Quantised) -> Tensor:
        if isinstance(x, Tensor):
            x = quantise(x, E4M3)
        values, scale = x.values.flatten(0, -2), x.scale.flatten(0, -2)
        made = self.product(values, scale, self.weight, self.scale, self.bias)
        return made.unflatten(0, x.values.shape[:-1])


def to_fp8(dit: CausalDiT, device: torch.device) -> None:
    """All of LINEARS in every block, for a DiT that will compute on this device."""
    for block in dit.blocks:
        for path in LINEARS:
            _replace(block, path, product_door(device))


def when_placed(dit: CausalDiT, precision: Precision, device: torch.device) -> Callable[[str], None]:
    """To be told the name of each parameter of a DiT on the meta device that was given its tensor: in FP8 a linear is
    replaced as soon as it has both of its, so that there is never more than one in the dtype it came in."""

    def replace_if_whole(name: str) -> None:
        *block, path = name.rpartition(".")[0].split(".", 2)  # blocks, 3, ffn.0
        if path in LINEARS:
            owner = dit.get_submodule(".".join(block))
            linear = owner.get_submodule(path)
            if not (linear.weight.is_meta or linear.bias.is_meta):
                _replace(owner, path, product_door(device))

    return replace_if_whole if precision != "native" else lambda name: None


def precision_of(dit: CausalDiT, kv_dtype: torch.dtype) -> Precision:
    """Of a DiT and of the keys and values it leaves. WorldError if that has no name."""
    coarse = kv_dtype == E4M3
    if isinstance(dit.blocks[0].ffn[0], Float8Linear):
        return "fp8-kv" if coarse else "fp8"
    if coarse:
        raise WorldError("keys and values are kept in FP8 beside linears in FP8 only")
    return "native"


def _replace(block: nn.Module, path: str, product: Product) -> None:
    linear = block.get_submodule(path)
    if linear.in_features % UNIT or linear.out_features % UNIT:
        size = f"{linear.in_features} to {linear.out_features}"
        raise WorldError(f"a linear of {size} numbers cannot be kept in FP8: both must be multiples of {UNIT}")
    block.set_submodule(path, Float8Linear(linear, product))
