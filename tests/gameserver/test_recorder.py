"""The disk may be full, broken or stuck: recordings suffer, in whole records and with one event; players never."""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import pytest

from gameserver.journal import Journal, Keep
from gameserver.notes import Joined, Note
from gameserver.recorder import PATIENCE_S, Entry, Recorder
from sessions.recording import Recording, read
from sessions.records import Mark, Record, header_of
from world.chunk import Start
from world.pattern import PatternWorld

WAIT_S = 20.0
WORLD = PatternWorld()


class Desk:
    """Where notes arrive, and somebody may wait for them."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self._changed = threading.Condition()

    def deliver(self, notes: Sequence[Note]) -> None:
        with self._changed:
            self.told += [note.session_id for note in notes if isinstance(note, Joined)]
            self._changed.notify_all()

    def wait(self, *told: str) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: self.told == list(told), WAIT_S), self.told


def begin(session_id: str) -> Entry:
    scene = WORLD.scenes[0]
    start = Start(1, WORLD.encode_prompt(""), WORLD.prepare_image(scene.image), scene.intrinsics, 0.2)
    identity = WORLD.identify(lambda stage, share: None)
    make = partial(header_of, WORLD, identity, start, "axes", "north", None, run="r", session=session_id, protocol=1)
    return Entry(session_id, make, opens=Journal)


def mark(session_id: str, kind: str = "prompt", text: str = "") -> Entry:
    return Entry(session_id, lambda: Mark(kind=kind, text=text))  # type: ignore[arg-type]


@pytest.fixture
def desk() -> Desk:
    return Desk()


@pytest.fixture
def recorder(tmp_path: Path, desk: Desk) -> Iterator[Recorder]:
    recorder = Recorder(Keep(tmp_path), desk.deliver)
    yield recorder
    assert recorder.close(WAIT_S)


def recorded(recorder: Recorder, session_id: str) -> Recording:
    return read((recorder.keep.directory / f"{recorder.run}-{session_id}.mwrec").read_bytes())


def test_notes_come_after_the_records_they_tell_of(recorder: Recorder, desk: Desk) -> None:
    seen: list[int] = []
    deliver = desk.deliver

    def look(notes: Sequence[Note]) -> None:
        seen.append(len(recorded(recorder, "a").records))
        deliver(notes)

    recorder._deliver = look
    for n in range(5):
        recorder.post([Joined(str(n))], [begin("a") if n == 0 else mark("a")], 0.0)
    desk.wait(*"01234")
    assert seen == [1, 2, 3, 4, 5]


def test_a_session_is_a_file_that_ends(recorder: Recorder, desk: Desk) -> None:
    recorder.post([], [begin("a"), mark("a", "join")], 0.0)
    recorder.post([], [begin("b"), mark("a", "end", "left"), mark("a")], 0.1)
    recorder.post([Joined("x")], [mark("b")], 0.2)
    desk.wait("x")
    a, b = recorded(recorder, "a"), recorded(recorder, "b")
    assert a.ended and len(a.records) == 3, "nothing comes after an end"
    assert not b.ended and len(b.records) == 2
    assert (recorder.counts.recordings, recorder.counts.records, recorder.counts.lost) == (2, 5, 0)
    assert recorder.close(WAIT_S) and recorder.counts.syncs >= 2
    sizes = sum(path.stat().st_size for path in recorder.keep.directory.iterdir())
    assert recorder.counts.bytes == sizes


def test_a_full_disk_costs_recordings_and_one_event(
    recorder: Recorder, desk: Desk, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    recorder.post([Joined("1")], [begin("a"), begin("b"), mark("a"), mark("b")], 0.0)
    desk.wait("1")

    def full(journal: Journal, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "append", full)
        recorder.post([Joined("2")], [mark("a"), mark("b")], 0.1)
        desk.wait("1", "2")
    recorder.post([Joined("3")], [mark("a"), mark("b", "end"), begin("c"), mark("c", "end")], 0.2)
    desk.wait("1", "2", "3")
    assert [len(recorded(recorder, name).records) for name in "abc"] == [2, 2, 2]
    assert not recorded(recorder, "a").ended, "a recording with a gap would be a wrong one"
    assert recorder.counts.lost == 2
    (event,) = caplog.records
    assert event.getMessage() == f"recordings are being lost in {recorder.keep.directory}: No space left on device"


def test_a_record_that_cannot_be_made_costs_its_recording(recorder: Recorder, desk: Desk) -> None:
    def fault() -> Record:
        raise RuntimeError("out of memory")

    recorder.post([], [begin("a"), begin("b")], 0.0)
    recorder.post([Joined("1")], [Entry("a", fault), mark("a"), mark("b")], 0.1)
    desk.wait("1")
    assert recorder.counts.lost == 1
    assert [len(recorded(recorder, name).records) for name in "ab"] == [1, 2]


def test_a_directory_that_is_gone_costs_recordings(tmp_path: Path, desk: Desk) -> None:
    recorder = Recorder(Keep(tmp_path / "gone"), desk.deliver)
    recorder.post([Joined("1")], [begin("a"), mark("a")], 0.0)
    desk.wait("1")
    assert recorder.close(WAIT_S) and (recorder.counts.lost, recorder.counts.recordings) == (1, 0)


def test_a_disk_that_stalls_holds_frames_up_for_a_moment_only(
    recorder: Recorder, desk: Desk, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    entered, released = threading.Event(), threading.Event()
    append = Journal.append

    def stall(journal: Journal, data: bytes) -> None:
        entered.set()
        assert released.wait(WAIT_S)
        append(journal, data)

    recorder.post([Joined("1")], [begin("a"), begin("b")], 0.0)
    desk.wait("1")
    monkeypatch.setattr(Journal, "append", stall)
    recorder.post([Joined("2")], [mark("a")], 1.0)
    assert entered.wait(WAIT_S)
    recorder.post([Joined("3")], [], 1.0 + PATIENCE_S)
    assert desk.told == ["1"], "they wait for what is written before them"
    recorder.post([Joined("4")], [], 1.1 + PATIENCE_S)
    assert desk.told == ["1", "2", "3", "4"], "no longer"
    recorder.post([Joined("5")], [mark("a")], 1.2 + PATIENCE_S)
    assert desk.told[-1] == "5" and recorder.counts.given_up == 2
    released.set()
    monkeypatch.undo()
    while recorder._past:  # until the disk answers
        recorder.post([], [], 2.0)
    recorder.post([Joined("6")], [mark("a"), mark("b"), begin("c")], 3.0)
    desk.wait(*"123456")
    assert [len(recorded(recorder, name).records) for name in "bc"] == [2, 1]
    assert len(recorded(recorder, "a").records) <= 2 and not recorded(recorder, "a").ended
    (event,) = caplog.records
    assert "stalls" in event.getMessage()


def test_frames_do_not_wait_longer_because_nothing_else_is_told(
    recorder: Recorder, desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered, released = threading.Event(), threading.Event()

    def stall(journal: Journal, data: bytes) -> None:
        entered.set()
        assert released.wait(WAIT_S)

    monkeypatch.setattr(Journal, "append", stall)
    recorder.post([Joined("1")], [begin("a")], 0.0)
    assert entered.wait(WAIT_S)
    recorder.check(PATIENCE_S)
    assert desk.told == []
    recorder.check(PATIENCE_S + 0.1)
    assert desk.told == ["1"] and recorder.counts.given_up == 1
    released.set()


def test_what_is_idle_is_synced_too(recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = threading.Event()
    monkeypatch.setattr(Journal, "sync", lambda journal: synced.set())
    recorder._synced_s = 5.0
    recorder.post([], [begin("a")], 5.0)
    assert synced.wait(WAIT_S)


def test_a_sync_that_fails_is_counted_and_said(
    recorder: Recorder, desk: Desk, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(journal: Journal) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(Journal, "sync", broken)
    recorder.post([Joined("1")], [begin("a"), mark("a", "end")], 0.0)
    desk.wait("1")
    assert recorder.close(WAIT_S) and recorder.counts.unsynced == 1
    assert "Input/output error" in caplog.text
