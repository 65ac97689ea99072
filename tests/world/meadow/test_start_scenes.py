"""Start scenes are real places with their own ids, and their pictures are what their prompts say."""

from __future__ import annotations

import re

import numpy as np

from world.meadow.look import Look
from world.meadow.start_scenes import START_SCENES, draw_place, draw_scene, draw_start


def test_ids_are_addresses_and_looks_differ() -> None:
    assert len(START_SCENES) >= 12
    assert (
        len({start.id for start in START_SCENES}) == len({start.title for start in START_SCENES}) == len(START_SCENES)
    )
    assert all(re.fullmatch(r"[a-z0-9-]{1,32}", start.id) for start in START_SCENES)
    assert len({Look.parse(start.prompt) for start in START_SCENES}) == len(START_SCENES)


def test_a_scene_is_its_seed_and_prompt() -> None:
    start = START_SCENES[0]
    scene = draw_scene(start, 112, 64)
    assert scene.image.shape == (64, 112, 3) and scene.image.dtype == np.uint8 and scene.image.std() > 10
    assert scene.intrinsics.shape == (4,) and scene.intrinsics.dtype == np.float32
    np.testing.assert_array_equal(scene.image, draw_start(start.seed, Look.parse(start.prompt), 112, 64))


def test_a_place_is_what_its_prompt_says_on_the_land_of_its_seed() -> None:
    words = "a snowy valley at night with red towers"
    place = draw_place(words, 2**53 - 1, 112, 64)
    assert (place.id, place.prompt, place.image.shape) == ("", words, (64, 112, 3))
    np.testing.assert_array_equal(place.image, draw_start(2**53 - 1, Look.parse(words), 112, 64))
    assert not np.array_equal(place.image, draw_place(words, 5, 112, 64).image)
    assert draw_place("noon", 5, 112, 64).image.mean() > draw_place("night", 5, 112, 64).image.mean() + 20


def test_a_seed_alone_has_words_that_draw_the_same_place_again() -> None:
    places = [draw_place("", seed, 56, 32) for seed in range(8)]
    assert len({place.prompt for place in places}) > 5
    for seed, place in enumerate(places):
        np.testing.assert_array_equal(place.image, draw_place(place.prompt, seed, 56, 32).image)
