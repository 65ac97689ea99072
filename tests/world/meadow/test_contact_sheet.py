"""The PNG writer writes PNGs that a decoder reads back."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np

from world.meadow.contact_sheet import main, tile, write_png


def test_a_png_holds_its_pixels(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    write_png(tmp_path / "a.png", image)
    data = (tmp_path / "a.png").read_bytes()
    at, parts = 8, {}
    while at < len(data):
        (size,), kind = struct.unpack(">I", data[at : at + 4]), data[at + 4 : at + 8]
        parts[kind] = data[at + 8 : at + 8 + size]
        assert struct.unpack(">I", data[at + 8 + size : at + 12 + size])[0] == zlib.crc32(kind + parts[kind])
        at += 12 + size
    assert struct.unpack(">IIBBBBB", parts[b"IHDR"]) == (7, 5, 8, 2, 0, 0, 0)
    rows = np.frombuffer(zlib.decompress(parts[b"IDAT"]), np.uint8).reshape(5, 22)
    np.testing.assert_array_equal(rows[:, 1:].reshape(5, 7, 3), image)


def test_the_command_writes_a_sheet(tmp_path: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    main(["--out", str(tmp_path / "sheet.png"), "--seeds", "3:5", "--prompt", "dusk"])
    assert (tmp_path / "sheet.png").stat().st_size > 5000
    assert "at dusk" in capsys.readouterr().out


def test_tiles_lie_in_reading_order() -> None:
    pictures = np.zeros((2, 2, 3, 4, 4), np.uint8)
    pictures[0, 1] = 200
    sheet = tile(pictures, gap=0)
    assert sheet.shape == (8, 8, 3) and (sheet[:4, 4:] == 200).all() and sheet[:4, :4].max() == sheet[4:].max() == 0
