"""What crosses to the device and back is what was there, whatever its shapes, and of the moment it was fetched."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from world.crossing import ALIGNED_BYTES, Arrivals, pack, send, unpack

CPU = torch.device("cpu")
shapes = st.lists(st.integers(0, 5), min_size=1, max_size=3).map(tuple)
dtypes = st.sampled_from([np.int64, np.float32, np.uint8, np.float64])


@given(parts=st.lists(st.tuples(shapes, dtypes), max_size=5))
def test_what_is_packed_comes_out_again(parts):
    arrays = [np.arange(np.prod(shape)).reshape(shape).astype(dtype) + i for i, (shape, dtype) in enumerate(parts)]
    arrays = [array.astype(dtype) for array, (_, dtype) in zip(arrays, parts, strict=True)]
    packed = pack(CPU, arrays)
    assert packed.dtype == torch.uint8 and len(packed) % ALIGNED_BYTES == 0
    for got, array in zip(unpack(packed, arrays), arrays, strict=True):
        assert got.numpy().dtype == array.dtype and np.array_equal(got.numpy(), array)


def test_arrays_need_not_be_contiguous():
    array = np.arange(12, dtype=np.float32).reshape(3, 4).T
    assert np.array_equal(unpack(pack(CPU, [array]), [array])[0].numpy(), array)


def test_what_was_fetched_does_not_change_with_its_source():
    arrivals, t = Arrivals(CPU), torch.arange(4)
    kept = arrivals.fetch(t)
    t.zero_()
    arrivals.wait()
    assert kept.tolist() == [0, 1, 2, 3]


def test_on_the_cpu_nothing_is_copied():
    array = np.zeros(3, np.float32)
    (t,) = send(CPU, array)
    array[1] = 7
    assert t.tolist() == [0, 7, 0]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
def test_to_a_gpu_and_back_without_waiting_for_it():
    device = torch.device("cuda")
    arrays = np.arange(6).reshape(2, 3), np.linspace(0, 1, 5, dtype=np.float32)
    try:
        torch.cuda.set_sync_debug_mode("error")
        sent, arrivals = send(device, *arrays), Arrivals(device)
        back = [arrivals.fetch(t) for t in sent]
        arrivals.wait()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for t, got, array in zip(sent, back, arrays, strict=True):
        assert t.is_cuda and np.array_equal(got.numpy(), array)
