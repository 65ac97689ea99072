"""Protects the benchmark: its counts are those of the world it drives; a fake clock checks its arithmetic."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence

import pytest

from gameserver import bench
from world.chunk import Row
from world.pattern import PatternWorld


def ticking_world(row_s: float, tick_s: float) -> tuple[PatternWorld, Callable[[], float]]:
    """A world whose forwards take `tick_s` and `row_s` a row, on the clock that comes with it."""
    now = [0.0]

    def work(rows: Sequence[Row]) -> None:
        now[0] += tick_s + row_s * len(rows)

    return PatternWorld(num_slots=8, max_rows=8, on_step=work), lambda: now[0]


def test_ratio_and_rates_are_those_of_the_clock() -> None:
    world, clock = ticking_world(row_s=0.001, tick_s=0.004)
    result = bench.measure(world, 4, num_chunks=8, warmup_chunks=2, clock=clock)
    assert result.ms_a_tick == pytest.approx(8.0) and result.ms_a_tick_p95 == pytest.approx(8.0)
    assert result.rows_a_forward == pytest.approx(4.0)
    alone_fps = 4 / (5 * 0.005)  # 4 frames a chunk of 5 steps
    assert result.one_after_another_fps == pytest.approx(alone_fps, rel=0.05)
    assert result.fps == pytest.approx(4 * 4 / (5 * 0.008), rel=0.1)
    assert result.speedup == pytest.approx(result.fps / result.one_after_another_fps)
    assert result.fps_a_player == pytest.approx(result.fps / 4)


def test_one_player_is_as_fast_as_itself() -> None:
    world, clock = ticking_world(row_s=0.001, tick_s=0.004)
    assert bench.measure(world, 1, num_chunks=6, warmup_chunks=1, clock=clock).speedup == pytest.approx(1.0)


def test_more_players_than_rows_take_turns() -> None:
    world = PatternWorld(num_slots=3, max_rows=2)
    result = bench.measure(world, 3, num_chunks=4, warmup_chunks=1)
    assert 1.5 < result.rows_a_forward <= 2.0


def test_the_command_prints_one_line_of_json(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench, "world_loader", lambda path, slots, spread: lambda report: PatternWorld(num_slots=slots))
    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    assert bench.run(parser.parse_args(["--players", "1,2", "--chunks", "2", "--warmup", "1", "--json"])) == 0
    (line,) = capsys.readouterr().out.splitlines()
    report = json.loads(line)
    assert [result["players"] for result in report["results"]] == [1, 2]
    assert report["world"] == "pattern" and report["cores"] >= 1 and report["cpu"] and report["commit"]
    assert bench.run(parser.parse_args(["--players", "1", "--chunks", "1", "--warmup", "1"])) == 0
    table = capsys.readouterr().out
    assert "ratio" in table and "picture: 224x128" in table
