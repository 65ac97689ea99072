"""Whoever stands still makes room for others, and comes back with the bits of somebody who never left the slot."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from session_simulation import Simulation

from sessions.control import Control
from sessions.moment import Save
from sessions.parking import IDLE_S
from sessions.roster import DuplicateSession, Full
from sessions.session import NO_SLOT, State
from sessions.tick import Finished, Game
from tests.world.tiny_world import Life, random_world, tiny_config
from world.chunk import Start, World
from world.pattern import PatternWorld

PLENTY = 10**9
Hand = tuple[frozenset[str], bool]  # who steers a chunk at once, and whether the connections are lost after it


class Agents:
    """Agents in lockstep, who join when they steer first; time passes as nobody needs anything."""

    def __init__(self, world: World, start: Callable[[str], Start], park_bytes: int) -> None:
        self.game = Game(world, park_bytes)
        self.start, self.now_s = start, 0.0
        self.made: dict[str, list[Finished]] = {}
        self.slots: dict[str, set[int]] = {}

    def play(self, hands: Sequence[Hand]) -> None:
        for together, lose in hands:
            names = sorted(together)
            for name in names:
                self._come(name)
            for name in names:
                seq = len(self.made[name]) + 1
                axes = ((seq % 3 - 1) * 1.0, 0.5, (ord(name) % 3 - 1) * 1.0, 0.1)
                self.game.steer(name, Control(seq, seq * 10.0, axes))
            wanted = {name: len(self.made[name]) + 1 for name in names}
            while any(len(self.made[name]) < count for name, count in wanted.items()):
                self._tick()
            self._settle()
            for name in names if lose else ():
                self.game.detach(name)

    def _come(self, name: str) -> None:
        if name in self.game.roster:
            self.game.attach(name, self.now_s)
            return
        self._settle()
        self.now_s += IDLE_S
        self.game.join(name, self.start(name), "axes", self.now_s, lockstep=True)
        self.made[name], self.slots[name] = [], set()
        while not self.made[name]:
            self._tick()

    def _settle(self) -> None:
        while any(session.in_chunk for session in self.game.roster):
            self._tick()

    def _tick(self) -> None:
        due_s = self.game.due_s(self.now_s)
        assert due_s is not None, "somebody waits for ever"
        self.now_s = max(self.now_s, due_s)
        result = self.game.tick(self.now_s, lambda: self.now_s)
        self.now_s += 0.01
        for chunk in result.finished:
            self.made[chunk.session_id].append(chunk)
            self.slots[chunk.session_id].add(chunk.picture.slot)
            self.game.left(chunk.session_id, chunk.chunk_index)


def same(one: list[Finished], other: list[Finished], pictures: bool) -> bool:
    return all(
        a.chunk_index == b.chunk_index
        and a.picture.digest == b.picture.digest
        and (not pictures or a.picture.frames.tobytes() == b.picture.frames.tobytes())
        for a, b in zip(one, other, strict=True)
    )


hands = st.lists(st.tuples(st.frozensets(st.sampled_from("abcde"), min_size=1, max_size=3), st.booleans()), max_size=9)


def compared(world: Callable[[int], World], start: Callable[[World, str], Start], schedule: list[Hand]) -> int:
    """With three slots and with a slot for everybody: how often somebody was parked."""
    small, large = world(3), world(5)
    crowded = Agents(small, lambda name: start(small, name), PLENTY)
    roomy = Agents(large, lambda name: start(large, name), 0)
    for agents in (crowded, roomy):
        agents.play(schedule)
    assert crowded.made.keys() == roomy.made.keys() and roomy.game.parking.parked == 0
    for name, chunks in crowded.made.items():
        assert same(chunks, roomy.made[name], pictures=not isinstance(small, PatternWorld))
    for name in list(crowded.made):
        crowded.game.leave(name)
    assert (crowded.game.parking.held_bytes, len(crowded.game.parking)) == (0, 0)
    return crowded.game.parking.parked


def pattern_start(world: World, name: str) -> Start:
    scene = world.scenes[0]
    image = world.prepare_image(scene.image)
    return Start(ord(name), world.encode_prompt(name), image, scene.intrinsics, scene.scale)


@settings(max_examples=60, deadline=None)
@given(hands)
def test_any_schedule_of_more_players_than_slots_keeps_the_bits(schedule: list[Hand]) -> None:
    compared(lambda slots: PatternWorld(num_slots=slots, max_rows=3), pattern_start, schedule)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@settings(max_examples=4, deadline=None)
@given(st.data())
def test_a_model_keeps_the_bits_too(dtype: torch.dtype, data: st.DataObject) -> None:
    """Its ring wraps and its views are full after six chunks; four players take turns at three slots."""
    turns = [
        (frozenset(pair), lose) for pair, lose in zip(("ab", "cd", "ad", "bc") * 2, (False, True) * 4, strict=True)
    ]
    schedule = [*turns, *data.draw(hands.filter(lambda s: len(s) <= 3))]

    def start(world: World, name: str) -> Start:
        return Life(ord(name), 1, 1).start(world)  # type: ignore[arg-type]

    assert compared(lambda slots: random_world(tiny_config(), dtype, num_slots=slots), start, schedule) > 0


def crowd(park_bytes: int = PLENTY, num_slots: int = 2) -> Simulation:
    """Two who play in real time."""
    game = Simulation(num_slots=num_slots, park_bytes=park_bytes)
    for name in "ab"[:num_slots]:
        game.join(name)
    game.run(0.5)
    return game


def test_nobody_who_plays_is_parked() -> None:
    game = crowd()
    game.run(10.0)
    with pytest.raises(Full, match="all 2 slots are taken"):
        game.join("c")
    assert game.game.parking.parked == 0


def test_whoever_is_gone_makes_room_and_comes_back_to_any_slot() -> None:
    game = crowd()
    game.game.detach("a")
    game.run(0.5)
    newcomer = game.join("c")
    gone = game.game.roster["a"]
    assert (newcomer.slot, gone.slot, gone.state, len(game.game.parking)) == (1, NO_SLOT, State.DETACHED, 1)
    with pytest.raises(DuplicateSession):
        game.join("a")
    chunk_index = gone.chunk_index
    game.game.attach("a", game.now_s)
    game.run(2.0)
    assert gone.chunk_index == chunk_index, "there is no slot: it waits"
    with pytest.raises(Full, match="others wait"):
        game.join("d")
    game.game.leave("b")
    begun_s = game.now_s
    game.run(3.0)
    assert gone.slot == 2 and game.game.parking.returned == 1
    assert gone.chunk_index == pytest.approx(chunk_index + 3 * 16 / 4, abs=3)
    assert all(chunk.late_s == 0 for chunk in game.chunks("a") if chunk.started_s >= begun_s), "waiting is not late"


def test_whoever_is_gone_the_longest_is_parked() -> None:
    game = crowd(num_slots=2)
    game.game.leave("b")
    game.join("p", "poses")  # it stands still, and is there
    game.run(2 * IDLE_S)
    game.game.detach("a")
    game.run(0.5)
    game.join("c")
    assert game.game.roster["a"].parked and not game.game.roster["p"].parked
    game.join("d")
    assert game.game.roster["p"].parked
    for name in "dc":
        game.game.detach(name)
        game.run(0.5)
    game.join("e")
    assert [game.game.roster[name].parked for name in "cd"] == [False, True]


def test_who_waits_longest_is_first() -> None:
    game = crowd()
    for name, newcomer in (("a", "c"), ("b", "d")):
        game.game.detach(name)
        game.run(0.3)
        game.join(newcomer)
    for name in "ba":
        game.game.attach(name, game.now_s)
        game.run(0.3)
    game.game.leave("c")
    game.run(0.5)
    assert [game.game.roster[name].parked for name in "ab"] == [True, False]


def test_one_in_real_time_is_parked_only_where_its_poses_have_run_out() -> None:
    game = crowd(num_slots=1)
    game.game.leave("a")
    game.join("p", "poses")
    with pytest.raises(Full):
        game.join("b")  # for so short a pause nobody loses a slot
    game.run(IDLE_S)
    game.join("b")
    assert game.game.roster["p"].parked


def test_parking_is_bounded_and_can_be_off() -> None:
    for park_bytes in (0, 1):
        game = crowd(park_bytes)
        game.game.detach("a")
        game.run(0.5)
        with pytest.raises(Full):
            game.join("c")
        assert game.game.parking.held_bytes == 0 and not game.game.roster["a"].parked
    game = crowd()
    size = game.game.save("a").state.num_bytes
    game = crowd(size)
    for name in "ab":
        game.game.detach(name)
    game.run(0.5)
    game.join("c")
    with pytest.raises(Full):
        game.join("d")
    assert game.game.parking.held_bytes == size


def test_a_parked_session_is_saved_rewound_and_left() -> None:
    game = crowd()
    before = game.game.save("a", "x") if not game.game.roster["a"].in_chunk else None
    while before is None:
        game.tick()
        before = None if game.game.roster["a"].in_chunk else game.game.save("a", "x")
    game.run(1.0)
    game.game.detach("a")
    game.run(0.5)
    kept: Save = game.game.save("a")
    game.join("c")
    parked = game.game.save("a")
    assert {name: t.data.tobytes() for name, t in parked.state.tensors.items()} == {
        name: t.data.tobytes() for name, t in kept.state.tensors.items()
    }
    with pytest.raises(ValueError, match="every slot is taken by somebody who plays"):
        game.game.rewind("a", before, None, game.now_s)
    game.game.leave("c")
    game.game.rewind("a", before, None, game.now_s)
    assert (game.game.roster["a"].slot, game.game.roster["a"].chunk_index) == (1, before.moment.chunk_index)
    game.game.detach("b")
    game.run(0.5)
    game.join("d")
    game.game.leave("b" if game.game.roster["b"].parked else "a")
    assert len(game.game.parking) == 0 and game.game.parking.held_bytes == 0
