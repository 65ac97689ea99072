"""Who can be judged: the served world, the teacher itself, what the VAE alone loses, and two honest baselines."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from world.chunk import TEMPORAL_STRIDE, Geometry, Row, Start
from world.meadow.plays import Frames, Play, Truth, as_served, draw_play
from world.meadow.reprojection import project, relative
from world.meadow.teacher import default_intrinsics
from world.model import DiffusionWorld
from world.nn.vae import VideoVAE
from world.picture import to_i420, to_video


class Served:
    """A world driven as the game drives it; as many plays in a forward as it takes rows, joining as others end."""

    def __init__(self, world: DiffusionWorld, scale: float):
        self.world, self.scale = world, scale

    def __call__(self, plays: Sequence[Play]) -> list[Frames]:
        waiting = sorted(range(len(plays)), key=lambda i: len(plays[i].poses))  # the longest first: pop() takes it
        free = list(range(1, min(self.world.num_slots, self.world.max_rows) + 1))
        playing: dict[int, tuple[int, int]] = {}  # slot -> play and its next chunk
        kept: list[list[NDArray[np.uint8]]] = [[] for _ in plays]
        while waiting or playing:
            while free and waiting:
                slot, i = free.pop(), waiting.pop()
                self._open(slot, plays[i])
                playing[slot] = i, 0
            pictures = self._chunk([self._row(slot, plays[i], chunk) for slot, (i, chunk) in playing.items()])
            for slot, frames in pictures.items():
                i, chunk = playing[slot]
                first = self.world.geometry.first_video_frame(chunk)
                wanted = [k - first for k in plays[i].kept if first <= k < first + len(frames)]
                kept[i].append(frames[wanted])
                playing[slot] = i, chunk + 1
                if first + len(frames) > plays[i].kept[-1]:
                    self.world.close(slot)
                    free.append(slot)
                    del playing[slot]
        return [np.concatenate(some) for some in kept]

    def _open(self, slot: int, play: Play) -> None:
        world, geometry = self.world, self.world.geometry
        prompt = world.encode_prompt(play.look.prompt())
        lens = default_intrinsics(geometry.width, geometry.height).numpy()
        world.open(slot, Start(play.seed, prompt, world.prepare_image(play.start), lens, self.scale))

    def _row(self, slot: int, play: Play, chunk: int) -> Row:
        geometry = self.world.geometry
        latents = chunk * geometry.chunk_frames + np.arange(-1, geometry.chunk_frames)
        poses = play.poses[np.clip(TEMPORAL_STRIDE * latents, 0, len(play.poses) - 1)]
        poses[:, :3, 3] -= poses[0, :3, 3].copy()  # as the game does: only relative motion counts for a world
        first = geometry.first_video_frame(chunk)
        new = any(first - geometry.video_frames(chunk - 1) < at <= first for at, _ in play.changes) if chunk else False
        prompt = self.world.encode_prompt(play.asked(first).prompt()) if new else None
        return Row(slot, chunk, 0, poses, np.zeros((geometry.chunk_frames, 4), np.float32), prompt)

    def _chunk(self, rows: Sequence[Row]) -> dict[int, Frames]:
        made: dict[int, Frames] = {}
        for step in range(self.world.num_steps + 1):
            taken = [Row(r.slot, r.chunk_index, step, r.poses, r.keys, r.prompt) for r in rows]
            made |= {picture.slot: picture.frames for picture in self.world.step(taken)}
        return made


class Teacher:
    """The truth as a student: what every measure must find perfect."""

    def __init__(self, geometry: Geometry, device: torch.device):
        self.geometry, self.device = geometry, device

    def __call__(self, plays: Sequence[Play]) -> list[Frames]:
        return [draw_play(play, self.geometry, self.device).frames for play in plays]


def repeated(plays: Sequence[Play]) -> list[Frames]:
    """Baseline: the first frame, for ever."""
    return [np.repeat(start_frame(play), len(play.kept), axis=0) for play in plays]


def warped(plays: Sequence[Play]) -> list[Frames]:
    """Baseline: the first frame turned by all the camera has turned since, in pixels; it knows nothing of walking, and
    beyond its borders it repeats them."""
    return [warp_start(play) for play in plays]


def warp_start(play: Play) -> Frames:
    height, width = play.start.shape[:2]
    video = to_video(play.start, height, width)[:, :, 0]
    fx, fy, cx, cy = default_intrinsics(width, height).tolist()
    x = ((torch.arange(width) + 0.5 - cx) / fx).expand(height, width)
    y = ((torch.arange(height) + 0.5 - cy) / fy)[:, None].expand(height, width)
    rays = torch.stack([x, y, torch.ones_like(x)], -1)
    pictures = []
    for k in play.kept:
        turn = torch.from_numpy(play.poses[0, :3, :3].T @ play.poses[k, :3, :3])
        u, v, ahead = (rays @ turn.T).unbind(-1)
        ahead = ahead.clamp(min=1e-3)
        grid = torch.stack([2 * (fx * u / ahead + cx) / width - 1, 2 * (fy * v / ahead + cy) / height - 1], -1)
        seen = F.grid_sample(video, grid[None].clamp(-4, 4), padding_mode="border", align_corners=False)
        pictures.append(to_i420(seen[:, :, None])[0, 0])
    return torch.stack(pictures).numpy()


def start_frame(play: Play) -> Frames:
    """The start picture as served, one frame."""
    return as_served(torch.from_numpy(play.start).permute(2, 0, 1)[None])


def reprojected(play: Play, truth: Truth) -> Frames:
    """The start picture moved by the teacher's own depth: what carrying it along perfectly would give where it is still
    seen. Beyond its borders it repeats them, and what was hidden shows what hid it."""
    height, width = play.start.shape[:2]
    video = to_video(play.start, height, width)[:, :, 0]
    turn, walk = relative(truth.eyes[:1], truth.eyes)
    u, v, _ = project(truth.depth, turn, walk, default_intrinsics(width, height))
    grid = torch.stack([2 * u / width - 1, 2 * v / height - 1], -1).float().clamp(-4, 4)
    many = video.expand(len(grid), -1, -1, -1)
    seen = F.grid_sample(many, grid, padding_mode="border", align_corners=False)
    return to_i420(seen[:, :, None])[:, 0].numpy()


@torch.inference_mode()
def round_trip(vae: VideoVAE, rgb: NDArray[np.uint8], device: torch.device, as_clip: bool) -> Frames:
    """What the VAE leaves of pictures [k, 3, H, W]: of a clip of 1 + 4 n frames that it walks through as a stream, or
    of every picture as the first of a stream of its own."""
    video = torch.from_numpy(rgb).to(device).float() / 127.5 - 1
    if not as_clip:
        return torch.cat([_decode(vae, v[None, :, None])[0] for v in video]).cpu().numpy()
    return _decode(vae, video.transpose(0, 1)[None])[0].cpu().numpy()


def _decode(vae: VideoVAE, video: Tensor) -> Tensor:
    z = vae.encode(video)
    seen, caches = vae.decode(z[:, :, :1], None, first=True)
    pieces = [to_i420(seen)]
    for i in range(1, z.shape[2]):
        seen, caches = vae.decode(z[:, :, i : i + 1], caches, first=False)
        pieces.append(to_i420(seen))
    return torch.cat(pieces, dim=1)
