"""The bench of a published model without its files: the true architecture with random weights, made on the device.

Says how fast it is, not how good. Needs torch and numpy, and with --no-encode nothing of the server's libraries:
`python -m gameserver.bench_geometry --geometry lingbot-1.3b --no-encode` runs where those are not installed.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from gameserver.arguments import add_precision, player_count, player_counts, rank_count
from gameserver.bench_machine import machine
from sessions.tick import Finished
from world.chunk import Geometry, WorldError

HEADS = ("players", "ms a chunk", "p95", "fps in all", "a player", "cold first", "warm first", "DiT TFLOP/s", "of peak",
         "waits a tick", "GB: plan, peak")  # fmt: skip


def add_counts(parser: argparse.ArgumentParser) -> None:
    """What every bench is asked."""
    counts = "how many at once (default: 1,2,4,8)"
    parser.add_argument("--players", type=player_counts, default=(1, 2, 4, 8), help=counts)
    parser.add_argument("--chunks", type=player_count, default=8, help="measured for each (default: %(default)s)")
    parser.add_argument("--warmup", type=player_count, default=2, help="chunks before that (default: %(default)s)")
    add_precision(parser)
    parser.add_argument("--json", action="store_true", help="only one line of JSON on stdout")


def add_geometry(parser: argparse.ArgumentParser) -> None:
    sizes = "measure a model of these sizes, with random weights made on the device, stage by stage"
    parser.add_argument("--geometry", choices=("lingbot-14b", "lingbot-1.3b", "meadow"), help=sizes)
    parser.add_argument("--no-encode", action="store_true", help="of a --geometry: leave out the video encoder")
    changes = "measure what each change against the published code is worth, of a --geometry (default: meadow)"
    parser.add_argument("--ablation", action="store_true", help=changes)


def run(args: argparse.Namespace) -> int:
    """Progress on stderr; on stdout a table, or with --json one line."""
    from world.instrument import config_of

    cfg = config_of(args.geometry or "meadow")
    return run_ablation(cfg, args) if args.ablation else run_config(cfg, args, args.gpus)


def run_config(cfg: Any, args: argparse.Namespace, num_gpus: int | None = None) -> int:
    """`cfg`: a world's configuration. None: on the device that one process serves on."""
    from gameserver.bench_stages import measure
    from world.instrument import DoesNotFit, Instrument
    from world.loader import check_gpus

    num_ranks = num_gpus or 1
    if num_gpus is not None:
        check_gpus(num_gpus)
    instrument = Instrument(
        cfg, time.perf_counter, lambda stage, share: tell(stage), precision=args.precision, num_ranks=num_ranks
    )
    tell("measuring the device's matrix peak")
    peak = num_ranks * instrument.attempt(instrument.peak_tflops)
    geometry = cfg.geometry
    about = describe(instrument) | {
        "matrix_peak_tflops": float(f"{peak:.4g}"),
        "dit_tflop_a_chunk": float(f"{instrument.flops().chunk(cfg.schedule.num_steps) / 1e12:.5g}"),
    }
    if not args.json:
        print(heading(about))
    results: list[dict[str, Any]] = []
    for num_players in args.players:
        try:
            encode = None if args.no_encode else encoders(geometry)
            staged = measure(instrument, num_players, args.chunks, args.warmup, peak, encode, tell)
            results.append({"fits": True, **asdict(staged)})
        except DoesNotFit as fault:
            results.append({"fits": False, "players": num_players, "why": str(fault)})
        tell(json.dumps(results[-1]))  # should it never come to the last line
    print(json.dumps({**about, "results": results}) if args.json else table(results))
    return 0


def run_ablation(cfg: Any, args: argparse.Namespace) -> int:
    """`cfg`: a world's configuration."""
    from gameserver.bench_ablation import measure
    from world.instrument import Instrument

    instrument = Instrument(cfg, time.perf_counter, lambda stage, share: tell(stage), precision=args.precision)
    about = describe(instrument)
    if not args.json:
        print(heading(about))
    results = []
    for result in measure(instrument, args.chunks, args.ranks, tell):
        results.append(result)
        tell(json.dumps(asdict(result)))
    if args.json:
        print(json.dumps({**about, "results": [asdict(result) for result in results]}))
        return 0
    lines = [row(("change", "off", "on", "off: ms, median / p95", "on: ms, median / p95", "ratio", "times"))]
    lines.append(row(["---"] * 7))
    for r in results:
        if r.missing is not None:
            lines.append(row((r.change, r.off, r.on, r.missing, "", "", "")))
            continue
        times = f"{r.off_times}, {r.on_times}"
        off, on = f"{r.off_ms:.1f} / {r.off_ms_p95:.1f}", f"{r.on_ms:.1f} / {r.on_ms_p95:.1f}"
        lines.append(row((r.change, r.off, r.on, off, on, f"{r.ratio:.3f}", times)))
    print("\n".join(lines))
    return 0


def describe(instrument: Any) -> dict[str, object]:
    """What the numbers were taken on."""
    cfg, geometry = instrument.cfg, instrument.cfg.geometry
    return {
        "world": cfg.name,
        "weights": "random",
        "picture": f"{geometry.width}x{geometry.height}",
        "chunk_tokens": geometry.chunk_tokens,
        "chunk_video_frames": geometry.video_frames(1),
        "window_frames": cfg.window_frames,
        "sink_frames": cfg.sink_frames,
        "steps": cfg.schedule.num_steps,
        **machine(),
        **instrument.about,
    }


def heading(about: Mapping[str, object]) -> str:
    return "\n".join(f"{key.replace('_', ' ')}: {value}" for key, value in about.items())


def table(results: Sequence[dict[str, Any]]) -> str:
    """As Markdown, for a README: a row for each number of players, then the stages of each."""
    lines = [row(HEADS), row(["---"] * len(HEADS))]
    for r in results:
        if not r["fits"]:
            lines.append(row([r["players"], r["why"], *[""] * (len(HEADS) - 2)]))
            continue
        lines.append(
            row([
                r["players"], *(f"{r[key]:.4g}" for key in ("chunk_ms", "chunk_ms_p95", "fps", "fps_a_player",
                "cold_first_chunk_ms", "warm_first_chunk_ms", "dit_tflops")), f"{r['dit_share']:.1%}",
                f"{sum(r['waits'].values()) / r['counted_ticks']:.3g}",
                ", ".join("-" if r[key] is None else f"{r[key] / 1e9:.3g}" for key in ("planned_bytes", "peak_bytes")),
            ])
        )  # fmt: skip
    fitting = [r for r in results if r["fits"]]
    if fitting:
        names = [stage["name"] for stage in fitting[0]["stages"]]
        lines += [
            "",
            row(["stage, ms: median / p95", *(f"{r['players']} player{'s' * (r['players'] > 1)}" for r in fitting)]),
        ]
        lines.append(row(["---"] * (1 + len(fitting))))
        for name in names:
            cells = [next(stage for stage in r["stages"] if stage["name"] == name) for r in fitting]
            lines.append(row([name, *(f"{cell['ms']:.2f} / {cell['ms_p95']:.2f}" for cell in cells)]))
    return "\n".join(lines)


def row(cells: Sequence[object]) -> str:
    return f"| {' | '.join(str(cell) for cell in cells)} |"


def encoders(geometry: Geometry) -> Callable[[Sequence[Finished]], None]:
    """Every player's own H.264 encoder, one after another."""
    try:
        from gameserver.encoder import H264Encoder
    except ImportError:
        raise WorldError("encoding needs the Python package av: --no-encode leaves it out") from None
    streams: dict[str, H264Encoder] = {}

    def encode(finished: Sequence[Finished]) -> None:
        for chunk in finished:
            stream = streams.setdefault(chunk.session_id, H264Encoder(geometry))
            for frame in chunk.picture.frames:
                stream.encode(frame)

    return encode


def tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="gameserver.bench_geometry", description=__doc__)
    add_counts(parser)
    add_geometry(parser)
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--ranks", type=rank_count, default=1, metavar="N", help="processes, for --ablation only")
    where.add_argument("--gpus", type=rank_count, metavar="N", help="GPUs of a --geometry, a process each")
    args = parser.parse_args(argv)
    if args.geometry is None and not args.ablation:
        parser.error("--geometry or --ablation is needed here")
    if args.ablation and args.gpus is not None:
        parser.error("--gpus does not go with --ablation")
    try:
        return run(args)
    except WorldError as fault:
        print(f"gameserver: {fault}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
