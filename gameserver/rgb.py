"""The world's pictures as RGB, in whole numbers: every machine gets the same bytes. PROTOCOL.md has the formula."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def to_rgb(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """I420 [H * 3 // 2, W], BT.601 limited range -> RGB [H, W, 3], full range; each chroma sample fills its 2 x 2."""
    height, width = picture.shape[0] * 2 // 3, picture.shape[1]
    luma = picture[:height].astype(np.int32)
    chroma = picture[height:].reshape(2, height // 2, width // 2).astype(np.int32) - 128
    blue, red = chroma
    light = 298 * luma - (298 * 16 - 128)
    rgb = np.empty((height, width, 3), np.uint8)
    for channel, share in enumerate((409 * red, -100 * blue - 208 * red, 516 * blue)):
        rgb[..., channel] = np.clip((light + share.repeat(2, 0).repeat(2, 1)) >> 8, 0, 255)
    return rgb
