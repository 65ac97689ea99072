"""Verifying says equal only of what is equal, names the first chunk that is not, and what it cannot know."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import msgspec
import numpy as np
from recorded_play import play, written

from sessions.recording import Recording, read
from sessions.records import Chunk, Record
from sessions.verify import Finding, verify
from world.chunk import Geometry, Identity, Picture, Row
from world.pattern import PatternWorld

RECORDS = play()["a"]
GEOMETRY = Geometry(64, 48, 16, 1)


def check(
    data: bytes | Recording, to: int | None = None, identity: Identity | None = None, world: PatternWorld | None = None
) -> Finding:
    recording = read(data) if isinstance(data, bytes) else data
    where = world or PatternWorld(GEOMETRY, 2, 3)
    known = identity or where.identify(lambda stage, share: None)
    (finding,) = verify(where, known, [recording], [len(recording.chunks) if to is None else to])
    return finding


def changed(index: int, **fields: object) -> bytes:
    """The recording with other fields in its record `index`, every sum right."""
    records: list[Record] = list(RECORDS)
    records[index] = msgspec.structs.replace(records[index], **fields)
    return written(records)


def test_an_untouched_recording_is_equal() -> None:
    finding = check(written(RECORDS))
    chunks = sum(isinstance(record, Chunk) for record in RECORDS)
    assert (finding.outcome, finding.checked, finding.made, finding.reason) == ("equal", chunks, chunks, "")


def test_a_changed_input_is_named_with_its_chunk() -> None:
    chunk = RECORDS[4]
    assert isinstance(chunk, Chunk) and chunk.chunk == 2
    turned = bytearray(chunk.rows)
    turned[70] ^= 1  # the last bits of one number
    segments = tuple((seconds, (math.nextafter(axes[0], 0.0), *axes[1:])) for seconds, axes in chunk.segments)
    for fields, name in [
        ({"rows": bytes(turned)}, "poses"), ({"segments": segments}, "control"), ({"prompt": "rain"}, "prompt"),
        ({"keys": np.zeros(4, "<f4").tobytes()}, "keys"),
    ]:  # fmt: skip
        finding = check(changed(4, **fields))
        assert (finding.outcome, finding.chunk, finding.checked) == ("differs", 2, 2)
        assert name in finding.reason


def test_other_latents_are_named_with_their_chunk() -> None:
    finding = check(changed(5, digest=bytes(16)))
    assert (finding.outcome, finding.chunk, finding.checked) == ("differs", 3, 3)
    assert "latents" in finding.reason


def test_another_seed_or_start_differs_from_the_first_chunk_on() -> None:
    finding = check(changed(0, seed=99))
    assert (finding.outcome, finding.chunk, finding.checked) == ("differs", 0, 0)
    for name, word in [("prompt_digest", "prompt"), ("image_digest", "start picture")]:
        finding = check(changed(0, **{name: bytes(16)}))
        assert finding.outcome == "differs" and word in finding.reason and finding.made == 0


def test_other_weights_are_refused() -> None:
    finding = check(changed(0, weights="ab12"))
    assert finding.outcome == "refused" and "ab12" in finding.reason and finding.made == 0


def test_damage_differs_and_a_cut_cannot_be_said() -> None:
    data = bytearray(written(RECORDS))
    begin = len(written(RECORDS[:6]))
    cut = check(bytes(data[: begin + 20]))
    assert (cut.outcome, cut.checked) == ("unknown", 4) and "end mark" in cut.reason
    data[begin + 20] ^= 4
    hurt = check(bytes(data))
    assert (hurt.outcome, hurt.checked, hurt.chunk) == ("differs", 4, 4) and f"byte {begin}" in hurt.reason


def test_a_part_can_be_equal_though_the_rest_is_not() -> None:
    finding = check(changed(5, digest=bytes(16)), to=3)
    assert (finding.outcome, finding.checked) == ("equal", 3)


class Rounding(PatternWorld):
    """Computes a little else than the world that recorded."""

    def step(self, rows: Sequence[Row]) -> list[Picture]:
        drift = np.float32(0.25)
        return [
            replace(picture, digest=bytes(16), means=picture.means + drift * picture.chunk_index)
            for picture in super().step(rows)
        ]


def test_on_another_arithmetic_it_says_by_how_much() -> None:
    here = PatternWorld(GEOMETRY, 2, 3).identify(lambda stage, share: None)
    other = replace(here, arithmetic={"threads": "3"})
    assert check(written(RECORDS), identity=other).outcome == "equal", "equal bits are equal, whoever made them"
    finding = check(written(RECORDS), to=4, identity=other, world=Rounding(GEOMETRY, 2, 3))
    assert (finding.outcome, finding.made, finding.checked) == ("unknown", 4, 0)
    assert finding.arithmetic == {"threads": ("-", "3")}
    assert (finding.drift, finding.drift_chunk) == (0.75, 3) and "0.75" in finding.reason
    short = check(changed(3, means=b""), identity=other, world=Rounding(GEOMETRY, 2, 3))
    assert math.isinf(short.drift) and short.drift_chunk == 1


def test_several_are_told_apart() -> None:
    played = play()
    good, bad = read(written(played["b"])), read(changed(4, digest=bytes(16)))
    refused = read(changed(0, weights="ab12"))
    world, seen = PatternWorld(GEOMETRY, 4, 3), list[int]()
    findings = verify(
        world, world.identify(lambda stage, share: None), [bad, good, refused],
        [len(each.chunks) for each in (bad, good, refused)], lambda replayed: seen.append(replayed.track),
    )  # fmt: skip
    assert [finding.outcome for finding in findings] == ["differs", "equal", "refused"]
    assert seen.count(1) == len(good.chunks) and seen.count(0) == 2 and seen.count(2) == 0
