"""Who is playing, on disk: what a server that was killed has to know to let its players back in."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

import msgspec

from sessions.trajectory import ControlKind
from world.snapshot import replace_file

SUFFIX = ".json"


class Ticket(msgspec.Struct, frozen=True, kw_only=True):
    """A session under way."""

    session: str
    token_hash: str  # of what its player shows to come back; the token itself is nowhere on the disk
    recording: str  # its file, an absolute path without links; of an earlier version a name, which is nowhere
    control: ControlKind
    scene: str
    own_prompt: str
    seed: int
    lockstep: bool = False
    of: Mapping[str, str] = {}  # what makes it, as world.snapshot.maker says; empty: of an earlier version, nobody's


def hash_token(token: str) -> str:
    """Tokens are drawn at random and long: nothing slower is needed."""
    return hashlib.blake2b(token.encode(), digest_size=32).hexdigest()


class Ledger:
    """A directory with a file a session."""

    def __init__(self, directory: Path) -> None:
        """OSError if it cannot be made."""
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.directory = directory

    def write(self, ticket: Ticket) -> float:
        """It is on the disk, or OSError; when, by the clock of the file system."""
        path = self._path(ticket.session)
        replace_file(path, [memoryview(msgspec.json.encode(ticket))])
        return path.stat().st_mtime

    def remove(self, session_id: str) -> None:
        with contextlib.suppress(OSError):
            self._path(session_id).unlink()

    def tickets(self) -> list[Ticket]:
        """Those that can be read."""
        found: list[Ticket] = []
        for path in sorted(self.directory.glob(f"*{SUFFIX}")):
            with contextlib.suppress(OSError, msgspec.MsgspecError, UnicodeDecodeError):
                found.append(msgspec.json.decode(path.read_bytes(), type=Ticket))
        return found

    def forsaken(self, before_s: float) -> list[str]:
        """Sessions, of any server, that were entered before then and whose recordings are gone."""
        found: list[str] = []
        for ticket in self.tickets():
            with contextlib.suppress(OSError):
                if self._path(ticket.session).stat().st_mtime < before_s and not os.path.exists(ticket.recording):
                    found.append(ticket.session)
        return found

    def _path(self, session_id: str) -> Path:
        return self.directory / f"{session_id}{SUFFIX}"
