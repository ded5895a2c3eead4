"""Draw the state of a clip at random."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np

from cogvideox.data.storybook.cast import Character, cast
from cogvideox.data.storybook.clip import Clip
from cogvideox.data.storybook.motion import extent
from cogvideox.data.storybook.plan import (
    ANIMATION,
    allowed,
    end_of,
    heading,
    mode_in,
    plan,
    room_for,
    speeds_for,
)
from cogvideox.data.storybook.relations import STILL, fits, relate
from cogvideox.data.storybook.scenes import SCENES, Scene
from cogvideox.data.storybook.state import (
    ACTIONS,
    RELATIONS,
    STYLES,
    Actor,
    Camera,
    Event,
    Relation,
    Setting,
    Spot,
)

T = TypeVar("T")
Generator = np.random.Generator

SURPRISE = 0.2
"""Share of characters that do not belong to the scene."""
ACTION_WEIGHT = {
    "stay": 1.2,
    "jump": 1.6,
    "bounce": 1.2,
    "spin": 1.2,
    "circle": 1.4,
    "pace": 1.2,
    "approach": 1.4,
    "recede": 1.2,
    "move left": 3.0,
    "move right": 3.0,
    "move up": 2.2,
    "move down": 1.6,
}
"""How often an action is drawn; 0.8 if not named."""
KIND_WEIGHT = {
    "single": 0.52,
    "sequence": 0.14,
    "relation": 0.2,
    "transform": 0.05,
    "nightfall": 0.04,
    "weather": 0.05,
}
"""What a full clip is about."""
LONG = 4.0
"""Seconds from which coming and going does not take the whole clip."""
STYLE_SHARE = 0.16
CAMERA_SHARE = 0.3
"""Share of single clips, among those whose action leaves room for it, whose camera moves."""
WET_LOOKS = ("stormy", "falling")
"""Looks in which it already rains or snows."""
STANDING = ("stay", "jump", "bounce", "spin")
FIRST = (
    "stay",
    "jump",
    "bounce",
    "spin",
    "circle",
    "move left",
    "move right",
    "move up",
    "move down",
    "enter left",
    "enter right",
    "approach",
)
SECOND = (
    "jump",
    "bounce",
    "spin",
    "circle",
    "move left",
    "move right",
    "move up",
    "move down",
    "leave left",
    "leave right",
    "recede",
)


def one_of(rng: np.random.Generator, options: Sequence[T]) -> T:
    """A random element."""
    return options[int(rng.integers(len(options)))]


def pick_cast(rng: np.random.Generator) -> tuple[Character, Scene]:
    """A character and a scene, usually one where it belongs."""
    who = one_of(rng, list(cast().values()))
    scenes = list(SCENES.values())
    fit = [s for s in scenes if s.tags & who.home]
    if rng.random() >= SURPRISE and fit:
        scenes = fit
    return who, one_of(rng, scenes)


def others(who: Character) -> list[Character]:
    """All characters but this one."""
    return [c for c in cast().values() if c.name != who.name]


def pick_other(rng: np.random.Generator, where: Scene, test: list[Character]) -> Character:
    """Another character for a scene, usually one that belongs there; `test` are those that are possible."""
    fit = [c for c in test if c.home & where.tags]
    return one_of(rng, fit if fit and rng.random() >= SURPRISE else test)


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
    return one_of(rng, options)


def pick_size(rng: np.random.Generator, who: Character, action: str) -> float:
    """Size of a single character; smaller where it must travel far."""
    size = rng.uniform(0.42, 0.6)
    if action.startswith(("move", "zigzag", "pace", "circle", "bounce", "jump")):
        size = rng.uniform(0.37, 0.49)
    return float(size * who.size)


def setting(rng: np.random.Generator, where: Scene, look: str | None = None) -> Setting:
    """A look and a layout for a scene."""
    drawn = one_of(rng, where.looks)[0]
    return Setting(where.name, look or drawn, int(rng.integers(2**31)))


def blank(rng: np.random.Generator, who: Character, where: Scene, speed: str, size: float) -> Actor:
    """An actor without moves."""
    return Actor(who.name, size, mode_in(who, where), (), float(rng.uniform(0, 3)), ANIMATION[speed])


def solo(
    rng: np.random.Generator,
    who: Character,
    where: Scene,
    action: str,
    speed: str,
    duration: float,
    size: float | None = None,
) -> Actor:
    """One character doing one thing; in a long clip it stays after it came, or before it goes."""
    actor = blank(rng, who, where, speed, size or pick_size(rng, who, action))
    room = room_for(actor, where, rng)
    if action.startswith(("enter", "leave")) and duration > LONG:
        walk = float(rng.uniform(0.5, 0.65)) * LONG
        if action.startswith("enter"):
            move = plan(action, speed, 0.0, walk, room)
            rest = plan("stay", "", walk, duration, room, end_of(move))
            return replace(actor, moves=(move, replace(rest, face=move.face)))
        rest = replace(plan("stay", "", 0.0, duration - walk, room), face=heading(action))
        return replace(
            actor, moves=(rest, plan(action, speed, duration - walk, duration, room, end_of(rest)))
        )
    return replace(actor, moves=(plan(action, speed, 0.0, max(duration, 1e-3), room),))


def sequence(
    rng: np.random.Generator, who: Character, where: Scene, first: str, second: str, duration: float
) -> Actor:
    """One character doing two things, one after the other."""
    actor = blank(rng, who, where, "", float(rng.uniform(0.34, 0.44)) * who.size)
    room = room_for(actor, where, rng)
    half = duration / 2
    one = plan(first, "", 0.0, half, room)
    two = plan(second, "", half, duration, room, end_of(one))
    return replace(actor, moves=(one, replace(two, face=one.face)))


def pick_sequence(rng: np.random.Generator, who: Character, where: Scene) -> tuple[str, str]:
    """Two actions of which the second can follow the first."""
    mode = mode_in(who, where)
    first = one_of(rng, [a for a in FIRST if allowed(a, mode)])
    after = [a for a in SECOND if allowed(a, mode) and a != first]
    way = first.split()[-1]
    if first.startswith("move"):
        # There is no room left to go on in the same direction.
        after = [a for a in after if not (a.startswith(("move", "leave")) and a.split()[-1] == way)]
    if first == "approach":
        after = [a for a in after if a in STANDING]
    if first.startswith("enter"):
        after = [a for a in after if a != "recede"]
    return first, one_of(rng, after)


def camera_for(
    rng: np.random.Generator, actor: Actor, where: Scene, duration: float, kind: str | None = None
) -> tuple[Camera, Actor]:
    """A moving camera that suits what an actor does, and the actor laid out for it; `kind` asks for one."""
    move = actor.moves[0]
    options = cameras_for(move.action)
    if not options or (kind and kind not in options):
        return Camera(), actor
    kind = kind or one_of(rng, options)
    if kind == "follow":
        way = 1 if move.action.endswith("right") else -1
        pace = {"slowly": (0.1, 0.16), "": (0.24, 0.36), "quickly": (0.5, 0.65)}[move.speed]
        amount = way * min(2.4, float(rng.uniform(*pace)) * duration)
        a, b = replace(move.a, x=0.5 - amount / 2), replace(move.b, x=0.5 + amount / 2)
        return Camera("follow", amount), replace(actor, moves=(replace(move, a=a, b=b),))
    if kind.startswith("zoom"):
        small = replace(actor, size=actor.size * 0.78)
        high = extent(small, 1.0)[1]
        y = move.a.y - (0.0 if actor.mode in ("air", "free") else high / 2)
        return Camera(kind, float(rng.uniform(1.45, 1.7)), (move.a.x, float(np.clip(y, 0.3, 0.75)))), small
    if move.action in STANDING:
        vertical = kind in ("pan up", "pan down")
        y = move.a.y - (0.06 if vertical else 0.0)
        spot = Spot(0.5, y, 0.0, move.a.scale)
        amount = float(rng.uniform(0.16, 0.22) if vertical else rng.uniform(0.26, 0.36))
        return Camera(kind, amount), replace(actor, moves=(replace(move, a=spot, b=spot),))
    return Camera(kind, float(rng.uniform(0.35, 0.6))), replace(actor, rides=True)


def cameras_for(action: str) -> list[str]:
    """Camera moves that do not contradict an action."""
    if action in STANDING:
        return ["pan left", "pan right", "zoom in", "zoom out", "pan up", "pan down"]
    if action in ("move left", "move right"):
        return ["follow", "follow", "pan " + action.split()[1]]
    return ["zoom in", "zoom out"] if action == "circle" else []


def pick_relation(
    rng: np.random.Generator, who: Character, where: Scene, duration: float
) -> tuple[str, list[Character]]:
    """A relation and the characters in it, the given one first; "" if none is possible."""
    kinds = [k for k in RELATIONS if duration >= 1 or k in STILL]
    for _ in range(20):
        kind = one_of(rng, kinds)
        if kind == "together" and rng.random() < 0.65:
            return kind, [who] * int(rng.integers(2, 4))
        possible = [c for c in others(who) if fits(kind, who, c, where)]
        if possible:
            return kind, [who, pick_other(rng, where, possible)]
    return "", [who]


def transformed(
    rng: np.random.Generator, actor: Actor, where: Scene, duration: float, into: str | None = None
) -> Actor:
    """The same actor, turning into another character half way."""
    alike = [c for c in cast().values() if c.name != actor.character and mode_in(c, where) == actor.mode]
    return replace(
        actor, becomes=into or one_of(rng, alike).name, changes_at=duration * float(rng.uniform(0.45, 0.55))
    )


def event(rng: np.random.Generator, kind: str, duration: float) -> Event:
    """An event in the middle of a clip."""
    if kind == "nightfall":
        return Event(kind, 0.12 * duration, 0.88 * duration, int(rng.integers(2**31)))
    start = float(rng.uniform(0.15, 0.3))
    return Event(kind, start * duration, (start + 0.35) * duration, int(rng.integers(2**31)))


def clip(
    rng: np.random.Generator, split: str, level: str, duration: float, version: str, seed: int, index: int
) -> Clip:
    """Any clip of a level; whether it belongs to the split is checked by the world."""
    who, where = pick_cast(rng)
    place = setting(rng, where)
    kind = "single"
    if level == "full":
        kind = str(rng.choice(list(KIND_WEIGHT), p=list(KIND_WEIGHT.values())))
        kind = _possible(kind, where, place, duration)
    style = one_of(rng, STYLES) if level == "full" and rng.random() < STYLE_SHARE else None
    base = Clip(version, seed, index, duration, place, (), style=style)
    if kind == "sequence":
        return replace(base, actors=(sequence(rng, who, where, *pick_sequence(rng, who, where), duration),))
    if kind == "relation":
        relation, people = pick_relation(rng, who, where, duration)
        if relation:
            group = relate(rng, relation, people, where, duration)
            return replace(
                base, actors=group.actors, camera=group.camera, relation=Relation(relation, len(people))
            )
    action = pick_action(rng, who, where, duration)
    if kind == "transform":
        action = one_of(rng, ("stay", "spin", "bounce", "move left", "move right"))
        actor = transformed(rng, solo(rng, who, where, action, "", duration), where, duration)
        return replace(
            base, actors=(actor,), events=(Event("transform", actor.changes_at, actor.changes_at),)
        )
    actor = solo(rng, who, where, action, pick_speed(rng, action, duration), duration)
    if kind in ("nightfall", "weather"):
        happens = kind if kind == "nightfall" else one_of(rng, ("rain", "snow"))
        return replace(base, actors=(actor,), events=(event(rng, happens, duration),))
    camera = Camera()
    if level == "full" and duration >= 0.8 and rng.random() < CAMERA_SHARE:
        camera, actor = camera_for(rng, actor, where, duration)
    return replace(base, actors=(actor,), camera=camera)


def _possible(kind: str, where: Scene, place: Setting, duration: float) -> str:
    """The kind of clip, or "single" if the scene or the time does not allow it."""
    if kind == "sequence" and duration < 1.5:
        return "single"
    if kind in ("transform", "nightfall", "weather") and duration < 1:
        return "single"
    if kind in ("nightfall", "weather") and (not where.open or place.look in WET_LOOKS):
        return "single"
    return kind
