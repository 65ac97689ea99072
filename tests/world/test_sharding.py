"""Weights that ranks share are the same weights: nothing of a forward changes, and nobody has to have them all."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.tiny_checkpoints import random_like
from tests.world.ranked import together
from tests.world.test_dit import CFG, forward, inputs
from world.chunk import PRECISIONS, WEIGHT_LAYOUTS, Precision
from world.identity import weights_digests
from world.nn.dit import CausalDiT, keeps_float32
from world.nn.fp8 import to_fp8
from world.ranks import Ranks
from world.sharding import lay_out


def model(precision: Precision) -> CausalDiT:
    """In the dtypes that are served: FSDP gathers blocks of two dtypes, or of three."""
    dit = CausalDiT(CFG)
    dit.load_state_dict(random_like(dit, torch.Generator().manual_seed(0)))
    for key, parameter in dit.named_parameters():
        parameter.data = parameter.data.to(torch.float32 if keeps_float32(key) else torch.bfloat16)
    if precision != "native":
        to_fp8(dit, torch.device("cpu"))
    return dit.eval().requires_grad_(False)


def held(dit: CausalDiT) -> int:
    return sum((p.to_local() if hasattr(p, "to_local") else p).numel() for p in dit.parameters())


def forwards(ranks: Ranks, precision: Precision) -> dict[str, tuple[Tensor, Tensor, list[int], tuple[str, str]]]:
    made = {}
    for layout in WEIGHT_LAYOUTS:
        dit = model(precision)
        lay_out(dit, layout, ranks)
        sizes = [held(dit)]
        first, _ = forward(dit, *inputs(3), 2)
        again, _ = forward(dit, *inputs(3), 2)
        sizes.append(held(dit))
        made[layout] = first, again, sizes, weights_digests({"dit": dit}, lambda stage, share: None)
    return made


@pytest.mark.parametrize("precision", PRECISIONS[:2])  # keys and values are no weights
def test_every_layout_computes_the_same_bits(precision: Precision, tmp_path: Path) -> None:
    for made in together(2, forwards, tmp_path, precision):
        dit, (expected, _) = model(precision), forward(model(precision), *inputs(3), 2)
        digests = weights_digests({"dit": dit}, lambda stage, share: None)
        for layout in WEIGHT_LAYOUTS:
            first, again, _, identity = made[layout]
            assert torch.equal(first, expected) and torch.equal(again, expected), layout
            assert identity == digests, "the identity is of the whole weights, wherever they lie"
        total = held(dit)
        assert made["replicated"][2] == [total, total]
        before, after = made["gathered"][2]
        assert before < 0.6 * total < after, "kept whole once they were used"
        before, after = made["sharded"][2]
        assert before < 0.6 * total and after < 0.7 * total, "blocks are given back after every forward"
