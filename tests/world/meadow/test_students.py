"""Students play what they are given: the served world as the game drives it, baselines as they are described."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests.world.tiny_world import random_world, tiny_config
from world.chunk import Geometry, Picture, Row, Start
from world.meadow.look import Look
from world.meadow.measures import psnr, to_rgb
from world.meadow.plays import Play, begin, draw_play, held
from world.meadow.reprojection import seen_at_start
from world.meadow.students import Served, Teacher, repeated, reprojected, round_trip, warped
from world.nn.vae import VAEConfig, VideoVAE

SMALL = Geometry(width=112, height=64, fps=16, chunk_frames=1)
CPU = torch.device("cpu")
DARK = np.zeros((64, 112, 3), np.uint8)


class Counting:
    """A world whose pictures say slot and frame, and which remembers what it was asked."""

    num_slots, max_rows, num_steps = 2, 2, 3

    def __init__(self, chunk_frames: int):
        self.geometry = Geometry(width=112, height=64, fps=16, chunk_frames=chunk_frames)
        self.open_seeds: dict[int, int] = {}
        self.asked: list[tuple[int, int, str]] = []  # seed, chunk, prompt
        self.poses: dict[tuple[int, int], NDArray[np.float32]] = {}
        self.most = 0

    def encode_prompt(self, text: str) -> str:
        return text

    def prepare_image(self, image: NDArray[np.uint8]) -> Any:
        return image

    def open(self, slot: int, start: Start) -> None:
        assert slot not in self.open_seeds
        self.open_seeds[slot] = start.seed
        self.asked.append((start.seed, 0, str(start.prompt)))

    def close(self, slot: int) -> None:
        del self.open_seeds[slot]

    def step(self, rows: Sequence[Row]) -> list[Picture]:
        self.most = max(self.most, len(rows))
        made = []
        for row in rows:
            seed = self.open_seeds[row.slot]
            if row.step_index == 0:
                self.poses[seed, row.chunk_index] = row.poses
                if row.prompt is not None:
                    self.asked.append((seed, row.chunk_index, str(row.prompt)))
            if row.step_index == self.num_steps - 1:
                first, n = self.geometry.first_video_frame(row.chunk_index), self.geometry.video_frames(row.chunk_index)
                frames = np.zeros((n, 96, 112), np.uint8)
                frames[:, 0, 0], frames[:, 0, 1] = seed, np.arange(first, first + n)
                made.append(Picture(row.slot, row.chunk_index, frames, b"", np.zeros(0, np.float32)))
        return made


@pytest.mark.parametrize("chunk_frames", [1, 2])
def test_a_world_is_driven_as_the_game_drives_it(chunk_frames: int) -> None:
    night = Look("night")
    plays = [begin(5, Look(), held("w", 20), SMALL, start=DARK),
             begin(6, Look(), held("l", 8), SMALL, (0, 7), start=DARK),
             begin(7, Look(), held("s", 20), SMALL, (3, 20), ((6, night),), start=DARK)]  # fmt: skip
    world = Counting(chunk_frames)
    made = Served(world, 0.2)(plays)  # type: ignore[arg-type]
    for play, frames in zip(plays, made, strict=True):
        assert [tuple(f[0, :2]) for f in frames] == [(play.seed, k) for k in play.kept]
    assert world.most == 2 and not world.open_seeds  # nobody waits while there is room, everybody leaves
    begins = [(seed, text) for seed, chunk, text in world.asked if chunk == 0]
    assert sorted(begins) == [(seed, Look().prompt()) for seed in (5, 6, 7)]
    changed = [(seed, world.geometry.first_video_frame(c), text) for seed, c, text in world.asked if c > 0]
    assert changed == [(7, {1: 9, 2: 13}[chunk_frames], night.prompt())]  # a chunk begins with it
    for (seed, chunk), poses in world.poses.items():
        play = next(play for play in plays if play.seed == seed)
        latents = np.arange(chunk * chunk_frames - 1, (chunk + 1) * chunk_frames)
        expected = play.poses[np.clip(4 * latents, 0, len(play.poses) - 1)]
        expected[:, :3, 3] -= expected[0, :3, 3].copy()
        np.testing.assert_array_equal(poses, expected)


def test_a_real_world_plays_alike_in_other_company() -> None:
    world = random_world(tiny_config(), num_slots=3)
    plays = [begin(seed, Look(), held("wl", 4 * n), world.geometry) for seed, n in ((1, 3), (2, 1), (3, 2), (4, 3))]
    together = Served(world, 0.2)(plays)
    for play, frames in zip(plays, together, strict=True):
        assert frames.shape == (len(play.poses), 48, 48)
        np.testing.assert_allclose(frames, Served(world, 0.2)([play])[0], atol=1)  # a toy's linears of six rows


def turning() -> Play:
    return begin(700003, Look(), held("l", 12), SMALL, (0, 6, 12))


def test_the_repeated_frame_is_the_start() -> None:
    play = turning()
    frames = repeated([play])[0]
    assert (frames == Teacher(SMALL, CPU)([play])[0][0]).all() and len(frames) == 3


def test_the_turned_frame_is_right_about_turns_and_ignores_walks() -> None:
    play = turning()
    truth = draw_play(play, SMALL, CPU)
    rgb, seen = to_rgb(truth.frames), seen_at_start(truth.depth, truth.eyes)
    turned, still, carried = (to_rgb(f) for f in (warped([play])[0], repeated([play])[0], reprojected(play, truth)))
    assert (psnr(turned, rgb, seen) - psnr(still, rgb, seen))[1:].min() > 6
    assert (turned - carried).abs().mean() < 0.01  # no walk: depth makes no difference
    walking = begin(700003, Look(), held("w", 12), SMALL, (0, 12))
    np.testing.assert_array_equal(warped([walking])[0], repeated([walking])[0])


def test_carrying_the_start_by_its_depth_follows_a_walk() -> None:
    play = begin(700003, Look(), held("w", 16), SMALL, (0, 16))
    truth = draw_play(play, SMALL, CPU)
    rgb, seen = to_rgb(truth.frames), seen_at_start(truth.depth, truth.eyes)
    carried, still = to_rgb(reprojected(play, truth)), to_rgb(repeated([play])[0])
    assert (psnr(carried, rgb, seen) - psnr(still, rgb, seen))[1] > 3


def test_a_round_trip_has_every_frame() -> None:
    torch.manual_seed(0)
    vae = VideoVAE(VAEConfig(dim=4, encoder_blocks=1, decoder_blocks=1, mean=(0.0,) * 16, std=(1.0,) * 16))
    rgb = np.random.default_rng(0).integers(0, 256, (9, 3, 32, 48), np.uint8)
    whole, alone = (round_trip(vae, rgb, CPU, as_clip) for as_clip in (True, False))
    assert whole.shape == alone.shape == (9, 48, 48)
    np.testing.assert_array_equal(whole[0], alone[0])
    assert not np.array_equal(whole[5], alone[5])  # later frames have a past
