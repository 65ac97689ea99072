"""Every token, head and slot has one rank, and what ranks put together again is what they took apart."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from world import ranks
from world.loader import serving_device
from world.ranks import ALONE, Ranks
from world.rehearsal import taken_for


@given(size=st.integers(1, 8), num_tokens=st.integers(1, 40), rows=st.integers(0, 3))
def test_tokens_are_divided_evenly_and_none_is_lost(size: int, num_tokens: int, rows: int) -> None:
    tokens = torch.arange(1, rows * num_tokens * 2 + 1).view(rows, num_tokens, 2)
    parts = [Ranks(index, size).mine(tokens) for index in range(size)]
    assert {part.shape for part in parts} == {(rows, Ranks(0, size).share(num_tokens), 2)}
    whole = torch.cat(parts, dim=1)
    assert torch.equal(whole[:, :num_tokens], tokens) and not whole[:, num_tokens:].any()


@given(size=st.integers(1, 8), num_slots=st.integers(1, 40))
def test_every_slot_is_decoded_once_in_a_row_of_its_own(size: int, num_slots: int) -> None:
    ranks = [Ranks(index, size) for index in range(size)]
    for slot in range(1, num_slots + 1):
        assert sum(rank.decodes(slot) for rank in ranks) == 1
    for rank in ranks:
        rows = [rank.decoder_row(slot) for slot in range(1, num_slots + 1) if rank.decodes(slot)]
        assert rows == list(range(1, len(rows) + 1)) and len(rows) <= rank.share(num_slots)


def test_alone_everything_is_as_it_was() -> None:
    tokens = torch.randn(2, 5, 3)
    assert ALONE.mine(tokens) is tokens and ALONE.whole(tokens, 5) is tokens
    assert ALONE.heads(12) == 12 and ALONE.decodes(7) and ALONE.decoder_row(7) == 7


CONTROL: Any = SimpleNamespace()
NCCL: Any = SimpleNamespace()


def test_each_rank_has_a_gpu_of_its_own_where_they_have_any() -> None:
    for index in range(2):
        assert serving_device(Ranks(index, 2, CONTROL, NCCL)) == torch.device("cuda", index)
        assert serving_device(Ranks(index, 2, CONTROL)) == torch.device("cpu")


def test_what_is_on_a_gpu_goes_from_gpu_to_gpu_and_nothing_else_does(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[object] = []
    for name in ("all_gather", "all_to_all_single", "broadcast", "send", "recv"):
        monkeypatch.setattr(ranks.dist, name, lambda *data, group, **peer: used.append(group))
    both, data = Ranks(0, 2, CONTROL, NCCL), torch.zeros(2, 3, 4)

    def exchange() -> list[object]:
        used.clear()
        both.whole(data, 5)
        both.exchange(data)
        both.broadcast(data)
        both.send(data, 1)
        both.receive(data, 1)
        return list(used)

    assert exchange() == [CONTROL] * 5
    with taken_for(torch.device("cuda")):
        assert exchange() == [NCCL] * 5
    monkeypatch.setattr(ranks.dist, "monitored_barrier", lambda group, timeout: used.append(group))
    both.meet()
    assert used[-1] is CONTROL
