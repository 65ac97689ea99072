"""The teacher passes every measure of itself, a frozen picture fails those of motion, and the command says it all."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from world.chunk import Geometry
from world.meadow import evaluate, judging
from world.meadow.judging import Tally
from world.meadow.measures import BEST_DB
from world.meadow.students import Teacher, repeated, reprojected, warped

SMALL = Geometry(width=112, height=64, fps=16, chunk_frames=1)
CPU = torch.device("cpu")
SEEDS = [700100]
EVERYBODY = {"model": Teacher(SMALL, CPU), "repeated": repeated, "turned": warped}


def mean(tally: Tally, key: str, who: str = "model") -> float:
    return float(np.mean(tally.of(key, who)))


def test_the_teacher_is_perfect_over_mixed_control_and_baselines_are_what_they_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(judging, "VARIANTS", 1)
    tally = Tally()
    judging.judge_mixed(tally, EVERYBODY, {"carried": reprojected}, SEEDS, SMALL, CPU)
    for key in ("first_frame_psnr", "psnr_mean", "seen_psnr_mean", "psnr_4s", "seen_psnr_1s"):
        assert mean(tally, key) == pytest.approx(BEST_DB, abs=1e-3)
    assert mean(tally, "ssim_mean") == pytest.approx(1, abs=1e-4)
    assert mean(tally, "gain_2s") > 20 and mean(tally, "gain_2s", "repeated") == 0
    assert mean(tally, "direction_all") >= 0.95
    for kind in ("turn", "walk", "both"):
        assert np.median(tally.of(f"size_{kind}", "model")) == pytest.approx(1, abs=0.15)
    assert mean(tally, "direction_all", "repeated") == 0
    assert mean(tally, "direction_turn", "turned") == 1 and mean(tally, "direction_walk", "turned") == 0
    assert mean(tally, "gain_mean", "carried") > 3 and mean(tally, "direction_all", "carried") > 0.8
    assert 0.3 < mean(tally, "seen_1s", "teacher") < 1


def test_who_comes_back_sees_the_first_view() -> None:
    tally = Tally()
    away = lambda plays: [Teacher(SMALL, CPU)([p])[0][:, ::-1].copy() for p in plays]  # noqa: E731
    judging.judge_coming_back(tally, {"model": EVERYBODY["model"], "upside down": away}, SEEDS, SMALL)
    keys = [f"back_turn_{step:g}_psnr" for step in judging.TURN_STEPS_DEG] + ["back_walk_psnr"]
    assert min(mean(tally, key) for key in keys) > 40
    assert max(mean(tally, key, "upside down") for key in keys) < 20


def test_the_teacher_shows_what_was_asked_and_a_frozen_picture_never_what_was_changed_to(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(judging, "ASKS", 2)
    tally = Tally()
    judging.judge_prompts(tally, EVERYBODY, {"vae": lambda rgb: rgb}, SEEDS, SMALL, CPU)
    for who in ("model", "vae"):
        for name in ("start", "change"):
            for attribute in ("time", "season", "weather", "whole"):
                assert mean(tally, f"{name}_{attribute}", who) == 1
    assert mean(tally, "change_whole", "repeated") == 0


def test_looks_change_in_everything_that_is_judged() -> None:
    for seed in range(700000, 700010):
        place = judging.look_of(seed)
        for one, other in judging.random_changes(seed):
            assert {one.place, other.place} == {place.place} and {one.towers, other.towers} == {place.towers}
            assert one.time != other.time and one.season != other.season and one.weather != other.weather


def test_a_long_run_finds_blur_colour_standstill_and_ruin() -> None:
    tally, teacher = Tally(), Teacher(SMALL, CPU)

    def grey(plays):  # type: ignore[no-untyped-def]
        made = teacher(plays)
        for frames in made:
            frames[:, :64] = frames[:, :64] // 2 + 32
        return made

    def lost(plays):  # type: ignore[no-untyped-def]
        return [np.zeros_like(frames) for frames in repeated(plays)]  # what NaN becomes

    students = {"model": teacher, "repeated": repeated, "grey": grey, "lost": lost}
    judging.judge_long(tally, students, SEEDS, SMALL, CPU, minutes=1)
    figures = {key: mean(tally, f"{key}_m1") for key in ("sharpness", "colour", "stuck", "exploded")}
    assert figures == {"sharpness": pytest.approx(1), "colour": 0, "stuck": 0, "exploded": 0}
    assert mean(tally, "stuck_m1", "repeated") == 1 and mean(tally, "exploded_m1", "repeated") == 0
    assert mean(tally, "sharpness_m1", "grey") == pytest.approx(0.5, abs=0.05) and mean(tally, "colour_m1", "grey") > 5
    assert mean(tally, "exploded_m1", "lost") == 1


def test_the_table_has_a_line_a_measure_and_a_dash_for_nothing() -> None:
    tally = Tally()
    tally.add("seen_psnr_mean", "model", [20.0, 23.0, float("nan")])
    tally.add("direction_all", "model", [1, 1, 0, 1])
    text = evaluate.table(tally, 16, long=True)
    rows = {line[:40].strip(): line for line in text.splitlines()}
    assert "points seen at the start, dB, mean of 4" in text and "21.5" in text and ">= 20" in text
    assert any("75.0" in line and ">= 97" in line for line in rows.values())
    assert "minute 5" in text and "minute 5" not in evaluate.table(tally, 16, long=False)
    assert any(line.split()[-2:] == ["-", "-"] or " - " in line for line in rows.values())
    assert evaluate.summary(tally)["seen_psnr_mean"]["model"] == {
        "mean": 21.5, "median": 21.5, "min": 20.0, "max": 23.0, "count": 2}  # fmt: skip


def test_training_seeds_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for seeds in ("0:8", "699999:700002", "700008:700000", "eight"):
        with pytest.raises(SystemExit):
            evaluate.main(["--seeds", seeds])
        assert "--seeds" in capsys.readouterr().err


def test_absent_weights_are_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="absent"):
        evaluate.main(["--weights", str(tmp_path / "absent.safetensors")])


def test_the_command_ends_with_one_line_of_json(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    tally = Tally()
    tally.add("seen_1s", "teacher", [0.5, 0.7])
    tally.add("psnr_1s", "model", [21.0])
    for second in (2, 3, 4):
        tally.add(f"seen_{second}s", "teacher", 0.5)
    monkeypatch.setattr(evaluate, "judge", lambda world, seeds, long: tally)
    evaluate.main(["--seeds", "700000:700002", "--json"])
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last["seeds"] == [700000, 700001] and last["measures"]["psnr_1s"]["model"]["mean"] == 21.0


def test_a_sheet_shows_teacher_and_student(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluate.draw_sheet(Teacher(SMALL, CPU), [700000, 700001], SMALL, CPU, tmp_path / "sheet.png")
    assert (tmp_path / "sheet.png").stat().st_size > 10_000
    assert capsys.readouterr().out.startswith("700000: a")
