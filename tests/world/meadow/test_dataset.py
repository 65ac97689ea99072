"""What is drawn for training besides pictures."""

from __future__ import annotations

import numpy as np
import torch

from world.meadow.dataset import seen_cells
from world.motion import keyboard_poses


def test_cells_that_a_start_shows():
    """In front of a wall: standing still all stays, and what a turn brings into sight is new at that side alone."""
    poses = keyboard_poses("none-3,l-6")[[0, 3, 9]].astype(np.float64)
    depth = torch.full((1, 3, 128, 224), 10.0)
    depth[0, 2] = torch.inf  # turned, the wall ends
    depth[0, 2, :, :100] = 10.0 / np.cos(np.deg2rad(12))
    seen = seen_cells(depth, poses[None]).float()
    assert seen.shape == (1, 3, 16, 28)
    assert seen[0, :2].eq(1).all()
    assert seen[0, 2, :, 20:].eq(0).all() and 0 < seen[0, 2].mean() < 0.6
