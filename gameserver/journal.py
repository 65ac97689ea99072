"""Recordings on disk: one file a session that only grows, and a directory that forgets the oldest."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sessions.recording import SUFFIX

APP = "manyworlds"


@dataclass(frozen=True, slots=True)
class Keep:
    """Where recordings go, and how many stay. Files that are still written are never removed."""

    directory: Path
    max_bytes: int = 2 * 1024**3
    max_age_s: float = 14 * 86400.0


def default_directory() -> Path:
    """This user's, by the XDG base directories. RuntimeError for a user without a home."""
    return data_directory() / APP / "recordings"


def data_directory() -> Path:
    data = os.environ.get("XDG_DATA_HOME", "")
    return Path(data) if data.startswith("/") else Path.home() / ".local" / "share"


class Journal:
    """A new file. It is locked while it is open, so that no server, this one or another, removes it."""

    def __init__(self, path: Path, begins_with: bytes = b"") -> None:
        """OSError if it cannot be made, or is there already."""
        self.path = path
        self.num_bytes = 0
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(self._fd, fcntl.LOCK_EX)  # who looks whether it is finished holds it for microseconds
        try:
            self.append(begins_with)
        except OSError:
            self.close()
            path.unlink(missing_ok=True)
            raise

    @classmethod
    def again(cls, path: Path) -> Journal:
        """A file that is there, to go on with. OSError if it cannot be had; BlockingIOError if somebody writes it."""
        journal = cls.__new__(cls)
        journal.path = path
        journal._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            fcntl.flock(journal._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            journal.num_bytes = os.fstat(journal._fd).st_size
        except OSError:
            journal.close()
            raise
        return journal

    def cut(self, num_bytes: int) -> None:
        """What comes after is no record."""
        os.ftruncate(self._fd, num_bytes)
        self.num_bytes = num_bytes

    def append(self, data: bytes) -> None:
        """All of it or, with an OSError, nothing of it."""
        left = memoryview(data)
        try:
            while left:
                written = os.write(self._fd, left)
                if written == 0:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                left = left[written:]
        except OSError:
            with contextlib.suppress(OSError):  # a torn tail is cut by whoever reads it
                os.ftruncate(self._fd, self.num_bytes)
            raise
        self.num_bytes += len(data)

    def sync(self) -> None:
        """OSError if what was written may not have reached the disk."""
        os.fsync(self._fd)

    def close(self) -> None:
        os.close(self._fd)


def prune(keep: Keep, now_s: float) -> int:
    """Remove finished recordings that are too old, then the oldest until the rest has room; how many went.

    `now_s`: seconds since the epoch by the clock of the file system, such as the time of a file just made.
    """
    files = sorted(_finished(keep.directory), key=lambda file: file[1].st_mtime)
    total = sum(stat.st_size for _, stat in files)
    removed = 0
    for path, stat in files:
        if total <= keep.max_bytes and now_s - stat.st_mtime <= keep.max_age_s:
            break
        with contextlib.suppress(OSError):  # another server was faster, or it is not ours to remove
            path.unlink()
            removed += 1
        total -= stat.st_size
    return removed


def _finished(directory: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """The recordings that nobody writes to."""
    for path in directory.glob(f"*{SUFFIX}"):
        with contextlib.suppress(OSError):
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                yield path, os.fstat(fd)
            finally:
                os.close(fd)
