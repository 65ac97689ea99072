"""What became of a session by its recording: the chunks behind its present, and all it takes to go on from there."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from sessions.control import Segment, Steer
from sessions.moment import Moment, Past
from sessions.recording import Recording
from sessions.records import Chunk, Header, Mark, Record, floats
from sessions.trajectory import ChunkPath, Heading, new_trajectory
from world.chunk import Prompt, World


@dataclass(frozen=True, slots=True)
class Story:
    """A recording without what the session went back from."""

    header: Header
    chunks: tuple[Chunk, ...]  # index by index
    pending: str | None  # a prompt that was asked for and is in no chunk yet
    saves: tuple[str, ...]
    control_seq: int  # the last control that is in a chunk, by the count of the last connection; 0 if none

    @property
    def prompt(self) -> str:
        """In force after the last chunk."""
        return next((c.prompt for c in reversed(self.chunks) if c.prompt is not None), self.header.prompt)


@dataclass(frozen=True, slots=True, eq=False)
class Tail:
    """What a session has to make again, from a save or its start, to be where it was."""

    past: tuple[Past, ...]
    heading: Heading  # of the trajectory at its end
    next_prompt: Prompt | None


def story(recording: Recording) -> Story:
    """ValueError if there is no header."""
    header = recording.header
    if header is None:
        raise ValueError("the recording has no header")
    chunks, pending = _walk(recording.records)
    saves = tuple(mark.text for mark in recording.marks if mark.kind == "save")
    return Story(header, chunks, pending, saves, _counted(recording.records))


def _counted(records: Iterable[Record]) -> int:
    control_seq = 0
    for record in records:
        if isinstance(record, Chunk):
            control_seq = record.control_seq
        elif isinstance(record, Mark) and record.kind == "reconnect":  # which counts anew
            control_seq = 0
    return control_seq


def _walk(records: Iterable[Record]) -> tuple[tuple[Chunk, ...], str | None]:
    chunks: list[Chunk] = []
    pending: str | None = None
    saved: dict[str, tuple[list[Chunk], str | None]] = {}  # a save may be of a line that was left
    for record in records:
        if isinstance(record, Chunk):
            chunks.append(record)
            pending = None if record.prompt == pending else pending  # another one was asked for after it had begun
        elif isinstance(record, Mark) and record.kind == "prompt":
            pending = record.text
        elif isinstance(record, Mark) and record.kind == "save":
            saved[record.text] = list(chunks), pending
        elif isinstance(record, Mark) and record.kind == "rewind":
            line, pending = saved[record.text]
            chunks = list(line)
    return tuple(chunks), pending


def fits(moment: Moment, told: Story) -> bool:
    """Whether a story came by this moment."""
    if moment.chunk_index > len(told.chunks) or moment.control != told.header.control:
        return False
    return moment.digest == (told.chunks[moment.chunk_index - 1].digest if moment.chunk_index else b"")


def tail(told: Story, since: Moment | None, world: World) -> Tail:
    """From a moment that fits, or from the start. Encodes prompts: WorldError or ValueError if one cannot be."""
    header = told.header
    trajectory = new_trajectory(header.control, header.geometry)
    if since is not None:
        trajectory.resume(since.heading, same_clock=False)
    past: list[Past] = []
    for chunk in told.chunks[0 if since is None else since.chunk_index :]:
        steer = Steer(tuple(Segment(*held) for held in chunk.segments), chunk.look, chunk.control_seq)
        poses = floats(chunk.poses).reshape(-1, 4, 4)
        trajectory.retrace(chunk.chunk, steer, poses)
        path = ChunkPath(poses, chunk.row_poses.astype(np.float32), chunk.key_planes.astype(np.float32), steer)
        past.append(Past(path, None if chunk.prompt is None else world.encode_prompt(chunk.prompt), chunk.digest))
    trajectory.restart()
    return Tail(tuple(past), trajectory.heading, None if told.pending is None else world.encode_prompt(told.pending))
