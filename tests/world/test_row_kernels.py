"""The kernels of what a block does to single tokens, interpreted where there is no GPU: they are what torch says."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.world.kernels import DEVICE, HALF, needs_triton
from tests.world.tiny_world import Life, Player, random_world, tick, tiny_config
from world.nn import rows, vae
from world.nn.rows import ScaleShift, Sum, fp8_rings, rounded

pytestmark = needs_triton
E4M3 = torch.float8_e4m3fn
CLOSE = {"rtol": 0, "atol": 3e-5}


def normal(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 2**32), size=st.tuples(st.integers(1, 3), st.integers(1, 4), st.sampled_from([6, 96, 128])),
    branched=st.booleans(), gated=st.booleans(), moved=st.sampled_from(["not", "by its row", "by its slot"]),
    per_row=st.booleans(),
)  # fmt: skip
def test_add_norm(seed, size, branched, gated, moved, per_row):
    from world.nn.row_kernels import add_norm

    b, length, c = size
    x = normal(seed, *size)
    branch = normal(seed + 1, *size, dtype=HALF) if branched else None
    six = normal(seed + 2, b, 6, c).unsqueeze(2).unbind(1)  # as a block takes its modulation apart
    slots = None if moved == "by its row" else normal(seed + 6, b + 2).argsort()[:b]
    table = normal(seed + 3, 2, b if slots is None else b + 2, length, c)
    camera = None if moved == "not" else ScaleShift(*table, slots)
    weight, bias = (1 + six[0], six[1]) if per_row else normal(seed + 5, 2, c)
    gate = six[2] if gated else None
    expected = rows.add_norm(x, weight, bias, 1e-6, torch.float32, branch, gate if branched else None, camera)
    moves = None if camera is None else (*table, slots)
    got = add_norm(x, (weight, bias, 1e-6), torch.float32, branch, gate if branched else None, moves)
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, **CLOSE)
    if branched:
        torch.testing.assert_close(
            add_norm(x, None, None, branch, six[3], None)[0], rows.add(x, branch, six[3]), **CLOSE
        )


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 2**32), heads=st.integers(1, 5), half=st.sampled_from([3, 8, 16]), turned=st.booleans())
def test_norm_turn(seed, heads, half, turned):
    from world.nn.row_kernels import norm_turn

    x, weight = normal(seed, 2, 3, heads * 2 * half), normal(seed + 1, heads * 2 * half)
    turn = (normal(seed + 2, 2, 3, 1, half), normal(seed + 3, 2, 3, 1, half)) if turned else None
    expected = rows.norm_turn(x, weight, 1e-6, heads, turn)
    torch.testing.assert_close(norm_turn(x, weight, 1e-6, turn).unflatten(-1, (heads, -1)), expected, **CLOSE)


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 2**32), heads=st.integers(1, 5), half=st.sampled_from([3, 8, 16]), turned=st.booleans())
def test_keys_and_values_are_kept_where_they_belong_and_nothing_else_changes(seed, heads, half, turned):
    from world.nn.row_kernels import keep, norm_turn

    b, length, c = 2, 3, heads * 2 * half
    wide, weight = normal(seed, b, length, 2 * c), normal(seed + 1, c)
    k, v = wide.split(c, -1)  # parts of one tensor
    turn = (normal(seed + 2, b, length, 1, half), normal(seed + 3, b, length, 1, half)) if turned else None
    rings = normal(seed + 4, 2, 3 * b * length, c)
    at = torch.randperm(len(rings[0]), generator=torch.Generator().manual_seed(seed))[: b * length].to(DEVICE)
    expected = rings.clone()
    expected[0, at], expected[1, at] = norm_turn(k, weight, 1e-6, turn).flatten(0, 1), v.flatten(0, 1)
    keep(k, v, weight, 1e-6, turn, *rings, at, run=1)
    assert torch.equal(rings, expected)


@pytest.mark.parametrize("length, heads, half, run", [(3, 4, 8, 1), (150, 3, 16, 1), (76, 3, 16, 8), (16, 4, 8, 16)])
def test_keys_and_values_are_kept_in_fp8_where_they_belong_and_nothing_else_changes(length, heads, half, run):
    """By whatever runs. Keys but for a step where two roundings differ from one, and interpreted for some, where FP8
    loses carries: the values here are in FP8 already."""
    from world.nn.row_kernels import keep, norm_turn

    k, v = (4 * normal(n, 2, length, heads * 2 * half, dtype=HALF) for n in (0, 1))
    v = rounded(v, E4M3).to(HALF)
    weight, turn = normal(2, heads * 2 * half), normal(3, 2, 2, length, 1, half).unbind(0)
    rings = fp8_rings(400, heads, 2 * half, E4M3, k.device)
    at = (torch.randperm(400 // run)[: 2 * length // run, None] * run + torch.arange(run)).flatten().to(k.device)
    keep(k, v, weight, 1e-6, turn, *rings, at, run)
    bits, values = (ring.view(torch.uint8) for ring in rings)
    expected = rounded(norm_turn(k, weight, 1e-6, turn), E4M3).view(torch.uint8).view(-1, heads, 2 * half)
    same = (bits[at].int() - expected.int()).abs() <= 1
    assert same.float().mean() >= (1 if DEVICE == "cuda" else 0.9)
    assert torch.equal(values[at], rounded(v, E4M3).view(torch.uint8).view(-1, heads, 2 * half))
    others = torch.ones(400, dtype=torch.bool, device=k.device)
    others[at] = False
    assert not bits[others].any() and not values[others].any()


FRAMES = st.tuples(*(st.integers(1, most) for most in (2, 4, 3, 5)), st.sampled_from([3, 16, 96]))  # B, T, H, W, C


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 2**32), size=FRAMES, silu=st.booleans())
def test_unit_norm(seed, size, silu):
    from world.nn.row_kernels import unit_norm

    x, gamma = normal(seed, *size), normal(seed + 1, size[-1])
    x[0, 0] = 0
    torch.testing.assert_close(unit_norm(x, gamma, silu), rows.unit_norm(x, gamma, silu), **CLOSE)


def sum_of(seed: int, size: tuple[int, ...], parts: str) -> Sum:
    """Frames of this size, with those parts of a sum that are named."""
    bias = normal(seed + 1, size[-1]) if "bias" in parts else None
    return Sum(normal(seed, *size), bias, normal(seed + 2, *size) if "stream" in parts else None)


PARTS = st.sampled_from(["", "bias", "stream", "bias and stream"])


@settings(max_examples=16, deadline=None)
@given(
    seed=st.integers(0, 2**32), size=FRAMES, parts=PARTS, normed=st.booleans(), in_place=st.booleans(),
    whole=st.booleans(),
)  # fmt: skip
def test_stacked(seed, size, parts, normed, in_place, whole):
    """Frames behind those before them; a cache moves on where it lies, other rows left alone, or elsewhere."""
    (b, frames, *area, channels) = size
    x, gamma = sum_of(seed, size, parts), normal(seed + 3, channels) if normed else None
    at = normal(seed + 4, b + 2).argsort()[:b] if in_place else None
    past = normal(seed + 5, b + 2 if in_place else b, 2, *area, channels)
    kept, before = past if in_place else torch.empty_like(past), past.clone()
    made = x.made() if gamma is None else rows.unit_norm(x.made(), gamma, silu=True)
    all_frames = torch.cat([before if at is None else before[at], made], dim=1)
    summed, got = rows.stacked(x, gamma, past, kept, at, whole)
    torch.testing.assert_close(got, torch.cat([all_frames[:, k : k + frames] for k in range(3)], dim=-1), **CLOSE)
    expected = before.clone()
    expected[slice(None) if at is None else at] = all_frames[:, -2:]
    torch.testing.assert_close(kept, expected, **CLOSE)
    assert in_place or torch.equal(past, before)
    torch.testing.assert_close(summed.made(), x.made(), **CLOSE)
    assert not whole or (summed.bias is None and summed.stream is None)


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 2**32), size=FRAMES, parts=PARTS, together=st.integers(1, 2))
def test_doubled(seed, size, parts, together):
    (b, frames, *_, channels) = size
    x = sum_of(seed, (*size[:-1], together * channels), parts)
    images = x.made().unflatten(-1, (together, channels)).movedim(-2, 2).flatten(0, 2)
    expected = images.repeat_interleave(2, dim=1).repeat_interleave(2, dim=2)
    torch.testing.assert_close(
        rows.doubled(x, channels), expected.unflatten(0, (b, frames * together)), rtol=0, atol=1e-6
    )


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 2**32), tokens=st.integers(1, 5), channels=st.sampled_from([16, 48, 128]))
def test_quantise(seed, tokens, channels):
    from world.nn.row_kernels import quantise

    x, e4m3 = normal(seed, tokens, channels), torch.float8_e4m3fn
    x[0, :2] = float("nan") if seed % 3 == 0 else 0.0
    got, scale = quantise(x, e4m3, torch.finfo(e4m3).max, rows.LEAST_SCALE)
    expected = rows.quantise(x, e4m3)
    torch.testing.assert_close(scale[1:], expected.scale[1:], rtol=1e-6, atol=0)
    if DEVICE == "cuda":  # interpreted, FP8 is rounded otherwise
        assert got[0].float().isnan().any() == x[0].isnan().any()
        torch.testing.assert_close(
            got[1:].float(), expected.values[1:].float(), rtol=1 / 8, atol=1e-9
        )  # a rounding apart


def test_a_token_has_the_bits_it_has_alone():
    from world.nn.row_kernels import add_norm, norm_turn

    x, weight, bias = normal(1, 3, 5, 96), normal(2, 3, 1, 96), normal(3, 3, 1, 96)
    _, together = add_norm(x, (weight, bias, 1e-6), HALF, None, None, None)
    assert torch.equal(together[1:2], add_norm(x[1:2], (weight[1:2], bias[1:2], 1e-6), HALF, None, None, None)[1])
    assert torch.equal(norm_turn(x, bias[0, 0], 1e-6, None)[2:], norm_turn(x[2:], bias[0, 0], 1e-6, None))


def test_a_pixel_has_the_bits_it_has_alone():
    """In the company of other players, and of the pixels around it."""
    x, past = sum_of(1, (3, 2, 5, 7, 96), "bias and stream"), normal(5, 3, 2, 5, 7, 96)
    assert x.stream is not None

    def made(rows_: slice, lines: slice) -> list[Tensor]:
        part = Sum(x.x[rows_, :, lines], x.bias, x.stream[rows_, :, lines])
        kept = past[rows_, :, lines].clone()
        summed, frames = rows.stacked(part, normal(6, 96), kept, kept, None, whole=True)
        return [summed.x, frames, kept, rows.doubled(part, 96)[:, :, ::2]]

    whole = made(slice(None), slice(None))
    for one, other in zip(made(slice(1, 2), slice(2, 4)), whole, strict=True):
        assert torch.equal(one, other[1:2, :, 2:4])


@pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU")
def test_serving_takes_the_kernels_and_training_does_not():
    x, weight, bias = normal(1, 2, 3, 96), normal(2, 96).requires_grad_(), normal(3, 96)
    rows.add_norm(x, weight, bias, 1e-6, HALF)[1].sum().backward()
    assert weight.grad is not None
    with torch.inference_mode():
        assert rows.fused(x)


def test_networks_of_kernels_are_those_of_operations(monkeypatch: pytest.MonkeyPatch):
    """A tiny world's chunk: its DiT and its decoder, which see the kernels through `world.nn.rows` alone."""

    def play() -> list[Tensor]:
        world = random_world(tiny_config(), torch.float32, 1, device=torch.device(DEVICE))
        life = Life(0, world.geometry.chunk_frames, 2)
        player = Player(life, 1)
        world.open(1, life.start(world))
        while not player.is_over:
            tick(world, [player])
        return [world.slab.x[1], *(cache[1] for cache in world.slab.decoder)]

    for module in (rows, vae):
        monkeypatch.setattr(module, "fused", lambda x: False)
    plain = play()
    for module in (rows, vae):
        monkeypatch.setattr(module, "fused", lambda x: not x.is_meta)
    for one, other in zip(play(), plain, strict=True):
        # A GPU's GELU is another approximation too: an H200 was 1.4e-3 away.
        torch.testing.assert_close(one, other, rtol=0, atol=1e-3 if DEVICE == "cpu" else 3e-3)
        assert not torch.equal(one, other), "the same arithmetic twice"
