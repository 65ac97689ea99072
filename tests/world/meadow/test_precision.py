"""The measurement of FP8 finds what is there: no loss where nothing differs, and a student that draws worse."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from world.chunk import Geometry, Precision
from world.meadow import precision as command
from world.meadow.measures import BEST_DB
from world.meadow.plays import Frames, Play, Student
from world.meadow.precision import COARSE, Likeness, columns, measure, nudged, table, walks
from world.meadow.students import Teacher

SMALL = Geometry(width=112, height=64, fps=16, chunk_frames=1)
CPU = torch.device("cpu")


def likeness(again: list[list[float]], fp8: list[list[float]]) -> Likeness:
    """Of a bfloat16 that is 20 dB from the teacher."""
    shape = np.shape(fp8)
    walked = {"bfloat16": np.full(shape, 20.0), "again": 20.0 + np.array(again), "fp8": 20.0 + np.array(fp8)}
    return Likeness("fp8", {name: walked.get(name, np.zeros(shape)) for name in columns("fp8")})


@pytest.mark.parametrize("coarse", COARSE)
def test_every_walk_is_held_against_its_own_teacher_and_its_own_twin(coarse: Precision) -> None:
    asked: list[Precision] = []

    def student(precision: Precision) -> Student:
        def play(plays: list[Play]) -> list[Frames]:
            frames = Teacher(SMALL, CPU)(plays)
            return [frame // 2 for frame in frames] if precision == coarse else frames

        asked.append(precision)
        return play

    plays = walks([700100, 700101], 2, SMALL)
    assert [len(play.kept) for play in plays] == [8, 8] and plays[0].kept[-1] == 32 == len(plays[0].poses) - 1
    found = measure(student, plays, SMALL, CPU, coarse)
    assert asked == ["native", coarse], "a world is loaded once"
    assert all(found.db[name].shape == (2, 2) for name in columns(coarse))
    assert found.db["bfloat16"] == pytest.approx(BEST_DB, abs=1e-3)
    assert (found.db[coarse] < 20).all() and (found.db["again ~ bfloat16"] > 40).all()
    assert found.db[f"{coarse} ~ bfloat16"] == pytest.approx(found.db[coarse], abs=1e-3)
    assert found.verdict.startswith(f"{coarse}'s likeness")
    assert "is below the band" in found.verdict


def test_the_band_is_what_the_mean_of_as_many_seeds_is_off_by_chance() -> None:
    """Seed by seed, as seconds of one walk are not independent."""
    apart = [[1.0, 1.0], [-1.0, -1.0], [1.0, 1.0], [-1.0, -1.0]]
    found = likeness(apart, [[-0.9] * 2] * 4)
    assert found.band_db == pytest.approx(2 / 4**0.5) and found.gap_db == pytest.approx(-0.9)
    assert "inside the band" in found.verdict and "-0.900 dB" in found.verdict and "1.000 dB" in found.verdict
    assert "below the band" in likeness(apart, [[-1.1] * 2] * 4).verdict
    assert "above the band" in likeness(apart, [[1.1] * 2] * 4).verdict
    assert "below the band" in likeness(apart, [[float("-inf")] * 2] * 4).verdict


def test_a_nudge_changes_every_pose_and_nothing_that_can_be_seen() -> None:
    (play,) = walks([700100], 1, SMALL)
    other = nudged(play)
    assert (other.poses != play.poses).all() and np.abs(other.poses - play.poses).max() < 1e-6
    assert other.kept == play.kept and np.array_equal(other.start, play.start)


def test_the_table_has_a_row_a_second_and_their_mean() -> None:
    lines = table(likeness([[0.0, 0.0]], [[1.0, 3.0]])).splitlines()
    assert [line.split()[0] for line in lines] == ["second", "1", "2", "mean"]
    assert [line.split()[3] for line in lines[1:]] == ["21.00", "23.00", "22.00"]


def test_training_places_and_no_time_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for wrong in (["--seeds", "1:3"], ["--seconds", "0"]):
        with pytest.raises(SystemExit):
            command.main(wrong)
        assert "error" in capsys.readouterr().err
