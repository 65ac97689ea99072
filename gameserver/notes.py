"""What the engine tells the sockets' thread: frozen notes, the counterpart of the mailbox's letters."""

from __future__ import annotations

from dataclasses import dataclass

from sessions.tick import Finished


@dataclass(frozen=True, slots=True)
class Note:
    pass


@dataclass(frozen=True, slots=True)
class Joined(Note):
    session_id: str


@dataclass(frozen=True, slots=True)
class Refused(Note):
    """The game did not take a letter."""

    session_id: str
    code: str  # one of protocol.ERRORS
    message: str


@dataclass(frozen=True, slots=True)
class Saved(Note):
    """A save is on the disk."""

    session_id: str
    save_id: str
    chunk_index: int  # of the chunk that comes after it


@dataclass(frozen=True, slots=True)
class Loaded(Note):
    """The session went back to a save: what comes after goes on from there."""

    session_id: str
    save_id: str
    chunk_index: int
    prompt: str  # in force


@dataclass(frozen=True, slots=True, eq=False)
class Frames(Note):
    """A chunk whose frames are out."""

    session_id: str
    chunk: Finished
    poses_queued: int
    lockstep: bool = False  # its client waits for every frame: none may be dropped


@dataclass(frozen=True, slots=True)
class Ended(Note):
    """The engine failed and every session with it."""
