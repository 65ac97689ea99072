"""A step of Muon is orthogonal and of AdamW's length, whatever the shape; and it goes downhill."""

from __future__ import annotations

import pytest
import torch

from world.meadow.muon import Muon, orthogonalise


@pytest.mark.parametrize("shape", [(1, 8, 8), (2, 6, 20), (3, 20, 6)])
def test_singular_values_come_to_about_one(shape: tuple[int, int, int]) -> None:
    g = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalise(g))
    assert values.min() > 0.4 and values.max() < 1.4


@pytest.mark.parametrize("shape", [(16, 12), (12, 6, 3, 3), (8, 4, 3, 3, 3)])
def test_a_step_has_the_length_of_the_learning_rate(shape: tuple[int, ...]) -> None:
    torch.manual_seed(1)
    weight = torch.randn(shape, requires_grad=True)
    before = weight.detach().clone()
    weight.grad = 1000 * torch.randn(shape)
    Muon([weight], lr=0.01, weight_decay=0.0).step()
    moved = (weight.detach() - before).square().mean().sqrt().item()
    assert moved == pytest.approx(0.2 * 0.01, rel=0.35)


def test_weights_of_one_shape_go_together_as_they_would_alone() -> None:
    torch.manual_seed(2)
    weights, grads = [torch.randn(6, 5) for _ in range(3)], [torch.randn(6, 5) for _ in range(3)]

    def stepped(some: list[int]) -> list[torch.Tensor]:
        copies = [weights[i].clone().requires_grad_() for i in some]
        optimizer = Muon(copies, lr=0.1)
        for _ in range(2):
            for copy, i in zip(copies, some, strict=True):
                copy.grad = grads[i].clone()
            optimizer.step()
        return [copy.detach() for copy in copies]

    together = stepped([0, 1, 2])
    for i in range(3):
        torch.testing.assert_close(stepped([i])[0], together[i])


def test_it_fits_a_convolution() -> None:
    torch.manual_seed(3)
    wanted, conv, x = torch.nn.Conv2d(3, 4, 3), torch.nn.Conv2d(3, 4, 3), torch.randn(8, 3, 10, 10)
    with torch.no_grad():
        target = wanted(x)
        conv.bias.copy_(wanted.bias)
    optimizer, losses = Muon([conv.weight], lr=0.05, weight_decay=0.0), []
    for _ in range(100):
        loss = (conv(x) - target).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.02 * losses[0]
