"""The attention door: a row sees the valid prefix of its own slot's ring, and nothing else, by either way through."""

from __future__ import annotations

import sys

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.world.kernels import needs_triton
from world.nn.attention import attend, ring_door, ring_sdpa
from world.nn.rows import rounded


def one_row(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k / sqrt(d)) v in float64: q [L, N, d], k and v [S, N, d]."""
    scores = torch.einsum("lnd,snd->nls", q.double(), k.double()) / q.shape[-1] ** 0.5
    return torch.einsum("nls,snd->lnd", scores.softmax(-1), v.double())


def case(seed: int, rows: int = 3, rings: int = 5, room: int = 12, length: int = 4, heads: int = 2, dim: int = 8):
    """Arguments of a door: rings of `room` tokens behind one of a token, which is nobody's."""
    g = torch.Generator().manual_seed(seed)
    q = torch.randn(rows, length, heads, dim, generator=g)
    k, v = torch.randn(2, 1 + rings * room, heads, dim, generator=g)
    begins = 1 + torch.randperm(rings, generator=g)[:rows] * room
    valid = torch.randint(1, room + 1, (rows,), generator=g, dtype=torch.int32)
    return q, k, v, begins, room, valid


def spoil(k: Tensor, v: Tensor, begins: Tensor, room: int, valid: Tensor) -> None:
    """Garbage behind the rows' valid prefixes, NaN in the rings of strangers."""
    old_k, old_v = k.clone(), v.clone()
    k[:], v[:] = float("nan"), float("nan")
    for begin, n in zip(begins.tolist(), valid.tolist(), strict=True):
        own, rest = slice(begin, begin + n), slice(begin + n, begin + room)
        k[own], v[own] = old_k[own], old_v[own]
        k[rest], v[rest] = 1e4, -1e4


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32), rows=st.integers(1, 5), length=st.integers(1, 6), room=st.integers(1, 20))
def test_ring_attention_is_plain_attention_over_the_valid_prefix(seed, rows, length, room):
    q, k, v, begins, room, valid = case(seed, rows=rows, length=length, room=room)
    got = ring_sdpa(q, k, v, begins, room, valid)
    for row, (at, n) in enumerate(zip(begins, valid, strict=True)):
        expected = one_row(q[row], k[at : at + n], v[at : at + n])
        torch.testing.assert_close(got[row].double(), expected, rtol=0, atol=1e-5)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_what_is_behind_the_mask_changes_no_bit(seed):
    q, k, v, *rings = case(seed)
    before = ring_sdpa(q, k, v, *rings)
    spoil(k, v, *rings)
    assert torch.equal(ring_sdpa(q, k, v, *rings), before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_has_the_bits_it_has_alone_and_those_of_masked_attention_over_its_whole_ring(dtype):
    q, k, v, begins, room, valid = case(3, rows=5, room=40, dim=16)
    q, k, v = (t.to(dtype) for t in (q, k, v))
    together = ring_sdpa(q, k, v, begins, room, valid)
    for i, (at, n) in enumerate(zip(begins.tolist(), valid.tolist(), strict=True)):
        one, ring = slice(i, i + 1), slice(at, at + room)
        assert torch.equal(together[one], ring_sdpa(q[one], k, v, begins[one], room, valid[one]))
        heads_first = (t.transpose(0, 1)[None] for t in (q[i], k[ring], v[ring]))
        whole = F.scaled_dot_product_attention(*heads_first, attn_mask=(torch.arange(room) < n).expand(1, 1, 1, -1))
        assert torch.equal(together[i], whole[0].transpose(0, 1))


def test_rings_in_fp8_are_what_they_stand_for_and_queries_are_rounded_as_keys_were():
    q, k, v, begins, room, valid = case(9)
    q[0, 0] *= 1e4
    q, k, v = (rounded(t, torch.float8_e4m3fn) for t in (q, k, v))
    spoilt_k, spoilt_v = (t.clone() for t in (k, v))
    for row, (at, n) in enumerate(zip(begins.tolist(), valid.tolist(), strict=True)):
        for t in (spoilt_k, spoilt_v):
            t[at + n : at + room] = float("nan")
        got = ring_sdpa(q.float() * 1.001, spoilt_k, spoilt_v, begins, room, valid)
        expected = one_row(q[row].float(), k[at : at + n].float(), v[at : at + n].float())
        torch.testing.assert_close(got[row].double(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("beyond", [20, 2])
def test_a_ring_shorter_than_the_room_is_its_valid_prefix(beyond):
    """A padding row's: what lies beyond is a stranger's NaN, or not even there."""
    q, k, v, _, room, _ = case(5, rows=2)
    k, v = k[: 4 + beyond], v[: 4 + beyond]
    k[4:], v[4:] = float("nan"), float("nan")
    got = ring_sdpa(q, k, v, torch.zeros(2, dtype=torch.int64), room, torch.full((2,), 4, dtype=torch.int32))
    for row in range(2):
        torch.testing.assert_close(got[row].double(), one_row(q[row], k[:4], v[:4]), rtol=0, atol=1e-5)


@needs_triton
@pytest.mark.parametrize("capability", [(8, 0), (9, 0), (10, 0)])
def test_the_door_takes_the_kernel_where_it_can_run(capability, monkeypatch):
    from world.nn.hopper_kernel import ring_hopper
    from world.nn.ring_kernel import ring_triton

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert ring_door(torch.device("cuda"), torch.bfloat16) is (ring_hopper if capability == (9, 0) else ring_triton)
    monkeypatch.setitem(sys.modules, "world.nn.hopper_kernel", None)
    assert ring_door(torch.device("cuda"), torch.bfloat16) is ring_triton, "without Gluon"
    assert ring_door(torch.device("cuda"), torch.float32) is ring_sdpa, "tensor cores would round float32"
    assert ring_door(torch.device("cpu"), torch.bfloat16) is ring_sdpa


def test_attention_without_a_ring_has_no_mask():
    q, *_ = case(1, rows=5)
    k, v = torch.randn(2, 5, 12, *q.shape[2:], generator=torch.Generator().manual_seed(1))
    got = attend(q, k, v)
    for row in range(5):
        torch.testing.assert_close(got[row].double(), one_row(q[row], k[row], v[row]), rtol=0, atol=1e-5)
