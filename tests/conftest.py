"""What holds for every test: the same examples on every run, and no more threads than a small machine has."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator

import pytest
from hypothesis import settings

settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.register_profile("search", deadline=None, max_examples=1000)  # --hypothesis-profile=search looks for new ones
settings.load_profile("repeatable")

# Read when torch is imported, here and in the servers that tests start. Threads that spin while they wait for each
# other make a busy machine several times slower, and here clients, encoders and a browser keep it busy.
os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# Read when a kernel is imported: without a GPU kernels are interpreted.
if shutil.which("nvidia-smi") is None:
    os.environ["TRITON_INTERPRET"] = "1"

# Servers that tests start record where nobody's own recordings are.
HOME = tempfile.TemporaryDirectory(prefix="manyworlds-tests-")
os.environ["XDG_DATA_HOME"] = HOME.name


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """For a module whose toy worlds are so small that several threads would round by how many rows share a forward."""
    import torch  # not before the environment says how many threads it may have

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
