"""The critic learns to tell blurred latents from true ones, and its advice leads from the one towards the other."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from world.meadow.critic import Critic


def true(count: int) -> Tensor:
    return torch.randn(count, 4, 8, 12)


def blurred(latents: Tensor) -> Tensor:
    return F.avg_pool2d(latents, 5, stride=1, padding=2)


def trained() -> Critic:
    torch.manual_seed(0)
    critic = Critic(4)
    optimizer = torch.optim.Adam(critic.parameters(), 1e-3)
    for _ in range(30):
        optimizer.zero_grad()
        critic.mistaken(true(4), blurred(true(4))).backward()
        optimizer.step()
    return critic


def test_advice_leads_from_the_blurred_to_the_true():
    critic = trained()
    assert critic.mistaken(true(8), blurred(true(8))) < 1.0  # 2 knows nothing
    made = blurred(true(4))
    before, advice = critic(made).mean(), critic.advice(made, torch.ones(4, 8, 12))
    assert all(p.grad is not None for p in critic.parameters())
    kept = [p.grad.clone() for p in critic.parameters() if p.grad is not None]
    critic.advice(made, torch.ones(4, 8, 12))
    assert all(torch.equal(p.grad, k) for p, k in zip(critic.parameters(), kept, strict=True) if p.grad is not None)
    better = made + 0.3 * advice
    assert critic(better).mean() > before
    roughness = [x.diff(dim=-1).square().mean().item() for x in (made, better)]
    assert roughness[1] > roughness[0]


def test_advice_is_given_where_it_is_asked_for_and_weighs_the_same_however_sure_the_critic_is():
    critic, where = Critic(4), torch.zeros(2, 8, 12)
    where[0, :4], where[0, 4:] = 1.0, 0.5
    advice = critic.advice(true(2), where)
    assert not advice[1].any() and advice[0].any()
    assert abs(advice.square().mean().item() - 1) < 1e-4
    assert not critic.advice(true(2), torch.zeros(2, 8, 12)).any(), "nowhere is no division by nothing"
