"""Protects the picture: what leaves an encoder decodes to what went in, at once, with the colours it is tagged with."""

from __future__ import annotations

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from gameserver.encoder import H264Encoder, JpegEncoder, default_bitrate_bps, encode_still
from world.chunk import Geometry

SMALL = Geometry(width=224, height=128, fps=16, chunk_frames=1)


def moving_picture(index: int, geometry: Geometry = SMALL, noise: float = 4.0) -> NDArray[np.uint8]:
    """I420 [H * 3 // 2, W]: waves that move, with grain, so that bits are needed."""
    h, w = geometry.height, geometry.width
    y, x = np.mgrid[: h * 3 // 2, :w]
    grain = np.random.default_rng(index).normal(0, noise, x.shape)
    picture = 120 + 50 * np.sin((x + 3 * index) / 9) + 30 * np.cos((y - index) / 7) + grain
    picture[h:] = 128 + (picture[h:] - 120) / 3
    return np.clip(np.rint(picture), 16, 235).astype(np.uint8)


def decoder(name: str) -> av.VideoCodecContext:
    context = av.CodecContext.create(name, "r")
    context.thread_count = 1
    return context


def psnr_db(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    error = np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2)
    return float(10 * np.log10(255**2 / error))


@pytest.mark.parametrize("size", [(224, 128), (320, 192), (832, 480)])
def test_every_picture_comes_back_at_once_and_close(size: tuple[int, int]) -> None:
    geometry = Geometry(*size, fps=16, chunk_frames=1)
    encoder, reader = H264Encoder(geometry), decoder("h264")
    for index in range(6):
        picture = moving_picture(index, geometry, noise=1.0)
        picture.flags.writeable = False  # as a world may hand it out
        (frame,) = reader.decode(av.Packet(encoder.encode(picture, key=index == 0).data))
        assert psnr_db(frame.to_ndarray(), picture) > 30


def test_stream_is_tagged_bt601_limited() -> None:
    encoder, reader = H264Encoder(SMALL), decoder("h264")
    (frame,) = reader.decode(av.Packet(encoder.encode(moving_picture(0)).data))
    assert (frame.color_primaries, frame.color_trc, frame.colorspace, frame.color_range) == (6, 6, 6, 1)


def test_keyframe_when_asked_and_only_then() -> None:
    encoder = H264Encoder(SMALL)
    asked = {0, 7, 30}
    packets = [encoder.encode(moving_picture(i), key=i in asked) for i in range(40)]
    assert {i for i, packet in enumerate(packets) if packet.key} == asked
    late = decoder("h264")  # somebody who joins at a keyframe needs nothing from before it
    assert all(len(late.decode(av.Packet(packet.data))) == 1 for packet in packets[7:])


def test_first_packet_is_a_keyframe_unasked() -> None:
    assert H264Encoder(SMALL).encode(moving_picture(0)).key


def test_bitrate_steps_on_an_open_encoder() -> None:
    encoder = H264Encoder(SMALL, ceiling_bps=800_000)

    def measured_bps(frames: range) -> float:
        sizes = [len(encoder.encode(moving_picture(i, noise=12.0)).data) for i in frames]
        return float(np.mean(sizes[10:])) * 8 * SMALL.fps

    assert 600_000 < measured_bps(range(0, 50)) < 900_000
    encoder.set_bitrate(200_000)
    assert 150_000 < measured_bps(range(50, 100)) < 250_000
    encoder.set_bitrate(10_000_000)
    assert 600_000 < measured_bps(range(100, 150)) < 900_000  # the ceiling holds


def test_small_pictures_get_enough_and_large_ones_the_measured_rate() -> None:
    assert default_bitrate_bps(Geometry(832, 480, 16, 3)) == 2_500_000
    assert default_bitrate_bps(SMALL) >= 1_000_000
    assert default_bitrate_bps(Geometry(1664, 960, 16, 3)) > 5_000_000


def test_jpeg_is_full_range_and_every_one_a_key() -> None:
    encoder = JpegEncoder(SMALL)
    picture = moving_picture(3, noise=0.0)
    packet = encoder.encode(picture)
    (frame,) = decoder("mjpeg").decode(av.Packet(packet.data))
    levels = picture.astype(np.float64)
    levels[:128] = (levels[:128] - 16) * 255 / 219
    levels[128:] = (levels[128:] - 128) * 255 / 224 + 128
    assert packet.key and packet.data.startswith(b"\xff\xd8")
    assert psnr_db(frame.to_ndarray(), np.clip(levels, 0, 255).astype(np.uint8)) > 34


def test_jpeg_quality_follows_the_bitrate() -> None:
    encoder = JpegEncoder(SMALL)
    fine = len([encoder.encode(moving_picture(i)) for i in range(10)][-1].data)
    encoder.set_bitrate(fine * 8 * SMALL.fps // 3)
    coarse = [len(encoder.encode(moving_picture(i)).data) for i in range(40)][-10:]
    assert max(coarse) < fine / 2
    encoder.set_bitrate(encoder.ceiling_bps)
    assert len([encoder.encode(moving_picture(i)) for i in range(40)][-1].data) > 0.9 * fine


def test_still_keeps_its_colours() -> None:
    image = np.zeros((64, 96, 3), np.uint8)
    image[:, :48], image[:, 48:] = (200, 60, 30), (20, 90, 220)
    (frame,) = decoder("mjpeg").decode(av.Packet(encode_still(image)))
    assert psnr_db(frame.to_ndarray(format="rgb24"), image) > 30
