"""What a client gets to see: frame messages, the pictures in them, and whole chunks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from av.video.frame import VideoFrame


@dataclass(frozen=True, slots=True)
class Packet:
    """A frame message."""

    packet: int
    frame: int
    chunk: int
    key: bool
    control_seq: int
    pose: bytes
    data: bytes

    @classmethod
    def read(cls, message: Mapping[str, Any]) -> Packet:
        """KeyError, TypeError or ValueError if it is not one."""
        packet, frame, chunk, control_seq = (int(message[name]) for name in ("packet", "frame", "chunk", "control_seq"))
        pose, data = (memoryview(message[name]).tobytes() for name in ("pose", "data"))
        return cls(packet, frame, chunk, bool(message["key"]), control_seq, pose, data)


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """A frame with its picture."""

    packet: Packet
    picture: NDArray[np.uint8] | VideoFrame  # raw: RGB [H, W, 3]; else as it was decoded

    @property
    def rgb(self) -> NDArray[np.uint8]:
        """[H, W, 3]"""
        if isinstance(self.picture, np.ndarray):
            return self.picture
        return self.picture.to_ndarray(format="rgb24").astype(np.uint8, copy=False)

    @property
    def pose(self) -> NDArray[np.float32]:
        """[4, 4] camera-to-world, that the picture was made for."""
        return np.frombuffer(self.packet.pose, "<f4").reshape(4, 4)


@dataclass(frozen=True, slots=True, eq=False)
class Chunk:
    """The frames of one chunk that came: in lockstep all of them."""

    views: tuple[View, ...]

    @property
    def index(self) -> int:
        return self.views[0].packet.chunk

    @property
    def control_seq(self) -> int:
        return self.views[0].packet.control_seq

    @property
    def pose(self) -> NDArray[np.float32]:
        """[4, 4], of the last frame."""
        return self.views[-1].pose

    @property
    def frames(self) -> NDArray[np.uint8]:
        """RGB [n, H, W, 3]"""
        return np.stack([view.rgb for view in self.views])


class RawDecoder:
    """Raw packets to pictures; `errors` counts those of another size."""

    wants_key = False  # every one is

    def __init__(self, width: int, height: int) -> None:
        self._shape = height, width, 3
        self.errors = 0

    def decode(self, packet: Packet) -> NDArray[np.uint8] | None:
        if len(packet.data) != np.prod(self._shape):
            self.errors += 1
            return None
        return np.frombuffer(packet.data, np.uint8).reshape(self._shape)
