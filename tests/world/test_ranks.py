"""Every token, head and slot has one rank, and what ranks put together again is what they took apart."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from world.ranks import ALONE, Ranks


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
