"""A DiT's weights divided among ranks by torch's FSDP2, from outside: the model does not know about it."""

from __future__ import annotations

from typing import Literal

from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

from world.nn.dit import CausalDiT
from world.ranks import Ranks

# replicated: every rank has all weights. sharded: 1/P of them, each block's gathered for its forward and given back.
# gathered: sharded until they are first used, and whole from then on.
Layout = Literal["replicated", "sharded", "gathered"]
LAYOUTS: tuple[Layout, ...] = ("replicated", "sharded", "gathered")


def lay_out(dit: CausalDiT, layout: Layout, ranks: Ranks) -> None:
    """Turn a replicated model, the same on every rank, into this layout. Alone there is nothing to divide."""
    if layout == "replicated" or ranks.size == 1:
        return
    assert ranks.group is not None
    device = dit.head.modulation.device.type
    mesh = DeviceMesh.from_group(ranks.group, device)
    for block in dit.blocks:
        fully_shard(block, mesh=mesh, reshard_after_forward=layout == "sharded")
        for method in ("camera", "text"):
            register_fsdp_forward_method(block, method)
    fully_shard(dit, mesh=mesh, reshard_after_forward=layout == "sharded")
    for method in ("camera", "text", "time"):
        register_fsdp_forward_method(dit, method)
