"""What one rank packs another unpacks; what is large is beside the message, so that a pipe nobody reads holds it."""

from __future__ import annotations

from multiprocessing import Pipe
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from world.chunk import Stored
from world.parcel import SMALL_BYTES, Parcel, take

PIPE_BYTES = 64 * 1024  # the least that a pipe holds


def through(thing: Any) -> tuple[Any, list[Tensor]]:
    """A thing as it comes out at the other end, and what went beside the pipe. Nobody reads while it is posted."""
    one, other = Pipe()
    beside: list[Tensor] = []
    with one, other:
        Parcel.of(thing).post([one], beside.append)
        got = take(other, lambda bulk: bulk.copy_(beside[0]))
        assert not other.poll(), "something is left in the pipe"
    return got, beside


@given(sizes=st.lists(st.integers(0, 3 * SMALL_BYTES), max_size=5), text=st.text(max_size=20))
def test_it_comes_out_as_it_went_in(sizes: list[int], text: str) -> None:
    arrays = [np.arange(size, dtype=np.uint8) for size in sizes]
    (said, got), beside = through((text, [Stored("U8", (len(a),), a) for a in arrays]))
    assert said == text and all(np.array_equal(a.data, b) for a, b in zip(got, arrays, strict=True))
    assert sum(len(bulk) for bulk in beside) == sum(size for size in sizes if size > SMALL_BYTES)


def test_what_is_large_leaves_little_for_the_pipe() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (13, 720, 832), dtype=np.uint8)
    assert len(Parcel.of([frames] * 8).envelope.message) < PIPE_BYTES
    got, beside = through({"frames": frames, "strided": frames[::2, ::2]})
    assert np.array_equal(got["frames"], frames) and np.array_equal(got["strided"], frames[::2, ::2])
    assert len(beside) == 1 and got["frames"].flags.writeable
