"""Protects the table of what each change is worth: every row is there, measured both ways or with a reason why not."""

from __future__ import annotations

import json

import pytest
import torch

from gameserver import bench_geometry
from gameserver.bench_ablation import NEEDS_RANKS, STARTS, WORDS, Ablated, measure
from tests.world.tiny_world import tiny_config
from world.instrument import CHANGES, DoesNotFit, Instrument

CFG = tiny_config("first_frame", chunk_frames=2, window_frames=6, sink_frames=2)


def instrument() -> Instrument:
    now = iter(range(10**9))
    return Instrument(CFG, lambda: next(now) / 1000, lambda stage, share: None, torch.device("cpu"))


def rows(measured: Instrument, num_ranks: int = 1) -> dict[str, Ablated]:
    return {row.change: row for row in measure(measured, 2, num_ranks, lambda text: None)}


def test_every_row_is_measured_with_and_without() -> None:
    made = rows(instrument())
    assert list(made) == list(WORDS) and set(CHANGES) < set(made)
    assert made.pop("resharding").missing == NEEDS_RANKS
    times = {change: (row.off_times, row.on_times) for change, row in made.items()}
    in_turn = dict.fromkeys((*CHANGES, "batch of two"), (2, 2))
    assert times == {"prewarm": (1, STARTS), "persistent world": (STARTS, STARTS), **in_turn}
    for row in made.values():
        assert row.missing is None and row.off_ms is not None and row.on_ms is not None
        assert row.ratio == row.off_ms / row.on_ms
    # Every tick reads the clock twice, and so do the two ends of a chunk: 3 ticks a chunk, 6 for two players in turn.
    assert made["KV write"].off_ms == made["KV write"].on_ms == pytest.approx(7.0)
    assert (made["batch of two"].off_ms, made["batch of two"].on_ms) == (pytest.approx(13.0), pytest.approx(7.0))


def test_a_row_that_does_not_fit_says_so_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Instrument.world

    def small(self: Instrument, num_slots: int) -> object:
        if num_slots > 1:
            raise DoesNotFit("does not fit: two are too many")
        return made(self, num_slots)

    monkeypatch.setattr(Instrument, "world", small)
    table = rows(instrument())
    assert table["batch of two"].missing == "does not fit: two are too many"
    assert all(row.missing is None for change, row in table.items() if change not in ("batch of two", "resharding"))


@pytest.mark.slow
def test_two_ranks_measure_resharding() -> None:
    row = rows(instrument(), num_ranks=2)["resharding"]
    assert row.missing is None and (row.off_times, row.on_times) == (2, 2)


def test_the_command_prints_a_table_or_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    import argparse

    parser = argparse.ArgumentParser()
    bench_geometry.add_counts(parser)
    bench_geometry.add_geometry(parser)
    parser.set_defaults(ranks=1)
    options = ["--ablation", "--chunks", "1"]
    assert bench_geometry.run_ablation(CFG, parser.parse_args(options)) == 0
    out = capsys.readouterr().out
    assert "| KV write | slices, row by row | one indexed copy | " in out and NEEDS_RANKS in out
    assert bench_geometry.run_ablation(CFG, parser.parse_args([*options, "--json"])) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert [row["change"] for row in json.loads(line)["results"]] == list(WORDS)
