"""The raw picture: whole-number arithmetic that anybody can repeat, close to the exact BT.601."""

from __future__ import annotations

import av
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from gameserver.rgb import to_rgb


@given(st.integers(16, 235), st.integers(16, 240), st.integers(16, 240))
def test_colours_are_those_of_bt601(y: int, u: int, v: int) -> None:
    picture = np.concatenate([np.full((2, 2), y), np.full((1, 1), u).repeat(2, 1)]).astype(np.uint8)
    picture[2, 1] = v
    light, blue, red = (y - 16) / 219, (u - 128) / 224, (v - 128) / 224
    exact = [light + 1.402 * red, light - 0.344136 * blue - 0.714136 * red, light + 1.772 * blue]
    assert np.abs(to_rgb(picture)[0, 0] - np.clip(np.array(exact) * 255, 0, 255)).max() <= 1.5


def test_each_pixel_gets_its_own_light_and_the_colour_of_its_square() -> None:
    noise = np.random.default_rng(3)
    picture = noise.integers(0, 256, (12, 16), np.uint8)  # 16 x 8
    rgb = to_rgb(picture)
    assert rgb.shape == (8, 16, 3) and rgb.dtype == np.uint8
    us, vs = picture[8:10].reshape(4, 8).astype(int), picture[10:].reshape(4, 8).astype(int)
    for y, x in np.ndindex(8, 16):
        c, u, v = 298 * (int(picture[y, x]) - 16) + 128, us[y // 2, x // 2] - 128, vs[y // 2, x // 2] - 128
        wanted = [(c + 409 * v) >> 8, (c - 100 * u - 208 * v) >> 8, (c + 516 * u) >> 8]  # as PROTOCOL.md says it
        assert rgb[y, x].tolist() == [min(255, max(0, value)) for value in wanted]


def test_another_decoder_agrees() -> None:
    smooth = np.linspace(40, 200, 96 * 64).reshape(96, 64).astype(np.uint8)
    frame = av.VideoFrame.from_ndarray(smooth, format="yuv420p")
    other = frame.to_ndarray(format="rgb24").astype(int)
    assert np.abs(other - to_rgb(smooth)).mean() < 2
