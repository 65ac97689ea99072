"""The attention door: a row sees the valid prefix of its own slot's ring, and nothing else, by either way through."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from world.nn.attention import attend, ring_door, ring_flash, ring_sdpa


def one_row(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k / sqrt(d)) v in float64: q [L, N, d], k and v [S, N, d]."""
    scores = torch.einsum("lnd,snd->nls", q.double(), k.double()) / q.shape[-1] ** 0.5
    return torch.einsum("nls,snd->lnd", scores.softmax(-1), v.double())


def case(seed: int, rows: int = 3, slots: int = 5, size: int = 12, length: int = 4, heads: int = 2, dim: int = 8):
    g = torch.Generator().manual_seed(seed)
    q = torch.randn(rows, length, heads, dim, generator=g)
    k, v = torch.randn(2, slots, size, heads, dim, generator=g)
    at = torch.randperm(slots, generator=g)[:rows]
    valid = torch.randint(1, size + 1, (rows,), generator=g, dtype=torch.int32)
    return q, k, v, at, valid


class FlashStandIn:
    """`torch.ops.aten`, with flash attention in plain arithmetic for what the door uses: sequences packed into q
    [n, N, d] between `cum_seq_q`, their keys beginning at `cum_seq_k` in [m, N, d], `seqused_k` of them."""

    schema = torch.ops.aten._flash_attention_forward.default._schema

    def _flash_attention_forward(self, *args, **kwargs):
        names = [argument.name for argument in self.schema.arguments]
        call = dict(zip(names, args, strict=False)) | kwargs
        assert call.keys() <= set(names), "an argument that torch does not know"
        q, k, v, begins, ring_begins = (call[name] for name in ("query", "key", "value", "cum_seq_q", "cum_seq_k"))
        lengths = call["seqused_k"]
        assert begins.dtype == ring_begins.dtype == lengths.dtype == torch.int32
        assert len(begins) == len(ring_begins) == len(lengths) + 1
        assert call["dropout_p"] == 0 and not call["is_causal"] and not call["return_debug_mask"]
        assert call["max_q"] == (begins[1:] - begins[:-1]).max() and call["max_k"] >= lengths.max()
        assert all(t.stride(-1) == 1 for t in (q, k, v)), "the last axis must be contiguous"
        rows = [
            one_row(q[first:last], k[at : at + n], v[at : at + n])
            for first, last, at, n in zip(begins[:-1], begins[1:], ring_begins, lengths, strict=False)
        ]
        return torch.cat(rows).to(q.dtype), None, None, None, None


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32), rows=st.integers(1, 5), length=st.integers(1, 6), size=st.integers(1, 20))
def test_ring_attention_is_plain_attention_over_the_valid_prefix(seed, rows, length, size):
    q, k, v, slots, valid = case(seed, rows=rows, length=length, size=size)
    got = ring_sdpa(q, k, v, slots, valid)
    for row, (slot, n) in enumerate(zip(slots, valid, strict=True)):
        torch.testing.assert_close(got[row].double(), one_row(q[row], k[slot, :n], v[slot, :n]), rtol=0, atol=1e-5)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_what_is_behind_the_mask_changes_no_bit(seed):
    """Finite garbage behind a row's valid prefix, NaN in the slots of strangers."""
    q, k, v, slots, valid = case(seed)
    before = ring_sdpa(q, k, v, slots, valid)
    for slot in set(range(k.shape[0])) - set(slots.tolist()):
        k[slot], v[slot] = float("nan"), float("nan")
    for slot, n in zip(slots, valid, strict=True):
        k[slot, n:], v[slot, n:] = 1e4, -1e4
    assert torch.equal(ring_sdpa(q, k, v, slots, valid), before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_has_the_bits_it_has_alone(dtype):
    q, k, v, slots, valid = (t.to(dtype) if t.is_floating_point() else t for t in case(3, rows=5, size=40, dim=16))
    together = ring_sdpa(q, k, v, slots, valid)
    for i in range(5):
        one = slice(i, i + 1)
        assert torch.equal(together[one], ring_sdpa(q[one], k, v, slots[one], valid[one]))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32), rows=st.integers(1, 5))
def test_flash_is_called_as_documented_and_agrees(seed, rows):
    q, k, v, slots, valid = case(seed, rows=rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.ops, "aten", FlashStandIn())
        got = ring_flash(q, k, v, slots, valid)
    torch.testing.assert_close(got, ring_sdpa(q, k, v, slots, valid), rtol=0, atol=1e-5)


def test_the_door_takes_flash_where_it_can_run():
    assert ring_door(torch.device("cuda"), torch.bfloat16) is ring_flash
    assert ring_door(torch.device("cuda"), torch.float32) is ring_sdpa, "flash attention has no float32"
    assert ring_door(torch.device("cpu"), torch.bfloat16) is ring_sdpa


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dim", [64, 128])
def test_on_a_gpu_both_ways_agree_and_a_row_has_the_bits_it_has_alone(dim):
    """Both round probabilities and results to bfloat16: 4e-3 of a row's norm apart from float64 at most."""
    made = case(7, rows=3, slots=6, size=333, length=104, heads=4, dim=dim)
    q, k, v, slots, valid = (t.cuda().bfloat16() if t.is_floating_point() else t.cuda() for t in made)
    for door in (ring_flash, ring_sdpa):
        before = door(q, k, v, slots, valid)
        for row, (slot, n) in enumerate(zip(slots.tolist(), valid.tolist(), strict=True)):
            exact = one_row(q[row], k[slot, :n], v[slot, :n])
            assert (before[row].double() - exact).norm() / exact.norm() < 4e-3
            one = slice(row, row + 1)
            assert torch.equal(before[one], door(q[one], k, v, slots[one], valid[one]))
        for slot in set(range(6)) - set(slots.tolist()):
            k[slot], v[slot] = float("nan"), float("nan")
        for slot, n in zip(slots, valid, strict=True):
            k[slot, n:], v[slot, n:] = 1e4, -1e4
        assert torch.equal(door(q, k, v, slots, valid), before), "what is behind a row's prefix was read"
        k, v = k.nan_to_num(0.5), v.nan_to_num(0.5)


def test_attention_without_a_ring_has_no_mask():
    q, k, v, _, _ = case(1, rows=5)
    got = attend(q, k, v)
    for row in range(5):
        torch.testing.assert_close(got[row].double(), one_row(q[row], k[row], v[row]), rtol=0, atol=1e-5)
