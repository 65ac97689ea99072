"""Pictures of worlds to look at: `python -m world.meadow.teacher --out sheet.png [--seeds 0:8] [--turn | --walk]`."""

from __future__ import annotations

import argparse
import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from world.meadow.look import Look, random_look
from world.meadow.teacher import default_intrinsics, make_terrain, render
from world.motion import keyboard_poses


def write_png(path: str | Path, image: NDArray[np.uint8]) -> None:
    """[H, W, 3] RGB."""
    height, width, _ = image.shape
    rows = np.concatenate([np.zeros((height, 1), np.uint8), image.reshape(height, -1)], 1)  # filter byte 0 before a row

    def part(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = part(b"IHDR", head) + part(b"IDAT", zlib.compress(rows.tobytes(), 6)) + part(b"IEND", b"")
    Path(path).write_bytes(b"\x89PNG\r\n\x1a\n" + body)


def tile(pictures: NDArray[np.uint8], gap: int = 2) -> NDArray[np.uint8]:
    """[rows, columns, 3, H, W] -> one picture [.., .., 3]."""
    padded = np.pad(pictures, ((0, 0), (0, 0), (0, 0), (0, gap), (0, gap)), constant_values=24)
    rows, columns, _, height, width = padded.shape
    return padded.transpose(0, 3, 1, 4, 2).reshape(rows * height, columns * width, 3)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m world.meadow.teacher", description="A contact sheet of the built-in world."
    )
    parser.add_argument("--out", required=True, help="PNG file to write")
    parser.add_argument("--seeds", default="0:8", help="A:B, the first included")
    parser.add_argument("--prompt", help="one prompt for all seeds (default: a random look for each)")
    parser.add_argument("--turn", action="store_true", help="turn right over 4 pictures of 20 degrees")
    parser.add_argument("--walk", action="store_true", help="walk forward over 4 pictures of 8 metres")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args(argv)
    first, last = (int(part) for part in args.seeds.split(":"))
    seeds = list(range(first, last))
    rng = np.random.default_rng(first)
    looks = [Look.parse(args.prompt) if args.prompt else random_look(rng) for _ in seeds]
    script = "l-30" if args.turn else "w-120" if args.walk else "none-1"
    poses = keyboard_poses(script)[:: 10 if args.turn else 40 if args.walk else 2]
    terrain = make_terrain(seeds, looks, args.device)
    shown = torch.from_numpy(poses)[None].expand(len(seeds), -1, -1, -1)
    pictures = render(terrain, shown, default_intrinsics())[0].cpu().numpy()
    if len(poses) == 1:
        pictures = pictures.reshape(-1, min(4, len(seeds)), *pictures.shape[2:])
    write_png(args.out, tile(pictures))
    for seed, look in zip(seeds, looks, strict=True):
        print(f"{seed}: {look.prompt()}")
