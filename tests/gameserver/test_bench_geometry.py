"""Protects the bench of published models, at a size that a CPU steps in milliseconds: what it says is what was run."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from gameserver import bench, bench_geometry
from gameserver.bench_stages import Crowd, measure
from tests.world.tiny_world import tiny_config
from world.chunk import PRECISIONS, WorldError
from world.denoiser import Denoiser
from world.instrument import DoesNotFit, Instrument
from world.published import PUBLISHED

ROOT = Path(__file__).parent.parent.parent
CFG = tiny_config("first_frame", chunk_frames=2, window_frames=6, sink_frames=2)


CHILD = """
import argparse, sys
for name in ("av", "websockets", "msgspec", "msgpack", "transformers"):
    sys.modules[name] = None
from gameserver.bench_geometry import add_counts, add_geometry, main, run_config
from tests.world.tiny_world import tiny_config
parser = argparse.ArgumentParser()
add_counts(parser)
add_geometry(parser)
args = parser.parse_args("--players 1 --chunks 1 --warmup 1 --no-encode --json".split())
sys.exit(run_config(tiny_config("first_frame"), args))
"""


class Clock:
    """A thousandth of a second passes between two readings."""

    def __init__(self) -> None:
        self.readings = 0

    def __call__(self) -> float:
        self.readings += 1
        return self.readings / 1000


def instrument() -> Instrument:
    return Instrument(CFG, Clock(), lambda stage, share: None, torch.device("cpu"))


def arguments(*given: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    bench_geometry.add_counts(parser)
    bench_geometry.add_geometry(parser)
    return parser.parse_args(given)


def test_players_are_at_different_chunks_of_full_windows() -> None:
    told: list[str] = []
    staged = measure(instrument(), 3, 2, 1, 1.0, None, told.append)
    assert len(set(staged.chunk_indices)) == 3 and min(staged.chunk_indices) >= 6 // 2 + 1
    assert staged.players == 3 and told[0] == "3 players: warming up"


def test_every_stage_is_measured_as_often_as_it_ran() -> None:
    encoded: list[int] = []
    staged = measure(instrument(), 2, 3, 1, 1.0, lambda chunks: encoded.append(len(chunks)), lambda text: None)
    ticks, chunks = 3 * 3, 3
    times = {"plan": ticks, "encode": chunks}
    times |= dict.fromkeys(("begin", "step 0", "step 1", "commit", "vae", "copy", "digest"), chunks)
    assert {stage.name: stage.times for stage in staged.stages} == times
    assert encoded == [2, 2, 2]  # both players' chunks each time


def test_waits_are_counted_while_somebody_comes_and_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    staged = measure(instrument(), 2, 3, 1, 1.0, None, lambda text: None)
    assert (staged.counted_ticks, staged.waits, staged.compilations) == (9, {}, 0)
    step = Denoiser.step

    def reads(self: Denoiser, *args: torch.Tensor) -> torch.Tensor:
        if not args[0].is_meta:  # as in the memory plan
            args[0].sum().item()
        return step(self, *args)

    monkeypatch.setattr(Denoiser, "step", reads)
    assert measure(instrument(), 2, 3, 1, 1.0, None, lambda text: None).waits == {"item": 9}


def test_rates_follow_from_the_clock() -> None:
    staged = measure(instrument(), 2, 4, 1, 2.0, None, lambda text: None)
    stage = {stage.name: stage.ms for stage in staged.stages}
    assert stage["commit"] == pytest.approx(1.0)  # between its two readings
    assert stage["step 0"] == pytest.approx(2.0)  # before and after those of `begin`
    flops, step_s = instrument().flops(), (stage["step 0"] + stage["step 1"]) / 1000
    assert staged.step_tflops == pytest.approx(2 * 2 * flops.step / step_s / 1e12)
    whole_s = step_s + (stage["commit"] + stage["begin"]) / 1000
    assert staged.dit_tflops == pytest.approx(2 * flops.chunk(2) / whole_s / 1e12)
    assert staged.step_share == pytest.approx(staged.step_tflops / 2.0)
    # Unwatched, a tick reads the clock twice and a chunk of three ticks two times more: seven of them are between.
    assert (staged.chunk_ms, staged.chunk_ms_p95) == (pytest.approx(7.0), pytest.approx(7.0))
    assert staged.fps == pytest.approx(4 * 2 * 8 / 0.033, rel=0.1) and staged.fps_a_player == staged.fps / 2


def test_a_crowd_walks_in_step() -> None:
    measured = instrument()
    crowd = Crowd(measured.world(2), measured.clock)
    crowd.join(0)
    assert len(crowd.chunk()) == 1
    crowd.join(1)
    finished = crowd.chunk()
    assert sorted(chunk.chunk_index for chunk in finished) == [0, 1]
    assert {chunk.path.control_seq for chunk in finished} == {2}  # everybody steers
    assert crowd.game.counters.forwards == 6


def test_a_crowd_of_fewer_rows_takes_turns() -> None:
    measured = instrument()
    crowd = Crowd(measured.world(2), measured.clock, max_rows=1)
    crowd.join(0)
    crowd.join(1)
    for chunk_index in range(2):
        assert [chunk.chunk_index for chunk in crowd.chunk()] == [chunk_index] * 2
    assert crowd.game.counters.forwards_of == {1: 2 * 2 * 3}
    assert crowd.chunk_indices == (2, 2)


def test_what_does_not_fit_is_a_row(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    made = Instrument.world

    def full(self: Instrument, num_slots: int) -> object:
        if num_slots == 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")
        return made(self, num_slots)

    monkeypatch.setattr(Instrument, "world", full)
    options = ("--players", "1,2", "--chunks", "1", "--warmup", "1", "--no-encode")
    assert bench_geometry.run_config(CFG, arguments(*options, "--json")) == 0
    out = capsys.readouterr().out
    (line,) = out.splitlines()
    report = json.loads(line)
    fits, not_so = report["results"]
    assert fits["fits"] and fits["players"] == 1 and fits["chunk_ms"] > 0
    assert not_so == {"fits": False, "players": 2, "why": "does not fit: CUDA out of memory"}
    assert report["weights"] == "random" and report["steps"] == 2 and report["matrix_peak_tflops"] > 0
    assert bench_geometry.run_config(CFG, arguments(*options)) == 0
    table = capsys.readouterr().out
    assert "| 2 | does not fit: CUDA out of memory |" in table and "| vae | " in table


def test_another_fault_is_not_a_lack_of_memory() -> None:
    def fail() -> None:
        raise RuntimeError("the device is gone")

    with pytest.raises(RuntimeError, match="gone") as raised:
        instrument().attempt(fail)
    assert not isinstance(raised.value, DoesNotFit)


def test_the_choices_are_the_published_models(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PUBLISHED:
        assert arguments("--geometry", name).geometry == name
    asked: list[str] = []
    monkeypatch.setattr(bench_geometry, "run_config", lambda cfg, args, num_gpus: asked.append(cfg.name) or 0)
    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    assert bench.run(parser.parse_args(["--geometry", "lingbot-1.3b"])) == 0
    assert asked == ["lingbot-world-fast-v2-1.3b"]


@pytest.mark.parametrize(
    "option, other",
    [
        ("--geometry", "--world x"),
        ("--geometry", "--environments 1"),
        ("--geometry", "--recording"),
        ("--geometry", "--ranks 2"),
        ("--ablation", "--gpus 1"),
    ],
)
def test_options_that_would_not_count_are_refused(option: str, other: str) -> None:
    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    asked = {"--geometry": ["--geometry", "meadow"], "--ablation": ["--ablation"]}[option]
    with pytest.raises(WorldError, match=f"{other.split()[0]} does not go with {option}"):
        bench.run(parser.parse_args([*asked, *other.split()]))


@pytest.mark.parametrize("there, ranks", [(2, 2), (1, None)])
def test_as_many_gpus_as_there_are_measure_together(
    there: int, ranks: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rank each, each with a matrix peak of its own."""
    made: list[int] = []
    peaks: list[float] = []

    class OfTwo(Instrument):
        def __init__(self, *args: Any, num_ranks: int, **kwargs: Any):
            made.append(num_ranks)
            super().__init__(*args, **kwargs)

        def peak_tflops(self) -> float:
            return 3.0

    def measured(instrument: Instrument, players: int, chunks: int, warmup: int, peak: float, *rest: Any) -> object:
        peaks.append(peak)
        raise DoesNotFit("it is not measured here")

    monkeypatch.setattr(torch.cuda, "device_count", lambda: there)
    monkeypatch.setattr("world.instrument.Instrument", OfTwo)
    monkeypatch.setattr("gameserver.bench_stages.measure", measured)
    args = arguments("--players", "1", "--no-encode", "--json")
    if ranks is None:
        with pytest.raises(WorldError, match="--gpus 2: torch finds 1 GPU"):
            bench_geometry.run_config(CFG, args, 2)
    else:
        assert bench_geometry.run_config(CFG, args, 2) == 0
        assert (made, peaks) == ([ranks], [6.0])


def test_ranks_of_an_ablation_stay_on_the_cpu_where_there_are_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """`--ranks 2` beside one GPU: the second rank would have none."""
    asked: list[bool] = []
    monkeypatch.setattr("world.instrument.RankedWorld", lambda *args, on_gpus: asked.append(on_gpus))
    made = instrument()
    made.device, made.num_ranks = torch.device("cuda"), 2
    made.ranked(2, 1, "replicated", lambda stage, share: None)
    made.world(1)
    assert asked == [False, True]


@pytest.mark.slow
def test_two_ranks_are_measured_as_one_world_is() -> None:
    two = Instrument(CFG, Clock(), lambda stage, share: None, torch.device("cpu"), num_ranks=2)
    assert two.about["ranks"] == 2 and two.about["parameters"] == instrument().about["parameters"]
    staged = measure(two, 1, 2, 1, 1.0, None, lambda text: None)
    assert staged.chunk_ms > 0 and staged.slot_bytes < instrument().world(1).slab.slot_bytes()
    two.free()
    assert not torch.distributed.is_initialized(), "a world that nobody has any more has ended"


def test_it_needs_nothing_of_the_server() -> None:
    """Where torch is but none of the server's libraries, as on a rented GPU."""
    done = subprocess.run([sys.executable, "-c", CHILD], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["results"][0]["fits"]
    assert "first chunks" in done.stderr


def test_a_model_is_measured_in_fp8_where_that_is_asked() -> None:
    plain, coarse, kept = (
        Instrument(CFG, Clock(), lambda stage, share: None, torch.device("cpu"), precision) for precision in PRECISIONS
    )
    assert coarse.about["dtype"] == coarse.world(1).dtype == "bfloat16+fp8"
    assert kept.about["dtype"] == kept.world(1).dtype == "bfloat16+fp8-kv"
    assert kept.about["weights_bytes"] == coarse.about["weights_bytes"] < plain.about["weights_bytes"]  # type: ignore[operator]
    assert arguments("--precision", "fp8").precision == "fp8" and arguments().precision == "native"
