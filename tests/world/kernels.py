"""Where tests run Triton's kernels: on a GPU if there is one, else interpreted, which must be said before import."""

from __future__ import annotations

import importlib.util
import os

import pytest
import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TRITON = importlib.util.find_spec("triton") is not None
if DEVICE == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"

needs_triton = pytest.mark.skipif(not TRITON, reason="needs Triton")
