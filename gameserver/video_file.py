"""Pictures as a world makes them -> an MP4 file."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from gameserver.encoder import H264Encoder, default_bitrate_bps
from gameserver.playback import Mp4Recording
from gameserver.view import Packet
from world.chunk import Geometry, WorldError

QUALITY = 4  # bits for a pixel, in those of a stream that is served


class VideoFile:
    """One file, written when it is closed; with no frame there is none. WorldError if it cannot be written."""

    def __init__(self, path: Path, geometry: Geometry) -> None:
        self.path = path
        self.frames = 0
        self._encoder = H264Encoder(geometry, QUALITY * default_bitrate_bps(geometry))
        self._file = Mp4Recording(path, "h264", geometry.fps)

    def add(self, frame: int, chunk: int, picture: NDArray[np.uint8]) -> None:
        """Video frame `frame` of the stream, I420 [H * 3 // 2, W]."""
        encoded = self._encoder.encode(picture, key=self.frames == 0)
        packet = Packet(self.frames, frame, chunk, encoded.key, 0, b"", encoded.data)
        try:
            self._file.add(packet)
        except OSError as fault:  # what is encoded waits in a temporary file
            raise self._unwritten(fault) from None
        self.frames += 1

    def close(self) -> None:
        try:
            self._file.close()
        except (OSError, av.FFmpegError) as fault:
            raise self._unwritten(fault) from None

    def discard(self) -> None:
        """Leave no file."""
        self._file.discard()

    def __enter__(self) -> VideoFile:
        return self

    def __exit__(self, *fault: object) -> None:
        self.close()

    def _unwritten(self, fault: OSError | av.FFmpegError) -> WorldError:
        return WorldError(f"{self.path} cannot be written ({fault.strerror or fault})")
