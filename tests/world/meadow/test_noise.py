"""The land's noise: continuous across cells, its slope is its derivative, and its hash is the same everywhere."""

from __future__ import annotations

import torch

from world.meadow.noise import hash01, make_lattice, mix_seed, noise

LATTICE = make_lattice(torch.tensor([mix_seed(5)]))
BASE = torch.zeros(1, 1, dtype=torch.int32)


def test_hash_is_pinned() -> None:
    """The same world on every machine: these numbers may never change."""
    key, cells = torch.tensor(mix_seed(123456789012345)), torch.tensor([-3, 0, 70000])
    assert mix_seed(123456789012345) == 4146850357
    assert (hash01(key, cells, cells + 1, 2) * 0x1000000).long().tolist() == [9726618, 16459106, 573595]


def test_hash_is_uniform_and_channels_differ() -> None:
    x, z = torch.meshgrid(torch.arange(-100, 100), torch.arange(-100, 100), indexing="ij")
    first, second = hash01(torch.tensor(9), x, z, 0), hash01(torch.tensor(9), x, z, 1)
    assert abs(first.mean() - 0.5) < 0.01 and abs(first.std() - 12**-0.5) < 0.01
    for a, b in ((first, second), (first[1:], first[:-1]), (first[:, 1:], first[:, :-1])):
        assert abs(torch.corrcoef(torch.stack((a.flatten(), b.flatten())))[0, 1]) < 0.02


def test_slope_is_the_derivative() -> None:
    x, z = torch.rand(2, 1, 500, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 80 - 40
    lattice, step = LATTICE.double(), 1e-5
    n, nx, nz = noise(lattice, BASE, x, z, 7.0, 3)
    assert n.abs().max() <= 1
    for slope, dx, dz in ((nx, step, 0), (nz, 0, step)):
        numeric = (
            noise(lattice, BASE, x + dx, z + dz, 7.0, 3)[0] - noise(lattice, BASE, x - dx, z - dz, 7.0, 3)[0]
        ) / (2 * step)
        torch.testing.assert_close(slope, numeric, atol=1e-6, rtol=1e-4)
