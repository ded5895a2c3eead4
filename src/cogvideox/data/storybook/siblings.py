"""Clips that differ in one or two things only: the captions that a text encoder must tell apart."""

from __future__ import annotations

from typing import Any

from cogvideox.core.errors import InputError
from cogvideox.core.rng import generator
from cogvideox.data.storybook import sample
from cogvideox.data.storybook.clip import Clip
from cogvideox.data.storybook.relations import fits
from cogvideox.data.storybook.state import EVENTS, RELATIONS, STYLES
from cogvideox.data.storybook.world import World

DURATION = 2.0
"""Seconds: long enough for every action."""
TRIES = 64
"""Draws for a family; where few things can happen, it stays small."""


def story(clip: Clip) -> str:
    """What is told of a clip, but for its scene: two clips of one story are the same to a reader."""
    acts = [(a.character, a.becomes, [(m.action, m.speed) for m in a.moves]) for a in clip.actors]
    return str((acts, clip.style, clip.camera.kind, [e.kind for e in clip.events], clip.relation))


def siblings(world: World, index: int, count: int) -> list[Clip]:
    """Up to `count` clips of the split with one character in one scene, with the same action or another, in
    a style or not, and so on; no two of them tell the same. A pure function of the world's seed and `index`.
    """
    rng = generator(world.seed, "storybook", "siblings", world.split, index)
    who, where = sample.pick_cast(rng)
    common = sample.pick_action(rng, who, where, DURATION)
    kinds = [kind for kind in RELATIONS if kind != "together"]
    mate = sample.pick_other(rng, where, sample.others(who))
    found: dict[str, Clip] = {}
    for _ in range(TRIES):
        if len(found) == count:
            break
        same, camera, event, relation, then, style, fast = rng.random(7)
        action = common if same < 0.5 else sample.pick_action(rng, who, where, DURATION)
        asked: dict[str, Any] = {"style": sample.one_of(rng, STYLES) if style < 0.3 else None}
        if relation < 0.25:
            pair = [who, mate] if rng.random() < 0.5 else [mate, who]
            kind = sample.one_of(rng, [kind for kind in kinds if fits(kind, pair[0], pair[1], where)])
            asked |= {"character": pair[0].name, "relation": kind, "other": pair[1].name}
        elif event < 0.15:
            kind = sample.one_of(rng, EVENTS)
            asked |= {"becomes": mate.name} if kind == "transform" else {"event": kind}
        elif then < 0.15:
            action, second = sample.pick_sequence(rng, who, where)
            asked |= {"then": second}
        elif camera < 0.4 and (suited := sample.cameras_for(action)):
            asked |= {"camera": sample.one_of(rng, suited)}
        elif fast < 0.4:
            asked |= {"speed": sample.pick_speed(rng, action, DURATION)}
        asked = {"character": who.name, "action": action, "scene": where.name} | asked
        try:
            clip = world.describe(**asked, seed=int(rng.integers(2**31)), duration=DURATION)
        except InputError:  # not everything goes with everything
            continue
        if world.belongs(clip):
            found.setdefault(story(clip), clip)
    return list(found.values())
