"""Pictures leave in the colours they were drawn in."""

from __future__ import annotations

import av
import numpy as np
import pytest
import torch

from world.picture import to_i420, to_video

PRIMARIES = [
    (0, 0, 0),
    (255, 255, 255),
    (255, 0, 0),
    (0, 255, 0),
    (0, 0, 255),
    (255, 255, 0),
    (0, 255, 255),
    (255, 0, 255),
]


def flat(colour: tuple[int, int, int], height: int = 16, width: int = 16) -> np.ndarray:
    return np.broadcast_to(np.uint8(colour), (height, width, 3)).copy()


def back_to_rgb(i420: np.ndarray) -> np.ndarray:
    frame = av.VideoFrame.from_ndarray(i420, format="yuv420p")
    frame.colorspace, frame.color_range = 5, 1  # BT.601 (BT.470BG), limited
    return frame.to_ndarray(format="rgb24")


@pytest.mark.parametrize("colour", [*PRIMARIES, *((v, v, v) for v in range(0, 256, 17))])
def test_colours_come_back(colour):
    i420 = to_i420(to_video(flat(colour), 16, 16))[0, 0].numpy()
    assert i420.shape == (24, 16) and i420.dtype == np.uint8
    assert np.abs(back_to_rgb(i420).astype(int) - colour).max() <= 3


@pytest.mark.parametrize(
    "colour, yuv", [((255, 255, 255), (235, 128, 128)), ((0, 0, 0), (16, 128, 128)), ((255, 0, 0), (81, 90, 240)),
                    ((0, 255, 0), (145, 54, 34)), ((0, 0, 255), (41, 240, 110))]
)  # fmt: skip
def test_bt601_limited_range(colour, yuv):
    """The standard's 8-bit codes of the 100 % bars."""
    i420 = to_i420(to_video(flat(colour), 16, 16))[0, 0]
    y, u, v = i420[:16], i420[16:20], i420[20:]
    assert [int(plane.unique()) for plane in (y, u, v)] == list(yuv)


def test_planes_and_chroma_are_where_a_decoder_looks_for_them():
    """Different halves and frames: against the library's own conversion of the same picture."""
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 256, (2, 4, 6, 3)).astype(np.uint8).repeat(8, 1).repeat(8, 2)  # 32 x 48, two frames
    video = torch.cat([to_video(picture, 32, 48) for picture in blocks], dim=2)
    got = to_i420(torch.cat([video, video.flip(2)]))
    assert got.shape == (2, 2, 48, 48)
    assert torch.equal(got[0], got[1].flip(0))
    for picture, i420 in zip(blocks, got[0].numpy(), strict=True):
        assert np.abs(back_to_rgb(i420)[4::8, 4::8].astype(int) - picture[4::8, 4::8]).max() <= 4


def test_what_a_model_overshoots_is_clamped():
    loud = torch.full((1, 3, 1, 16, 16), 7.0)
    assert int(to_i420(loud)[0, 0, :16].max()) == 235
    assert int(to_i420(-loud)[0, 0, :16].min()) == 16


def test_a_start_picture_of_any_size_fits():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (50, 70, 3)).astype(np.uint8)
    same = to_video(image, 50, 70)
    assert same.shape == (1, 3, 1, 50, 70)
    np.testing.assert_allclose(same[0, :, 0].permute(1, 2, 0).numpy(), image / 127.5 - 1, atol=1e-6)
    assert to_video(image, 32, 48).shape == (1, 3, 1, 32, 48)
    ramp = np.broadcast_to(np.arange(0, 240, 4, dtype=np.uint8)[:, None, None], (60, 40, 3))
    shrunk = to_video(ramp, 30, 20)[0, 0, 0, 5:-5, 10]
    np.testing.assert_allclose((shrunk + 1) * 127.5, np.arange(2, 240, 8)[5:-5], atol=1e-3)  # centres keep their place
