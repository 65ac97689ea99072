"""The ring attention's kernel: a row sees its own valid prefix, in one order, by as many tiles as that takes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.world.kernels import DEVICE, HALF, needs_triton
from tests.world.test_attention import case, one_row, spoil

pytestmark = needs_triton


def halved(seed: int, **sizes: int) -> tuple[Tensor, Tensor, Tensor, Tensor, int, Tensor]:
    *tensors, room, valid = case(seed, **sizes)
    q, k, v = (t.to(DEVICE, HALF) for t in tensors[:3])
    return q, k, v, tensors[3].to(DEVICE), room, valid.to(DEVICE)


def attend(*arguments: Tensor | int) -> Tensor:
    from world.nn.ring_kernel import ring_triton

    return ring_triton(*arguments)


@settings(max_examples=10, deadline=None)
@given(
    seed=st.integers(0, 2**32), rows=st.integers(1, 3), length=st.integers(1, 150), room=st.integers(1, 300),
    dim=st.sampled_from([32, 64, 128]),
)  # fmt: skip
def test_it_is_plain_attention_over_the_valid_prefix_and_nothing_else_shows(seed, rows, length, room, dim):
    """Probabilities and results are rounded to half precision: 4e-3 of a row's norm apart from float64 at most."""
    q, k, v, begins, room, valid = halved(seed, rows=rows, length=length, room=room, dim=dim)
    before = attend(q, k, v, begins, room, valid)
    for row, (at, n) in enumerate(zip(begins.tolist(), valid.tolist(), strict=True)):
        exact = one_row(q[row], k[at : at + n], v[at : at + n])
        assert (before[row].double() - exact).norm() / exact.norm() < 4e-3
    spoil(k, v, begins, room, valid)
    for begin, n in zip(begins.tolist(), valid.tolist(), strict=True):
        k[begin + n : begin + room] = v[begin + n : begin + room] = float("nan")
    assert torch.equal(attend(q, k, v, begins, room, valid), before), "what is behind a row's prefix was read"


def test_a_row_has_the_bits_it_has_alone():
    q, k, v, begins, room, valid = halved(3, rows=3, length=131, room=260, dim=64)
    together = attend(q, k, v, begins, room, valid)
    for i in range(3):
        one = slice(i, i + 1)
        assert torch.equal(together[one], attend(q[one], k, v, begins[one], room, valid[one]))


@pytest.mark.parametrize("heads", [1, 2])
def test_queries_may_be_part_of_a_wider_tensor(heads):
    q, *rest = halved(4, rows=2, length=20, room=100, heads=heads, dim=32)
    wide = torch.cat([q, q], dim=1)[:, : q.shape[1]]
    assert torch.equal(attend(wide, *rest), attend(q, *rest))
