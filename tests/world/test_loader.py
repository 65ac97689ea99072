"""How many threads serve: as many as keep a row's bits its own."""

from __future__ import annotations

import pytest

from world.loader import serving_threads


@pytest.mark.parametrize("cores, threads", [(1, 1), (2, 2), (3, 2), (4, 4), (6, 4), (7, 4), (8, 8), (96, 64)])
def test_threads_are_a_power_of_two(cores: int, threads: int) -> None:
    assert serving_threads(cores) == threads
