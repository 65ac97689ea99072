"""Files only grow by whole records, and old ones make room unless somebody still writes to them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gameserver import journal
from gameserver.journal import Journal, Keep, default_directory, prune


def test_appends_add_up(tmp_path: Path) -> None:
    path = tmp_path / "a.mwrec"
    file = Journal(path)
    file.append(b"one")
    file.append(b"two")
    file.sync()
    assert file.num_bytes == 6 and path.read_bytes() == b"onetwo"
    with pytest.raises(FileExistsError):
        Journal(path)
    file.close()
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_record_that_does_not_fit_is_not_there_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = Journal(tmp_path / "a.mwrec")
    file.append(b"whole")
    write, room = os.write, [4]

    def full(fd: int, data: memoryview) -> int:
        written = write(fd, data[: room[0]])
        room[0] -= written
        return written

    monkeypatch.setattr(journal.os, "write", full)
    with pytest.raises(OSError, match="space"):
        file.append(b"too long")
    monkeypatch.undo()
    assert file.path.read_bytes() == b"whole" and file.num_bytes == 5
    file.append(b", again")
    file.close()
    assert file.path.read_bytes() == b"whole, again"


def test_a_beginning_that_does_not_fit_leaves_neither_a_file_nor_a_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forks are refused one after another on a full disk."""
    opened = set(os.listdir("/proc/self/fd"))
    with monkeypatch.context() as full:
        full.setattr(os, "write", lambda fd, data: 0)
        with pytest.raises(OSError, match="No space"):
            Journal(tmp_path / "a.mwrec", b"what a parent was")
    assert set(os.listdir("/proc/self/fd")) == opened and not any(tmp_path.iterdir())


def test_the_oldest_make_room_and_open_ones_stay(tmp_path: Path) -> None:
    def make(name: str, age_s: float) -> Path:
        path = tmp_path / name
        path.write_bytes(bytes(100))
        os.utime(path, (10_000 - age_s, 10_000 - age_s))
        return path

    kept_open = Journal(tmp_path / "open.mwrec")
    kept_open.append(bytes(1000))
    os.utime(kept_open.path, (0, 0))
    ancient, old, young = make("c.mwrec", 900), make("a.mwrec", 500), make("b.mwrec", 5)
    other = make("notes.txt", 9000)
    assert prune(Keep(tmp_path, 10_000, 800), 10_000) == 1 and not ancient.exists()
    assert prune(Keep(tmp_path, 10_000, 800), 10_000) == 0
    assert prune(Keep(tmp_path, 150, 800), 10_000) == 1 and not old.exists()
    assert young.exists() and other.exists() and kept_open.path.exists()
    kept_open.close()
    assert prune(Keep(tmp_path, 150, 800), 10_000) == 1 and not kept_open.path.exists()


def test_the_default_place_is_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", "/data")
    assert default_directory() == Path("/data/manyworlds/recordings")
    monkeypatch.setenv("XDG_DATA_HOME", "relative")  # to be ignored, says the standard
    monkeypatch.setenv("HOME", "/home/ada")
    assert default_directory() == Path("/home/ada/.local/share/manyworlds/recordings")
