"""A stream between two chunks as one file: the world's tensors and facts, and parts of whoever kept it. numpy only.

It is a safetensors file, which any reader of that format opens. Its last tensor, `digest`, is BLAKE2b of every byte of
the file before it, so that nothing that was cut or altered is ever taken for a state.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from world.chunk import Identity, SlotState, Stored

FORMAT = "1"
SUFFIX = ".safetensors"
DRAFT = ".tmp"  # of a file that is being written
DIGEST_BYTES = 32
MAX_HEADER_BYTES = 16 * 1024 * 1024
ITEM_BYTES = {"F64": 8, "I64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "U8": 1}
WORLD, PART, DIGEST = "world.", "part.", "digest"  # names of tensors begin so, or are it


class SnapshotError(Exception):
    """A file is no snapshot, or not one for this world; the message is a sentence."""


@dataclass(frozen=True, slots=True, eq=False)
class Snapshot:
    state: SlotState
    of: Mapping[str, str]  # what made it: see `maker`
    parts: Mapping[str, bytes] = field(default_factory=dict)  # what sessions and servers keep with it

    @property
    def num_bytes(self) -> int:
        """Of the file, but for its header."""
        return self.state.num_bytes + sum(map(len, self.parts.values())) + DIGEST_BYTES


def maker(world_name: str, identity: Identity) -> dict[str, str]:
    """What a snapshot depends on: where one of these is another, its bits would not go on."""
    config = hashlib.blake2b(identity.config.encode(), digest_size=16).hexdigest()
    arithmetic = json.dumps(dict(identity.arithmetic), sort_keys=True)
    return {"world": world_name, "weights": identity.weights, "config": config, "arithmetic": arithmetic}


def check_maker(snapshot: Snapshot, here: Mapping[str, str]) -> None:
    """SnapshotError if another world, other weights, another configuration or arithmetic made it."""
    for name, value in here.items():
        if snapshot.of.get(name) != value:
            raise SnapshotError(f"it was made with the {name} {snapshot.of.get(name)}, here it is {value}")


def write(path: Path, snapshot: Snapshot) -> int:
    """All of it is there, on the disk, or with an OSError nothing changes; how many bytes it took."""
    return replace_file(path, encode(snapshot))


def replace_file(path: Path, pieces: Iterable[memoryview]) -> int:
    """A file that holds these, on the disk, or with an OSError what was there before; how many bytes it took."""
    draft, size = path.with_suffix(DRAFT), 0
    try:
        with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as file:
            for piece in pieces:
                size += file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    except BaseException:
        with contextlib.suppress(OSError):
            draft.unlink()
        raise
    directory = os.open(path.parent, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
    return size


def read(path: Path) -> Snapshot:
    """SnapshotError if the file is not whole, or not one of these; OSError if it cannot be read."""
    return decode(np.fromfile(path, np.uint8))


def encode(snapshot: Snapshot) -> Iterator[memoryview]:
    """The bytes of the file, piece by piece."""
    tensors = {WORLD + name: stored for name, stored in snapshot.state.tensors.items()}
    for name, part in snapshot.parts.items():
        tensors[PART + name] = Stored("U8", (len(part),), np.frombuffer(part, np.uint8))
    order = sorted(tensors, key=lambda name: (-ITEM_BYTES[tensors[name].dtype], name))  # so that all are aligned
    metadata = {"format": FORMAT, "facts": json.dumps(snapshot.state.facts), **snapshot.of}
    header: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for name in order:
        stored = tensors[name]
        begin, end = end, end + stored.data.size
        header[name] = {"dtype": stored.dtype, "shape": list(stored.shape), "data_offsets": [begin, end]}
    header[DIGEST] = {"dtype": "U8", "shape": [DIGEST_BYTES], "data_offsets": [end, end + DIGEST_BYTES]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    total = hashlib.blake2b(digest_size=DIGEST_BYTES)
    for piece in (len(text).to_bytes(8, "little") + text, *(tensors[name].data for name in order)):
        total.update(piece)
        yield memoryview(piece)
    yield memoryview(total.digest())


def decode(data: NDArray[np.uint8]) -> Snapshot:
    """The bytes of a file -> what is in it, whose tensors share memory with them. SnapshotError whatever they are."""
    if data.size < 8 + DIGEST_BYTES:
        raise SnapshotError("it is cut off")
    if hashlib.blake2b(data[:-DIGEST_BYTES], digest_size=DIGEST_BYTES).digest() != data[-DIGEST_BYTES:].tobytes():
        raise SnapshotError("it is cut off or damaged")
    length = int.from_bytes(data[:8].tobytes(), "little")
    if not 0 < length <= min(MAX_HEADER_BYTES, data.size - 8):
        raise SnapshotError("it has no header")
    try:
        header = json.loads(data[8 : 8 + length].tobytes())
        metadata = header.pop("__metadata__")
        version = metadata.pop("format")
        if version != FORMAT:
            raise SnapshotError(f"it is of format {version}, not {FORMAT}")
        facts = json.loads(metadata.pop("facts"))
        stored = {name: _stored(data[8 + length :], **about) for name, about in header.items() if name != DIGEST}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as fault:
        raise SnapshotError(f"its header cannot be read: {fault}") from None
    tensors = {name.removeprefix(WORLD): value for name, value in stored.items() if name.startswith(WORLD)}
    parts = {name.removeprefix(PART): value for name, value in stored.items() if name.startswith(PART)}
    return Snapshot(SlotState(tensors, facts), metadata, {name: part.data.tobytes() for name, part in parts.items()})


def _stored(data: NDArray[np.uint8], dtype: str, shape: list[int], data_offsets: list[int]) -> Stored:
    begin, end = data_offsets
    if not 0 <= begin <= end <= data.size or ITEM_BYTES[dtype] * int(np.prod(shape, dtype=np.int64)) != end - begin:
        raise ValueError("a tensor has not the bytes that its shape says")
    return Stored(dtype, tuple(shape), data[begin:end])
