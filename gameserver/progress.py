"""How far a command is, on stderr. On a terminal one line is written over."""

from __future__ import annotations

import sys


def report(stage: str, share: float) -> None:
    """A `world.chunk.Report`; nothing elsewhere than on a terminal."""
    line(f"{stage} {share:4.0%}", done=share >= 1)


def line(text: str, done: bool = False) -> None:
    """The line as it is now, gone once it is done; nothing elsewhere than on a terminal."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}" + ("\r\x1b[K" if done else ""), end="", file=sys.stderr, flush=True)
