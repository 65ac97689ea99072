"""A DiT's weights divided among ranks by torch's FSDP2, from outside: the model does not know about it."""

from __future__ import annotations

from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

from world.chunk import WeightLayout
from world.nn.dit import CausalDiT
from world.ranks import Ranks


def lay_out(dit: CausalDiT, layout: WeightLayout, ranks: Ranks) -> None:
    """Turn a replicated model, the same on every rank, into this layout. Alone there is nothing to divide. When it
    returns all ranks are here: from now on they wait for each other within their deadline. WorldError if
    the heads do not divide."""
    if ranks.size == 1:
        return
    ranks.heads(dit.cfg.num_heads)
    ranks.meet()
    if layout == "replicated":
        return
    group = ranks.gpus or ranks.group
    assert group is not None
    mesh = DeviceMesh.from_group(group, dit.head.modulation.device.type)
    for block in dit.blocks:
        fully_shard(block, mesh=mesh, reshard_after_forward=layout == "sharded")
        for method in ("camera", "text"):
            register_fsdp_forward_method(block, method)
    fully_shard(dit, mesh=mesh, reshard_after_forward=layout == "sharded")
    for method in ("camera", "text", "time"):
        register_fsdp_forward_method(dit, method)
