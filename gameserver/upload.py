"""A start picture that a player brings: bytes nobody vouches for -> pixels of the stream's size.

FFmpeg decodes. It compares a picture's size with our limit when it has read the header, before it allocates anything.
"""

from __future__ import annotations

import av
import numpy as np
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation
from numpy.typing import NDArray

from gameserver.protocol import MAX_IMAGE_BYTES, MAX_IMAGE_PIXELS, ProtocolError

PNG = b"\x89PNG\r\n\x1a\n"
DECODERS = {b"\xff\xd8\xff": "mjpeg", PNG: "png"}  # by how a file begins
STRICT = {"max_pixels": str(MAX_IMAGE_PIXELS), "err_detect": "crccheck+bitstream+buffer+explode"}


def read_image(data: bytes, width: int, height: int) -> NDArray[np.uint8]:
    """A JPEG or PNG file -> RGB [height, width, 3]: upright, the middle in the stream's proportions, scaled.

    ProtocolError `bad_image` whatever the bytes are. Takes milliseconds, so not on the event loop.
    """
    if len(data) > MAX_IMAGE_BYTES:
        raise _bad(f"{len(data)} bytes, at most {MAX_IMAGE_BYTES} are allowed")
    decoder = next((name for signature, name in DECODERS.items() if data.startswith(signature)), None)
    if decoder is None:
        raise _bad("neither a JPEG nor a PNG file")
    frame = _decode(decoder, _bare(data) if decoder == "png" else data)
    upright = np.rot90(_pixels(frame), frame.rotation // 90)  # EXIF says quarter turns to the left
    fitted = VideoFrame.from_ndarray(np.ascontiguousarray(middle(upright, width / height)), format="rgb24")
    return _pixels(fitted.reformat(width, height, interpolation=Interpolation.AREA))


def middle(image: NDArray[np.uint8], aspect: float) -> NDArray[np.uint8]:
    """The largest part [h', w', 3] of an image [h, w, 3] around its centre with w' / h' = aspect, to a pixel."""
    height, width = image.shape[:2]
    across, down = min(width, max(1, round(height * aspect))), min(height, max(1, round(width / aspect)))
    left, top = (width - across) // 2, (height - down) // 2
    return image[top : top + down, left : left + across]


def _decode(decoder: str, data: bytes) -> VideoFrame:
    codec = av.CodecContext.create(decoder, "r")
    assert isinstance(codec, VideoCodecContext)
    codec.thread_count, codec.options = 1, STRICT
    try:
        frames = codec.decode(av.Packet(data))
    except (av.FFmpegError, ValueError):
        raise _bad(f"damaged, or of more than {MAX_IMAGE_PIXELS} pixels") from None
    if len(frames) != 1 or frames[0].is_corrupt:
        raise _bad("no whole picture")
    return frames[0]


def _pixels(frame: VideoFrame) -> NDArray[np.uint8]:
    return frame.to_ndarray(format="rgb24").astype(np.uint8, copy=False)


def _bare(png: bytes) -> bytes:
    """A PNG without the chunks that only say something about it: texts and profiles inflate without a bound."""
    kept, at = [PNG], len(PNG)
    while len(png) - at >= 12:
        length, kind = int.from_bytes(png[at : at + 4], "big"), png[at + 4 : at + 8]
        if kind == b"acTL":
            raise _bad("a picture that moves")
        if kind[:1].isupper() or kind == b"tRNS":  # upper case: no picture without it
            kept.append(png[at : at + 12 + length])
        at += 12 + length
    return b"".join(kept)


def _bad(why: str) -> ProtocolError:
    return ProtocolError("bad_image", f"this picture cannot be used: {why}")
