"""Draw the state of a clip at random."""

from __future__ import annotations

import numpy as np

from cogvideox.data.storybook.cast import Character, cast
from cogvideox.data.storybook.clip import Clip
from cogvideox.data.storybook.plan import ANIMATION, allowed, mode_in, plan, room_for, speeds_for
from cogvideox.data.storybook.scenes import SCENES, Scene
from cogvideox.data.storybook.state import ACTIONS, Actor, Setting

SURPRISE = 0.2
"""Share of clips whose character does not belong to the scene."""
ACTION_WEIGHT = {"stay": 1.2, "jump": 1.6, "bounce": 1.2, "spin": 1.2, "circle": 1.4, "pace": 1.2, "approach": 1.4,
                 "recede": 1.2, "move left": 3.0, "move right": 3.0, "move up": 2.2, "move down": 1.6}  # fmt: skip
"""How often an action is drawn; 0.8 if not named."""


def pick_cast(rng: np.random.Generator) -> tuple[Character, Scene]:
    """A character and a scene, usually one where it belongs."""
    people = list(cast().values())
    who = people[int(rng.integers(len(people)))]
    scenes = list(SCENES.values())
    fit = [s for s in scenes if s.tags & who.home]
    if rng.random() >= SURPRISE and fit:
        scenes = fit
    return who, scenes[int(rng.integers(len(scenes)))]


def pick_action(rng: np.random.Generator, who: Character, where: Scene, duration: float) -> str:
    """An action that the character can do there in that time."""
    if duration <= 0:
        return "stay"
    mode = mode_in(who, where)
    options = [a for a in ACTIONS if allowed(a, mode)]
    weights = np.asarray([ACTION_WEIGHT.get(a, 0.8) for a in options])
    return options[int(rng.choice(len(options), p=weights / weights.sum()))]


def pick_speed(rng: np.random.Generator, action: str, duration: float) -> str:
    """A speed at which the action can be shown."""
    options = speeds_for(action, duration)
    if "" in options and rng.random() < 0.5:
        return ""
    return options[int(rng.integers(len(options)))]


def pick_size(rng: np.random.Generator, who: Character, action: str, duration: float) -> float:
    """Size of a single character; smaller where it must travel far."""
    size = rng.uniform(0.38, 0.58)
    if action.startswith(("move", "zigzag", "pace")):
        size = rng.uniform(0.34, 0.46)
    if action in ("circle", "bounce", "jump"):
        size = rng.uniform(0.34, 0.45)
    return float(size * who.size)


def setting(rng: np.random.Generator, where: Scene) -> Setting:
    """A look and a layout for a scene."""
    look = where.looks[int(rng.integers(len(where.looks)))][0]
    return Setting(where.name, look, int(rng.integers(2**31)))


def solo(rng: np.random.Generator, who: Character, where: Scene, action: str, speed: str, duration: float,
         size: float | None = None) -> Actor:  # fmt: skip
    """One character doing one thing for the whole clip."""
    blank = Actor(who.name, size or pick_size(rng, who, action, duration), mode_in(who, where), (), float(rng.uniform(0, 3)),
                  ANIMATION[speed])  # fmt: skip
    move = plan(action, speed, 0.0, max(duration, 1e-3), room_for(blank, where, rng))
    return Actor(blank.character, blank.size, blank.mode, (move,), blank.phase, blank.rate)


def clip(
    rng: np.random.Generator, split: str, level: str, duration: float, version: str, seed: int, index: int
) -> Clip:
    """Any clip of a level; whether it belongs to the split is checked by the world."""
    who, where = pick_cast(rng)
    action = pick_action(rng, who, where, duration)
    actor = solo(rng, who, where, action, pick_speed(rng, action, duration), duration)
    return Clip(version, seed, index, duration, setting(rng, where), (actor,))
