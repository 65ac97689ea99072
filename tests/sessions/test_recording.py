"""Reading is total: any bytes give the good records from the start and a verdict, never a wrong record or a fault."""

from __future__ import annotations

import zlib
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from recorded_play import play, written

from sessions.recording import MAX_BODY_BYTES, PREFIX, encode, read
from sessions.records import Chunk, Header, Mark, Record
from sessions.verify import verify
from world.chunk import Geometry
from world.pattern import PatternWorld

RECORDS = play(0.6)["a"]
WHOLE = written(RECORDS)
ENDS = [len(written(RECORDS[:n])) for n in range(len(RECORDS) + 1)]  # where n records end


def test_what_is_written_is_read() -> None:
    recording = read(WHOLE)
    assert list(recording.records) == RECORDS and recording.ended
    assert (recording.verdict.state, recording.verdict.offset) == ("whole", len(WHOLE))
    assert recording.header == RECORDS[0] and len(recording.chunks) > 2
    assert [mark.kind for mark in recording.marks] == ["join", "end"]


def test_a_truncation_anywhere_keeps_every_whole_record() -> None:
    for size in range(len(WHOLE)):
        recording = read(WHOLE[:size])
        whole = sum(end <= size for end in ENDS) - 1
        assert list(recording.records) == RECORDS[:whole] and not recording.ended
        assert recording.verdict.offset == ENDS[whole]
        assert recording.verdict.state == ("whole" if size in ENDS[1:] else "torn"), size


def test_any_flipped_bit_is_damage_where_it_is() -> None:
    data = bytearray(WHOLE)
    for at in range(len(data)):
        hurt = sum(end <= at for end in ENDS) - 1  # the record it is in
        for bit in range(8):
            data[at] ^= 1 << bit
            recording = read(bytes(data))
            data[at] ^= 1 << bit
            assert recording.verdict.state == "damaged", (at, bit)
            assert recording.verdict.offset == ENDS[hurt] and list(recording.records) == RECORDS[:hurt]


@pytest.mark.parametrize("records", [0, 1, 3])
@pytest.mark.parametrize("zeros", [1, 11, 12, 5000])
def test_room_that_nobody_wrote_to_is_a_torn_tail(records: int, zeros: int) -> None:
    recording = read(WHOLE[: ENDS[records]] + bytes(zeros))
    assert (recording.verdict.state, recording.verdict.offset) == ("torn", ENDS[records])
    assert list(recording.records) == RECORDS[:records]


def test_a_length_that_no_record_has_is_damage() -> None:
    for length in (0, MAX_BODY_BYTES + 1):
        prefix = PREFIX.pack(length, zlib.crc32(length.to_bytes(4, "little")), 0)
        assert read(WHOLE[: ENDS[1]] + prefix + bytes(12)).verdict.state == "damaged"
    with pytest.raises(ValueError, match="over"):
        encode(Mark(kind="prompt", text="x" * MAX_BODY_BYTES))


def test_records_out_of_place_are_damage() -> None:
    header, join, first, second, end = *RECORDS[:4], RECORDS[-1]
    for order, good in [
        ([join, header], 0), ([header, header], 1), ([header, second], 1), ([header, first, first], 2),
        ([header, end, join], 2), ([header, first, second, end, end], 4),
    ]:  # fmt: skip
        recording = read(written(order))
        assert (recording.verdict.state, len(recording.records)) == ("damaged", good)
        assert recording.verdict.offset == len(written(order[:good])) and recording.verdict.reason
    assert isinstance(header, Header)
    other = msgspec.structs.replace(header, chunk_frames=2)
    assert read(written([other, first])).verdict.state == "damaged"


def test_another_format_is_named_whatever_else_is_in_it() -> None:
    body = msgspec.msgpack.encode({"type": "header", "format": 7, "new": [1, {"x": b"y"}]})
    assert isinstance(RECORDS[0], Header)
    raw = encode(msgspec.structs.replace(RECORDS[0], format=2))
    for data in (raw, _framed(body)):
        recording = read(data + WHOLE)
        assert recording.verdict.state == "foreign" and recording.verdict.offset == 0 and not recording.records
        assert "format" in recording.verdict.reason


@given(st.binary(max_size=300))
def test_any_bytes_are_read(data: bytes) -> None:
    for given_bytes in (data, WHOLE[: ENDS[2]] + data, _framed(data), WHOLE[: ENDS[1]] + _framed(data)):
        recording = read(given_bytes)
        assert recording.verdict.offset <= len(given_bytes)
        assert recording.verdict.offset == len(written(list(recording.records)))


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=5)
    | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
)


@given(st.sampled_from(RECORDS[:3]), st.data())
def test_a_record_with_another_field_is_read_or_damage(record: Record, data: st.DataObject) -> None:
    fields = msgspec.to_builtins(record, builtin_types=(bytes,))
    fields[data.draw(st.sampled_from(sorted(fields)))] = data.draw(JSON)
    before = b"" if isinstance(record, Header) else WHOLE[: ENDS[1]]
    recording = read(before + _framed(msgspec.msgpack.encode(fields)))
    assert recording.verdict.state in ("whole", "damaged", "foreign")


SEGMENTS = st.lists(st.tuples(st.floats(1e-9, 1e3), st.tuples(*[st.floats(-1, 1)] * 4)), max_size=4).map(tuple)


@given(
    segments=SEGMENTS, look=st.tuples(st.floats(-400, 400), st.floats(-400, 400)), seq=st.integers(0, 2**32 - 1),
    prompt=st.none() | st.text(max_size=20), forward=st.integers(0, 2**40),
)  # fmt: skip
def test_every_number_comes_back_to_the_bit(segments, look, seq, prompt, forward) -> None:  # type: ignore[no-untyped-def]
    chunk = RECORDS[2]
    assert isinstance(chunk, Chunk)
    changed = msgspec.structs.replace(
        chunk, segments=segments, look=look, control_seq=seq, prompt=prompt, forward=forward
    )
    (_, back) = read(written([RECORDS[0], changed])).records
    assert back == changed and encode(back) == encode(changed)  # bytes tell -0.0 from 0.0


def _framed(body: bytes) -> bytes:
    return PREFIX.pack(len(body), zlib.crc32(len(body).to_bytes(4, "little")), zlib.crc32(body)) + body


def test_a_recording_of_the_past_is_read_and_equal() -> None:
    """The file was written once; if this fails, FORMAT has to change. `play(1.0)["c"]` made it."""
    recording = read((Path(__file__).parents[1] / "vectors" / "pattern.mwrec").read_bytes())
    assert recording.verdict.state == "whole" and recording.ended and len(recording.chunks) == 3
    world = PatternWorld(Geometry(64, 48, 16, 1), 1, 3)
    (finding,) = verify(world, world.identify(lambda stage, share: None), [recording], [3])
    assert finding.outcome == "equal", finding.reason
