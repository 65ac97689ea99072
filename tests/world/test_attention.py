"""The attention door: a row sees the valid prefix of its own slot's ring, and nothing else, by either way through."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from world.nn import attention
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


def kvcache_stand_in(
    q, k_cache, v_cache, k=None, v=None, rotary_cos=None, rotary_sin=None, cache_seqlens=None, cache_batch_idx=None,
    cache_leftpad=None, block_table=None, softmax_scale=None, causal=False, window_size=(-1, -1), softcap=0.0,
    rotary_interleaved=True, alibi_slopes=None, num_splits=0, return_softmax_lse=False,
):  # fmt: skip
    """flash_attn_with_kvcache as documented, for what the door uses: q (batch, seqlen_q, nheads, headdim), caches
    (batch_cache, seqlen_cache, nheads_k, headdim), cache_seqlens (batch,) int32, cache_batch_idx (batch,) int32."""
    assert k is None and v is None and rotary_cos is None and block_table is None and cache_leftpad is None
    assert softmax_scale is None and not causal and window_size == (-1, -1) and softcap == 0.0 and alibi_slopes is None
    assert not return_softmax_lse and num_splits == 1, "more splits than one sum a row in another order"
    assert cache_seqlens.dtype == cache_batch_idx.dtype == torch.int32
    assert cache_seqlens.shape == cache_batch_idx.shape == q.shape[:1]
    assert all(t.stride(-1) == 1 for t in (q, k_cache, v_cache)), "the last axis must be contiguous"
    rows = [
        one_row(q[b], k_cache[slot, :length], v_cache[slot, :length])
        for b, (slot, length) in enumerate(zip(cache_batch_idx.tolist(), cache_seqlens.tolist(), strict=True))
    ]
    return torch.stack(rows).to(q.dtype)


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
        patch.setattr(attention, "flash_attn_with_kvcache", kvcache_stand_in)
        got = ring_flash(q, k, v, slots, valid)
    torch.testing.assert_close(got, ring_sdpa(q, k, v, slots, valid), rtol=0, atol=1e-5)


def test_the_door_takes_flash_where_it_can_run(monkeypatch):
    monkeypatch.setattr(attention, "flash_attn_with_kvcache", kvcache_stand_in)
    assert ring_door(torch.device("cuda"), torch.bfloat16) is ring_flash
    assert ring_door(torch.device("cuda"), torch.float32) is ring_sdpa, "flash-attn has no float32"
    assert ring_door(torch.device("cpu"), torch.bfloat16) is ring_sdpa
    monkeypatch.setattr(attention, "flash_attn_with_kvcache", None)
    assert ring_door(torch.device("cuda"), torch.bfloat16) is ring_sdpa


def test_attention_without_a_ring_has_no_mask():
    q, k, v, _, _ = case(1, rows=5)
    got = attend(q, k, v)
    for row in range(5):
        torch.testing.assert_close(got[row].double(), one_row(q[row], k[row], v[row]), rtol=0, atol=1e-5)
