"""A session that was lost comes back from its recording to where it was: to the bit, or not at all; and a recording of
one that went back, or forked off, is made again and verified like any other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import msgspec
import pytest
from session_simulation import Simulation

from sessions.control import Control
from sessions.moment import Save
from sessions.recording import Recording, encode, read
from sessions.records import Chunk, Mark, Record, chunk_of, header_of
from sessions.recovery import fits, story, tail
from sessions.verify import Finding, verify
from world.pattern import PatternWorld


class Told:
    """One player whose recording is kept as the server would keep it."""

    def __init__(self) -> None:
        self.game = Simulation(num_steps=3, cost_s=lambda rows: 0.013)
        start = self.game.start(7)
        self.session = self.game.game.join("a", start, "axes", self.game.now_s)
        identity = self.game.world.identify(lambda stage, share: None)
        self.records: list[Record] = [
            header_of(self.game.world, identity, start, "axes", "north", None, run="r", session="a", protocol=1)
        ]
        self.seq = 0
        self.saves: dict[str, Save] = {}

    def play(self, chunks: int, *axes: float) -> None:
        held = (*axes, *[0.0] * (4 - len(axes)))
        self.seq += 1
        self.game.game.steer("a", Control(self.seq, self.seq * 50.0, held))  # type: ignore[arg-type]
        until = self.session.chunk_index + chunks
        while self.session.chunk_index < until:
            self.game.now_s = self.game.game.due_s(self.game.now_s) or self.game.now_s
            made = len(self.game.finished)
            self.game.tick()
            self.records += [chunk_of(chunk) for chunk in self.game.finished[made:]]

    def ask(self, text: str) -> None:
        self.game.game.set_prompt("a", self.game.world.encode_prompt(text))
        self.records.append(Mark(kind="prompt", text=text))

    def save(self, name: str) -> None:
        self.saves[name] = self.game.game.save("a")
        self.records.append(Mark(kind="save", text=name))

    def load(self, name: str) -> None:
        moment = self.saves[name].moment
        prompt = None if moment.next_prompt is None else self.game.world.encode_prompt(moment.next_prompt)
        self.game.game.rewind("a", self.saves[name], prompt, self.game.now_s)
        self.seq = moment.heading.control_seq
        self.records.append(Mark(kind="rewind", text=name))

    @property
    def recording(self) -> Recording:
        recording = read(b"".join(map(encode, self.records)))
        assert recording.verdict.state == "whole", recording.verdict
        return recording


@pytest.fixture
def told() -> Told:
    """It saves at its start, plays, saves with a prompt on its way, goes back to both, and has a prompt on its way."""
    told = Told()
    told.save("start")
    told.play(4, 1.0, 0.3)
    told.ask("snow")
    told.save("middle")
    told.play(3, 0.0, 0.0, 1.0)
    told.load("middle")
    told.play(2, 0.0, -1.0)
    told.load("start")
    told.play(3, 0.5)
    told.load("middle")
    told.play(5, 0.0, 0.2, 0.7)
    told.ask("night")
    return told


def verified(recording: Recording) -> Finding:
    world = PatternWorld(Simulation().geometry, 1, 3, 1)
    identity = world.identify(lambda stage, share: None)
    (finding,) = verify(world, identity, [recording], [len(recording.chunks)])
    return finding


def test_a_recording_that_goes_back_is_made_again_with_all_that_was_given_up(told: Told) -> None:
    told.records.append(Mark(kind="end"))
    recording = told.recording
    assert [c.chunk for c in recording.chunks] == [*range(7), 4, 5, *range(3), *range(4, 9)]
    finding = verified(recording)
    assert (finding.outcome, finding.checked) == ("equal", 17)
    for at, record in enumerate(told.records):  # a digest of each line of play is held against it
        if isinstance(record, Chunk):
            wrong = list(told.records)
            wrong[at] = msgspec.structs.replace(record, digest=bytes(16))
            assert verified(read(b"".join(map(encode, wrong)))).outcome == "differs"


def test_going_back_to_what_was_never_saved_is_damage(told: Told) -> None:
    records = [*told.records, Mark(kind="rewind", text="never")]
    assert read(b"".join(map(encode, records))).verdict.state == "damaged"


def test_a_story_leaves_out_what_was_given_up(told: Told) -> None:
    known = story(told.recording)
    assert [c.chunk for c in known.chunks] == list(range(9))
    assert (known.pending, known.prompt, known.saves) == ("night", "snow", ("start", "middle"))
    assert known.control_seq == told.seq


def test_a_prompt_waits_until_a_chunk_has_it(told: Told) -> None:
    told.play(1)
    assert (story(told.recording).pending, story(told.recording).prompt) == (None, "night")
    told.game.now_s = told.game.game.due_s(told.game.now_s) or told.game.now_s
    told.game.tick()  # a chunk has begun without it
    told.ask("rain")
    told.play(1)
    assert (story(told.recording).pending, story(told.recording).prompt) == ("rain", "night")


def come_back(recording: Recording, since: Save | None) -> tuple[Simulation, int]:
    """In another game: from a save, or from nothing."""
    game = Simulation(num_steps=3, cost_s=lambda rows: 0.013)
    known = story(recording)
    rest = tail(known, None if since is None else since.moment, game.world)
    if since is None:
        game.game.join("a", game.start(7), "axes", game.now_s)
    else:
        game.game.fork("a", since, None, game.now_s)
    game.game.retrace("a", rest.past, rest.heading, rest.next_prompt, known.saves)
    retraced: Sequence[str] = ()
    for _ in range(4 * len(rest.past)):
        result = game.game.tick(game.now_s, lambda: game.now_s)
        assert not result.finished and not result.astray
        retraced = result.retraced
    assert retraced == (("a",) if rest.past else ())
    return game, len(rest.past)


@pytest.mark.parametrize("saved, again", [(None, 9), ("start", 9), ("middle", 5), ("now", 0)])
def test_it_goes_on_as_if_nothing_had_been(told: Told, saved: str | None, again: int) -> None:
    told.saves["now"] = told.game.game.save("a")
    recording = told.recording
    game, made = come_back(recording, None if saved is None else told.saves[saved])
    assert made == again
    for each in (game, told.game):  # what is held is let go of on both sides
        each.game.attach("a", each.now_s)
        each.finished.clear()
        each.game.steer("a", Control(1, 0.0, (0.5, 0.25, -1.0, 0.1)))
        each.run(1.0)
    pairs = list(zip(game.finished[:3], told.game.finished[:3], strict=True))
    for back, on in pairs:
        assert back.picture.digest == on.picture.digest and back.path.poses.tobytes() == on.path.poses.tobytes()
    assert pairs[0][0].prompt is not None and pairs[0][0].prompt.text == "night"


def test_a_session_that_does_not_become_what_it_was_is_told(told: Told) -> None:
    known = story(told.recording)
    game = Simulation(num_steps=3)
    rest = tail(known, None, game.world)
    past = [replace(each, digest=bytes(16)) if i == 2 else each for i, each in enumerate(rest.past)]
    game.game.join("a", game.start(7), "axes", game.now_s)
    game.game.retrace("a", past, rest.heading, None, ())
    astray = [found for _ in range(20) for found in game.game.tick(game.now_s, lambda: game.now_s).astray]
    assert astray == [("a", 2)]


def test_what_is_made_again_lets_others_go_first(told: Told) -> None:
    known = story(told.recording)
    game = Simulation(num_steps=3, max_rows=1, cost_s=lambda rows: 0.01)
    rest = tail(known, None, game.world)
    game.game.join("a", game.start(7), "axes", game.now_s)
    game.game.retrace("a", rest.past, rest.heading, None, ())
    game.join("b")
    game.run(4.0)
    assert all(chunk.late_s == 0 for chunk in game.chunks("b")[6:]) and len(game.chunks("b")) > 10
    assert game.game.roster["a"].chunk_index > 9, "and yet it comes to an end"


def test_a_moment_of_another_line_of_play_does_not_fit(told: Told) -> None:
    known = story(told.recording)
    good = told.saves["middle"].moment
    assert fits(good, known) and fits(told.saves["start"].moment, known)
    assert not fits(replace(good, digest=bytes(16)), known)
    assert not fits(replace(good, chunk_index=len(known.chunks) + 1), known)
    assert not fits(replace(good, control="poses"), known)


def test_a_connection_counts_its_controls_anew(told: Told) -> None:
    """Else a client that came back twice would take its lost controls for played."""
    assert story(told.recording).control_seq == told.seq > 0
    told.records.append(Mark(kind="reconnect"))
    assert story(told.recording).control_seq == 0


def test_what_was_begun_before_somebody_came_back_counts_none_of_their_controls() -> None:
    """An agent would take it for the answer to its first one."""
    told = Told()
    told.play(2, 1.0)
    while not told.session.in_chunk:
        told.game.now_s = told.game.game.due_s(told.game.now_s) or told.game.now_s
        told.game.tick()
    told.game.game.detach("a")
    told.game.game.attach("a", told.game.now_s)
    told.seq = 0
    told.play(2, 0.5)
    before, after = told.game.finished[-2:]
    assert (before.control_seq, after.control_seq) == (0, 1) and before.path.control_seq == 1
