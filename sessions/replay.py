"""Recordings through a world again: the rows that were, in the company that was, as fast as the world goes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sessions.recording import Recording
from sessions.records import Chunk, Header, Mark, Record, floats, picture_digest, scene_picture
from world.chunk import Identity, Picture, Prompt, Row, SlotState, Start, World, WorldError


class ReplayError(Exception):
    """A recording cannot be replayed in this world; the message is one sentence."""


@dataclass(frozen=True, slots=True, eq=False)
class Replayed:
    """A chunk made again."""

    track: int  # index of its recording
    chunk: Chunk  # as it was recorded
    picture: Picture  # as it is now


class _Track:
    """One recording under way."""

    def __init__(self, index: int, start: Start, records: Sequence[Record], first_forward: int) -> None:
        self.index = index
        self.start = start
        self.slot: int | None = None  # while it plays
        self.step_index = 0
        self._records = iter(records)
        wanted = {record.text for record in records if isinstance(record, Mark) and record.kind == "rewind"}
        self._saved: dict[str, SlotState | None] = dict.fromkeys(wanted)  # None: nothing had been made
        self._first_forward = first_forward  # of its server's run
        self._behind = 0  # forwards by which it had to wait for room
        self._prompt: Prompt | None = None
        self.forward = 0  # of its next row
        self.chunk: Chunk | None = None

    def next_chunk(self, world: World) -> None:
        self.chunk = self._to_chunk(world)
        self.step_index = 0
        if self.chunk is not None:
            self.forward = max(self.forward, self.chunk.forward - self._first_forward + self._behind)
            self._prompt = None if self.chunk.prompt is None else world.encode_prompt(self.chunk.prompt)

    def _to_chunk(self, world: World) -> Chunk | None:
        """On to the next chunk, by way of what the session saved and went back to."""
        for record in self._records:
            if isinstance(record, Chunk):
                return record
            if isinstance(record, Mark) and record.text in self._saved and self.slot is not None:
                if record.kind == "save":
                    self._saved[record.text] = world.export(self.slot)
                elif record.kind == "rewind":
                    self._go_back(world, self.slot, self._saved[record.text])
        return None

    def _go_back(self, world: World, slot: int, state: SlotState | None) -> None:
        if state is not None:
            world.restore(slot, state)
        else:
            world.close(slot)
            world.open(slot, self.start)

    def wait(self) -> None:
        self.forward += 1
        self._behind += 1

    def row(self) -> Row:
        assert self.chunk is not None and self.slot is not None
        poses, keys = self.chunk.row_poses, self.chunk.key_planes
        return Row(self.slot, self.chunk.chunk, self.step_index, poses, keys, self._prompt)

    def advance(self, world: World) -> None:
        self.forward += 1
        self.step_index += 1
        if self.step_index > world.num_steps:
            self.next_chunk(world)


def refusal(header: Header, world: World, identity: Identity) -> str | None:
    """Why this world cannot make a recording's bits again, None if it can as far as its arithmetic is the same."""
    if header.world != world.name:
        return f"it was recorded in the world {header.world}, this is {world.name}"
    same_dtype = header.arithmetic.get("dtype") == identity.arithmetic.get("dtype")
    if header.weights != identity.weights and (same_dtype or header.rounded != identity.rounded):
        return f"it was recorded with the weights {header.weights}, this world has {identity.weights}"
    if header.config != identity.config:
        return "it was recorded with another configuration of this world (sizes, window or schedule)"
    size = world.geometry
    if (header.width, header.height, header.chunk_frames) != (size.width, size.height, size.chunk_frames):
        return "it was recorded at another size"
    return None


def start_of(header: Header, world: World) -> Start:
    """What the recorded stream began from. ReplayError if its picture is not to be had."""
    try:
        picture = scene_picture(world, header.scene) if header.picture is None else header.picture.unpack()
    except KeyError:
        raise ReplayError(f"its start scene {header.scene!r} is not one of this world") from None
    except ValueError as fault:
        raise ReplayError(str(fault)) from None
    if picture_digest(picture) != header.picture_digest:
        raise ReplayError(f"the picture of its start scene {header.scene!r} is another one now")
    try:
        prompt, image = world.encode_prompt(header.prompt), world.prepare_image(picture)
    except (WorldError, ValueError) as fault:
        raise ReplayError(f"this world cannot prepare its start ({fault})") from None
    return Start(header.seed, prompt, image, np.array(floats(header.intrinsics)), header.scale)


def start_altered(header: Header, world: World, start: Start) -> tuple[str, ...]:
    """What of a start this world makes another thing of than the one that recorded it did."""
    pairs = ("prompt", header.prompt_digest, start.prompt.encoded), ("start picture", header.image_digest, start.image)
    return tuple(name for name, recorded, prepared in pairs if world.digest(prepared) != recorded)


MOST_STEPS = 16  # forwards that a chunk may take: a stream holds its slot to the end of its last one


def most_at_once(recordings: Sequence[Recording]) -> int:
    """How many of these streams had begun and not yet ended at one time, by the forwards of their runs."""
    origins = _origins(recordings)
    changes: list[tuple[int, int]] = []
    for recording, origin in zip(recordings, origins, strict=True):
        if recording.chunks:
            first, last = recording.chunks[0].forward, recording.chunks[-1].forward
            changes += [(first - origin, 1), (last - origin + MOST_STEPS, -1)]
    now = most = 0
    for _, change in sorted(changes, key=lambda each: (each[0], -each[1])):
        now += change
        most = max(most, now)
    return most


def replay(
    world: World,
    recordings: Sequence[Recording],
    starts: Mapping[int, Start],
    num_chunks: Sequence[int],
    dropped: set[int],
) -> Iterator[Replayed]:
    """The first `num_chunks` of each recording that has a start, side by side: rows that shared a forward share it
    again, where recordings come from one run of a server; else all begin together. A stream waits while there is no
    slot or no row for it. Indices that the caller puts into `dropped` go no further.
    """
    origins = _origins(recordings)
    tracks = [_Track(i, starts[i], _first(recordings[i], num_chunks[i]), origins[i]) for i in starts]
    for track in tracks:
        track.next_chunk(world)
    free = list(range(world.num_slots, 0, -1))
    try:
        while True:
            for track in [track for track in tracks if track.chunk is None or track.index in dropped]:
                tracks.remove(track)
                if track.slot is not None:
                    world.close(track.slot)
                    free.append(track.slot)
            if not tracks:
                return
            rows = _next_rows(world, tracks, free)
            if not rows:  # all of them wait for a slot
                continue
            by_slot = {track.slot: track for track in rows}
            for picture in world.step([track.row() for track in rows]):
                track = by_slot[picture.slot]
                assert track.chunk is not None
                yield Replayed(track.index, track.chunk, picture)
            for track in rows:
                track.advance(world)
    finally:
        for track in tracks:
            if track.slot is not None:
                world.close(track.slot)


def _first(recording: Recording, num_chunks: int) -> Sequence[Record]:
    """The records up to so many chunks."""
    ends = [at + 1 for at, record in enumerate(recording.records) if isinstance(record, Chunk)]
    return recording.records[: ends[num_chunks - 1] if num_chunks else 0]


def _next_rows(world: World, tracks: Sequence[_Track], free: list[int]) -> list[_Track]:
    """Those in the earliest forward, in slots; whoever finds no room waits for the one after it."""
    forward = min(track.forward for track in tracks)
    due = [track for track in tracks if track.forward == forward]
    due.sort(key=lambda track: track.slot is None)  # what has begun goes first
    rows: list[_Track] = []
    for track in due:
        if len(rows) == world.max_rows or (track.slot is None and not free):
            track.wait()
            continue
        if track.slot is None:
            track.slot = free.pop()
            world.open(track.slot, track.start)
        rows.append(track)
    return rows


def _origins(recordings: Sequence[Recording]) -> list[int]:
    """For each recording the first forward that any recording of the same run has."""
    first: dict[str, int] = {}
    for recording in recordings:
        if recording.header is not None and recording.chunks:
            run, forward = recording.header.run, recording.chunks[0].forward
            first[run] = min(first.get(run, forward), forward)
    return [first.get(recording.header.run, 0) if recording.header is not None else 0 for recording in recordings]
