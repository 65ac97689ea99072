"""The bot: plays one session on a server, reports what it saw, saves it."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gameserver.bot import BotError
from gameserver.bot_plan import BotPlan
from gameserver.dial import stream_size
from gameserver.player import play
from gameserver.policies import Policy, orbit, random_walk, walk
from gameserver.recorded_camera import read_intrinsics, read_poses, scale_intrinsics
from gameserver.tally import BotReport
from world.motion import parse_script

POLICIES: dict[str, Callable[[int], Policy]] = {
    "walk": lambda seed: walk(),
    "orbit": lambda seed: orbit(),
    "random": random_walk,
}
CODECS = {"h264": ("h264", "jpeg"), "jpeg": ("jpeg",), "raw": ("raw",)}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("url", help="the server, as ws://HOST:PORT")
    parser.add_argument(
        "--seconds", type=_seconds, help="play for so long (default: the script or poses once, else 10)"
    )
    parser.add_argument(
        "--script", type=_script, help="keys and video frames, as w-8,wl-8,none-4 (with --seconds it repeats)"
    )
    parser.add_argument("--policy", choices=POLICIES, default="walk", help="without a script (default: %(default)s)")
    parser.add_argument("--policy-seed", type=int, default=0, help="of the random one (default: %(default)s)")
    parser.add_argument("--lockstep", action="store_true", help="the server waits for the steering of each chunk")
    parser.add_argument("--codec", choices=CODECS, default="h264", help="how frames come (default: %(default)s)")
    parser.add_argument("--poses", type=Path, help=".npy [n, 4, 4]: a camera-to-world pose for every video frame")
    parser.add_argument(
        "--intrinsics",
        type=Path,
        help=".npy [4], [n, 4] (the first counts) or [3, 3], for a picture whose centre is the principal point, or of"
        " --intrinsics-size; scaled to the stream's",
    )
    parser.add_argument(
        "--intrinsics-size", type=_size, metavar="WxH", help="the picture that the intrinsics are given for"
    )
    parser.add_argument("--scale", type=float, help="pose units that count as 1 for the world")
    parser.add_argument("--save", type=Path, help="write what was received to this MP4 file")
    parser.add_argument("--json", action="store_true", help="print nothing but the result")
    parser.add_argument("--prompt", help="what the world shall be")
    parser.add_argument(
        "--prompt-at", nargs=2, action=_PromptAt, default=[], metavar=("SECONDS", "TEXT"), help="another one later"
    )
    parser.add_argument("--scene", help="id of the start scene")
    parser.add_argument("--image", type=Path, help="a JPEG or PNG file to start from instead")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--name", default="bot")


def run(args: argparse.Namespace) -> int:
    """The command. The last line on stdout is the report as JSON; a failure is one sentence on stderr."""
    try:
        report = asyncio.run(_command(args))
    except BotError as error:
        print(f"bot: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    if not args.json:
        late = report.control_to_frame_ms["p95"]
        print(f"{report.frames} frames of {report.world} in {report.seconds:.1f} s, {report.fps:.2f} a second")
        print(f"{report.decode_errors} could not be decoded, {report.skipped} were skipped")
        print("no control was answered" if late is None else f"control to frame: {late:.0f} ms for 95 of 100")
    print(json.dumps(asdict(report)))
    return 0


async def _command(args: argparse.Namespace) -> BotReport:
    poses = None if args.poses is None else read_poses(args.poses)
    intrinsics = None
    if args.intrinsics is not None:
        given = read_intrinsics(args.intrinsics)
        size = (2 * given[2], 2 * given[3]) if args.intrinsics_size is None else args.intrinsics_size
        intrinsics = scale_intrinsics(given, size, await asyncio.to_thread(stream_size, args.url))
    plan = BotPlan(
        seconds=args.seconds,
        script=args.script,
        policy=POLICIES[args.policy](args.policy_seed),
        lockstep=args.lockstep,
        codecs=CODECS[args.codec],
        poses=poses,
        intrinsics=intrinsics,
        scale=args.scale,
        image=None if args.image is None else _read_image(args.image),
        name=args.name,
        scene=args.scene,
        prompt=args.prompt,
        prompts=tuple(args.prompt_at),
        seed=args.seed,
        save=args.save,
    )
    return await play(args.url, plan)


def _read_image(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BotError(f"cannot read {path}: {error.strerror or error}") from None


def _script(text: str) -> Any:
    try:
        return parse_script(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 < seconds < 1e7:
        raise argparse.ArgumentTypeError(f"{text} is not a time in seconds")
    return seconds


def _size(text: str) -> tuple[float, float]:
    width, _, height = text.partition("x")
    if not (width.isdecimal() and height.isdecimal() and int(width) and int(height)):
        raise argparse.ArgumentTypeError(f"{text} is not a size such as 832x480")
    return float(width), float(height)


class _PromptAt(argparse.Action):
    """SECONDS TEXT, as often as wanted."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, _: Any = None
    ) -> None:
        try:
            prompt = (_seconds(values[0]), values[1])
        except (ValueError, argparse.ArgumentTypeError):
            parser.error(f"--prompt-at {values[0]}: not a time in seconds")
        setattr(namespace, self.dest, [*getattr(namespace, self.dest), prompt])
