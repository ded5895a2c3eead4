"""Clips that differ in one or two things only: the captions that a text encoder must tell apart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from cogvideox.core.rng import generator
from cogvideox.data.storybook import sample
from cogvideox.data.storybook.cast import Character
from cogvideox.data.storybook.clip import Clip
from cogvideox.data.storybook.plan import mode_in
from cogvideox.data.storybook.relations import STILL, fits
from cogvideox.data.storybook.scenes import Scene
from cogvideox.data.storybook.state import EVENTS, RELATIONS, STYLES
from cogvideox.data.storybook.world import World

DURATION = 2.0
"""Seconds: long enough for every action."""
PICTURES = 0.15
"""Share of families of still pictures."""
TRIES = 64
"""Draws for a family; where few things can happen, it stays small."""


def siblings(world: World, index: int, count: int) -> list[Clip]:
    """Up to `count` clips of the split with one character in one scene, with the same action or another, in
    a style or not, and so on; no two of them have the same story. A pure function of the world's seed and
    `index`.
    """
    rng = generator(world.seed, "storybook", "siblings", world.split, index)
    family, found = _Family.draw(rng), dict[str, Clip]()
    for _ in range(TRIES):
        if len(found) == count:
            break
        clip = world.describe(**family.member(rng), seed=int(rng.integers(2**31)))
        if world.belongs(clip):
            found.setdefault(story(clip), clip)
    return list(found.values())


def story(clip: Clip) -> str:
    """What is told of a clip, but for its scene: captions of clips of one story may be the same."""
    acts = [(a.character, a.becomes, [(m.action, m.speed) for m in a.moves]) for a in clip.actors]
    kind = clip.relation.kind if clip.relation else None
    if kind == "right of":
        kind, acts = "left of", acts[::-1]
    if kind in ("meets", "passes"):
        acts.sort(key=str)
    told = [act[:2] for act in acts] if kind == "meets" else acts  # who comes from where is not always told
    return str((told, kind, clip.style, clip.camera.kind, [event.kind for event in clip.events]))


@dataclass(frozen=True)
class _Family:
    """What its members have in common."""

    who: Character
    mate: Character
    where: Scene
    look: str
    action: str
    duration: float

    @classmethod
    def draw(cls, rng: np.random.Generator) -> _Family:
        duration = 0.0 if rng.random() < PICTURES else DURATION
        who, where = sample.pick_cast(rng)
        mate = sample.pick_other(rng, where, sample.others(who))
        look = sample.one_of(rng, where.looks)[0]
        return cls(who, mate, where, look, sample.pick_action(rng, who, where, duration), duration)

    def member(self, rng: np.random.Generator) -> dict[str, Any]:
        """Arguments of `World.describe` for another clip."""
        action = self.action
        if rng.random() < 0.5:
            action = sample.pick_action(rng, self.who, self.where, self.duration)
        asked: dict[str, Any] = {
            "character": self.who.name,
            "action": action,
            "scene": self.where.name,
            "look": self.look,
            "duration": self.duration,
            "style": sample.one_of(rng, STYLES) if rng.random() < 0.3 else None,
        }
        if rng.random() < 0.25:
            return asked | self._relation(rng)
        return asked | (self._happening(rng, action) if self.duration else {})

    def _relation(self, rng: np.random.Generator) -> dict[str, Any]:
        one, other = (self.who, self.mate) if rng.random() < 0.5 else (self.mate, self.who)
        kind = sample.one_of(rng, [k for k in RELATIONS if self.duration or k in STILL])
        if kind == "together":
            return {"action": None, "count": int(rng.integers(2, 4))}
        if not fits(kind, one, other, self.where):
            return {}
        return {"character": one.name, "action": None, "relation": kind, "other": other.name}

    def _happening(self, rng: np.random.Generator, action: str) -> dict[str, Any]:
        what = rng.random()
        if what < 0.15:
            return self._event(rng)
        if what < 0.3:
            first, second = sample.pick_sequence(rng, self.who, self.where)
            return {"action": first, "then": second}
        if what < 0.6 and (suited := sample.cameras_for(action)):
            return {"camera": sample.one_of(rng, suited)}
        return {"speed": sample.pick_speed(rng, action, self.duration)} if what > 0.8 else {}

    def _event(self, rng: np.random.Generator) -> dict[str, Any]:
        kind = sample.one_of(rng, EVENTS)
        if kind == "transform":
            same = mode_in(self.mate, self.where) == mode_in(self.who, self.where)
            return {"action": "stay", "becomes": self.mate.name} if same else {}
        return {"event": kind} if self.where.open and self.look not in sample.WET_LOOKS else {}
