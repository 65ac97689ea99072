"""Who is playing, on disk: what a server that was killed has to know to let its players back in."""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path

import msgspec

from sessions.trajectory import ControlKind
from world.snapshot import replace_file

SUFFIX = ".json"


class Ticket(msgspec.Struct, frozen=True, kw_only=True):
    """A session under way."""

    session: str
    token_hash: str  # of what its player shows to come back; the token itself is nowhere on the disk
    recording: str  # name of its file
    control: ControlKind
    scene: str
    own_prompt: str
    seed: int
    lockstep: bool = False


def hash_token(token: str) -> str:
    """Tokens are drawn at random and long: nothing slower is needed."""
    return hashlib.blake2b(token.encode(), digest_size=32).hexdigest()


class Ledger:
    """A directory with a file a session."""

    def __init__(self, directory: Path) -> None:
        """OSError if it cannot be made."""
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.directory = directory

    def write(self, ticket: Ticket) -> None:
        """It is on the disk, or OSError."""
        replace_file(self.directory / f"{ticket.session}{SUFFIX}", [memoryview(msgspec.json.encode(ticket))])

    def remove(self, session_id: str) -> None:
        with contextlib.suppress(OSError):
            (self.directory / f"{session_id}{SUFFIX}").unlink()

    def tickets(self) -> list[Ticket]:
        """Those that can be read."""
        found: list[Ticket] = []
        for path in sorted(self.directory.glob(f"*{SUFFIX}")):
            with contextlib.suppress(OSError, msgspec.MsgspecError, UnicodeDecodeError):
                found.append(msgspec.json.decode(path.read_bytes(), type=Ticket))
        return found
