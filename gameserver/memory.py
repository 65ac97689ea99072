"""What a world takes of a device's memory, and how many players that leaves room for. Computed: nothing is loaded."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from gameserver.arguments import add_precision, player_counts, positive
from gameserver.serve import add_spread_arguments, spread_of

if TYPE_CHECKING:
    from world.loader import MemoryPlan

GB = 10**9
COLUMNS = ("weight", "slab", "other", "work", "total")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    worlds = "a checkpoint's directory, lingbot-14b or lingbot-1.3b for a published model without its files"
    parser.add_argument("--world", help=f"{worlds} (default: meadow)")
    parser.add_argument("--players", type=player_counts, default=(1, 2, 4, 8), help="how many (default: 1,2,4,8)")
    budget = "memory of a device that it is to fit (default: what is free on this machine)"
    parser.add_argument("--budget-gb", type=positive, metavar="GB", help=budget)
    dtypes = "of linears and attention (default: what this machine would serve in)"
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), help=dtypes)
    add_spread_arguments(parser)
    add_precision(parser)
    parser.add_argument("--json", action="store_true", help="only one line of JSON on stdout")


def run(args: argparse.Namespace) -> int:
    """A table, or with --json one line."""
    from world.loader import memory_there, plan_world

    spread = spread_of(args)
    plan = plan_world(
        args.world, max(args.players), spread.num_ranks, spread.weights, args.dtype, spread.precision, spread.on_gpus
    )
    budget = memory_there(spread.num_ranks, spread.on_gpus) if args.budget_gb is None else int(args.budget_gb * GB)
    if args.json:
        rows = [_row(plan, players) for players in args.players]
        fit = None if budget is None else plan.players(budget)
        print(json.dumps({**asdict(plan), "results": rows, "budget_bytes": budget, "players_in_budget": fit}))
    else:
        print("\n".join(table(plan, args.players, budget)))
    return 0


def table(plan: MemoryPlan, counts: Sequence[int], budget_bytes: int | None) -> list[str]:
    """Lines for a person."""
    from world.loader import gb

    def parts(sizes: dict[str, int]) -> str:
        return ", ".join(f"{name} {gb(size)}" for name, size in sizes.items())

    many = f", each of {plan.num_ranks} ranks" if plan.num_ranks > 1 else ""
    kept, one = {**plan.slot, "start picture": plan.start_bytes}, plan.work
    lines = [
        f"{plan.world}, {plan.picture}, {plan.dtype}{many}: computed from shapes, not measured",
        f"weights             {gb(plan.weight_bytes):>8}  {parts(dict(plan.weights))}",
        f"a player            {gb(plan.player_bytes):>8}  {parts(kept)}",
        f"prompts kept        {gb(plan.prompt_bytes):>8}  at most",
        f"a row of a forward  {gb(one.forward):>8}  of {plan.max_rows} at most; to begin a chunk {gb(one.begin)}",
        f"a row decoded       {gb(one.decode):>8}  of {plan.decode_rows} at once",
        f"a picture coming in {gb(one.picture):>8}  while it is encoded",
        "",
        "players    weights      slab     other  activations    in all",
    ]
    for players in counts:
        row = _row(plan, players)
        weights, slab, other, work, total = (gb(row[f"{name}_bytes"]) for name in COLUMNS)
        lines.append(f"{players:7} {weights:>10} {slab:>9} {other:>9} {work:>12} {total:>9}")
    if budget_bytes is not None:
        fit = plan.players(budget_bytes)
        lines += ["", f"{gb(budget_bytes)} hold {fit or 'no'} player{'s' * (fit != 1)}."]
    return lines


def _row(plan: MemoryPlan, players: int) -> dict[str, int]:
    """The slab has a spare slot; `other` is what is kept of start pictures and prompts, and libraries' workspaces."""
    other = players * plan.start_bytes + plan.prompt_bytes + plan.library_bytes
    return {
        "players": players,
        "weight_bytes": plan.weight_bytes,
        "slab_bytes": plan.slab_bytes(players),
        "other_bytes": other,
        "work_bytes": plan.work_bytes(players),
        "total_bytes": plan.total_bytes(players),
    }
