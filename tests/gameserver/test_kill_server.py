"""A real server, killed at random instants under load: nobody's world is lost, no control twice or never, no bit."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest

from tests import kill_server


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.slow
def test_three_kills_lose_nothing(tmp_path: Path) -> None:
    assert asyncio.run(kill_server.run(tmp_path, free_port(), times=3, num_bots=4, seed=7)) == []
