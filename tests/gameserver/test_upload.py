"""What a player brings becomes a picture of the stream's size or one error, at no great cost whatever the bytes."""

from __future__ import annotations

import base64
import struct
import zlib

import av
import numpy as np
import pytest
from av.video.frame import VideoFrame
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from gameserver.encoder import encode_still
from gameserver.protocol import MAX_IMAGE_BYTES, ProtocolError
from gameserver.upload import middle, read_image

WIDTH, HEIGHT = 112, 64
SMALL_CMYK_JPEG = base64.b64decode(  # 16 x 16 of (200, 40, 90), as print shops and Adobe write it: inverted
    "/9j/7gAOQWRvYmUAZAAAAAAA/9sAQwAQCwwODAoQDg0OEhEQExgoGhgWFhgxIyUdKDozPTw5Mzg3QEhcTkBEV0U3OFBtUVdfYmdoZz5NcXlwZHhc"
    "ZWdj/8AAFAgAEAAQBEMRAE0RAFkRAEsRAP/EABcAAQEBAQAAAAAAAAAAAAAAAAAGBQf/xAAUEAEAAAAAAAAAAAAAAAAAAAAA/9oADgRDAE0AWQBL"
    "AAA/AKRJsx0AAAAB/9k="
)


def quarters(width: int = WIDTH, height: int = HEIGHT) -> NDArray[np.uint8]:
    """Red, green over blue, white."""
    image = np.zeros((height, width, 3), np.uint8)
    image[: height // 2, : width // 2, 0] = image[: height // 2, width // 2 :, 1] = 200
    image[height // 2 :, : width // 2, 2] = image[height // 2 :, width // 2 :] = 200
    return image


def png(image: NDArray[np.uint8], pixels: str = "rgb24") -> bytes:
    frame = VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24").reformat(format=pixels)
    codec = av.CodecContext.create("png", "w")
    codec.width, codec.height, codec.pix_fmt, codec.framerate = frame.width, frame.height, pixels, 1
    return b"".join(bytes(packet) for packet in [*codec.encode(frame), *codec.encode(None)])


def chunk(kind: bytes, data: bytes, crc: int | None = None) -> bytes:
    crc = zlib.crc32(kind + data) if crc is None else crc
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc)


def with_chunk(file: bytes, kind: bytes, data: bytes, crc: int | None = None) -> bytes:
    """A PNG with one chunk more, after its header."""
    return file[:33] + chunk(kind, data, crc) + file[33:]


def with_orientation(file: bytes, value: int) -> bytes:
    """A JPEG with an EXIF orientation."""
    tiff = b"MM\0*\0\0\0\x08\0\x01" + struct.pack(">HHIHH", 0x112, 3, 1, value, 0) + bytes(4)
    exif = b"Exif\0\0" + tiff
    return file[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + file[2:]


JPEG, PNG = encode_still(quarters()), png(quarters())


def difference(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    assert one.shape == other.shape and one.dtype == other.dtype == np.uint8
    return float(np.abs(one.astype(float) - other).mean())


@pytest.mark.parametrize("file", [JPEG, PNG, png(quarters(), "rgba"), png(quarters(), "rgb48be")])
def test_a_picture_of_the_streams_size_stays_as_it_is(file: bytes) -> None:
    assert difference(read_image(file, WIDTH, HEIGHT), quarters()) < 3


def test_grey_and_print_colours_are_understood() -> None:
    grey = read_image(png(quarters(), "gray"), WIDTH, HEIGHT)
    assert np.ptp(grey, axis=2).max() == 0 and len(np.unique(grey)) > 3
    printed = read_image(SMALL_CMYK_JPEG, 16, 16)
    assert np.abs(printed.reshape(-1, 3).mean(axis=0) - (200, 40, 90)).max() < 12


@pytest.mark.parametrize("size", [(224, 128), (113, 65), (16, 16), (30, 400), (1, 1), (2048, 2048)])
def test_any_size_is_fitted(size: tuple[int, int]) -> None:
    assert read_image(png(quarters(*size)), WIDTH, HEIGHT).shape == (HEIGHT, WIDTH, 3)


def test_what_is_shown_is_the_middle() -> None:
    tall = np.concatenate([np.zeros((200, WIDTH, 3), np.uint8), quarters(), np.zeros((200, WIDTH, 3), np.uint8)])
    assert difference(read_image(png(tall), WIDTH, HEIGHT), quarters()) == 0


@given(st.integers(1, 300), st.integers(1, 300), st.floats(0.2, 5))
def test_the_middle_has_the_proportions_asked_for(width: int, height: int, aspect: float) -> None:
    part = middle(np.zeros((height, width, 3), np.uint8), aspect)
    down, across, _ = part.shape
    assert 1 <= across <= width and 1 <= down <= height and (across == width or down == height)
    assert abs(across - down * aspect) <= max(1.0, aspect) / 2 + 1e-6 or min(across, down) == 1


@pytest.mark.parametrize("value, turns", [(1, 0), (6, 1), (3, 2), (8, 3)])
def test_a_camera_held_sideways_is_no_matter(value: int, turns: int) -> None:
    """`turns` quarter turns to the left are what the camera was turned by."""
    file = with_orientation(encode_still(np.ascontiguousarray(np.rot90(quarters(64, 64), turns))), value)
    assert difference(read_image(file, 64, 64), quarters(64, 64)) < 3


def test_what_is_said_beside_a_picture_is_not_read() -> None:
    """A text chunk of 200 kB can hold 200 MB; these would be refused if anybody looked."""
    for kind in (b"zTXt", b"iCCP", b"eXIf"):
        file = with_chunk(PNG, kind, b"name\0\0not zlib at all", crc=0)
        assert difference(read_image(file, WIDTH, HEIGHT), quarters()) == 0


@pytest.mark.parametrize(
    "name, file",
    {
        "nothing": b"",
        "another type": b"GIF89a" + bytes(100),
        "a name of the type alone": JPEG[:3],
        "half a JPEG": JPEG[: len(JPEG) // 2],
        "half a PNG": PNG[: len(PNG) // 2],
        "a changed PNG": PNG[:60] + bytes([PNG[60] ^ 1]) + PNG[61:],
        "a PNG without pixels": PNG[:33] + chunk(b"IEND", b""),
        "a PNG that moves": with_chunk(PNG, b"acTL", struct.pack(">II", 2, 0)),
        "a PNG of no width": PNG[:8] + chunk(b"IHDR", struct.pack(">II", 0, 9) + PNG[24:29]) + PNG[33:],
        "more pixels than allowed": png(np.zeros((2048, 2049, 3), np.uint8)),
        "a PNG that says it is huge": PNG[:8] + chunk(b"IHDR", struct.pack(">II", 2**31 - 1, 2**31 - 1) + PNG[24:29]),
        "a JPEG that says it is huge": JPEG.replace(struct.pack(">HH", HEIGHT, WIDTH), b"\xff\xdc\xff\xdc", 1),
        "too many bytes": JPEG + bytes(MAX_IMAGE_BYTES),
        "a JPEG within a JPEG": JPEG[:-2] + JPEG[:200],
    }.items(),
)
def test_what_cannot_be_used_is_one_error(name: str, file: bytes) -> None:
    with pytest.raises(ProtocolError) as caught:
        read_image(file, WIDTH, HEIGHT)
    assert caught.value.code == "bad_image" and caught.value.fatal and "\n" not in caught.value.message


FILES = (JPEG, PNG, SMALL_CMYK_JPEG, with_orientation(JPEG, 6), png(quarters(), "gray16be"))


@given(st.data())
def test_changed_bytes_end_in_a_picture_or_the_error(data: st.DataObject) -> None:
    file = bytearray(data.draw(st.sampled_from(FILES)))
    for _ in range(data.draw(st.integers(0, 5))):
        file[data.draw(st.integers(0, len(file) - 1))] = data.draw(st.integers(0, 255))
    cut = file[: data.draw(st.integers(0, len(file)))] if data.draw(st.booleans()) else file
    try:
        image = read_image(bytes(cut), WIDTH, HEIGHT)
    except ProtocolError as error:
        assert error.code == "bad_image"
    else:
        assert image.shape == (HEIGHT, WIDTH, 3) and image.dtype == np.uint8
