"""The recording of one session, as bytes. PROTOCOL.md says it for people; who writes the bytes down, and when, is the
server's business.

A record is `[length u32][crc32 of the length u32][crc32 of the body u32][body]`, little-endian, the body one
MessagePack map. A length has its own sum, so that a damaged one is damage and not a tail that was cut off.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec

from sessions.records import FORMAT, Chunk, Header, Mark, Record

SUFFIX = ".mwrec"
PREFIX = struct.Struct("<III")
MAX_BODY_BYTES = 64 * 1024 * 1024  # a header with a start picture is the largest

State = Literal["whole", "torn", "damaged", "foreign"]


class _Format(msgspec.Struct, frozen=True, tag_field="type", tag="header"):
    """As much of a header as every version has."""

    format: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the bytes are worth. Records before `offset` are good, whatever comes after."""

    state: State
    offset: int  # bytes that hold good records
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Recording:
    records: tuple[Record, ...]  # in order, the header first
    verdict: Verdict

    @property
    def header(self) -> Header | None:
        return self.records[0] if self.records and isinstance(self.records[0], Header) else None

    @property
    def chunks(self) -> tuple[Chunk, ...]:
        """As they were made. Where the session went back to a save, so do their indices."""
        return tuple(record for record in self.records if isinstance(record, Chunk))

    @property
    def marks(self) -> tuple[Mark, ...]:
        return tuple(record for record in self.records if isinstance(record, Mark))

    @property
    def ended(self) -> bool:
        """The server said that nothing comes after."""
        return bool(self.records) and _ends(self.records[-1])


def encode(record: Record) -> bytes:
    """A record with its prefix. ValueError if it is too large for one."""
    body = msgspec.msgpack.encode(record)
    if len(body) > MAX_BODY_BYTES:
        raise ValueError(f"a record of {len(body)} bytes is over {MAX_BODY_BYTES}")
    length = struct.pack("<I", len(body))
    return PREFIX.pack(len(body), zlib.crc32(length), zlib.crc32(body)) + body


def read(data: bytes) -> Recording:
    """Every good record from the start, and why there are no more. Raises nothing, whatever the bytes are."""
    records: list[Record] = []
    offset, expected = 0, 0
    saved: dict[str, int] = {}  # by the id of a save the chunk that comes after it

    def ends(state: State, reason: str = "") -> Recording:
        return Recording(tuple(records), Verdict(state, offset, reason))

    while offset < len(data):
        body = _body(data, offset)
        if isinstance(body, Verdict):
            return ends(body.state, body.reason)
        if not records and (version := _version(body)) not in (None, FORMAT):
            return ends("foreign", f"it is of format {version}, not {FORMAT}")
        try:
            record = msgspec.msgpack.decode(body, type=Header | Chunk | Mark)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as fault:
            return ends("damaged", f"a record cannot be read: {fault}")
        if fault_in := _out_of_place(records, record, expected, saved):
            return ends("damaged", fault_in)
        expected += isinstance(record, Chunk)
        if isinstance(record, Mark) and record.kind == "save":
            saved[record.text] = expected
        if isinstance(record, Mark) and record.kind == "rewind":
            expected = saved[record.text]
        records.append(record)
        offset += PREFIX.size + len(body)
    return ends("whole") if records else ends("torn", "it is empty")


def _body(data: bytes, offset: int) -> bytes | Verdict:
    """The body of the record at `offset`, or what is wrong with it."""
    prefix = data[offset : offset + PREFIX.size]
    if not any(prefix) and not any(data[offset:]):  # a file system may have made room that nobody wrote to
        return Verdict("torn", offset, "nothing but zeros follow")
    if len(prefix) >= 8 and zlib.crc32(prefix[:4]) != int.from_bytes(prefix[4:8], "little"):
        return Verdict("damaged", offset, "a length is damaged")
    if len(prefix) < PREFIX.size:
        return Verdict("torn", offset, "the last record is cut off")
    length, _, crc = PREFIX.unpack(prefix)
    if not 0 < length <= MAX_BODY_BYTES:
        return Verdict("damaged", offset, f"no record has {length} bytes")
    begin = offset + PREFIX.size
    if begin + length > len(data):
        return Verdict("torn", offset, "the last record is cut off")
    body = data[begin : begin + length]
    return body if zlib.crc32(body) == crc else Verdict("damaged", offset, "a record is damaged")


def _version(body: bytes) -> int | None:
    try:
        return msgspec.msgpack.decode(body, type=_Format).format
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def _out_of_place(before: Sequence[Record], record: Record, expected: int, saved: Container[str]) -> str:
    """Why a record cannot follow the others, or nothing."""
    if isinstance(record, Header) != (not before):
        return "it does not begin with a header" if not before else "a second header"
    if before and _ends(before[-1]):
        return "a record after the end"
    if isinstance(record, Mark) and record.kind == "rewind" and record.text not in saved:
        return "it goes back to a save that it has not"
    if isinstance(record, Chunk):
        header = before[0]
        assert isinstance(header, Header)
        if record.chunk != expected:
            return f"chunk {record.chunk} comes where chunk {expected} should"
        if len(record.keys) != 16 * header.chunk_frames:
            return f"chunk {record.chunk} has not {header.chunk_frames} latent frames"
    return ""


def _ends(record: Record) -> bool:
    return isinstance(record, Mark) and record.kind == "end"
