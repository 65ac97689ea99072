"""Positions: the published rotation, and no last frame."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from world.nn.rope import axis_pairs, rotate, rotations


def rotate_complex(x: Tensor, first_frame: int, frames: int, rows: int, columns: int) -> Tensor:
    """[L, N, d] in complex128: adjacent pairs times exp(i * position * 10000^(-j / n)), each axis its own table."""
    t, h, w = axis_pairs(x.shape[-1])

    def table(position: int, pairs: int) -> Tensor:
        angles = position * 10000.0 ** (-torch.arange(pairs, dtype=torch.float64) / pairs)
        return torch.polar(torch.ones_like(angles), angles)

    turns = [
        torch.cat([table(first_frame + f, t), table(r, h), table(c, w)])
        for f in range(frames)
        for r in range(rows)
        for c in range(columns)
    ]
    pairs = torch.view_as_complex(x.double().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * torch.stack(turns)[:, None]).flatten(-2)


@pytest.mark.parametrize(
    "head_dim, expected", [(128, (22, 21, 21)), (32, (6, 5, 5)), (64, (12, 10, 10)), (10, (3, 1, 1))]
)
def test_pairs_of_each_axis(head_dim, expected):
    assert axis_pairs(head_dim) == expected


@pytest.mark.parametrize("first_frame", [0, 5, 1023, 1024, 10**6, 10**9])
@pytest.mark.parametrize("head_dim", [128, 32])
def test_rotation_is_the_complex_one_in_float64(first_frame, head_dim):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 3 * 4 * 5, 2, head_dim, generator=generator)
    got = rotate(x, *rotations(torch.tensor([first_frame]), 3, 4, 5, head_dim))[0]
    torch.testing.assert_close(got.double(), rotate_complex(x[0], first_frame, 3, 4, 5), rtol=0, atol=2e-6)


def test_every_row_has_its_own_position():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 2 * 2 * 3, 2, 32, generator=generator)
    first = torch.tensor([7, 0, 40_000])
    together = rotate(x, *rotations(first, 2, 2, 3, 32))
    for row in range(3):
        assert torch.equal(together[row], rotate(x[row : row + 1], *rotations(first[row : row + 1], 2, 2, 3, 32))[0])


def test_only_the_distance_between_frames_enters_attention():
    """A million frames on, the scores of a chunk against its past are the same to float32: an hour or a day of play."""
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 1, 6, 1, 128, generator=generator)
    scores = []
    for start in (0, 10**6):
        at_q, at_k = (rotations(torch.tensor([start + offset]), 1, 2, 3, 128) for offset in (9, 2))
        scores.append(rotate(q, *at_q)[0, :, 0] @ rotate(k, *at_k)[0, :, 0].T)
    torch.testing.assert_close(scores[0], scores[1], rtol=0, atol=2e-5)


def test_the_dtype_comes_back_and_the_turn_is_float32():
    x = torch.randn(1, 6, 1, 32, generator=torch.Generator().manual_seed(0)).bfloat16()
    turn = rotations(torch.tensor([3]), 1, 2, 3, 32)
    got = rotate(x, *turn)
    assert got.dtype == torch.bfloat16
    assert torch.equal(got, rotate(x.float(), *turn).bfloat16())
