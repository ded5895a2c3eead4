"""The table of scenes: where things stand, what belongs there, how it is named, and who paints it."""

# Tables are read row by row.
# ruff: noqa: E501

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass

from cogvideox.core.errors import InputError
from cogvideox.data.storybook.paint import Canvas
from cogvideox.data.storybook.scenes import nature, town, water, wonder

Band = tuple[float, float]
"""Normalised y: far (or upper) and near (or lower) end."""


@dataclass(frozen=True)
class Scene:
    """A place. At least one of the bands `ground`, `water` and `free` exists."""

    name: str
    paint: Callable[[Canvas, str], None]
    tags: frozenset[str]
    """Who belongs here, see `Character.home`."""
    looks: tuple[tuple[str, str], ...]
    """Variants: (key for the painter, phrase for captions)."""
    nouns: tuple[str, ...]
    """Names with their preposition, the plain one first: "in a meadow"."""
    sky: Band
    """Where flyers are (their centre)."""
    ground: Band | None = None
    """Where walkers stand (their feet)."""
    water: Band | None = None
    """Where boats float (their keel)."""
    free: Band | None = None
    """Where everything floats (centre): underwater and in space."""
    light: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """Colour of the light on the characters."""
    open: bool = True
    """Under the sky by day: weather and nightfall can happen."""

    @property
    def dark(self) -> bool:
        """Dark enough that black characters need a glow behind them."""
        return self.name in ("night city", "starry night", "space", "volcano", "sunset", "forest")


def _scene(name: str, paint: Callable[[Canvas, str], None], tags: str, looks: str, nouns: str, sky: Band,
           ground: Band | None = None, water: Band | None = None, free: Band | None = None,
           light: tuple[float, float, float] = (1.0, 1.0, 1.0), open_: bool = True) -> Scene:  # fmt: skip
    pairs = tuple((a.strip(), b.strip()) for a, b in (part.split(":") for part in looks.split("|")))
    return Scene(name, paint, frozenset(tags.split(",")), pairs, tuple(n.strip() for n in nouns.split("|")),
                 sky, ground, water, free, light, open_)  # fmt: skip


_ALL = [
    _scene("meadow", nature.meadow, "land,farm,air", "red: with red flowers | yellow: with yellow flowers | "
           "white: with white flowers | purple: with purple flowers",
           "in a meadow | in a green meadow | in a grassy field | on green grass", (0.2, 0.5), (0.7, 0.93)),
    _scene("forest", nature.forest, "forest,land", "sunlit: with beams of sunlight | misty: with pale mist",
           "in a forest | in a green forest | in the woods | among tall trees", (0.3, 0.58), (0.76, 0.94)),
    _scene("snow", nature.snow, "cold", "clear: under a blue sky | falling: while snow is falling",
           "in the snow | on a snowy plain | in a snowy landscape | on white snow", (0.2, 0.5), (0.72, 0.93)),
    _scene("mountains", nature.mountains, "rock,air,cold", "blue: under a blue sky | misty: in pale mist | dawn: at dawn",
           "in the mountains | among high mountains | below snowy peaks", (0.2, 0.5), (0.8, 0.94)),
    _scene("desert", nature.desert, "hot", "cactus: with cacti | pyramids: with pyramids | dusk: at dusk",
           "in the desert | in a sandy desert | among sand dunes", (0.2, 0.5), (0.72, 0.93)),
    _scene("beach", water.beach, "beach,surface,air,person", "palms: with palm trees | umbrellas: with colorful umbrellas | "
           "islands: with green islands far away",
           "on a beach | on a sandy beach | at the seaside | on the shore", (0.18, 0.42), (0.79, 0.94), (0.6, 0.66)),
    _scene("sea", water.sea, "surface", "calm: under a calm sky | stormy: under a stormy sky | lighthouse: with a lighthouse",
           "on the sea | on the blue ocean | on the waves", (0.16, 0.4), None, (0.66, 0.86)),
    _scene("underwater", water.underwater, "under", "coral: with colorful coral | rocks: with dark rocks | "
           "starfish: with orange starfish",
           "under water | under the sea | in the deep blue water", (0.2, 0.6), (0.9, 0.97), None, (0.25, 0.72),
           (0.88, 0.98, 1.0), False),
    _scene("waterfall", water.waterfall, "forest,land,rock", "rocks: with gray cliffs | flowers: with pink flowers",
           "at a waterfall | near a waterfall | in front of a waterfall", (0.2, 0.5), (0.83, 0.95), (0.72, 0.78)),
    _scene("city", town.city, "road,person,air", "trees: with street trees | lamps: with street lamps",
           "in a city | on a city street | in a city by day | in front of tall buildings", (0.16, 0.42), (0.87, 0.96)),
    _scene("night city", town.night_city, "road,person,night", "moon: under a bright moon | neon: with neon signs",
           "in a city at night | on a city street at night | in a night city", (0.16, 0.42), (0.87, 0.96), None, None,
           (0.86, 0.86, 1.0), False),
    _scene("rainy street", town.rainy_street, "road,person", "puddles: with puddles | lights: with wet reflections",
           "on a rainy street | on a street in the rain | on a wet street", (0.18, 0.42), (0.84, 0.95), None, None,
           (0.93, 0.95, 1.0), False),
    _scene("room", town.room, "room,person", "blue: with blue walls | pink: with pink walls | green: with green walls",
           "in a room | in a cozy room | in a living room | indoors", (0.25, 0.5), (0.83, 0.95), None, None, open_=False),
    _scene("farm", town.farm, "farm,land,air", "barn: with a red barn | windmill: with a windmill",
           "on a farm | at a farm | in a farmyard", (0.18, 0.45), (0.78, 0.94)),
    _scene("starry night", wonder.starry_night, "night,space", "blue: under a bright moon | aurora: with a green aurora",
           "under a starry sky | on a starry night | under the stars", (0.2, 0.58), (0.86, 0.95), None, None,
           (0.84, 0.88, 1.0), False),
    _scene("sunset", wonder.sunset, "land,hot,air,person", "savanna: with dark trees | lake: by a glowing lake",
           "at sunset | in the sunset | under an orange evening sky", (0.2, 0.5), (0.83, 0.95), None, None,
           (1.0, 0.9, 0.86), False),
    _scene("space", wonder.space, "space", "earth: above the blue earth | planets: among planets | moon: near a gray moon",
           "in space | in outer space | in deep space", (0.2, 0.75), None, None, (0.28, 0.72), open_=False),
    _scene("volcano", wonder.volcano, "hot,rock", "lava: with glowing lava | ash: under dark smoke",
           "at a volcano | near a volcano | in front of a burning volcano", (0.2, 0.5), (0.84, 0.95), None, None,
           (1.0, 0.9, 0.86), False),
    _scene("autumn park", wonder.autumn_park, "land,forest,person,road", "clear: under a pale blue sky | golden: in golden light",
           "in an autumn park | in a park in autumn | among autumn trees", (0.22, 0.52), (0.79, 0.94)),
    _scene("candy land", wonder.candy_land, "room,air,land", "rainbow: under a rainbow | sweets: with giant lollipops",
           "in candy land | in a land of sweets | in a candy world", (0.2, 0.5), (0.8, 0.94)),
]  # fmt: skip

SCENES: dict[str, Scene] = {s.name: s for s in _ALL}


def scene(name: str) -> Scene:
    """The scene called `name`; ValueError names the nearest one otherwise."""
    wanted = " ".join(name.lower().replace("_", " ").split())
    if wanted in SCENES:
        return SCENES[wanted]
    for candidate in SCENES.values():
        if wanted in candidate.nouns:
            return candidate
    near = difflib.get_close_matches(wanted, list(SCENES), n=1, cutoff=0.0)
    raise InputError(f"unknown Storybook scene {name!r}; the nearest is {near[0]!r}")
