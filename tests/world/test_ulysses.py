"""Protects spreading a forward: however many ranks share it and wherever its weights lie, rows come out as on one.

Rows are at chunks, steps and prompts of their own, commits among them; 15 tokens divide by neither 2 nor 4.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.world.ranked import together
from tests.world.tiny_world import Life, Player, random_world, tiny_config
from world.chunk import WEIGHT_LAYOUTS, WeightLayout, WorldError
from world.config import WorldConfig
from world.model import DiffusionWorld
from world.parity import run_case
from world.ranks import ALONE, Ranks

GOLDEN = Path(__file__).parent.parent / "golden"
CASES = ("dit_cam_global", "dit_cam_window", "dit_act_global")
CHUNKS = 4  # a window of 3 frames wraps
ODD = tiny_config("first_frame", chunk_frames=1, window_frames=3, num_heads=4, width=80, height=48)  # 15 tokens
FEW = tiny_config(  # 3 tokens: one rank has none
    "first_frame", chunk_frames=1, window_frames=3, num_heads=4, width=48, height=16
)


def distance(got: Tensor, reference: Tensor) -> float:
    return ((got.double() - reference.double()).norm() / reference.double().norm()).item()


def latents(ranks: Ranks, cfg: WorldConfig, lives: int, layout: WeightLayout) -> list[Tensor]:
    """Of so many players, who begin a forward apart, in slots that are not in order: every chunk's."""
    world = random_world(cfg, num_slots=4, ranks=ranks, layout=layout)
    players = [Player(Life(who, cfg.geometry.chunk_frames, CHUNKS), slot=(3, 1, 4)[who]) for who in range(lives)]
    made: list[Tensor] = []
    at = 0
    while any(not player.is_over for player in players):
        due = [player for i, player in enumerate(players) if at >= i and not player.is_over]
        for player in due:
            if (player.chunk_index, player.step_index) == (0, 0):
                world.open(player.slot, player.life.start(world))
        ends = [player.slot for player in due if player.step_index == world.num_steps - 1]
        step(world, due)
        made += [world.slab.x[slot].clone() for slot in ends]
        at += 1
    return made


def step(world: DiffusionWorld, due: Sequence[Player]) -> None:
    """One forward, where only some of the pictures are made here."""
    pictures = world.step([player.row(world) for player in due])
    assert {p.slot for p in pictures} == {
        p.slot for p in due if p.step_index == world.num_steps - 1 and world.ranks.decodes(p.slot)
    }
    for player in due:
        player.advanced(world.num_steps)


class Poisoned(Ranks):
    """The tokens that fill up a share are NaN."""

    def mine(self, tokens: Tensor) -> Tensor:
        own = self.share(tokens.shape[1])
        real = min(max(tokens.shape[1] - self.index * own, 0), own)
        filler = torch.full_like(tokens[:, :1], float("nan")).expand(-1, own - real, *tokens.shape[2:])
        return torch.cat([super().mine(tokens)[:, :real], filler], dim=1)


def runs(ranks: Ranks) -> dict[tuple[WeightLayout, str], list[Tensor]]:
    made = {}
    for layout in WEIGHT_LAYOUTS if ranks.size > 1 else WEIGHT_LAYOUTS[:1]:
        made[layout, "one of odd"] = latents(ranks, ODD, 1, layout)
        made[layout, "three of odd"] = latents(ranks, ODD, 3, layout)
    return made | {(WEIGHT_LAYOUTS[0], "three of few"): latents(ranks, FEW, 3, WEIGHT_LAYOUTS[0])}


def poisoned(ranks: Ranks) -> list[Tensor]:
    return latents(Poisoned(ranks.index, ranks.size, ranks.group), ODD, 3, "replicated")


def test_what_fills_up_a_share_reaches_nobody(tmp_path: Path) -> None:
    """Neither the others' attention nor what comes out: NaN would show."""
    torch.set_num_threads(1)
    with torch.inference_mode():
        expected = latents(ALONE, ODD, 3, "replicated")
    for run in together(2, poisoned, tmp_path):
        assert all(distance(got, one) < 1e-5 for got, one in zip(run, expected, strict=True))


@pytest.mark.parametrize("size", [2, 4])
def test_ranks_compute_what_one_computes(size: int, tmp_path: Path) -> None:
    assert ODD.geometry.chunk_tokens % 2 and FEW.geometry.chunk_tokens < 4
    torch.set_num_threads(1)
    with torch.inference_mode():
        expected = runs(ALONE)
    per_rank = together(size, runs, tmp_path)
    for made in per_rank:
        for (layout, who), run in made.items():
            reference = expected[WEIGHT_LAYOUTS[0], who]
            assert len(run) == len(reference) > 0
            assert all(distance(got, one) < 1e-5 for got, one in zip(run, reference, strict=True)), (layout, who)
            same = map(torch.equal, run, per_rank[0][layout, who])
            assert all(same), "each rank warps, decodes and goes on from its own copy"


def golden(ranks: Ranks) -> dict[str, dict[str, Tensor]]:
    return {name: run_case(GOLDEN / name, ranks) for name in CASES}


def test_golden_parity_on_two_ranks(tmp_path: Path) -> None:
    """Two heads: two ranks. What is compared is what the published code made."""
    made = together(2, golden, tmp_path)
    for name in CASES:
        rollouts, checked = sorted((GOLDEN / name).glob("rollout*.safetensors")), 0
        for path in rollouts:
            for key, reference in load_file(path).items():
                if key.startswith(("out.flow.", "out.x0")):
                    for of_rank in made:
                        got = of_rank[name][f"{path.stem}.{key.removeprefix('out.')}"]
                        assert distance(got, reference) < 1e-5, (name, key)
                    checked += 1
        assert checked >= 9 * len(rollouts)


def test_heads_that_do_not_divide_are_refused() -> None:
    with pytest.raises(WorldError, match="the 4 heads of this model do not divide among 3 ranks"):
        random_world(ODD, ranks=Ranks(0, 3))
