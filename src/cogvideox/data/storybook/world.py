"""The world: which clip stands at which index, and clips built from names."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from cogvideox.core.errors import InputError
from cogvideox.core.rng import generator
from cogvideox.data.storybook import describe as orders
from cogvideox.data.storybook import sample
from cogvideox.data.storybook.cast import cast
from cogvideox.data.storybook.clip import LONGEST, Clip
from cogvideox.data.storybook.plan import allowed, mode_in
from cogvideox.data.storybook.scenes import SCENES
from cogvideox.data.storybook.state import ACTIONS

VERSION = "1"
"""Changes whenever the same index may give another clip."""
HELDOUT_SHARE = 0.025
STILL = 0.2
"""Shortest clip with motion, in seconds."""
SPLITS = ("train", "heldout")
LEVELS = ("single", "full")

Triple = tuple[str, str, str]
"""Character, action, scene."""


@lru_cache(maxsize=1)
def heldout_triples() -> frozenset[Triple]:
    """The (character, action, scene) triples that training never sees; fixed for all seeds."""
    found = []
    for name, who in cast().items():
        draws = generator(0, "storybook", "heldout", name).random((len(SCENES), len(ACTIONS)))
        for row, where in zip(draws, SCENES.values(), strict=True):
            mode = mode_in(who, where)
            found += [
                (name, action, where.name)
                for draw, action in zip(row, ACTIONS, strict=True)
                if draw < HELDOUT_SHARE and allowed(action, mode)
            ]
    return frozenset(found)


class World:
    """Storybook for one seed. `clip(index)` is pure: the same anywhere, in any order."""

    def __init__(self, seed: int = 0, split: str = "train", level: str = "full") -> None:
        if split not in SPLITS:
            raise InputError(f"unknown Storybook split {split!r}; choose one of {', '.join(SPLITS)}")
        if level not in LEVELS:
            raise InputError(f"unknown Storybook level {level!r}; choose one of {', '.join(LEVELS)}")
        self.seed, self.split, self.level = seed, split, level

    @property
    def heldout(self) -> frozenset[Triple]:
        """The (character, action, scene) triples that the training split never shows."""
        return heldout_triples()

    def clip(self, index: int, duration: float | None = None) -> Clip:
        """Clip number `index`, its action laid out over `duration` seconds; 1 to 6 if None.

        Below `STILL` seconds nothing can be seen to move: the clip is a still picture of duration 0.
        """
        if index < 0:
            raise InputError(f"clip index must be at least 0, got {index}")
        if duration is not None and not 0 <= duration <= LONGEST:
            raise InputError(f"duration must be 0 to {LONGEST:.0f} seconds, got {duration}")
        for attempt in range(1000):
            rng = generator(self.seed, "storybook", VERSION, self.split, self.level, index, attempt)
            seconds = float(np.round(rng.uniform(1, 6), 2)) if duration is None else float(duration)
            seconds = seconds if seconds >= STILL else 0.0
            clip = sample.clip(rng, self.split, self.level, seconds, VERSION, self.seed, index)
            if self.belongs(clip):
                return clip
        raise AssertionError("no clip of this split found in 1000 attempts")

    def describe(
        self,
        character: str,
        action: str | None = None,
        scene: str = "meadow",
        *,
        seed: int | None = None,
        duration: float = 2.0,
        speed: str = "",
        then: str | None = None,
        relation: str | None = None,
        other: str | None = None,
        count: int = 1,
        style: str | None = None,
        camera: str = "static",
        event: str | None = None,
        becomes: str | None = None,
        look: str | None = None,
    ) -> Clip:
        """A clip made to order, in either split.

        `action` is a name of `state.ACTIONS` or a phrase ("walk right"); `then` a second action; `relation`
        (to `other`) one of `state.RELATIONS`; `count` 2 or 3 of the same; `becomes` the character that it
        turns into. ValueError names the nearest name, or says what does not go together.
        """
        seed = self.seed if seed is None else seed
        duration = 0.0 if 0 <= duration < STILL else duration
        order = orders.Order(
            character,
            action,
            scene,
            seed,
            duration,
            speed,
            then,
            relation,
            other,
            count,
            style,
            camera,
            event,
            becomes,
            look,
        )
        return orders.describe(order, VERSION)

    def belongs(self, clip: Clip) -> bool:
        """Whether a clip is of this split."""
        seen = [t in self.heldout for t in clip.triples()]
        return any(seen) if self.split == "heldout" else not any(seen)
