"""What may stand behind an option of the command line: text to a number, or argparse says what is wrong with it."""

from __future__ import annotations

import argparse

from world.chunk import PRECISIONS, Precision


def port_number(text: str) -> int:
    return _whole(text, 0, 65535)


def player_count(text: str) -> int:
    return _whole(text, 1, 255, " players")


def rank_count(text: str) -> int:
    return _whole(text, 1, 64)


def add_precision(parser: argparse.ArgumentParser, default: Precision | None = PRECISIONS[0]) -> None:
    """None: as whoever reads it finds recorded."""
    kept = "large linears in the dtype the device serves in, or in FP8, all else in bfloat16"
    parser.add_argument(
        "--precision", choices=PRECISIONS, default=default, help=f"{kept} (default: {default or 'as recorded'})"
    )


def positive(text: str) -> float:
    number = float(text)
    if not 0 < number < 1e9:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return number


def player_counts(text: str) -> tuple[int, ...]:
    """As 1,2,4,8."""
    return tuple(player_count(part) for part in text.split(","))


def _whole(text: str, low: int, high: int, unit: str = "") -> int:
    number = int(text)
    if not low <= number <= high:
        raise argparse.ArgumentTypeError(f"{number}{unit} is not one of {low} to {high}")
    return number
