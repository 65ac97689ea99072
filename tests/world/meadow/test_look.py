"""A prompt says what a look is: every look's sentences parse back to it, and stray words change nothing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from world.meadow.look import TOWERS, WORDS, Look, random_look, values

LOOKS = st.builds(Look, **{name: st.sampled_from(values(name)) for name in (*WORDS, "towers")})


@given(LOOKS, st.integers(0, 2**32))
def test_every_phrasing_parses_back(look: Look, seed: int) -> None:
    assert Look.parse(look.prompt()) == look
    sentence = look.prompt(np.random.default_rng(seed))
    assert Look.parse(sentence) == look, sentence
    assert Look.parse(sentence.upper()) == look


def test_words_count_anywhere() -> None:
    assert Look.parse("a snowy valley at dusk with red towers") == Look("dusk", "winter", "clear", "valley", "red")
    assert Look.parse("Mist, over the dunes; towers of gold in the morning!") == Look(
        "dawn", "summer", "fog", "desert", "yellow"
    )
    assert Look.parse("") == Look.parse("nothing it knows, not even a red door") == Look()


@given(st.text(max_size=200))
def test_any_text_is_some_look(text: str) -> None:
    Look.parse(text)


def test_phrasings_differ_and_random_looks_cover_everything() -> None:
    rng = np.random.default_rng(0)
    assert len({Look("dusk", "winter", "fog").prompt(rng) for _ in range(40)}) > 8
    looks = [random_look(rng) for _ in range(300)]
    for name in (*WORDS, "towers"):
        assert {getattr(look, name) for look in looks} == set(values(name))


def test_no_word_means_two_things_of_one_kind() -> None:
    for meanings in (*WORDS.values(), TOWERS):
        words = [word for names in meanings.values() for word in names]
        assert len(words) == len(set(words))


def test_an_unknown_value_is_refused() -> None:
    with pytest.raises(ValueError, match="season 'monsoon'"):
        Look(season="monsoon")
