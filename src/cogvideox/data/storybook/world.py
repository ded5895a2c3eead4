"""The world: which clip stands at which index, and clips built from names."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from cogvideox.core.rng import generator
from cogvideox.data.storybook import sample
from cogvideox.data.storybook.cast import cast
from cogvideox.data.storybook.clip import LONGEST, Clip
from cogvideox.data.storybook.plan import allowed, mode_in
from cogvideox.data.storybook.scenes import SCENES
from cogvideox.data.storybook.state import ACTIONS

VERSION = "1"
"""Changes whenever the same index may give another clip."""
HELDOUT_SHARE = 0.025
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
            raise ValueError(f"unknown Storybook split {split!r}; choose one of {', '.join(SPLITS)}")
        if level not in LEVELS:
            raise ValueError(f"unknown Storybook level {level!r}; choose one of {', '.join(LEVELS)}")
        self.seed, self.split, self.level = seed, split, level

    @property
    def heldout(self) -> frozenset[Triple]:
        """The (character, action, scene) triples that the training split never shows."""
        return heldout_triples()

    def clip(self, index: int, duration: float | None = None) -> Clip:
        """Clip number `index`, its action laid out over `duration` seconds (0: a still; default 1 to 6)."""
        if index < 0:
            raise ValueError(f"clip index must be at least 0, got {index}")
        if duration is not None and not 0 <= duration <= LONGEST:
            raise ValueError(f"duration must be 0 to {LONGEST:.0f} seconds, got {duration}")
        for attempt in range(1000):
            rng = generator(self.seed, "storybook", VERSION, self.split, self.level, index, attempt)
            seconds = float(np.round(rng.uniform(1, 6), 2)) if duration is None else float(duration)
            clip = sample.clip(rng, self.split, self.level, seconds, VERSION, self.seed, index)
            if self._belongs(clip):
                return clip
        raise AssertionError("no clip of this split found in 1000 attempts")

    def _belongs(self, clip: Clip) -> bool:
        seen = [t in self.heldout for t in clip.triples()]
        return any(seen) if self.split == "heldout" else not any(seen)
