"""A slot has one player, and who does not play is told so."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sessions.roster import DuplicateSession, Full, Roster, UnknownSession
from sessions.session import Session
from world.chunk import Geometry


def session(session_id: str, slot: int) -> Session:
    return Session(session_id, slot, Geometry(64, 48, 16, 1), 2, "axes", 0.0)


@given(st.lists(st.integers(0, 9)))
def test_slots_are_never_shared(toggles: list[int]) -> None:
    roster = Roster(4)
    playing: dict[str, int] = {}
    for name in map(str, toggles):
        if name in playing:
            with pytest.raises(DuplicateSession):
                roster.next_slot(name)
            assert roster.remove(name).slot == playing.pop(name)
        elif len(playing) == 4:
            with pytest.raises(Full):
                roster.next_slot(name)
        else:
            slot = roster.next_slot(name)
            assert slot not in playing.values() and 1 <= slot <= 4
            roster.add(session(name, slot))
            playing[name] = slot
        assert {s.id: s.slot for s in roster} == playing and len(roster) == len(playing)


def test_strangers_and_wrong_slots() -> None:
    roster = Roster(2)
    with pytest.raises(UnknownSession):
        roster["nobody"]
    with pytest.raises(UnknownSession):
        roster.remove("nobody")
    with pytest.raises(ValueError, match="next free"):
        roster.add(session("a", 2))
