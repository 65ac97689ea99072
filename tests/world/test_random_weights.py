"""Protects the random weights of a bench: dtypes and shapes of a served checkpoint, and numbers that stay numbers."""

from __future__ import annotations

import pytest
import torch

from tests.world.tiny_world import tiny_config
from world.nn.dit import keeps_float32
from world.random_weights import random_networks

CPU = torch.device("cpu")
CFG = tiny_config("first_frame")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_parameter_has_the_dtype_it_is_served_in(dtype: torch.dtype) -> None:
    dit, vae, text = random_networks(CFG, CPU, dtype)
    for name, parameter in dit.named_parameters():
        assert parameter.dtype == (torch.float32 if keeps_float32(name) else dtype), name
    assert {parameter.dtype for parameter in vae.parameters()} == {dtype} == {text.encode("anything").dtype}
    assert text.encode("anything").shape[1] == text.text_dim == CFG.dit.text_dim


def test_weights_multiply_norms_pass_on_and_nothing_learns() -> None:
    dit, vae, _ = random_networks(CFG, CPU, torch.float32)
    for network in (dit, vae):
        for name, parameter in network.named_parameters():
            assert not parameter.is_meta and not parameter.requires_grad and parameter.isfinite().all(), name
            spread = float(parameter.std(correction=0))
            if name.endswith("bias"):
                assert not parameter.any(), name
            elif "norm" in name or name.endswith("gamma"):
                assert (parameter == 1).all(), name
            elif parameter.numel() > 256:
                assert spread == pytest.approx(0.5 * parameter[0].numel() ** -0.5, rel=0.3), name


def test_the_seed_alone_makes_them() -> None:
    one, same, other = (random_networks(CFG, CPU, torch.bfloat16, seed)[0].state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["blocks.0.ffn.0.weight"], other["blocks.0.ffn.0.weight"])
