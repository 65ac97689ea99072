"""The head for depth: its shapes, its range, and the same bits for a latent whoever is beside it."""

from __future__ import annotations

import pytest
import torch

from world.nn.depth import DepthHead


@pytest.fixture
def head() -> DepthHead:
    torch.manual_seed(0)
    return DepthHead(16, 8).requires_grad_(False)


def test_four_points_a_cell_each_at_a_finite_or_infinite_distance(head: DepthHead) -> None:
    inverse = head(10 * torch.randn(3, 16, 4, 6))
    assert inverse.shape == (3, 8, 12) and inverse.dtype == torch.float32 and (inverse >= 0).all()
    assert head.bfloat16()(torch.randn(3, 16, 4, 6)).dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_latent_has_the_same_depth_in_company(head: DepthHead, dtype: torch.dtype) -> None:
    head, latents = head.to(dtype), torch.randn(24, 16, 16, 28)
    together = head(latents)
    for first in (0, 8, 20):
        assert torch.equal(head(latents[first : first + 4]), together[first : first + 4])


def test_a_point_depends_on_what_is_far_below_it(head: DepthHead) -> None:
    """As far as a tower is high: ten cells."""
    latents = torch.randn(1, 16, 16, 28)
    other = latents.clone()
    other[:, :, 15] += 1
    differs = (head(latents) != head(other))[0].any(dim=1)
    assert differs[12:].all() and not differs[:8].any()
