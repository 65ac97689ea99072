"""Make recorded sessions again, as fast as the world goes: to see them, or to hold them against what was recorded.

With --verify the exit status is 0 if every chunk is equal to the bit, 1 if something differs or was refused, and 3
where it cannot be said: on another arithmetic, or for a recording that has no end.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from gameserver import overlay
from gameserver.arguments import add_precision
from gameserver.progress import report
from gameserver.serve import add_spread_arguments, spread_of, world_loader
from gameserver.video_file import VideoFile, check_writable
from sessions.recording import Recording, read
from sessions.records import floats
from sessions.replay import Replayed, most_at_once
from sessions.verify import Finding, verify
from world.chunk import Geometry, Identity, World, WorldError, precision_in

BUILT_IN = ("meadow", "pattern")  # worlds that a name alone finds


@dataclass(frozen=True, slots=True)
class _Film:
    """A recording to be shown: which file, and how much of it."""

    path: Path
    recording: Recording
    begin_frame: int  # of the stream, from which a video shows it
    end_frame: int | None  # the first one not shown

    @property
    def shows_nothing(self) -> bool:
        """No frame that was recorded is to be shown."""
        total = sum(len(floats(chunk.poses)) // 16 for chunk in self.recording.chunks)
        return self.begin_frame >= (total if self.end_frame is None else min(total, self.end_frame))

    def chunks(self, geometry: Geometry) -> int:
        """How many have to be made for that."""
        total = len(self.recording.chunks)
        if self.end_frame is None:
            return total
        return next((n for n in range(total) if geometry.first_video_frame(n) >= self.end_frame), total)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="a recording, *.mwrec")
    parser.add_argument("--verify", action="store_true", help="compare every chunk with its digest")
    parser.add_argument("--together", action="store_true", help="all in one batch, in the company they had")
    parser.add_argument("--video", type=Path, metavar="OUT.mp4", help="write what the player saw (one FILE)")
    parser.add_argument("--overlay", action="store_true", help="draw held keys and the camera's pose onto the video")
    parser.add_argument("--from", dest="from_s", type=seconds, default=0.0, metavar="S", help="where the video begins")
    parser.add_argument("--to", dest="to_s", type=seconds, metavar="S", help="where to stop, in seconds of the stream")
    parser.add_argument("--world", help="a checkpoint's directory; worlds that come with the server need none")
    add_spread_arguments(parser)
    add_precision(parser, default=None)
    parser.add_argument("--json", action="store_true", help="only one line of JSON on stdout")


def seconds(text: str) -> float:
    number = float(text)
    if not 0 <= number < 1e9:
        raise argparse.ArgumentTypeError(f"{text} is not a number of seconds")
    return number


def run(args: argparse.Namespace) -> int:
    """A line for each recording, or with --json one for all."""
    if args.video is not None and len(args.files) > 1:
        print("gameserver: --video shows one recording", file=sys.stderr)
        return 2
    if args.overlay and args.video is None:
        print("gameserver: --overlay is drawn onto a --video", file=sys.stderr)
        return 2
    if args.video is not None:
        check_writable(args.video)
    results: list[tuple[Path, Recording | None, Finding]] = []
    films = [_open(path, args, results) for path in args.files]
    shown = [film for film in films if film is not None]
    if args.video is not None and any(film.shows_nothing for film in shown):
        print("gameserver: the recording has no frame between --from and --to: there is no video", file=sys.stderr)
        return 2
    if shown:
        world = _load(args, [film.recording for film in shown])
        identity = world.identify(report)
        for group in [shown] if args.together else [[film] for film in shown]:
            findings = _play(world, identity, group, args)
            results += [(film.path, film.recording, finding) for film, finding in zip(group, findings, strict=True)]
    results.sort(key=lambda result: args.files.index(result[0]))
    code = _code([finding for _, _, finding in results], args.verify)
    if args.json:
        told = [{"file": str(path), **_about(recording), **_found(finding)} for path, recording, finding in results]
        print(json.dumps({"recordings": told, "status": code}, allow_nan=False))
    else:
        for path, recording, finding in results:
            print(f"{path}: {_sentence(recording, finding, args.verify)}")
    return code


def _open(path: Path, args: argparse.Namespace, results: list[tuple[Path, Recording | None, Finding]]) -> _Film | None:
    """A recording to be replayed, or a result that says why it cannot be."""
    try:
        recording = read(path.read_bytes())
    except OSError as fault:
        results.append((path, None, Finding(0, "refused", reason=f"it cannot be read ({fault.strerror})")))
        return None
    verdict, header = recording.verdict, recording.header
    if header is None:
        results.append((path, recording, Finding(0, "refused", reason=f"{verdict.reason} (byte {verdict.offset})")))
        return None
    end_frame = None if args.to_s is None else max(0, round(args.to_s * header.fps))
    return _Film(path, recording, max(0, round(args.from_s * header.fps)), end_frame)


def _load(args: argparse.Namespace, recordings: Sequence[Recording]) -> World:
    """The world that all were recorded in. WorldError if there is no telling which, or it cannot be loaded."""
    headers = [recording.header for recording in recordings if recording.header is not None]
    names = sorted({header.world for header in headers})
    if args.world is None and (len(names) > 1 or names[0] not in BUILT_IN):
        raise WorldError(f"these are recordings of {' and '.join(names)}: say with --world where that is")
    precisions = sorted({precision_in(header.arithmetic.get("dtype", "")) for header in headers})
    if args.precision is None and len(precisions) > 1:
        raise WorldError(f"these were recorded in {' and '.join(precisions)}: say with --precision which it shall be")
    num_slots = max(1, most_at_once(recordings)) if args.together else 1
    spread = replace(spread_of(args), precision=args.precision or precisions[0])
    return world_loader(args.world or names[0], num_slots, spread)(report)


def _play(world: World, identity: Identity, films: Sequence[_Film], args: argparse.Namespace) -> list[Finding]:
    num_chunks = [film.chunks(world.geometry) for film in films]
    done = shown = 0
    with ExitStack() as stack:
        video = None if args.video is None else stack.enter_context(VideoFile(args.video, world.geometry))

        def see(replayed: Replayed) -> None:
            nonlocal done, shown
            done += 1
            _tell(done, sum(num_chunks))
            if video is not None:
                _show(replayed, shown, films[0], video, world.geometry, args.overlay)
                shown += len(replayed.picture.frames)

        recordings = [film.recording for film in films]
        return verify(world, identity, recordings, num_chunks, see, compare=args.verify)


def _show(replayed: Replayed, first: int, film: _Film, video: VideoFile, geometry: Geometry, drawn_over: bool) -> None:
    """What the player saw, as far as it is shown; `first` is how many frames there were before, of all that were seen:
    who went back saw some chunks twice."""
    chunk, header = replayed.chunk, film.recording.header
    assert header is not None
    frames = list(replayed.picture.frames)
    if drawn_over:
        held = None if header.control == "poses" else overlay.held_axes(chunk, geometry.fps)
        frames = [
            overlay.draw(picture, None if held is None else held[i], pose)
            for i, (picture, pose) in enumerate(zip(frames, floats(chunk.poses).reshape(-1, 4, 4), strict=True))
        ]
    for frame, picture in enumerate(frames, first):
        if frame >= film.begin_frame and (film.end_frame is None or frame < film.end_frame):
            video.add(frame, chunk.chunk, picture)


def _code(findings: Sequence[Finding], compared: bool) -> int:
    outcomes = {finding.outcome for finding in findings}
    if outcomes & {"differs", "refused"}:
        return 1
    return 3 if compared and "unknown" in outcomes else 0


def _about(recording: Recording | None) -> dict[str, object]:
    if recording is None or recording.header is None:
        return {}
    header, verdict = recording.header, recording.verdict
    return {
        "session": header.session, "run": header.run, "world": header.world, "scene": header.scene, "seed": header.seed,
        "chunks": len(recording.chunks), "ended": recording.ended, "state": verdict.state, "offset": verdict.offset,
    }  # fmt: skip


def _found(finding: Finding) -> dict[str, object]:
    """A drift that is no number is null, as JSON has no other word for it."""
    return {**asdict(finding), "drift": finding.drift if math.isfinite(finding.drift) else None}


def _sentence(recording: Recording | None, finding: Finding, compared: bool) -> str:
    where = "" if finding.chunk is None else f"chunk {finding.chunk}: "
    if finding.outcome == "refused":
        return f"refused: {finding.reason}"
    if finding.outcome == "differs":
        return f"DIFFERS. {where}{finding.reason} ({finding.checked} chunks before it are equal)"
    torn = recording is not None and recording.verdict.state == "torn"
    tail = f"; cut at byte {recording.verdict.offset}: {recording.verdict.reason}" if recording and torn else ""
    if finding.outcome == "equal":
        return f"equal to the bit, {finding.checked} chunks{tail}"
    if not compared:
        return f"{finding.made} chunks{tail}"
    other = "".join(f"; {name}: {there} then, {here} here" for name, (there, here) in finding.arithmetic.items())
    return f"cannot be said: {finding.reason} ({finding.checked} of {finding.made} chunks are equal{tail}{other})"


def _tell(done: int, total: int) -> None:
    """On a terminal one line that is written over, elsewhere a line for each tenth."""
    if sys.stderr.isatty():
        print(
            f"\r\x1b[K{done} of {total} chunks" + ("\n" if done == total else ""), end="", file=sys.stderr, flush=True
        )
    elif done * 10 // total != (done - 1) * 10 // total:
        print(f"{done} of {total} chunks", file=sys.stderr, flush=True)
