"""The start places the built-in world offers: seeds and looks chosen by eye, and how their pictures are drawn."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from world.chunk import Scene
from world.meadow.look import Look, random_look
from world.meadow.teacher import HEIGHT, WIDTH, default_intrinsics, make_terrain, render


@dataclass(frozen=True, slots=True)
class StartScene:
    id: str
    title: str
    prompt: str
    seed: int


START_SCENES = (
    StartScene("blue-tower", "The blue tower by the sea", "a summer coast at day with blue towers", 700008),
    StartScene("home-meadow", "Home meadow", "a sunny summer meadow at day", 700002),
    StartScene("red-valley", "Red towers in the snow", "a snowy valley at dusk with red towers", 700002),
    StartScene("gold-woods", "October woods", "an autumn forest at day", 700003),
    StartScene("dune-sea", "The dune sea", "a clear desert at day with blue towers", 700004),
    StartScene("lantern-night", "Lantern night", "a starry lakeland at night with white towers", 700005),
    StartScene("blossom-lakes", "Blossom and water", "spring lakes at dawn", 700007),
    StartScene("white-fog", "What stands in the fog", "a foggy meadow at dawn with purple towers", 700006),
    StartScene("grey-shore", "Grey shore", "an overcast autumn coast with yellow towers", 700009),
    StartScene("high-pass", "The high valley", "a summer mountain valley at day with white towers", 700010),
    StartScene("winter-forest", "Winter forest", "a snowy forest at day with green towers", 700011),
    StartScene("last-light", "Last light", "a cloudy summer meadow at sunset with black towers", 700012),
)


def draw_start(seed: int, look: Look, width: int = WIDTH, height: int = HEIGHT) -> NDArray[np.uint8]:
    """What a player sees first, [H, W, 3] RGB: the identity pose at the default field of view."""
    pose = torch.eye(4)[None, None]
    rgb, _ = render(make_terrain([seed], [look]), pose, default_intrinsics(width, height), (height, width))
    return rgb[0, 0].permute(1, 2, 0).contiguous().numpy()


def draw_scene(start: StartScene, width: int = WIDTH, height: int = HEIGHT) -> Scene:
    image = draw_start(start.seed, Look.parse(start.prompt), width, height)
    return Scene(start.id, start.title, start.prompt, image, default_intrinsics(width, height).numpy())


def draw_place(prompt: str, seed: int, width: int = WIDTH, height: int = HEIGHT) -> Scene:
    """`world.chunk.DrawStart`: the land is the seed's, the look the prompt's; without words it is the seed's too."""
    words = prompt if prompt.strip() else random_look(np.random.default_rng(seed)).prompt()
    return draw_scene(StartScene("", "Somewhere new", words, seed), width, height)
