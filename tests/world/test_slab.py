"""The ring holds what the published cache would, by overwriting; slots are strangers to each other."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.world.tiny_world import random_world, tiny_config
from world.slab import Gathered, Slab, put, ring_frames

CPU = torch.device("cpu")


def published_cache(cache: list[int], chunk: list[int], sink: int, window: int) -> list[int]:
    """What the published code holds after a chunk: when it does not fit, the oldest behind the sink are rolled out."""
    surplus = max(len(cache) + len(chunk) - window, 0)
    return cache[:sink] + cache[sink + surplus :] + chunk


@settings(max_examples=200, deadline=None)
@given(chunk=st.integers(1, 5), sink=st.integers(0, 9), room=st.integers(0, 12), num_chunks=st.integers(1, 14))
def test_the_ring_holds_the_frames_the_published_cache_holds(chunk, sink, room, num_chunks):
    """Any window, chunks that straddle the end of the sink among them."""
    window = sink + chunk + room
    ring: list[int | None] = [None] * window
    cache: list[int] = []
    for n in range(num_chunks):
        frames = list(range(n * chunk, (n + 1) * chunk))
        at = ring_frames(torch.tensor(frames), sink, window).tolist()
        assert len(set(at)) == chunk, "a chunk overwrites itself"
        for frame, place in zip(frames, at, strict=True):
            ring[place] = frame
        cache = published_cache(cache, frames, sink, window)
        held = min((n + 1) * chunk, window)
        assert sorted(cache) == sorted(frame for frame in ring[:held] if frame is not None)
        assert ring[held:] == [None] * (window - held), "valid frames are a prefix"


@pytest.fixture
def slab() -> Slab:
    return Slab(tiny_config(chunk_frames=2, window_frames=5, sink_frames=1), 3, CPU, torch.float32, torch.float32)


def test_rows_write_to_their_own_slots_and_places(slab):
    cfg, tokens = slab.cfg, slab.cfg.geometry.frame_tokens
    view = slab.view(torch.tensor([3, 1]), torch.tensor([4, 0]))  # frames 4, 5 and 0, 1
    k = torch.randn(2, cfg.geometry.chunk_tokens, cfg.dit.num_heads, cfg.dit.head_dim)
    assert view.attend(1, k[:0], k, -k).shape == k[:0].shape
    assert view.valid_tokens.tolist() == [5 * tokens, 2 * tokens]
    places = {3: (4, 1), 1: (0, 1)}  # frame 5 took the place of frame 1
    for row, (slot, frames) in enumerate(places.items()):
        for i, frame in enumerate(frames):
            new = k[row, i * tokens : (i + 1) * tokens]
            ring = slice(frame * tokens, (frame + 1) * tokens)
            assert torch.equal(slab.k[1][slot, ring], new) and torch.equal(slab.v[1][slot, ring], -new)
        slab.k[1][slot] = 0
        slab.v[1][slot] = 0
    assert not slab.k[0].any() and not slab.k[1].any() and not slab.v[1].any(), "something else was written"


def test_a_view_reads_its_slots_up_to_what_they_hold(slab):
    cfg = slab.cfg
    for slot in (1, 2):
        slab.poison(slot)
    slab.clean(2)
    view = slab.view(torch.tensor([2]), torch.tensor([0]))
    q, k, v = torch.randn(3, 1, cfg.geometry.chunk_tokens, cfg.dit.num_heads, cfg.dit.head_dim)
    seen = view.attend(0, q, k, v)
    scores = torch.einsum("lnd,snd->nls", q[0], k[0]) / cfg.dit.head_dim**0.5
    expected = torch.einsum("nls,snd->lnd", scores.softmax(-1), v[0])
    torch.testing.assert_close(seen[0], expected, rtol=0, atol=1e-5)


def test_poison_and_clean_touch_one_slot(slab):
    slab.poison(2)
    for t in slab.tensors():
        assert t[2].isnan().all() and not t[[0, 1, 3]].any()
    slab.clean(2)
    assert all(not t.any() for t in slab.tensors())


def test_what_a_player_takes_is_counted(slab):
    total = sum(t.numel() * t.element_size() for t in slab.tensors())
    assert slab.slot_bytes() * 4 == total  # three slots and the padding row
    f, c = slab.cfg.geometry, slab.cfg.dit
    ring = 2 * c.num_layers * slab.cfg.window_frames * f.frame_tokens * c.dim * 4
    assert ring < slab.slot_bytes()


def test_gathered_and_put():
    pairs = [(torch.zeros(4, 2), torch.zeros(4, 2).bfloat16()) for _ in range(3)]
    new = [(torch.full((2, 2), i + 1.0), torch.full((2, 2), -i - 1.0)) for i in range(3)]
    put(pairs, torch.tensor([3, 1]), new)
    for i, (a, b) in enumerate(Gathered(pairs, torch.tensor([1, 0, 3]))):
        assert a[:, 0].tolist() == [i + 1, 0, i + 1] and b[:, 0].tolist() == [-i - 1, 0, -i - 1]
        assert b.dtype == torch.bfloat16


def test_decoder_caches_are_what_the_decoder_asks_for():
    world = random_world(tiny_config(), num_slots=1)
    _, caches = world.vae.decode(torch.zeros(1, 16, 1, 4, 6), None, first=True)
    assert [cache.shape[1:] for cache in caches] == [cache.shape[1:] for cache in world.slab.decoder]


def reachable(thing: object) -> list[torch.Tensor]:
    if isinstance(thing, torch.Tensor):
        return [thing]
    return [t for part in thing for t in reachable(part)] if isinstance(thing, list | tuple) else []


def test_nothing_a_slab_keeps_escapes_cleaning(slab):
    kept = [t for value in vars(slab).values() for t in reachable(value)]
    assert {t.data_ptr() for t in kept} == {t.data_ptr() for t in slab.tensors()}
    assert all(t.shape[0] == 4 for t in kept), "a slot is a row of every tensor"
