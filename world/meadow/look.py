"""What a prompt can ask of the built-in world: time of day, season, weather, place and the colour of its towers."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields

import numpy as np

# attribute -> value -> the words that ask for it; the first value is the default, a value's first word is its own name
WORDS: dict[str, dict[str, tuple[str, ...]]] = {
    "time": {
        "day": ("day", "daylight", "noon", "midday", "afternoon", "daytime"),
        "dawn": ("dawn", "sunrise", "morning", "daybreak"),
        "dusk": ("dusk", "sunset", "evening", "twilight"),
        "night": ("night", "midnight", "moonlit", "moonlight", "starry", "nighttime"),
    },
    "season": {
        "summer": ("summer", "summery", "lush"),
        "spring": ("spring", "blooming", "blossom", "flowering", "flowers"),
        "autumn": ("autumn", "autumnal", "fall", "october"),
        "winter": ("winter", "snow", "snowy", "frozen", "wintry", "icy"),
    },
    "weather": {
        "clear": ("clear", "sunny", "cloudless"),
        "cloudy": ("cloudy", "clouds", "cloud"),
        "overcast": ("overcast", "grey", "gray", "gloomy", "stormy", "rainy"),
        "fog": ("fog", "foggy", "mist", "misty", "hazy", "haze"),
    },
    "place": {
        "meadow": ("meadow", "meadows", "field", "fields", "grassland", "hills", "plain"),
        "valley": ("valley", "valleys", "mountain", "mountains", "gorge"),
        "coast": ("coast", "coastal", "sea", "beach", "ocean", "shore", "seaside"),
        "lakes": ("lakes", "lake", "lakeland", "pond", "ponds"),
        "forest": ("forest", "forests", "wood", "woods", "woodland", "trees"),
        "desert": ("desert", "deserts", "dunes", "dune", "sand"),
    },
}
TOWERS: dict[str, tuple[str, ...]] = {
    "mixed": ("mixed", "colourful", "colorful", "painted"),
    "red": ("red", "crimson", "scarlet"),
    "orange": ("orange", "copper"),
    "yellow": ("yellow", "golden", "gold"),
    "green": ("green", "emerald"),
    "blue": ("blue", "azure"),
    "purple": ("purple", "violet"),
    "white": ("white", "ivory", "marble"),
    "black": ("black", "dark", "obsidian"),
}
_BUILDING = r"(?:towers?|spires?|turrets?|lighthouses?)"
# what a prompt calls them: words that read well in a sentence
_SAID: dict[str, dict[str, tuple[str, ...]]] = {
    "time": {
        "day": ("day", "midday"),
        "dawn": ("dawn", "sunrise"),
        "dusk": ("dusk", "sunset"),
        "night": ("night", "midnight"),
    },
    "season": {
        "summer": ("summer", "lush"),
        "spring": ("spring", "blooming"),
        "autumn": ("autumn", "autumnal"),
        "winter": ("snowy", "winter", "frozen"),
    },
    "weather": {
        "clear": ("clear", "sunny"),
        "cloudy": ("cloudy",),
        "overcast": ("overcast", "grey"),
        "fog": ("foggy", "misty"),
    },
    "place": {
        "meadow": ("meadow", "grassland"),
        "valley": ("valley", "mountain valley"),
        "coast": ("coast", "beach", "seaside"),
        "lakes": ("lakeland", "land of lakes"),
        "forest": ("forest", "woodland"),
        "desert": ("desert", "dune desert"),
    },
}


@dataclass(frozen=True, slots=True)
class Look:
    """The attributes of a world's look. Every field is one of the values of WORDS (towers: of TOWERS)."""

    time: str = "day"
    season: str = "summer"
    weather: str = "clear"
    place: str = "meadow"
    towers: str = "mixed"

    def __post_init__(self) -> None:
        for field in fields(self):
            if getattr(self, field.name) not in values(field.name):
                raise ValueError(
                    f"{field.name} {getattr(self, field.name)!r} is none of {', '.join(values(field.name))}"
                )

    @classmethod
    def parse(cls, prompt: str) -> Look:
        """Words anywhere in any order; the first word of an attribute counts, what is not said is the default."""
        text = prompt.casefold()
        found: dict[str, str] = {}
        for colour, names in TOWERS.items():
            named = "|".join(names)
            if re.search(
                rf"\b(?:{named})(?:\s+\w+)?\s+{_BUILDING}\b|\b{_BUILDING}\s+(?:of|are|in|painted)\s+(?:{named})\b", text
            ):
                found["towers"] = colour
                break
        for word in re.findall(r"\w+", text):
            for attribute, meanings in WORDS.items():
                if attribute not in found:
                    for value, names in meanings.items():
                        if word in names:
                            found[attribute] = value
        return cls(**found)

    def prompt(self, rng: np.random.Generator | None = None) -> str:
        """A sentence that parses back to this look; with a generator, one of many phrasings."""

        def word(attribute: str) -> str:
            choices = _SAID[attribute][getattr(self, attribute)]
            return choices[int(rng.integers(len(choices)))] if rng is not None else choices[0]

        time, season, weather, place = (word(name) for name in WORDS)
        colour = TOWERS[self.towers]
        towers = (colour[int(rng.integers(len(colour)))] if rng is not None else self.towers) + " towers"
        said = {name: rng is None or getattr(self, name) != values(name)[0] or rng.random() < 0.5 for name in WORDS}
        described = " ".join(w for name, w in (("season", season), ("weather", weather)) if said[name])
        at = f" at {time}" if said["time"] else ""
        with_towers = f" with {towers}" if rng is None or self.towers != "mixed" or rng.random() < 0.5 else ""
        forms = [
            f"{_article(f'{described} {place}'.strip())}{at}{with_towers}",
            ", ".join(part for part in (place, described, at[4:], with_towers[6:]) if part),
            f"{at[4:] + ' over ' if at else ''}{_article(f'{described} {place}'.strip())}{with_towers}",
        ]
        return forms[int(rng.integers(len(forms)))] if rng is not None else forms[0]


def values(attribute: str) -> tuple[str, ...]:
    """All values of an attribute, the default first."""
    return tuple(TOWERS if attribute == "towers" else WORDS[attribute])


def random_look(rng: np.random.Generator) -> Look:
    """Every value of every attribute equally often."""
    return Look(**{f.name: values(f.name)[int(rng.integers(len(values(f.name))))] for f in fields(Look)})


def _article(phrase: str) -> str:
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase
