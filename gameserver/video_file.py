"""Pictures as a world makes them -> an MP4 file."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from gameserver.encoder import H264Encoder, default_bitrate_bps
from gameserver.playback import Mp4Recording
from gameserver.view import Packet
from world.chunk import Geometry, WorldError

QUALITY = 4  # bits for a pixel, in those of a stream that is served


def check_writable(path: Path) -> None:
    """WorldError if no video can be written there; what is there stays."""
    draft = _draft(path)
    try:
        if path.is_file() or path.is_dir():
            path.open("r+b").close()
        elif path.exists():
            raise OSError(errno.EINVAL, "it is not a file")
        draft.open("wb").close()
        draft.unlink()
    except OSError as fault:
        raise _unwritten(path, fault) from None


class VideoFile:
    """One file, there when it is closed and whole; else, and with no frame, what was there before stays. WorldError if
    it cannot be written."""

    def __init__(self, path: Path, geometry: Geometry) -> None:
        check_writable(path)
        self.path = path
        self.frames = 0
        self._encoder = H264Encoder(geometry, QUALITY * default_bitrate_bps(geometry))
        self._file = Mp4Recording(_draft(path), "h264", geometry.fps)

    def add(self, frame: int, chunk: int, picture: NDArray[np.uint8]) -> None:
        """Video frame `frame` of the stream, I420 [H * 3 // 2, W]."""
        encoded = self._encoder.encode(picture, key=self.frames == 0)
        packet = Packet(self.frames, frame, chunk, encoded.key, 0, b"", encoded.data)
        try:
            self._file.add(packet)
        except OSError as fault:  # what is encoded waits in a temporary file
            raise _unwritten(self.path, fault) from None
        self.frames += 1

    def close(self) -> None:
        draft = _draft(self.path)
        try:
            self._file.close()
            if self.frames:
                os.replace(draft, self.path.resolve())
        except (OSError, av.FFmpegError) as fault:
            raise _unwritten(self.path, fault) from None
        finally:
            with suppress(OSError):
                draft.unlink(missing_ok=True)

    def discard(self) -> None:
        """Leave what was there before."""
        self._file.discard()

    def __enter__(self) -> VideoFile:
        return self

    def __exit__(self, kind: object, fault: object, trace: object) -> None:
        if fault is None:
            self.close()
        else:
            self.discard()


def _draft(path: Path) -> Path:
    """Beside the file that it becomes."""
    whole = path.resolve()
    return whole.with_name(f"{whole.name}.draft")


def _unwritten(path: Path, fault: OSError | av.FFmpegError) -> WorldError:
    return WorldError(f"{path} cannot be written ({fault.strerror or fault})")
