"""What a client without a screen does with frames: decode them, and keep them in a file."""

from __future__ import annotations

import tempfile
from fractions import Fraction
from pathlib import Path

import av
from av.codec.context import Flags
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame

from gameserver.view import Packet

BT601, LIMITED_RANGE = 6, 1  # as FFmpeg numbers them


class PacketDecoder:
    """Packets to pictures, one for one; `errors` counts those that gave none."""

    def __init__(self, codec: str) -> None:
        self._codec = _codec("h264" if codec == "h264" else "mjpeg", "r")
        self._codec.flags |= Flags.low_delay
        self._next_packet: int | None = None
        self.errors = 0
        self.wants_key = True  # pictures would be wrong until one comes

    def decode(self, packet: Packet) -> VideoFrame | None:
        if self._next_packet not in (None, packet.packet):
            self.wants_key = True
        self._next_packet = packet.packet + 1
        if self.wants_key and not packet.key:
            self.errors += 1
            return None
        try:
            pictures = self._codec.decode(av.Packet(packet.data))
        except av.FFmpegError:
            pictures = []
        self.wants_key = len(pictures) != 1 or bool(pictures[0].is_corrupt)
        if self.wants_key:
            self.errors += 1
            return None
        return pictures[0]


class Mp4Recording:
    """The frames of a stream as an MP4 file. H.264 packets go in as they came; JPEG is encoded again."""

    def __init__(self, path: Path, codec: str, fps: int) -> None:
        self._path = path
        self._fps = fps
        self._encoder = None if codec == "h264" else _codec("libx264", "w")
        self._stream = tempfile.TemporaryFile()  # noqa: SIM115 - Annex B until `close` knows every frame
        self._frames: list[int] = []

    def add(self, packet: Packet, picture: VideoFrame | None = None) -> None:
        """A packet, and what it was decoded to where it is not H.264."""
        data = packet.data
        if self._encoder is not None and picture is not None:
            data = self._encode(self._encoder, picture)
        self._stream.write(data)
        self._frames.append(packet.frame)

    def close(self) -> None:
        """Write the file; with no frame there is none. OSError or av.FFmpegError if it cannot be written."""
        self._stream.seek(0)
        with self._stream:
            if not self._frames:
                return
            with (
                av.open(self._stream, "r", format="h264") as source,
                av.open(str(self._path), "w", format="mp4") as target,
            ):
                video = target.add_stream_from_template(source.streams.video[0])
                units = (unit for unit in source.demux(video=0) if unit.size)
                for unit, frame in zip(units, self._frames, strict=True):
                    unit.stream = video
                    unit.time_base = Fraction(1, self._fps)
                    unit.pts = unit.dts = frame - self._frames[0]
                    unit.duration = 1
                    target.mux(unit)

    def discard(self) -> None:
        """Write nothing."""
        self._stream.close()

    def _encode(self, encoder: VideoCodecContext, picture: VideoFrame) -> bytes:
        if not encoder.is_open:
            encoder.width, encoder.height, encoder.pix_fmt = picture.width, picture.height, "yuv420p"
            encoder.time_base, encoder.max_b_frames = Fraction(1, self._fps), 0
            encoder.color_primaries = encoder.color_trc = encoder.colorspace = BT601
            encoder.color_range = LIMITED_RANGE
            encoder.options = {"tune": "zerolatency", "preset": "veryfast", "crf": "16"}
        frame = picture.reformat(format="yuv420p", dst_colorspace=BT601, dst_color_range=LIMITED_RANGE)
        frame.pts, frame.time_base = len(self._frames), Fraction(1, self._fps)
        return b"".join(bytes(packet) for packet in encoder.encode(frame))


def _codec(name: str, mode: str) -> VideoCodecContext:
    codec = av.CodecContext.create(name, mode)  # type: ignore[call-overload]
    assert isinstance(codec, VideoCodecContext)
    codec.thread_count = 1  # frame threads would hold pictures back
    return codec
