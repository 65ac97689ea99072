"""Where the points of one view lie in another, by the teacher's depth and eyes: which of them a start picture showed,
and how much of an asked motion a picture made."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from world.meadow.measures import FEWEST_POINTS, brightness
from world.meadow.teacher import default_intrinsics

DEPTH_AGREES = 0.05  # share by which the depth of one surface may differ between two views of it
SHARES = np.linspace(-2, 2, 17)  # shares of the asked motion that a picture is tried to have made
_FAR = 1e6  # pose units to a point of the sky


def seen_at_start(depth: Tensor, eyes: NDArray[np.float64]) -> Tensor:
    """bool [n, H, W]: which points of frames with this depth and these eyes the first of them shows too. A surface
    point does if it falls into that picture where its depth agrees with a neighbour's there; a point of the sky, if it
    falls on sky."""
    height, width = depth.shape[1:]
    lens = default_intrinsics(width, height).double()
    known = depth[0].clamp(max=_FAR)[None, None]
    nearest = -F.max_pool2d(-known, 3, stride=1, padding=1)[0, 0]
    farthest = F.max_pool2d(known, 3, stride=1, padding=1)[0, 0]
    turn, walk = (t.to(depth.device) for t in relative(eyes[:1], eyes))
    u, v, ahead = project(depth, turn, walk, lens)
    column, row = u.floor().long(), v.floor().long()
    inside = (ahead > 0.01) & (column >= 0) & (column < width) & (row >= 0) & (row < height)
    column, row = column.clamp(0, width - 1), row.clamp(0, height - 1)
    near, far = nearest[row, column], farthest[row, column]
    agrees = (ahead > near * (1 - DEPTH_AGREES)) & (ahead < far * (1 + DEPTH_AGREES))
    return inside & torch.where(depth.isinf(), far >= _FAR, agrees)


def relative(to: NDArray[np.float64], of: NDArray[np.float64]) -> tuple[Tensor, Tensor]:
    """Rotations [n, 3, 3] and translations [n, 3] from cameras `of` to cameras `to`."""
    back = to[:, :3, :3].transpose(0, 2, 1)
    turn, walk = back @ of[:, :3, :3], back @ (of[:, :3, 3] - to[:, :3, 3])[:, :, None]
    return torch.from_numpy(turn), torch.from_numpy(walk[:, :, 0])


def project(depth: Tensor, turn: Tensor, walk: Tensor, lens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Where the points of views with depth [n or 1, H, W] lie in other cameras: pixels u, v and depth, [n, H, W]."""
    height, width = depth.shape[1:]
    fx, fy, cx, cy = lens.tolist()
    x = ((torch.arange(width, device=depth.device) + 0.5 - cx) / fx).expand(height, width)
    y = ((torch.arange(height, device=depth.device) + 0.5 - cy) / fy)[:, None].expand(height, width)
    rays = torch.stack([x, y, torch.ones_like(x)]).double()
    points = torch.einsum("nij,jhw->nihw", turn, rays) * depth.double().clamp(max=_FAR)[:, None]
    x, y, z = (points + walk[:, :, None, None]).unbind(1)
    ahead = z.clamp(min=1e-6)
    return fx * x / ahead + cx, fy * y / ahead + cy, z


def motion_made(before: Tensor, after: Tensor, depth: Tensor, eyes: NDArray[np.float64]) -> float:
    """The share of the motion between two eyes [2, 4, 4] that one picture [3, H, W] made to become the next: 1 all of
    it, 0 none, below 0 the other way. `depth` [H, W] is the teacher's at the first eye.

    The first picture is moved, by reprojection, as if the camera had made each share of the motion; the share whose
    picture is most like the second wins. Only what every share shows is compared, at half size.
    """
    pair = F.avg_pool2d(brightness(torch.stack([before, after]))[:, None], 2)
    depth = depth[::2, ::2]
    lens = default_intrinsics(2 * depth.shape[1], 2 * depth.shape[0]) / 2
    moved = np.stack([part_of(eyes[0], eyes[1], share) for share in SHARES])
    turn, walk = relative(eyes[:1], moved)
    u, v, ahead = project(depth[None], turn, walk, lens)
    grid = torch.stack([2 * u / depth.shape[1] - 1, 2 * v / depth.shape[0] - 1], -1).float()
    common = ((grid.abs() <= 1).all(-1) & (ahead > 0.05)).all(0)
    if common.float().mean() < FEWEST_POINTS:
        return math.nan
    tried = F.grid_sample(pair[:1].expand(len(moved), -1, -1, -1), grid, align_corners=False)[:, 0, common]
    alike = correlation(tried, pair[1, 0, common])
    best = int(alike.argmax())
    if best in (0, len(SHARES) - 1):
        return float(SHARES[best])
    left, top, right = alike[best - 1 : best + 2].tolist()
    bend = left - 2 * top + right
    return float(SHARES[best] + (0.5 * (left - right) / bend if bend < 0 else 0) * (SHARES[1] - SHARES[0]))


def correlation(many: Tensor, one: Tensor) -> Tensor:
    """[n, points] with [points]; 0 where either is flat."""
    many, one = many - many.mean(1, keepdim=True), one - one.mean()
    size = many.norm(dim=1) * one.norm()
    return torch.where(size > 1e-6, many @ one / size.clamp(min=1e-6), 0)


def part_of(start: NDArray[np.float64], end: NDArray[np.float64], share: float) -> NDArray[np.float64]:
    """The pose after a share of the motion from one pose to another, turning and walking evenly."""
    turn = end[:3, :3] @ start[:3, :3].T
    axis = np.array([turn[2, 1] - turn[1, 2], turn[0, 2] - turn[2, 0], turn[1, 0] - turn[0, 1]]) / 2
    sine = np.linalg.norm(axis)
    pose = start.copy()
    pose[:3, 3] += share * (end[:3, 3] - start[:3, 3])
    if sine > 1e-9:
        angle = share * math.atan2(sine, (np.trace(turn) - 1) / 2)
        x, y, z = axis / sine
        cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
        rotation = np.eye(3) + math.sin(angle) * cross + (1 - math.cos(angle)) * cross @ cross  # Rodrigues
        pose[:3, :3] = rotation @ start[:3, :3]
    return pose
