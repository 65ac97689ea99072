"""Pictures to packets: H.264 for a stream, JPEG for pages without WebCodecs and for thumbnails, RGB for agents.

An encoder belongs to one connection. It is called from a thread pool (PyAV releases the GIL), one call at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, Protocol

import av
import numpy as np
from av.video.codeccontext import VideoCodecContext
from av.video.frame import PictureType, VideoFrame
from numpy.typing import NDArray

from gameserver.rgb import to_rgb
from world.chunk import Geometry

Codec = Literal["h264", "jpeg", "raw"]

BT601 = 6  # primaries, transfer and matrix; untagged H.264 is taken for BT.709 by browsers
LIMITED_RANGE, FULL_RANGE = 1, 2
NEVER_FRAMES = 1 << 30  # a group of pictures ends when somebody asks for a keyframe


@dataclass(frozen=True, slots=True)
class Encoded:
    data: bytes  # an Annex B access unit, a JPEG file, or RGB
    key: bool


class Encoder(Protocol):
    @property
    def ceiling_bps(self) -> int: ...

    def set_bitrate(self, bitrate_bps: int) -> None:
        """Aim at a bitrate from the next picture on; the ceiling bounds it."""

    def encode(self, picture: NDArray[np.uint8], *, key: bool = False) -> Encoded:
        """I420 [H * 3 // 2, W], BT.601 limited -> one packet."""


def default_bitrate_bps(geometry: Geometry) -> int:
    """2.5 Mbit/s at 480x832 and 16 fps; smaller pictures get more a pixel, and enough to be upscaled."""
    share: float = geometry.width * geometry.height * geometry.fps / (480 * 832 * 16)
    return max(1_000_000, int(2_500_000 * share**0.75))


class H264Encoder:
    """libx264 that holds nothing back: one packet out for one picture in."""

    def __init__(self, geometry: Geometry, ceiling_bps: int | None = None) -> None:
        self.ceiling_bps = ceiling_bps or default_bitrate_bps(geometry)
        self._next_pts = 0
        codec = av.CodecContext.create("libx264", "w")
        assert isinstance(codec, VideoCodecContext)
        codec.width, codec.height, codec.pix_fmt = geometry.width, geometry.height, "yuv420p"
        codec.time_base, codec.framerate = Fraction(1, geometry.fps), Fraction(geometry.fps)
        codec.gop_size, codec.max_b_frames, codec.thread_count = NEVER_FRAMES, 0, 1
        codec.color_primaries = codec.color_trc = codec.colorspace = BT601
        codec.color_range = LIMITED_RANGE
        codec.bit_rate = self.ceiling_bps  # equal to maxrate, with a bufsize: else later changes are ignored
        codec.options = {
            "preset": "superfast",
            "tune": "zerolatency",
            "sc_threshold": "0",
            "forced-idr": "1",
            "maxrate": str(self.ceiling_bps),
            "bufsize": str(2 * self.ceiling_bps // geometry.fps),
        }
        codec.open()
        self._codec = codec

    def set_bitrate(self, bitrate_bps: int) -> None:
        self._codec.bit_rate = min(bitrate_bps, self.ceiling_bps)

    def encode(self, picture: NDArray[np.uint8], *, key: bool = False) -> Encoded:
        frame = _wrap(picture, LIMITED_RANGE)
        frame.pts = self._next_pts
        frame.pict_type = PictureType.I if key else PictureType.NONE
        self._next_pts += 1
        packets = self._codec.encode(frame)
        assert len(packets) == 1, f"{len(packets)} packets for one picture"
        return Encoded(bytes(packets[0]), packets[0].is_keyframe)


class JpegEncoder:
    """Every picture a whole JPEG. The quality follows the bitrate: a step coarser or finer after each picture."""

    def __init__(self, geometry: Geometry, ceiling_bps: int | None = None) -> None:
        self.ceiling_bps = ceiling_bps or 6 * default_bitrate_bps(geometry)  # no picture helps the next one
        self._geometry = geometry
        self._target_bytes = self.ceiling_bps / 8 / geometry.fps
        self._qscale = 4  # FFmpeg's scale, 2 the finest, 31 the coarsest
        self._codec = _jpeg_codec(geometry.width, geometry.height, self._qscale)

    def set_bitrate(self, bitrate_bps: int) -> None:
        self._target_bytes = min(bitrate_bps, self.ceiling_bps) / 8 / self._geometry.fps

    def encode(self, picture: NDArray[np.uint8], *, key: bool = False) -> Encoded:
        data = _jpeg(self._codec, _widen(picture))
        if len(data) > self._target_bytes:
            self._requantise(min(31, self._qscale + 1 + self._qscale // 4))
        elif len(data) < 0.7 * self._target_bytes:
            self._requantise(max(3, self._qscale - 1))
        return Encoded(data, True)

    def _requantise(self, qscale: int) -> None:
        if qscale != self._qscale:
            self._qscale = qscale
            self._codec = _jpeg_codec(self._geometry.width, self._geometry.height, qscale)


class RawEncoder:
    """Every picture as it is: H * W * 3 bytes of RGB, whatever the bitrate."""

    def __init__(self, geometry: Geometry) -> None:
        self.ceiling_bps = 8 * geometry.width * geometry.height * 3 * geometry.fps

    def set_bitrate(self, bitrate_bps: int) -> None:
        pass

    def encode(self, picture: NDArray[np.uint8], *, key: bool = False) -> Encoded:
        return Encoded(to_rgb(picture).tobytes(), True)


ENCODERS: dict[Codec, Callable[[Geometry], Encoder]] = {"h264": H264Encoder, "jpeg": JpegEncoder, "raw": RawEncoder}


def choose_codec(offered: Sequence[Codec]) -> Codec:
    """The client's first wish; the server speaks all of them."""
    return offered[0]


def encode_still(image: NDArray[np.uint8]) -> bytes:
    """RGB [H, W, 3] with even sides -> a JPEG file, for thumbnails."""
    frame = VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
    frame = frame.reformat(format="yuv420p", dst_colorspace="ITU601", dst_color_range="JPEG")
    return _jpeg(_jpeg_codec(frame.width, frame.height, 3), frame)


def _wrap(picture: NDArray[np.uint8], color_range: int) -> VideoFrame:
    frame = VideoFrame.from_numpy_buffer(np.ascontiguousarray(picture), format="yuv420p")
    frame.color_primaries = frame.color_trc = frame.colorspace = BT601
    frame.color_range = color_range
    return frame


def _full_range_tables() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    levels = np.arange(256, dtype=np.float32)
    luma = (levels - 16) * (255 / 219)
    chroma = (levels - 128) * (255 / 224) + 128
    return _rounded(luma), _rounded(chroma)


def _rounded(levels: NDArray[np.float32]) -> NDArray[np.uint8]:
    return np.clip(np.rint(levels), 0, 255).astype(np.uint8)


LUMA_TO_FULL, CHROMA_TO_FULL = _full_range_tables()


def _widen(picture: NDArray[np.uint8]) -> VideoFrame:
    """Limited to full range: JPEG files have no other."""
    height = picture.shape[0] * 2 // 3
    wide = np.empty_like(picture)
    LUMA_TO_FULL.take(picture[:height], out=wide[:height])
    CHROMA_TO_FULL.take(picture[height:], out=wide[height:])
    return _wrap(wide, FULL_RANGE)


def _jpeg_codec(width: int, height: int, qscale: int) -> VideoCodecContext:
    codec = av.CodecContext.create("mjpeg", "w")
    assert isinstance(codec, VideoCodecContext)
    codec.width, codec.height, codec.pix_fmt = width, height, "yuv420p"
    codec.time_base, codec.thread_count = Fraction(1, 1000), 1
    codec.color_range, codec.colorspace = FULL_RANGE, BT601
    codec.qmin = codec.qmax = qscale
    codec.open()
    return codec


def _jpeg(codec: VideoCodecContext, frame: VideoFrame) -> bytes:
    frame.pts = None
    frame.pict_type = PictureType.I
    (packet,) = codec.encode(frame)
    return bytes(packet)
