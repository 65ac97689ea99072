"""What may stand behind an option of the command line: text to a number, or argparse says what is wrong with it."""

from __future__ import annotations

import argparse


def port_number(text: str) -> int:
    port = int(text)
    if not 0 <= port <= 65535:
        raise argparse.ArgumentTypeError(f"{port} is not one of 0 to 65535")
    return port


def player_count(text: str) -> int:
    players = int(text)
    if not 1 <= players <= 255:
        raise argparse.ArgumentTypeError(f"{players} players is not one of 1 to 255")
    return players


def rank_count(text: str) -> int:
    ranks = int(text)
    if not 1 <= ranks <= 64:
        raise argparse.ArgumentTypeError(f"{ranks} is not one of 1 to 64")
    return ranks


def positive(text: str) -> float:
    number = float(text)
    if not 0 < number < 1e9:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return number


def player_counts(text: str) -> tuple[int, ...]:
    """As 1,2,4,8."""
    return tuple(player_count(part) for part in text.split(","))
