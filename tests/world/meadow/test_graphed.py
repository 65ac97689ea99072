"""What is played back does what the function does, gradients that add up included."""

from __future__ import annotations

import pytest
import torch

from world.meadow.graphed import Graphed

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))]


@pytest.mark.parametrize("device", DEVICES)
def test_outputs_and_gradients_are_those_of_the_function(device: str):
    weight = torch.ones(3, device=device, requires_grad=True)

    def learn(x: torch.Tensor) -> list[torch.Tensor]:
        if weight.grad is not None:
            weight.grad.zero_()
        loss = (weight * x).sum()
        loss.backward()
        return [loss.detach()]

    graphed, kept = Graphed(learn), []
    for k in range(3):
        x = torch.full((3,), float(k), device=device)
        kept += graphed(x)
        assert weight.grad.equal(x)
    assert [out.item() for out in kept] == [0.0, 3.0, 6.0]  # an output stays what it was
