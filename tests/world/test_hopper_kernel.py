"""The Hopper attention: what a GPU is not needed for is how jobs are spread over it and how pieces are put together."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.world.kernels import DEVICE, HALF, needs_triton
from tests.world.test_attention import one_row
from tests.world.test_ring_kernel import halved
from world.nn.rows import ALIGNED, as_bytes, fp8_rings, rounded

pytestmark = needs_triton
needs_hopper = pytest.mark.skipif(
    DEVICE != "cuda" or torch.cuda.get_device_capability() != (9, 0), reason="needs a GPU of compute capability 9.0"
)


def rounds(whole: int, left: int, splits: int, places: int) -> float:
    return whole / places + math.ceil(left * splits / places) / splits


@given(jobs=st.integers(1, 3000), places=st.sampled_from([1, 78, 132]), most=st.integers(1, 8))
def test_only_what_is_left_behind_full_rounds_is_split_and_that_ends_sooner(jobs, places, most):
    from world.nn.hopper_kernel import _spread

    whole, splits = _spread(jobs, places, most)
    assert 1 <= splits <= most
    assert whole == jobs or (splits > 1 and whole == jobs // places * places)
    if splits > 1:
        assert rounds(whole, jobs - whole, splits, places) < math.ceil(jobs / places)


def test_pieces_put_together_are_the_whole_and_pieces_without_keys_weigh_nothing():
    from world.nn.hopper_kernel import _merge

    length, heads, width, queries, keys, whole, splits = 100, 2, 32, 64, 16, 1, 3
    jobs = math.ceil(length / queries) * heads
    for valid in (70, 20):  # the latter has two tiles
        q, k, v = (torch.randn(n, heads, width, device=DEVICE) for n in (length, valid, valid))
        pieces = torch.full((jobs - whole, splits, queries, width), float("nan"), device=DEVICE)
        bests, totals = torch.full((2, jobs - whole, splits, queries), -float("inf"), device=DEVICE)
        for left in range(jobs - whole):
            head, tile = divmod(whole + left, math.ceil(length / queries))
            mine = torch.zeros(queries, width, device=DEVICE)
            part = q[tile * queries : (tile + 1) * queries, head]
            mine[: len(part)] = part
            tiles = math.ceil(valid / keys)
            for piece in range(splits):
                some = slice(math.ceil(piece * tiles / splits) * keys, math.ceil((piece + 1) * tiles / splits) * keys)
                if len(k[some]):
                    scores = mine @ k[some, head].T * math.log2(math.e) / math.sqrt(width)
                    bests[left, piece] = scores.amax(1)
                    weights = torch.exp2(scores - scores.amax(1, keepdim=True))
                    totals[left, piece], pieces[left, piece] = weights.sum(1), weights @ v[some, head]
        out = torch.zeros(1, length, heads, width, device=DEVICE, dtype=HALF)
        _merge[jobs - whole, queries // 16, 1](
            pieces, bests, totals, out, length, heads, whole, splits, WIDTH=width, QUERIES=queries, TOGETHER=16
        )
        exact = one_row(q, k, v)
        assert (out[0, queries:, 0].double() - exact[queries:, 0]).abs().max() < 4e-3
        assert (out[0, :, 1].double() - exact[:, 1]).abs().max() < 4e-3
        assert not out[0, :queries, 0].any(), "a whole job's queries are not its own"


@pytest.mark.parametrize("at", [0, 13, 199])
def test_tiles_of_rings_in_fp8_come_in_the_order_that_weights_are_kept_in_and_never_from_behind_the_memory(at):
    from world.nn.hopper_kernel import KEYS, _in_fours

    rings = fp8_rings(200, 2, 64, torch.float8_e4m3fn, torch.device(DEVICE))
    for ring in rings:
        as_bytes(ring).copy_(torch.arange(200)[:, None, None].expand(ring.shape))
    keys, values = _in_fours(*rings)
    assert keys.shape[3:] == [200, 128] and keys.shape[:3] == keys.block_shape[:3], "of a tile only the first is free"
    tile = torch.as_strided(as_bytes(keys.base), keys.block_shape, keys.strides, at * keys.strides[3] + 64)
    row = torch.arange(KEYS)
    there = at + (row & -16) + 4 * (row >> 1 & 3) + 2 * (row >> 3 & 1) + (row & 1)
    expected = torch.where(there < 200, there, 0)  # behind the last key zeros
    assert torch.equal(tile.flatten(0, 3).int().cpu(), expected.int()[:, None].expand(-1, 64))
    assert tuple(values.shape) == (128, 200) and (as_bytes(values.base)[:, at] == at).all()


@needs_hopper
@pytest.mark.parametrize("coarse", [False, True])
@pytest.mark.parametrize("length, room", [(1, 704), (150, 304), (200, 9008)])
@pytest.mark.parametrize("dim", [64, 128])
def test_it_is_plain_attention_over_the_valid_prefix_and_nothing_else_shows(length, room, dim, coarse):
    """Over rings in FP8 weights have an error of 1/16 at most, which is not that of all of a row."""
    from world.nn.hopper_kernel import ring_hopper

    q, k, v, begins, room, valid = halved(7, rows=3, length=length, room=room, dim=dim)
    if coarse:
        begins += ALIGNED - 1
        k, v = in_fp8(*(torch.cat([ring[: ALIGNED - 1], ring]) for ring in (k, v)))
        assert not (begins % ALIGNED).any()
    before = ring_hopper(q, k, v, begins, room, valid)
    seen_q = rounded(q, k.dtype).to(q.dtype)
    for row, (at, n) in enumerate(zip(begins.tolist(), valid.tolist(), strict=True)):
        exact = one_row(seen_q[row], k[at : at + n].to(q.dtype), v[at : at + n].to(q.dtype))
        assert (before[row].double() - exact).norm() / exact.norm() < (0.05 if coarse else 4e-3)
        one = slice(row, row + 1)
        assert torch.equal(ring_hopper(q[one], k, v, begins[one], room, valid[one]), before[one]), "company shows"
    others = torch.ones(len(k), dtype=torch.bool, device=k.device)
    for begin, n in zip(begins.tolist(), valid.tolist(), strict=True):
        others[begin : begin + n] = False
    for ring in (k, v):
        as_bytes(ring)[others] = 0x7F if coarse else float("nan")  # NaN as well
    assert torch.equal(ring_hopper(q, k, v, begins, room, valid), before), "what is behind a row's prefix was read"


def in_fp8(k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    rings = fp8_rings(*k.shape, torch.float8_e4m3fn, k.device)
    for ring, x in zip(rings, (k, v), strict=True):
        ring.copy_(rounded(x, ring.dtype))
    return rings
