"""The ring attention's kernel: a row sees its own valid prefix, in one order, by as many tiles as that takes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.world.kernels import DEVICE, HALF, needs_triton
from tests.world.test_attention import case, one_row, spoil
from world.nn.attention import ring_sdpa
from world.nn.rows import SCALES_ALIGNED, Quantised, quantise, scales_of

pytestmark = needs_triton


def halved(seed: int, **sizes: int) -> tuple[Tensor, Tensor, Tensor, Tensor, int, Tensor]:
    *tensors, room, valid = case(seed, **sizes)
    q, k, v = (t.to(DEVICE, HALF) for t in tensors[:3])
    return q, k, v, tensors[3].to(DEVICE), room, valid.to(DEVICE)


def attend(*arguments: Tensor | Quantised | int) -> Tensor:
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


E4M3 = torch.float8_e4m3fn


def rounded(t: Tensor) -> Quantised:
    """A ring in FP8."""
    ring = Quantised(torch.zeros_like(t, dtype=E4M3), scales_of(*t.shape[:2], t.device))
    ring.copy_(t)
    return ring


def coarse(seed: int, **sizes: int) -> tuple[Tensor, Quantised, Quantised, Tensor, int, Tensor]:
    """Tokens of very different sizes; queries are in FP8 already, so that rounding them again changes nothing."""
    sizes["room"] = -(-sizes["room"] // SCALES_ALIGNED) * SCALES_ALIGNED
    q, k, v, begins, room, valid = halved(seed, **sizes)
    more = SCALES_ALIGNED - 1  # tokens that are nobody's
    k, v, begins = torch.cat([k[:more], k]), torch.cat([v[:more], v]), begins + more
    loud = torch.logspace(-2, 2, len(k), device=k.device).to(k.dtype)[:, None, None]
    of = quantise(q, E4M3)
    of.values[..., 0] = 448.0
    q = (of.values.float() * 2**-8).to(q.dtype)
    return q, rounded(k * loud.flip(0).sqrt()), rounded(v * loud), begins, room, valid


@settings(max_examples=10, deadline=None)
@given(
    seed=st.integers(0, 2**32), rows=st.integers(1, 3), length=st.integers(1, 150), room=st.integers(1, 300),
    dim=st.sampled_from([32, 64, 128]),
)  # fmt: skip
def test_rings_in_fp8_are_what_they_stand_for_and_nothing_else_shows(seed, rows, length, room, dim):
    """As near to float64 as in half precision: only probabilities and results are rounded."""
    q, k, v, begins, room, valid = coarse(seed, rows=rows, length=length, room=room, dim=dim)
    before = attend(q, k, v, begins, room, valid)
    exact_k, exact_v = (ring.values.double() * ring.scale for ring in (k, v))
    for row, (at, n) in enumerate(zip(begins.tolist(), valid.tolist(), strict=True)):
        exact = one_row(q[row], exact_k[at : at + n], exact_v[at : at + n])
        assert (before[row].double() - exact).norm() / exact.norm() < 4e-3
    read = torch.zeros(len(k.scale), dtype=torch.bool, device=k.scale.device)
    for at, n in zip(begins.tolist(), valid.tolist(), strict=True):
        read[at : at + n] = True
    for t in (k.values, k.scale, v.values, v.scale):
        t.copy_(torch.where(read[:, None, None], t.float(), float("nan")))
    assert torch.equal(attend(q, k, v, begins, room, valid), before), "what is behind a row's prefix was read"


def test_a_row_in_fp8_has_the_bits_it_has_alone():
    q, k, v, begins, room, valid = coarse(3, rows=3, length=131, room=260, dim=64)
    together = attend(q, k, v, begins, room, valid)
    for i in range(3):
        one = slice(i, i + 1)
        assert torch.equal(together[one], attend(q[one], k, v, begins[one], room, valid[one]))


def test_what_is_no_number_in_a_ring_in_fp8_shows():
    q, k, v, begins, room, valid = coarse(5, rows=2, length=20, room=100, dim=32)
    v[begins[0] : begins[0] + 1].copy_(torch.full_like(v.values[:1], float("nan"), dtype=torch.float32))
    bad, fine = attend(q, k, v, begins, room, valid)
    assert bad.isnan().all() and fine.isfinite().all()


def test_queries_are_rounded_to_fp8_a_scale_a_token_and_head():
    """By either way through the door: 2 % apart at most, 20 % interpreted, where FP8 loses carries."""
    _, k, v, begins, room, valid = coarse(6, rows=2, length=40, room=100, dim=64)
    q, *_ = halved(6, rows=2, length=40, room=100, dim=64)
    q[:, 1:] *= 1e-3
    made = attend(q, k, v, begins, room, valid)
    of = quantise(q, E4M3)
    expected = ring_sdpa(q.float(), k, v, begins, room, valid)
    fine = ring_sdpa(of.to(torch.float32), k, v, begins, room, valid)
    assert torch.equal(expected, fine), "the door without a kernel rounds too"
    assert 0 < (made - expected).norm() / expected.norm() < (0.02 if DEVICE == "cuda" else 0.2)
