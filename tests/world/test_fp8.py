"""FP8 linears: as near as e4m3 can be, each token by itself, nothing hidden; which ones, and that a world says so."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.tiny_checkpoints import Tiny, write
from tests.world.kernels import needs_triton
from tests.world.tiny_world import Life, Player, alone, random_world, same_bits, tick, tiny_config
from world.chunk import PRECISIONS, Precision, WorldError, precision_in, spelled
from world.loader import load_world
from world.model import DiffusionWorld
from world.nn import dit, fp8
from world.nn.dit import CausalDiT
from world.nn.fp8 import (
    E4M3,
    LINEARS,
    Float8Linear,
    plain_product,
    precision_of,
    product_door,
    scaled_product,
    to_fp8,
    when_placed,
)
from world.nn.rows import Quantised, quantise
from world.published import published_config
from world.random_weights import random_networks
from world.slab import kv_dtype

CPU = torch.device("cpu")
CFG = tiny_config(width=64, height=64)
pytestmark = pytest.mark.usefixtures("one_thread")


def quiet(stage: str, share: float) -> None:
    pass


def a_linear(k: int = 64, n: int = 48) -> nn.Linear:
    generator = torch.Generator().manual_seed(0)
    linear = nn.Linear(k, n, dtype=torch.bfloat16).requires_grad_(False)
    linear.weight.normal_(0, k**-0.5, generator=generator)
    linear.bias.normal_(generator=generator)
    return linear


def some(*shape: int, seed: int = 1) -> Tensor:
    return torch.empty(*shape, dtype=torch.bfloat16).normal_(generator=torch.Generator().manual_seed(seed))


def fp8_world(precision: Precision = "fp8") -> DiffusionWorld:
    return random_world(CFG, torch.bfloat16, precision=precision)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(-30, 30))
def test_a_number_is_off_by_a_sixteenth_or_half_the_finest_step(seed: int, magnitude: float) -> None:
    """Whatever the size of the row: 10^-30 to 10^30."""
    x = some(3, 32, seed=seed).double() * 10.0**magnitude * torch.tensor([[1.0], [1e-3], [1e3]])
    x = x.bfloat16()
    made = quantise(x, E4M3)
    values, scale = made.values, made.scale
    error = (values.double() * scale.double() - x.double()).abs()
    assert (error <= torch.maximum(x.double().abs() / 16, scale.double() * 2**-10) * (1 + 1e-6)).all()
    assert (values.float().abs().amax(-1) == 448).all(), "all of the range is used"


def test_a_product_is_as_near_as_its_rounded_numbers() -> None:
    """Against float64: what is rounded is the operands, and the sum to bfloat16, nothing else."""
    linear, x = a_linear(), some(2, 5, 64)
    values, weight = (
        t.values.double() * t.scale for t in (quantise(x.flatten(0, 1), E4M3), quantise(linear.weight, E4M3))
    )
    exact = values @ weight.t() + linear.bias.double()
    made = Float8Linear(linear, plain_product)(x)
    assert made.shape == (2, 5, 48) and made.dtype == torch.bfloat16
    torch.testing.assert_close(made.flatten(0, 1).double(), exact, rtol=2**-8, atol=1e-5)
    true = x.double() @ linear.weight.double().t() + linear.bias.double()
    noise = (made.double() - true).square().mean().sqrt() / (true - linear.bias.double()).square().mean().sqrt()
    assert 0.01 < noise < 0.05, "e4m3 leaves about 3 % of noise"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that multiplies FP8")
@pytest.mark.parametrize("rows", [1, 7, 128, 1560])
def test_a_gpu_multiplies_the_same(rows: int) -> None:
    linear, x = a_linear(512, 768), some(rows, 512)
    expected = Float8Linear(linear, plain_product)(x)
    made = Float8Linear(linear.cuda(), scaled_product)(x.cuda()).cpu()
    apart = (made.double() - expected.double()).norm() / expected.double().norm()
    assert apart < 1e-2, "tensor cores add up with some 14 bits: an H200 was 0.08 apart at most, of sums around 1"


def test_a_gpu_multiplies_by_its_own_cores_and_no_other_device_does() -> None:
    assert product_door(torch.device("cuda")) is scaled_product
    assert product_door(CPU) is product_door(torch.device("mps")) is plain_product


def test_tokens_have_their_bits_alone_and_in_company() -> None:
    """Also beside one that is a million times as large, which a scale of all would round them away for."""
    layer, x = Float8Linear(a_linear(), plain_product), some(4, 16, 64)
    loud = torch.cat([x, 1e6 * x.flip(0)])
    together = layer(loud)
    for i in range(4):
        assert torch.equal(together[i : i + 1], layer(x[i : i + 1]))


@settings(max_examples=40, deadline=None)
@given(st.sampled_from([float("nan"), float("inf"), -float("inf")]), st.integers(0, 63), st.integers(0, 3))
def test_what_is_no_number_shows_in_its_token_and_in_no_other(bad: float, at: int, row: int) -> None:
    layer, x = Float8Linear(a_linear(), plain_product), some(4, 64)
    clean = layer(x)
    x[row, at] = bad
    made = layer(x)
    assert made[row].isnan().all()
    others = [i for i in range(4) if i != row]
    assert torch.equal(made[others], clean[others])


def test_zeros_give_the_bias_and_large_numbers_stay_numbers() -> None:
    linear = a_linear()
    layer, x = Float8Linear(linear, plain_product), torch.zeros(3, 64, dtype=torch.bfloat16)
    x[1], x[2] = 1e30, 1e-38
    zero, large, small = layer(x)
    assert torch.equal(zero, linear.bias) and torch.equal(small, linear.bias)
    assert large.isfinite().all() and large.any()
    linear.weight.zero_()
    assert torch.equal(Float8Linear(linear, plain_product)(some(1, 64))[0], linear.bias)


def test_what_runs_in_every_forward_and_is_large_is_replaced_and_nothing_else() -> None:
    dit = CausalDiT(CFG.dit).to(torch.bfloat16)
    before = dict(dit.named_modules())
    to_fp8(dit, CPU)
    replaced = {name for name, module in dit.named_modules() if module is not before[name]}
    assert replaced == {f"blocks.{i}.{path}" for i in range(CFG.dit.num_layers) for path in LINEARS}
    assert all(isinstance(dit.get_submodule(name), Float8Linear) for name in replaced)
    kept = {name.split(".", 2)[2] for name, m in dit.named_modules() if isinstance(m, nn.Linear) and "blocks" in name}
    assert kept == {"cross_attn.k", "cross_attn.v"}
    assert dit.dtype == torch.bfloat16 and precision_of(dit, torch.bfloat16) == "fp8"


def test_widths_that_a_gpu_does_not_take_are_refused() -> None:
    dit = CausalDiT(CFG.dit)
    dit.blocks[1].ffn[0] = nn.Linear(32, 72)
    with pytest.raises(WorldError, match="32 to 72 numbers"):
        to_fp8(dit, CPU)


def test_random_weights_are_the_same_ones_rounded_and_never_all_there_in_both() -> None:
    plain, _, _ = random_networks(CFG, CPU, torch.bfloat16)
    to_fp8(plain, CPU)
    made, _, _ = random_networks(CFG, CPU, torch.bfloat16, precision="fp8")
    expected = plain.state_dict()
    assert made.state_dict().keys() == expected.keys()
    assert all(torch.equal(t.float(), expected[name].float()) for name, t in made.state_dict().items())


def test_a_linear_is_replaced_once_it_is_whole() -> None:
    with torch.device("meta"):
        dit = CausalDiT(CFG.dit)
    placed, linear = when_placed(dit, "fp8", CPU), a_linear(32, 64)
    dit.blocks[1].ffn[0].weight = linear.weight
    placed("blocks.1.ffn.0.weight")
    assert isinstance(dit.blocks[1].ffn[0], nn.Linear)
    dit.blocks[1].ffn[0].bias = linear.bias
    placed("blocks.1.ffn.0.bias")
    assert isinstance(dit.blocks[1].ffn[0], Float8Linear) and isinstance(dit.blocks[0].ffn[0], nn.Linear)


def test_a_world_goes_on_in_bfloat16_and_says_what_it_multiplies() -> None:
    world, plain = fp8_world(), random_world(CFG, torch.bfloat16)
    assert world.slab.k[0].dtype == torch.bfloat16
    here, there = world.identify(quiet), plain.identify(quiet)
    assert here.arithmetic["dtype"] == world.dtype == "bfloat16+fp8" and there.arithmetic["dtype"] == "bfloat16"
    assert here.weights != there.weights and here.rounded != there.rounded and here.config == there.config


def test_a_checkpoint_is_kept_in_fp8_as_it_is_read(tmp_path: Path) -> None:
    path = str(write(tmp_path, Tiny("v1")))
    plain, coarse, kept = (load_world(path, 1, quiet, precision=precision) for precision in PRECISIONS)
    to_fp8(plain.denoiser.dit.to(torch.bfloat16), CPU)
    expected = plain.denoiser.dit.state_dict()
    assert coarse.dtype == "bfloat16+fp8" and kept.dtype == "bfloat16+fp8-kv"
    assert coarse.slab.kv_dtype == torch.bfloat16 and kept.slab.kv_dtype == E4M3
    for world in (coarse, kept):
        for name, t in world.denoiser.dit.state_dict().items():
            assert torch.equal(t.float(), expected[name].float()) or t.dtype == torch.float32, name


def test_what_is_spelled_can_be_read() -> None:
    names = ["bfloat16", "bfloat16+fp8", "bfloat16+fp8-kv"]
    assert [spelled("bfloat16", precision) for precision in PRECISIONS] == names
    assert tuple(map(precision_in, names)) == PRECISIONS
    assert [precision_in(dtype) for dtype in ("float32", "", "fp8")] == ["native"] * 3


@needs_triton
def test_keys_and_values_are_kept_in_fp8_where_that_is_served_and_no_other_way(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = torch.device("cuda")
    large = published_config("lingbot-14b")
    wide = replace(large, dit=replace(large.dit, num_heads=large.dit.num_heads * 4 // 3))
    assert kv_dtype(CFG, "native", gpu) is kv_dtype(CFG, "fp8", gpu) is None
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)  # a plan for one that is not here
    assert kv_dtype(CFG, "fp8-kv", CPU) == kv_dtype(large, "fp8-kv", gpu) == E4M3
    for cfg, width in ((CFG, 16), (wide, 96)):
        with pytest.raises(WorldError, match=f"{width} numbers a head cannot be kept in FP8"):
            kv_dtype(cfg, "fp8-kv", gpu)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 9))
    with pytest.raises(WorldError, match=r"of GPUs those of compute capability 9\.0"):
        kv_dtype(large, "fp8-kv", gpu)
    plain = random_world(CFG, torch.bfloat16)
    assert plain.text_encoder is not None
    networks = plain.denoiser.dit, plain.vae, plain.text_encoder
    with pytest.raises(WorldError, match="beside linears in FP8 only"):
        DiffusionWorld(CFG, *networks, plain.scenes, 1, kv_dtype=E4M3)


def test_test_pictures_have_no_precision() -> None:
    with pytest.raises(WorldError, match="no linears"):
        load_world("pattern", 1, quiet, precision="fp8")


def test_what_several_multiply_is_rounded_once_and_each_makes_the_same_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """q, k and v of self-attention, the camera's scale and shift, and the first rows' part too."""
    x = some(3, 5, 64)
    layer, rounded = Float8Linear(a_linear(), plain_product), quantise(x, E4M3)
    assert torch.equal(layer(rounded), layer(x)) and torch.equal(layer(rounded[:2]), layer(x[:2]))
    world, times = fp8_world(), [0]
    life = Life(0, 1, 1)
    world.open(1, life.start(world))

    def counted(x: Tensor, dtype: torch.dtype) -> Quantised:
        times[0] += 1
        return quantise(x, dtype)

    for module in (dit, fp8):
        monkeypatch.setattr(module, "quantise", counted)
    tick(world, [Player(life, 1)])
    assert times[0] == CFG.dit.num_layers * (len(LINEARS) - 3)


@pytest.mark.parametrize("precision", PRECISIONS[1:])
def test_a_player_sees_the_same_bits_alone_and_in_company(precision: Precision) -> None:
    world = fp8_world(precision)
    assert precision_in(world.dtype) == precision
    lives = [Life(who, 1, 3) for who in range(3)]
    players = [Player(life, slot) for slot, life in enumerate(lives, 1)]
    for player in players:
        world.open(player.slot, player.life.start(world))
    while not players[0].is_over:
        tick(world, players)
    for player in players:
        world.close(player.slot)
    for player, life in zip(players, lives, strict=True):
        for made, by_itself in zip(player.made, alone(world, life, 4), strict=True):
            assert made[0].isfinite().all() and same_bits(made, by_itself)
