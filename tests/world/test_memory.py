"""A plan says to the byte what weights and slab take, and how many players a budget holds."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.world.kernels import needs_triton
from tests.world.tiny_world import random_world, tiny_config
from world.chunk import PRECISIONS, WorldError
from world.instrument import config_of
from world.loader import plan_world
from world.meadow.built_in import load_meadow
from world.memory import GB, MemoryPlan, available_bytes, gb, plan, slot_bytes
from world.ranks import Ranks
from world.rehearsal import META, Work, num_bytes
from world.slab import Slab

CPU = torch.device("cpu")
DTYPES = [torch.float32, torch.bfloat16]
PLAN = MemoryPlan(
    "tiny", "48x32", "float32", 4, 1, 2, {"DiT": 60, "VAE": 40}, {"keys and values": 7, "decoder": 2}, 4, 10,
    Work(begin=5, forward=20, decode=21, picture=15, start=1), decode_rows=1, captured=False,
)  # fmt: skip


def allocated(world) -> dict[str, int]:
    networks = {"DiT": world.denoiser.dit, "VAE": world.vae, "text encoder": world.text_encoder.network}
    held = {name: num_bytes(dict(network.named_parameters())) for name, network in networks.items()}
    assert not any(list(network.buffers()) for network in networks.values())
    return held


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_weights_and_slab_of_the_built_in_world_are_predicted_to_the_byte(dtype):
    predicted = plan_world("meadow", 3, dtype_name=str(dtype).removeprefix("torch."))
    world = load_meadow(3, CPU, dtype, lambda stage, share: None)
    assert predicted.weights == allocated(world)
    assert predicted.slab_bytes(3) == num_bytes(list(world.slab.tensors()))
    assert predicted.start_bytes == num_bytes([world.prepare_image(world.scenes[0].image)])


def test_weights_in_fp8_are_predicted_to_the_byte_and_the_slab_is_as_before_unless_it_is_too():
    plain, coarse, kept = (plan_world("meadow", 2, dtype_name="bfloat16", precision=each) for each in PRECISIONS)
    world = load_meadow(2, CPU, torch.bfloat16, lambda stage, share: None, precision="fp8")
    assert coarse.weights == allocated(world) and coarse.slot == plain.slot and coarse.dtype == world.dtype
    assert 0.5 < coarse.weights["DiT"] / plain.weights["DiT"] < 0.75
    with pytest.raises(WorldError, match="not float32"):
        plan_world("meadow", 2, dtype_name="float32", precision="fp8")
    world = load_meadow(2, CPU, torch.bfloat16, lambda stage, share: None, precision="fp8-kv")
    assert kept.weights == coarse.weights and kept.dtype == world.dtype
    assert kept.slab_bytes(2) == num_bytes(list(world.slab.tensors()))
    assert kept.slot["keys and values"] * 2 == plain.slot["keys and values"]
    with pytest.raises(WorldError, match="not float32"):
        plan_world("meadow", 2, dtype_name="float32", precision="fp8-kv")


@pytest.mark.parametrize(
    "dtype, precision", [*((dtype, "native") for dtype in DTYPES), (torch.bfloat16, "fp8-kv")], ids=str
)
@pytest.mark.parametrize("conditioning", ["warp", "first_frame"])
def test_weights_and_slab_of_a_tiny_world_are_predicted_to_the_byte(conditioning, dtype, precision):
    """Frames have 6 tokens: in FP8 there are some that are nothing's behind every ring."""
    cfg = tiny_config(conditioning, chunk_frames=2, window_frames=5)
    world = random_world(cfg, dtype, num_slots=4, precision=precision)
    predicted = plan(cfg, dtype, world.text_encoder.network, torch.float32, 4, CPU, precision=precision)
    assert predicted.weights == allocated(world)
    assert predicted.slab_bytes(4) == num_bytes(list(world.slab.tensors()))


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("num_slots", [1, 2, 5])
def test_a_ranks_slab_is_predicted_to_the_byte(size, num_slots):
    cfg = tiny_config(num_heads=2 if size == 2 else 1)
    predicted = plan(cfg, torch.float32, None, torch.float32, num_slots, CPU, 1 if cfg.dit.num_heads % size else size)
    ranks = Ranks(0, predicted.num_ranks)
    slab = Slab(cfg, num_slots, META, torch.float32, torch.float32, ranks)
    assert predicted.slab_bytes(num_slots) == num_bytes(list(slab.tensors()))


def test_kinds_are_all_of_a_slot():
    slab = Slab(tiny_config(), 2, META, torch.bfloat16, torch.bfloat16)
    assert sum(slot_bytes(slab).values()) == slab.slot_bytes()


def test_divided_weights_take_less_and_gathered_ones_more():
    cfg = tiny_config()
    cfg = replace(cfg, dit=replace(cfg.dit, num_layers=12))
    whole, sharded, gathered = (
        plan(cfg, torch.float32, None, torch.float32, 1, CPU, 2, layout).weights["DiT"]
        for layout in ("replicated", "sharded", "gathered")
    )
    assert whole / 2 < sharded < whole < gathered <= 1.51 * whole


def test_heads_that_do_not_divide_are_refused():
    with pytest.raises(WorldError, match="2 heads of this model do not divide among 3 ranks"):
        plan(tiny_config(), torch.float32, None, torch.float32, 1, CPU, 3)


def test_a_budget_holds_the_players_whose_total_fits():
    # 100 of weights, 10 of prompts, 2 * 15 coming in; a spare slot of 4; a player 9 + 1; 20 for each of two rows, or 21
    # for one that is decoded
    assert [PLAN.total_bytes(n) for n in (1, 2, 3)] == [100 + 10 + 30 + 4 + 10 + 21, 164 + 40, 174 + 40]
    assert [PLAN.players(budget) for budget in (0, 174, 175, 203, 204, 214, 10**6)] == [0, 0, 1, 1, 2, 3, 65535]
    several = replace(PLAN, num_ranks=2)
    assert several.slab_bytes(3) == 7 * 3 + 2 * 2 + 4


def test_graphs_keep_what_they_work_in_beside_what_is_not_captured():
    """Two players: 40 replayed and 10 begun, beside 30 coming in; the 40 when they are tried are more."""
    captured = replace(PLAN, captured=True)
    assert captured.work_bytes(2) == 40 + 10 + 40
    assert replace(captured, work=replace(PLAN.work, picture=25)).work_bytes(2) == 40 + 10 + 50
    slow = replace(PLAN, work=replace(PLAN.work, begin=30))
    assert slow.work_bytes(2) == 60 + 30 and replace(slow, captured=True).work_bytes(2) == 40 + 60 + 40


def test_rows_that_are_decoded_at_once_count_and_no_others():
    together = replace(PLAN, decode_rows=2)
    assert [plan.replayed_bytes(4) for plan in (PLAN, together)] == [2 * 20, 2 * 21]


def test_a_peak_is_what_happens_without_what_may_come():
    """The largest of what happens one after another, and no reserve."""
    assert [PLAN.peak_bytes(n) for n in (1, 2)] == [100 + 4 + 10 + 21, 100 + 4 + 20 + 40]
    assert replace(PLAN, captured=True).peak_bytes(2) == PLAN.peak_bytes(2)
    assert replace(PLAN, work=replace(PLAN.work, picture=50)).peak_bytes(1) == 100 + 4 + 10 + 50
    assert replace(PLAN, library_bytes=9).peak_bytes(1) == PLAN.peak_bytes(1) + 9


@needs_triton
@pytest.mark.parametrize(("name", "measured_gb"), [("lingbot-14b", 81.9), ("lingbot-1.3b", 21.2), ("meadow", 0.166)])
def test_the_peak_of_one_player_is_what_an_h200_measured(name, measured_gb):
    """By `gameserver bench --geometry` with torch 2.11, in bfloat16: `peak_bytes` beside `planned_bytes`."""
    predicted = plan(config_of(name), torch.bfloat16, None, torch.bfloat16, 1, torch.device("cuda"))
    assert predicted.peak_bytes(1) == pytest.approx(measured_gb * GB, rel=0.02)


def test_more_players_than_fit_are_refused_in_a_sentence():
    PLAN.check(PLAN.total_bytes(4))
    with pytest.raises(WorldError, match=r"^223 bytes of free memory hold 3 players of tiny, not 4: 100 bytes of weig"):
        PLAN.check(PLAN.total_bytes(4) - 1)
    with pytest.raises(WorldError, match=r"10 bytes a player \(--players 1\)$"):
        PLAN.check(PLAN.total_bytes(1))
    with pytest.raises(WorldError, match=r"^174 bytes of free memory do not hold tiny: it takes 175 bytes with one"):
        PLAN.check(174)


def test_the_sentence_of_a_start_says_what_goes_where():
    assert PLAN.sentence(None) == (
        "Memory, computed: 224 bytes (weights 100 bytes, 4 players and a spare slot 44 bytes, prompts 10 bytes, "
        "activations at most 70 bytes); 10 bytes a player."
    )
    assert PLAN.sentence(204).endswith("10 bytes a player, and 204 bytes hold 2 players.")
    assert "on each of 3 ranks (" in replace(PLAN, num_ranks=3).sentence(None)


def test_published_models_are_planned_without_their_files():
    large = plan_world("lingbot-14b", 1, dtype_name="bfloat16")
    assert large.slot["keys and values"] == 819_200 * 1560 * 18
    shorter = large.player_bytes - large.start_bytes - large.spare_bytes
    assert shorter == 819_200 * 1560 * (18 - 3), "padding rows need the ring of one chunk"
    assert set(large.weights) == {"DiT", "VAE", "text encoder"}


def test_a_world_without_memory_to_plan_is_refused():
    with pytest.raises(WorldError, match="pattern world has no weights"):
        plan_world("pattern", 1)
    with pytest.raises(WorldError, match="nowhere is not a directory"):
        plan_world("nowhere", 1)


def test_free_memory_is_what_the_machine_says(tmp_path):
    said = tmp_path / "meminfo"
    said.write_text("MemTotal:       9999999 kB\nMemAvailable:   1000 kB\n")
    assert available_bytes(CPU, said) == int(1000 * 1024 * 0.95)
    for text in ("", "MemAvailable\n", "MemAvailable: many\n"):
        said.write_text(text)
        assert available_bytes(CPU, said) is None
    assert available_bytes(CPU, tmp_path / "none") is None


@pytest.mark.parametrize(
    ("size", "text"),
    [(999, "999 bytes"), (1500, "1.5 kB"), (23_003_136_000, "23 GB"), (146e9, "146 GB"), (5.04e6, "5.04 MB")],
)
def test_sizes_have_three_digits(size, text):
    assert gb(int(size)) == text
