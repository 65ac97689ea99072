"""Ulysses sequence parallelism (Jacobs et al. 2023): tokens are traded for heads before attention, and back after."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from world.nn.dit import Memory
from world.nn.rows import Keys
from world.ranks import Ranks


class Ulysses:
    """A memory of all tokens and some heads, as a `Memory` of some tokens and all heads.

    q, k and v of a layer go in one exchange; what a commit has no q for is not sent. The tokens that fill up the last
    ranks' shares are dropped before anybody attends to them.
    """

    def __init__(self, ranks: Ranks, num_tokens: int, memory: Memory):
        self.ranks, self.num_tokens, self.memory = ranks, num_tokens, memory

    def attend(self, layer_index: int, q: Tensor, keys: Keys, v: Tensor) -> Tensor:
        k = keys.made()
        p, (own, num_heads, d) = self.ranks.size, k.shape[1:]
        n, rows = num_heads // p, [len(q), len(k), len(v)]
        sent = k.new_empty(p, sum(rows), own, n, d)
        for into, t in zip(sent.split(rows, dim=1), (q, k, v), strict=True):
            into.copy_(t.unflatten(2, (p, n)).movedim(2, 0))
        got = self.ranks.exchange(sent).transpose(0, 1).flatten(1, 2)[:, : self.num_tokens]  # [rows, L, n, d]
        q_got, k_got, v_got = got.split(rows)
        seen = self.memory.attend(layer_index, q_got, Keys(k_got), v_got)  # [outputs, L, n, d]
        if len(seen) == 0:
            return q
        seen = F.pad(seen, (0, 0, 0, 0, 0, p * own - self.num_tokens)).unflatten(1, (p, own))
        back = self.ranks.exchange(seen.transpose(0, 1).contiguous())  # [p, outputs, own, n, d]
        return back.movedim(0, 2).flatten(2, 3)
