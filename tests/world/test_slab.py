"""The ring holds what the published cache would, by overwriting; slots are strangers to each other."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.world.tiny_world import random_world, tiny_config
from world.meadow.config import meadow_config
from world.nn.attention import ring_sdpa
from world.nn.fp8 import E4M3
from world.nn.rows import Keys
from world.published import published_config
from world.rehearsal import META
from world.slab import Gathered, RingView, Slab, put, ring_frames, unstore

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


def a_slab(kv_dtype: torch.dtype | None = None) -> Slab:
    cfg = tiny_config(chunk_frames=2, window_frames=5, sink_frames=1)
    return Slab(cfg, 3, CPU, torch.float32, torch.float32, kv_dtype=kv_dtype)


@pytest.fixture
def slab() -> Slab:
    return a_slab()


@pytest.fixture
def slab8() -> Slab:
    return a_slab(torch.float8_e4m3fn)


def kept(slab: Slab, slot: int) -> dict[str, Tensor]:
    return dict(slab.rows(slot))


def test_rows_write_to_their_own_slots_and_places(slab):
    cfg, tokens = slab.cfg, slab.cfg.geometry.frame_tokens
    view = slab.view(torch.tensor([3, 1]), torch.tensor([4, 0]))  # frames 4, 5 and 0, 1
    k = torch.randn(2, cfg.geometry.chunk_tokens, cfg.dit.num_heads, cfg.dit.head_dim)
    assert view.attend(1, k[:0], Keys(k), -k).shape == k[:0].shape
    assert view.valid_tokens.tolist() == [5 * tokens, 2 * tokens]
    places = {3: (4, 1), 1: (0, 1)}  # frame 5 took the place of frame 1
    for row, (slot, frames) in enumerate(places.items()):
        for i, frame in enumerate(frames):
            new = k[row, i * tokens : (i + 1) * tokens]
            place = slice(frame * tokens, (frame + 1) * tokens)
            assert torch.equal(kept(slab, slot)["k.1"][place], new)
            assert torch.equal(kept(slab, slot)["v.1"][place], -new)
        slab.clean(slot)
    assert not slab.k[0].any() and not slab.k[1].any() and not slab.v[1].any(), "something else was written"


def test_a_view_reads_its_slots_up_to_what_they_hold(slab):
    cfg = slab.cfg
    for slot in (1, 2):
        slab.poison(slot)
    slab.clean(2)
    view = slab.view(torch.tensor([2]), torch.tensor([0]))
    q, k, v = torch.randn(3, 1, cfg.geometry.chunk_tokens, cfg.dit.num_heads, cfg.dit.head_dim)
    seen = view.attend(0, q, Keys(k), v)
    scores = torch.einsum("lnd,snd->nls", q[0], k[0]) / cfg.dit.head_dim**0.5
    expected = torch.einsum("nls,snd->lnd", scores.softmax(-1), v[0])
    torch.testing.assert_close(seen[0], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kept_in", [None, torch.float8_e4m3fn], ids=str)
def test_poison_and_clean_touch_one_slot(kept_in):
    slab = a_slab(kept_in)
    slab.poison(2)
    for slot in range(4):
        assert all(t.isnan().all() if slot == 2 else not t.any() for t in kept(slab, slot).values())
    slab.clean(2)
    assert all(not t.any() for t in slab.tensors())


def test_rows_in_fp8_are_rounded_each_number_by_itself(slab, slab8):
    """At the places of any others; what is too large becomes the greatest there is."""
    c, dit = slab.cfg.geometry.chunk_tokens, slab.cfg.dit
    k = torch.randn(2, c, dit.num_heads, dit.head_dim)
    k[0, 1:] *= torch.logspace(-3, 3, c - 1)[:, None, None]
    k[1, :, 0] *= 1e4
    for each in (slab, slab8):
        each.view(torch.tensor([3, 1]), torch.tensor([4, 0])).attend(1, k[:0], Keys(k), -k)
    for slot, name in product(range(4), ("k.1", "v.1")):
        plain, coarse = kept(slab, slot)[name], kept(slab8, slot)[name]
        assert not coarse[len(plain) :].float().any(), "what is nothing's was written"
        made, inside = coarse[: len(plain)].float(), plain.clamp(-448, 448)
        assert ((made - inside).abs() <= (inside.abs() / 16).clamp(min=2**-10)).all()
    assert slab8.k[1].float().abs().max() == 448
    assert not slab8.k[0].float().any() and not slab8.v[0].float().any(), "another layer was written"


def test_a_view_in_fp8_sees_what_its_slots_hold_and_no_stranger(slab8):
    cfg = slab8.cfg
    for slot in (1, 2):
        slab8.poison(slot)
    slab8.clean(2)
    q, k, v = torch.randn(3, 1, cfg.geometry.chunk_tokens, cfg.dit.num_heads, cfg.dit.head_dim)
    seen = slab8.view(torch.tensor([2]), torch.tensor([0])).attend(0, q, Keys(k), v)
    q, k, v = (t.to(torch.float8_e4m3fn).float() for t in (q, k, v))
    scores = torch.einsum("lnd,snd->nls", q[0], k[0]) / cfg.dit.head_dim**0.5
    torch.testing.assert_close(seen[0], torch.einsum("nls,snd->lnd", scores.softmax(-1), v[0]), rtol=0, atol=1e-5)


def test_a_slot_in_fp8_goes_out_and_comes_back_with_all_its_bits(slab, slab8):
    """NaN among them; another slab does not take it."""
    g = torch.Generator().manual_seed(0)
    for name, row in slab8.rows(2):
        noise = torch.empty(row.shape).normal_(generator=g)
        row.copy_(noise.to(row.dtype) if not name.startswith("k.") else noise.fill_(float("nan")).to(row.dtype))
    out = slab8.export(2)
    assert {out[f"{name}.1"].dtype for name in ("k", "v")} == {"F8_E4M3"}
    assert sum(stored.data.size for stored in out.values()) == slab8.slot_bytes() == slab8.state_bytes()
    rows = {name: unstore(stored) for name, stored in out.items()}
    slab8.restore(3, rows)
    bits = ({name: row.contiguous().view(torch.uint8) for name, row in slab8.rows(slot)} for slot in (2, 3))
    two, three = bits
    assert all(torch.equal(two[name], three[name]) for name in two)
    with pytest.raises(ValueError, match="float8"):
        slab.restore(3, rows)


def test_values_of_a_channel_lie_together_and_behind_all_keys_is_a_tile_where_a_gpu_can_fetch_them(slab8):
    for k, v in zip(slab8.k, slab8.v, strict=True):
        assert v.shape == k.shape and v.stride(0) == 1 and all(stride % 16 == 0 for stride in v.stride()[1:])
        assert k.is_contiguous() and k.untyped_storage().nbytes() - k.nbytes >= 127 * k.stride(0)


def test_what_a_player_takes_is_counted(slab):
    total = sum(t.nbytes for t in slab.tensors())
    spare = sum(t.nbytes for t in kept(slab, 0).values())
    assert slab.slot_bytes() * 3 + spare == total
    f, c = slab.cfg.geometry, slab.cfg.dit
    frame = 2 * c.num_layers * f.frame_tokens * c.dim * 4
    assert slab.cfg.window_frames * frame < slab.slot_bytes()
    assert slab.slot_bytes() - spare == (slab.cfg.window_frames - f.chunk_frames) * frame, "slot 0 has rings of a chunk"


def test_rings_lie_end_to_end_the_first_of_them_a_chunk_long(slab):
    chunk, window = slab.cfg.geometry.chunk_tokens, slab.cfg.window_tokens
    begins, expected = slab.ring_begins(torch.arange(4)), [0, chunk, chunk + window, chunk + 2 * window]
    assert begins.dtype == torch.int64 and begins.tolist() == expected == list(map(slab.ring_begins, range(4)))
    for name, rings in (("k", slab.k), ("v", slab.v)):
        for i, ring in enumerate(rings):
            own = [kept(slab, slot)[f"{name}.{i}"] for slot in range(4)]
            assert [len(t) for t in own] == [chunk, window, window, window] and len(ring) == chunk + 3 * window
            assert [t.data_ptr() for t in own] == [ring[at].data_ptr() for at in expected]


@pytest.mark.parametrize("width, chunk, window", [(48, 2, 5), (48, 1, 3), (112, 1, 4), (64, 2, 6), (80, 3, 8)])
@pytest.mark.parametrize("slots", [[0], [1, 3, 0, 0], [2]], ids=str)
def test_in_fp8_all_rings_begin_where_a_gpu_can_copy_tiles_of_values_from(width, chunk, window, slots):
    """Of any frame's tokens (from 6 to 14 here), what a kernel is told among them; other slabs have no gaps."""
    cfg = tiny_config(width=width, chunk_frames=chunk, window_frames=window, sink_frames=1)
    plain, coarse = (Slab(cfg, 3, CPU, torch.float32, torch.float32, kv_dtype=each) for each in (None, E4M3))
    told = list[int]()

    def attention(q, k_ring, v_ring, begins, room, valid_tokens):
        told.extend(v_ring.storage_offset() + begins)
        return ring_sdpa(q, k_ring, v_ring, begins, room, valid_tokens)

    coarse.ring_attention = attention
    q, k, v = torch.randn(3, len(slots), cfg.geometry.chunk_tokens, cfg.dit.num_heads, cfg.dit.head_dim)
    coarse.view(torch.tensor(slots), torch.zeros(len(slots), dtype=torch.int64)).attend(0, q, Keys(k), v)
    assert told == [coarse.ring_begins(slot) for slot in slots] and not any(begin % 16 for begin in told)
    gaps = []
    for slot in range(4):
        own, room = kept(coarse, slot), kept(plain, slot)["v.0"].shape[0]
        assert own["v.0"].storage_offset() % 16 == 0 and own["v.0"].stride(0) == 1
        gaps.append(len(own["v.0"]) - room)
        assert len(own["k.0"]) == len(own["v.0"])
    assert all(0 <= gap < 16 for gap in gaps), "more than what is rounded up"
    assert coarse.v[0].shape[0] == sum(gaps) + plain.v[0].shape[0]
    assert coarse.slot_bytes() == sum(row.nbytes for row in kept(coarse, 3).values()), "what is nothing's counts too"


@pytest.mark.parametrize(
    "cfg, run",
    [
        (tiny_config(chunk_frames=2, window_frames=5), 2),
        (tiny_config(width=64, chunk_frames=3, window_frames=7, sink_frames=2), 8),
        (published_config("lingbot-14b"), 8),
        (meadow_config(), 16),
    ],
    ids=["6", "8", "1560", "112"],
)
def test_tokens_are_kept_in_runs_that_a_thread_can_store_at_once(cfg, run):
    """Wherever the ring has come to, and whosever it is. Only FP8 has use for that, so only there is it promised."""
    slots = torch.tensor([3, 0, 1, 2])
    for kv_dtype, promised in ((E4M3, run), (None, 1)):
        slab = Slab(cfg, 3, META, torch.bfloat16, torch.bfloat16, kv_dtype=kv_dtype)
        for chunk in range(6):
            view = RingView(slab, slots, torch.tensor([chunk, 0, 5, 1]) * cfg.geometry.chunk_frames)
            assert view.run == promised
            runs = view.at.view(-1, view.run)
            assert not (runs[:, 0] % view.run).any() and torch.equal(runs, runs[:, :1] + torch.arange(view.run))


@pytest.mark.parametrize("outputs", [3, 0])
def test_padding_rows_write_to_nobodys_ring_and_read_none(slab, outputs):
    """All of a forward's but one, as commits or not; the ring of slot 1 begins right behind theirs."""
    slots, cfg = (1, 2, 3), slab.cfg
    for slot in slots:
        slab.poison(slot)
        for name, own in slab.rows(slot):
            if name.startswith("k."):
                own.copy_(torch.randn_like(own))
    slab.clean(3)
    before = {slot: {name: own.clone() for name, own in slab.rows(slot)} for slot in slots}
    view = slab.view(torch.tensor([3, 0, 0]), torch.tensor([0, 0, 0]))
    q, k, v = torch.randn(3, 3, cfg.geometry.chunk_tokens, cfg.dit.num_heads, cfg.dit.head_dim)
    seen = view.attend(1, q[:outputs], Keys(k), v)
    assert seen.isfinite().all(), "what lies behind a padding row's ring shows in it"
    for slot in (1, 2):
        for name, own in slab.rows(slot):
            assert torch.equal(own.view(torch.int32), before[slot][name].view(torch.int32)), (slot, name)
    assert torch.equal(kept(slab, 0)["k.1"], k[2]) and torch.equal(kept(slab, 0)["v.1"], v[2])
    changed = {name for name, own in slab.rows(3) if not torch.equal(own, before[3][name])}
    assert changed == {"k.1", "v.1"} and torch.equal(kept(slab, 3)["k.1"][: len(k[0])], k[0])


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


@pytest.mark.parametrize("kept_in", [None, torch.float8_e4m3fn], ids=str)
def test_nothing_a_slab_keeps_escapes_cleaning(kept_in):
    slab = a_slab(kept_in)
    found = [t for value in vars(slab).values() for t in reachable(value)]
    assert {t.data_ptr() for t in found} == {t.data_ptr() for t in slab.tensors()}
    for slot in range(4):
        slab.poison(slot)
    assert all(t.isnan().all() for t in found), "the slots are all of every tensor"
