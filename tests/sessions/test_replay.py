"""Replayed rows are those that ran, in the forwards they shared, alone or together, in however little room."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import pytest
from recorded_play import play, written

from sessions.recording import Recording, read
from sessions.records import Record
from sessions.replay import Replayed, ReplayError, most_at_once, refusal, replay, start_of
from world.chunk import Geometry, Identity, Row
from world.pattern import PatternWorld

GEOMETRY = Geometry(64, 48, 16, 1)


def recordings(run: str = "run") -> list[Recording]:
    return [read(written(records)) for records in play(run=run).values()]


def world(num_slots: int = 4, max_rows: int = 4, seen: list[int] | None = None) -> PatternWorld:
    def see(rows: Sequence[Row]) -> None:
        if seen is not None:
            seen.append(len(rows))

    return PatternWorld(GEOMETRY, num_slots, 3, max_rows, see)


def identity(of: PatternWorld) -> Identity:
    return of.identify(lambda stage, share: None)


def run(of: PatternWorld, played: Sequence[Recording], num_chunks: Sequence[int] | None = None) -> list[Replayed]:
    starts = {i: start_of(each.header, of) for i, each in enumerate(played) if each.header is not None}
    wanted = [len(each.chunks) for each in played] if num_chunks is None else num_chunks
    return list(replay(of, played, starts, wanted, set()))


def equal(made: Sequence[Replayed], played: Sequence[Recording]) -> None:
    for i, recording in enumerate(played):
        mine = [each for each in made if each.track == i]
        assert [each.chunk for each in mine] == list(recording.chunks)
        assert [each.picture.digest for each in mine] == [chunk.digest for chunk in recording.chunks]


def test_each_alone_is_equal() -> None:
    for recording in recordings():
        equal(run(world(1), [recording]), [recording])


def test_together_they_share_the_forwards_they_shared() -> None:
    played, seen = recordings(), list[int]()
    made = run(world(seen=seen), played)
    equal(made, played)
    last_steps = {}  # forward -> rows that the recordings say it had
    for each in made:
        last_steps[each.chunk.forward + 2] = each.chunk.company
    assert max(last_steps.values()) == 3 and max(seen) == 3 == most_at_once(played)
    first = min(played[0].chunks[0].forward, played[1].chunks[0].forward)
    rows_of = {}
    for recording in played:
        for chunk in recording.chunks:
            for step in range(4):
                rows_of[chunk.forward - first + step] = rows_of.get(chunk.forward - first + step, 0) + 1
    assert seen == [rows_of[forward] for forward in sorted(rows_of)]


@pytest.mark.parametrize("num_slots, max_rows", [(1, 1), (1, 4), (2, 1), (3, 2), (4, 1)])
def test_they_wait_where_there_is_less_room(num_slots: int, max_rows: int) -> None:
    played, seen = recordings(), list[int]()
    equal(run(world(num_slots, max_rows, seen), played), played)
    assert max(seen) <= min(num_slots, max_rows)


def test_recordings_of_two_runs_begin_together() -> None:
    played, seen = recordings("one")[:1] + recordings("two")[1:2], list[int]()
    assert most_at_once(played) == 2
    equal(run(world(2, seen=seen), played), played)
    assert seen[0] == 2


def test_every_slot_is_given_back() -> None:
    played, where = recordings(), world()
    run(where, played)
    starts = {0: start_of(played[0].header, where)}  # type: ignore[arg-type]
    replaying = replay(where, played, starts, [4, 0, 0], set())
    next(replaying)
    replaying.close()
    assert where._streams == {}


def test_what_is_dropped_goes_no_further() -> None:
    played, where, dropped = recordings(), world(), {2}
    starts = {i: start_of(each.header, where) for i, each in enumerate(played)}  # type: ignore[arg-type]
    made = []
    for each in replay(where, played, starts, [len(each.chunks) for each in played], dropped):
        made.append((each.track, each.chunk.chunk))
        if each.chunk.chunk == 1 and each.track == 0:
            dropped.add(0)
    assert [chunk for track, chunk in made if track == 0] == [0, 1]
    assert [chunk for track, chunk in made if track == 1] == list(range(len(played[1].chunks)))
    assert not [track for track, _ in made if track == 2]


def test_a_recording_of_something_else_is_refused() -> None:
    where = world()
    mine = identity(where)
    header = recordings()[0].header
    assert header is not None and refusal(header, where, mine) is None
    for change, why in [
        ({"world": "meadow"}, "meadow"), ({"weights": "ab12"}, "ab12"), ({"config": "{}"}, "configuration"),
        ({"width": 128}, "size"), ({"chunk_frames": 3}, "size"),
    ]:  # fmt: skip
        assert why in (refusal(msgspec.structs.replace(header, **change), where, mine) or "")


def test_a_start_that_cannot_be_had_is_a_sentence() -> None:
    where = world()
    header = recordings()[0].header
    assert header is not None
    changes: list[tuple[dict[str, object], str]] = [
        ({"scene": "nowhere"}, "not one of this world"), ({"picture_digest": bytes(16)}, "another one now"),
    ]  # fmt: skip
    for change, why in changes:
        with pytest.raises(ReplayError, match=why):
            start_of(msgspec.structs.replace(header, **change), where)


def test_a_prompt_change_comes_again_with_its_chunk() -> None:
    records: list[Record] = play()["a"]
    recording = read(written(records))
    said = [chunk.chunk for chunk in recording.chunks if chunk.prompt is not None]
    assert len(said) == 1
    silent = Recording(
        tuple(msgspec.structs.replace(r, prompt=None) if hasattr(r, "prompt") else r for r in recording.records[1:]),
        recording.verdict,
    )
    assert recording.header is not None
    silent = Recording((recording.header, *silent.records), recording.verdict)
    made = run(world(), [silent])
    same = [each.picture.digest == each.chunk.digest for each in made]
    assert same == [chunk.chunk < said[0] for chunk in recording.chunks]
