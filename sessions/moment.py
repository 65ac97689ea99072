"""A session between two of its chunks, taken out of the game: it goes on from there, bit for bit, in any slot."""

from __future__ import annotations

from dataclasses import dataclass

from sessions.trajectory import ChunkPath, ControlKind, Heading
from world.chunk import Prompt, SlotState


@dataclass(frozen=True, slots=True)
class Moment:
    """The game's part of it."""

    chunk_index: int  # of the next chunk
    control: ControlKind
    heading: Heading
    prompt: str  # in force
    next_prompt: str | None  # asked for, and in force from the next chunk on
    digest: bytes  # of the last chunk's latents, empty before the first
    saves: tuple[str, ...]  # ids of the moments that the session can go back to


@dataclass(frozen=True, slots=True, eq=False)
class Save:
    moment: Moment
    state: SlotState  # the world's part of it


@dataclass(frozen=True, slots=True, eq=False)
class Past:
    """A chunk that was made before and is to be made again, to come to where a session was."""

    path: ChunkPath
    prompt: Prompt | None
    digest: bytes  # that its latents had


def pack(moment: Moment) -> bytes:
    # Imported here, so that playing alone, as a benchmark does on a machine of somebody else, needs numpy only.
    import msgspec

    return msgspec.msgpack.encode(moment)


def unpack(data: bytes) -> Moment:
    """ValueError if that is not a moment."""
    import msgspec

    try:
        return msgspec.msgpack.decode(data, type=Moment)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as fault:
        raise ValueError(f"a moment cannot be read: {fault}") from None
