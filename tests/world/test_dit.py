"""The DiT's own promises: commits only leave K and V, a silent camera is silent, text padding is attended.

That its arithmetic is the published one is held by test_parity and test_denoiser.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.tiny_checkpoints import random_like
from world.nn.dit import CausalDiT, DiTConfig, init_weights, keeps_float32, patchify, unpatchify
from world.nn.rope import rotations

CFG = DiTConfig(32, 2, 3, 64, text_len=8, text_dim=12, freq_dim=16)
SIZE = (2, 4, 6)  # f, h, w


class Kept:
    """A memory without a past that remembers what it was given."""

    def __init__(self) -> None:
        self.k: dict[int, Tensor] = {}
        self.v: dict[int, Tensor] = {}
        self.reads: list[tuple[int, int]] = []

    def attend(self, layer_index: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        self.k[layer_index], self.v[layer_index] = k, v
        self.reads.append((layer_index, q.shape[0]))
        k, v = self.k[layer_index][: len(q)], self.v[layer_index][: len(q)]
        return F.scaled_dot_product_attention(*(t.transpose(1, 2) for t in (q, k, v))).transpose(1, 2)


@pytest.fixture(scope="module")
def dit() -> CausalDiT:
    network = CausalDiT(CFG)
    network.load_state_dict(random_like(network, torch.Generator().manual_seed(0)))
    return network.eval().requires_grad_(False)


def inputs(rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """Noisy input, control channels and text."""
    g = torch.Generator().manual_seed(rows)
    return (
        torch.randn(rows, 36, *SIZE, generator=g),
        torch.randn(rows, 384, *SIZE, generator=g),
        torch.randn(rows, 5, 12, generator=g),
    )


def forward(dit: CausalDiT, x: Tensor, control: Tensor, text: Tensor, num_outputs: int) -> tuple[Tensor, Kept]:
    rows = len(x)
    e, e0 = dit.time(torch.tensor([999.0, 500.0, 0.0])[:rows])
    memory, turn = Kept(), rotations(2 * torch.arange(rows), 2, 2, 3, CFG.head_dim)
    flow = dit(patchify(x), e, e0, list(dit.camera(patchify(control))), dit.text(text), turn, memory, num_outputs)
    return unpatchify(flow, *SIZE), memory


@pytest.mark.parametrize("outputs", [0, 1, 2])
def test_commit_rows_return_nothing_and_leave_the_same_keys(dit, outputs):
    full, kept = forward(dit, *inputs(3), 3)
    flow, memory = forward(dit, *inputs(3), outputs)
    assert flow.shape == (outputs, 16, *SIZE)
    torch.testing.assert_close(flow, full[:outputs], rtol=0, atol=1e-5)
    for i in range(CFG.num_layers):
        torch.testing.assert_close(memory.k[i], kept.k[i], rtol=0, atol=1e-5)
        torch.testing.assert_close(memory.v[i], kept.v[i], rtol=0, atol=1e-5)
    assert (CFG.num_layers - 1, 3) not in memory.reads, "the last block attends for rows that nobody reads"


def test_a_silent_camera_changes_nothing(dit):
    """Zeroed scale and shift layers: what the control says is not heard, and the scale is 1."""
    silent = CausalDiT(CFG)
    silent.load_state_dict(dit.state_dict())
    silent.requires_grad_(False)
    x, control, text = inputs(2)
    assert not torch.equal(forward(silent, x, control, text, 2)[0], forward(silent, x, -control, text, 2)[0])
    for block in silent.blocks:
        for layer in (block.cam_scale_layer, block.cam_shift_layer):
            layer.weight.zero_()
            layer.bias.zero_()
    for scale, shift in silent.camera(patchify(control)):
        assert not scale.any() and not shift.any()
    assert torch.equal(forward(silent, x, control, text, 2)[0], forward(silent, x, -control, text, 2)[0])


def test_text_is_padded_before_its_mlp_and_the_padding_is_attended(dit):
    _, _, text = inputs(1)
    padded = dit.text(F.pad(text, (0, 0, 0, 3)))
    for (k, v), (k_padded, v_padded) in zip(dit.text(text), padded, strict=True):
        assert k.shape == (1, 8, 2, 16)
        assert torch.equal(k, k_padded) and torch.equal(v, v_padded)
        assert v[0, 5:].abs().max() > 0 and torch.equal(v[0, 5], v[0, 7])


def test_patches_fold_and_unfold():
    x = torch.arange(2 * 3 * 2 * 4 * 6.0).view(2, 3, 2, 4, 6)
    tokens = patchify(x)
    assert tokens.shape == (2, 12, 12)
    at = 1 * 6 + 1 * 3 + 2  # frame 1, token row 1, token column 2
    assert tokens[0, at].tolist() == x[0, :, 1, 2:4, 4:6].flatten().tolist()
    channel_last = tokens.unflatten(-1, (3, 4)).transpose(-1, -2).flatten(-2)
    assert torch.equal(unpatchify(channel_last, 2, 4, 6), x)


def test_a_patch_embedding_is_the_convolution_of_the_checkpoint(dit):
    x, _, _ = inputs(2)
    weight, bias = dit.patch_embedding.weight, dit.patch_embedding.bias
    conv = F.conv3d(x, weight, bias, stride=(1, 2, 2)).flatten(2).mT
    torch.testing.assert_close(F.linear(patchify(x), weight.flatten(1), bias), conv, rtol=0, atol=1e-5)


def test_serving_in_bfloat16_keeps_what_was_published_in_float32(dit):
    kept = {key for key in dit.state_dict() if keeps_float32(key)}
    for key in ("head.head.weight", "time_embedding.0.bias", "blocks.0.modulation", "blocks.1.norm3.bias",
                "blocks.0.self_attn.norm_q.weight", "time_projection.1.weight", "head.modulation"):  # fmt: skip
        assert key in kept
    for key in (
        "blocks.0.ffn.0.weight",
        "patch_embedding.weight",
        "blocks.0.cam_scale_layer.weight",
        "blocks.0.self_attn.q.bias",
    ):
        assert key not in kept
    half = CausalDiT(CFG)
    half.load_state_dict(dit.state_dict())
    for key, parameter in half.named_parameters():
        parameter.data = parameter.data.to(torch.float32 if keeps_float32(key) else torch.bfloat16)
    half.requires_grad_(False)
    flow, memory = forward(half, *inputs(2), 2)
    exact, _ = forward(dit, *inputs(2), 2)
    assert flow.dtype == torch.float32 and memory.k[0].dtype == torch.bfloat16
    assert 1e-4 < (flow - exact).norm() / exact.norm() < 0.1


def test_training_starts_from_a_head_that_says_nothing():
    network = CausalDiT(CFG)
    init_weights(network)
    network.requires_grad_(False)
    flow, memory = forward(network, *inputs(2), 2)
    assert not flow.any() and memory.k[2].isfinite().all() and memory.k[2].any()
