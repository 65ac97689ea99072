"""How chunks begin: what each row brings, as arrays, and what is made of it for all rows at once, on tensors alone, so
that a graph can hold it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, cat, where

from world import camera
from world.denoiser import Denoiser
from world.graphs import Graphs
from world.nn.vae import VideoVAE
from world.scene import OUTDATED, best_known, moves_between, warp_condition
from world.views import NEWEST, Shown


class Beginning(NamedTuple):
    """One row's. It is shown V views, the newest picture first: none where pictures are not warped."""

    slot: NDArray[np.int64]  # []
    noise: NDArray[np.float32]  # [16, f, h, w], what its first step starts from
    relative: NDArray[np.float32]  # [f, 4, 4] poses, in the model's units
    intrinsics: NDArray[np.float32]  # [4]
    keys: NDArray[np.float32]  # [f, 4]
    places: NDArray[np.int64]  # [V] where the views' latents lie, see world.views
    moves: NDArray[np.float32]  # [V, f, 4, 4] from the new cameras to the views'
    trusts: NDArray[np.float32]  # [V, f]

    @classmethod
    def of(
        cls, slot: int, noise: NDArray[np.float32], relative: NDArray[np.float32], intrinsics: NDArray[np.float32],
        keys: NDArray[np.float32], path: NDArray[np.float64], shown: Sequence[Shown],
    ) -> Beginning:  # fmt: skip
        """path [f, 4, 4]: the new cameras, where the poses of what is shown are."""
        views, frames = len(shown), len(path)
        old = np.array([view.pose for view in shown], np.float64).reshape(views, 4, 4)
        moves = moves_between(np.tile(path, (views, 1, 1)), np.repeat(old, frames, axis=0))
        trusts = np.array([1.0 if view.is_current else OUTDATED for view in shown], np.float32)
        return cls(
            np.array(slot), noise, relative, intrinsics, keys, np.array([view.place for view in shown], np.int64),
            moves.numpy().reshape(views, frames, 4, 4), np.repeat(trusts[:, None], frames, axis=1),
        )  # fmt: skip

    def idle(self) -> Beginning:
        """A padding row's, of the same shapes: all of it stays finite."""
        zeros = Beginning(*map(np.zeros_like, self))
        return zeros._replace(intrinsics=np.ones_like(self.intrinsics))


def begin(denoiser: Denoiser, vae: VideoVAE, rows: Sequence[Beginning], graphs: Graphs) -> None:
    """Start a chunk of every row: its camera, its condition, its first noise. Rows that are shown no views have their
    condition in the slab."""
    idle, size = rows[0].idle(), graphs.size(len(rows))
    arrays = [np.stack(parts) for parts in zip(*rows, *[idle] * (size - len(rows)), strict=True)]

    def work(
        slots: Tensor, noise: Tensor, relative: Tensor, intrinsics: Tensor, keys: Tensor, places: Tensor, *seen: Tensor
    ) -> None:
        cfg, picture = denoiser.cfg, (denoiser.cfg.geometry.height, denoiser.cfg.geometry.width)
        if cfg.dit.control_channels == 7:
            control = camera.act(relative, keys, intrinsics, *picture)
        else:
            control = camera.rays(relative, intrinsics, *picture)
        is_shown = places.shape[1] > 0
        y = _warped(denoiser, vae, slots, intrinsics, places, *seen) if is_shown else denoiser.slab.y[slots]
        denoiser.begin(slots, control, y, noise)

    graphs.run("begin", work, arrays, [np.broadcast_to(part, (size, *part.shape)) for part in idle])


def _warped(
    denoiser: Denoiser, vae: VideoVAE, slots: Tensor, intrinsics: Tensor, places: Tensor, moves: Tensor, trusts: Tensor
) -> Tensor:  # fmt: skip
    """What rows are shown as it would look from their new cameras: y [B, 40, f, h, w], the newest picture and the best
    of the views."""
    assert vae.depth is not None, "WorldConfig sees to it"
    slab, shape = denoiser.slab, trusts.shape  # [B, V, f]
    kept = slab.views[slots[:, None], places.clamp(min=0)]  # [B, V, 16, h, w]
    newest = slab.x[:, :, -1][slots].unsqueeze(1)
    latents = where((places == NEWEST)[:, :, None, None, None], newest, kept)
    depths = vae.depth(latents.flatten(0, 1)).unflatten(0, shape[:2])
    each, depth, lenses = (
        part.unsqueeze(2).expand(*shape, *part.shape[2:]).flatten(0, 2)
        for part in (latents, depths, intrinsics[:, None].expand(*shape[:2], 4))
    )
    y = warp_condition(each, depth, moves.flatten(0, 2), lenses, trusts.flatten())  # [20, B V f, h, w]
    first, *rest = y.unflatten(1, shape).unbind(2)
    return cat([first, best_known(rest)]).movedim(0, 1)
