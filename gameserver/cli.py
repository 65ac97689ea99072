"""The `gameserver` command and its parts. A failure is one sentence on stderr and an exit code."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from gameserver import bench, bot_command, clip, memory, replay, serve
from world.chunk import WorldError

COMMANDS = {
    "serve": (serve, "serve a world to players"),
    "bot": (bot_command, "play on a server, measure and save what comes"),
    "bench": (bench, "measure a world on this machine, without sockets"),
    "memory": (memory, "say what a world takes of a device's memory, and how many players that holds"),
    "replay": (replay, "make recorded sessions again, and say whether they are equal to the bit"),
    "clip": (clip, "make videos: an image, a prompt and camera poses in, as many at once as you like"),
}


def parser() -> argparse.ArgumentParser:
    root = argparse.ArgumentParser(
        prog="gameserver", description="Every player walks through a generated world of their own."
    )
    commands = root.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (module, what) in COMMANDS.items():
        command = commands.add_parser(name, help=what, description=module.__doc__)
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    return root


def main(argv: Sequence[str] | None = None) -> int:
    """0: done. 1: it could not be done. 2: the command line is wrong. 3: it cannot be said. 130: interrupted."""
    args = parser().parse_args(argv)
    try:
        return int(args.run(args))
    except WorldError as fault:
        print(f"gameserver: {fault}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
