"""Protects the figure of what recording costs: on a fake clock exactly what was put in, of walks really recorded."""

from __future__ import annotations

import argparse
import errno
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from gameserver import bench
from gameserver.diary import Diary
from gameserver.journal import Journal
from gameserver.recording_cost import WALKS, measure_recording
from sessions.recording import read
from sessions.tick import Finished
from world.chunk import Row, WorldError
from world.pattern import PatternWorld


def ticking(row_s: float) -> tuple[PatternWorld, list[float], Callable[[], float]]:
    """A world whose forwards take `row_s` a row and as much again to decode, its clock's time, and the clock."""
    now = [0.0]

    def work(rows: Sequence[Row]) -> None:
        now[0] += sum(row_s * (1 + (row.step_index == 3)) for row in rows)

    return PatternWorld(num_slots=8, max_rows=8, on_step=work), now, lambda: now[0]


def test_it_is_what_a_chunk_costs_shared_by_its_ticks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world, now, clock = ticking(0.010)
    keep = Diary.chunk

    def slow(diary: Diary, finished: Finished) -> None:
        now[0] += 0.003 if diary._recorder is not None else 0.0
        keep(diary, finished)

    monkeypatch.setattr(Diary, "chunk", slow)
    cost = measure_recording(world, 3, 6, 2, tmp_path, clock)
    ticks = world.num_steps + 1
    assert cost.ms_a_tick == pytest.approx(3 * 10 * (ticks + 1) / ticks)
    assert cost.recorded_ms_a_tick == pytest.approx(cost.ms_a_tick + 3 * 3 / ticks)
    assert cost.ratio == pytest.approx(cost.recorded_ms_a_tick / cost.ms_a_tick)
    assert cost.ms_a_tick_p95 == pytest.approx(cost.ms_a_tick) and cost.rounds >= 4 * WALKS


def test_half_of_the_walks_are_recorded_whole(tmp_path: Path) -> None:
    world, _, clock = ticking(0.010)
    measure_recording(world, 2, 4, 1, tmp_path, clock)
    recordings = [read(path.read_bytes()) for path in tmp_path.iterdir()]
    assert len(recordings) == 2 * WALKS
    for recording in recordings:
        assert recording.verdict.state == "whole" and recording.ended and len(recording.chunks) >= 5


def test_a_disk_that_takes_nothing_gives_no_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(journal: Journal, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Journal, "append", full)
    world, _, clock = ticking(0.010)
    with pytest.raises(WorldError, match="recordings were lost in"):
        measure_recording(world, 1, 2, 1, tmp_path, clock)


def test_the_command_says_it_for_each_number_of_players(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench, "world_loader", lambda path, slots, spread: lambda report: PatternWorld(num_slots=slots))
    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    options = ["--recording", "--players", "1,2", "--chunks", "2", "--warmup", "1"]
    assert bench.run(parser.parse_args([*options, "--json"])) == 0
    told = json.loads(capsys.readouterr().out)
    assert [result["players"] for result in told["results"]] == [1, 2] and told["commit"] and told["cpu"]
    assert all(result["ratio"] > 0 and result["recorded_ms_a_tick_p95"] > 0 for result in told["results"])
    assert bench.run(parser.parse_args(options)) == 0
    assert "recorded" in capsys.readouterr().out
