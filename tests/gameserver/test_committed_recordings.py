"""Protects old recordings: those in tests/vectors come out again to the bit on the arithmetic that made them, elsewhere
within a tolerance that is told; a fresh one of the built-in world does so here; and one bit of any input is noticed.

`make recording` makes that of the built-in world, tests/vectors/meadow.mwrec, again: whenever its weights change.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from gameserver import cli
from gameserver import replay as command
from gameserver.engine import LoadWorld
from gameserver.serve import Spread, world_loader
from sessions.recording import Recording, encode, read
from sessions.records import Chunk, Record
from sessions.verify import Finding, verify
from tests.vectors.record import record
from world.chunk import Geometry, Picture, Row
from world.config import WorldConfig
from world.model import DiffusionWorld
from world.pattern import PatternWorld

VECTORS = Path(__file__).parents[1] / "vectors"
COMMITTED = sorted(VECTORS.glob("*.mwrec"))
TOLERANCE = 0.05  # of latent channels' means, which reach 2: bfloat16 and float32 differ by 0.004


SMALL, SMALL_STEPS = Geometry(64, 48, 16, 1), 3


def quiet(stage: str, share: float) -> None:
    pass


@pytest.fixture(autouse=True)
def small_pattern(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pattern world's recording is of a smaller one than is served."""

    def load(name: str, num_slots: int, spread: Spread) -> LoadWorld:
        if name == "pattern":
            return lambda report: PatternWorld(SMALL, num_slots, SMALL_STEPS)
        return world_loader(name, num_slots)

    monkeypatch.setattr(command, "world_loader", load)


def test_there_is_a_committed_recording() -> None:
    assert VECTORS / "pattern.mwrec" in COMMITTED


@pytest.mark.slow
@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.stem)
def test_it_verifies_on_its_arithmetic_and_within_a_tolerance_elsewhere(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = cli.main(["replay", "--verify", "--json", str(path)])
    (told,) = json.loads(capsys.readouterr().out)["recordings"]
    assert told["outcome"] != "refused", f"{told['reason']}: make recording makes {path.name} again"
    if not told["arithmetic"]:
        assert code == 0 and told["outcome"] == "equal" and told["checked"] == told["chunks"], told
    elif told["outcome"] == "unknown":
        assert code == 3 and "another arithmetic" in told["reason"] and told["drift"] < TOLERANCE, told
    else:
        assert code == 0 and told["outcome"] == "equal", told


class Rounding(PatternWorld):
    """Adds up otherwise than the machine that recorded."""

    def step(self, rows: Sequence[Row]) -> list[Picture]:
        return [
            replace(picture, digest=bytes(16), means=picture.means + np.float32(0.01)) for picture in super().step(rows)
        ]


def test_elsewhere_the_tolerance_check_runs_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    header, *rest = read((VECTORS / "pattern.mwrec").read_bytes()).records
    elsewhere = msgspec.structs.replace(header, arithmetic={"device": "another"})
    path = tmp_path / "pattern.mwrec"
    path.write_bytes(b"".join(encode(each) for each in [elsewhere, *rest]))
    assert cli.main(["replay", "--verify", str(path)]) == 0, "equal bits are equal, whoever made them"
    capsys.readouterr()
    rounding = lambda path, slots, spread: lambda report: Rounding(SMALL, slots, SMALL_STEPS)  # noqa: E731
    monkeypatch.setattr(command, "world_loader", rounding)
    assert cli.main(["replay", "--verify", str(path)]) == 3
    told = capsys.readouterr().out
    assert "cannot be said: it was recorded on another arithmetic" in told and "by at most 0.01" in told
    assert "device: another then, - here" in told


# The built-in world, here and now.


@pytest.fixture(scope="module")
def meadow() -> Iterator[DiffusionWorld]:
    world = world_loader("meadow", 2)(quiet)
    assert isinstance(world, DiffusionWorld)
    yield world


@pytest.fixture(scope="module")
def fresh(meadow: DiffusionWorld) -> Recording:
    return read(record(meadow))


def judge(world: DiffusionWorld, recording: Recording, num_chunks: int = 10) -> Finding:
    (finding,) = verify(world, world.identify(quiet), [recording], [num_chunks])
    return finding


@pytest.mark.slow
def test_a_fresh_recording_of_the_built_in_world_verifies_alone(meadow: DiffusionWorld, fresh: Recording) -> None:
    assert fresh.ended and {chunk.company for chunk in fresh.chunks} == {2}
    assert [chunk.prompt for chunk in fresh.chunks].index("snow") == 5
    finding = judge(meadow, fresh)
    assert (finding.outcome, finding.checked) == ("equal", len(fresh.chunks))


@pytest.mark.slow
def test_a_bit_of_a_control_is_named(meadow: DiffusionWorld, fresh: Recording) -> None:
    records: list[Record] = list(fresh.records)
    at = next(i for i, each in enumerate(records) if isinstance(each, Chunk) and each.chunk == 2)
    chunk = records[at]
    assert isinstance(chunk, Chunk)
    (seconds, (forward, *others)), *rest = chunk.segments
    bit = (np.array(forward).view(np.uint64) ^ np.uint64(1)).view(np.float64)
    held = ((seconds, (float(bit), *others)), *rest)
    assert held != chunk.segments
    records[at] = msgspec.structs.replace(chunk, segments=held)
    finding = judge(meadow, read(b"".join(encode(each) for each in records)))
    assert (finding.outcome, finding.chunk, finding.checked) == ("differs", 2, 2) and "control" in finding.reason


@contextmanager
def flipped(tensor: torch.Tensor) -> Iterator[None]:
    """The last bit of its first element turned, for a while."""
    bits = tensor.view(-1).view({2: torch.int16, 4: torch.int32}[tensor.element_size()])
    bits[0] ^= 1
    try:
        yield
    finally:
        bits[0] ^= 1


def anew(world: DiffusionWorld, cfg: WorldConfig | None = None) -> DiffusionWorld:
    """The same networks in a world that nobody has asked for its identity."""
    return DiffusionWorld(cfg or world.cfg, world.denoiser.dit, world.vae, world.text_encoder, world.scenes, 1)


@pytest.mark.slow
def test_a_bit_of_a_weight_is_named(meadow: DiffusionWorld, fresh: Recording) -> None:
    known = meadow.identify(quiet)
    with flipped(meadow.denoiser.dit.state_dict()["blocks.0.self_attn.q.weight"]):
        finding = judge(anew(meadow), fresh)
        assert finding.outcome == "refused" and "weights" in finding.reason
        (unnoticed,) = verify(anew(meadow), known, [fresh], [3])
        assert unnoticed.outcome == "differs" and "latents" in unnoticed.reason
    assert judge(anew(meadow), fresh, 1).outcome == "equal"


@pytest.mark.slow
def test_a_bit_of_a_sigma_is_named(meadow: DiffusionWorld, fresh: Recording) -> None:
    schedule = meadow.cfg.schedule
    sigmas = [np.nextafter(np.float32(schedule.sigmas[0]), np.float32(0)), *schedule.sigmas[1:]]
    other = replace(meadow.cfg, schedule=replace(schedule, sigmas=tuple(map(float, sigmas))))
    finding = judge(anew(meadow, other), fresh)
    assert finding.outcome == "refused" and "configuration" in finding.reason
    (unnoticed,) = verify(anew(meadow, other), meadow.identify(quiet), [fresh], [3])
    assert (unnoticed.outcome, unnoticed.chunk) == ("differs", 0) and "latents" in unnoticed.reason
