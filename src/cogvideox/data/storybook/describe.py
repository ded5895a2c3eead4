"""Clips made to order, from the names of characters, actions and scenes."""

from __future__ import annotations

from dataclasses import dataclass, replace

from cogvideox.core.errors import InputError
from cogvideox.core.rng import generator
from cogvideox.data.storybook import sample
from cogvideox.data.storybook.cast import Character, character
from cogvideox.data.storybook.clip import LONGEST, Clip
from cogvideox.data.storybook.naming import action_named, choose, speed_named
from cogvideox.data.storybook.plan import allowed, mode_in
from cogvideox.data.storybook.relations import STILL, fits, relate
from cogvideox.data.storybook.scenes import Scene, scene
from cogvideox.data.storybook.state import ACTIONS, CAMERAS, EVENTS, RELATIONS, STYLES, Event, Relation


@dataclass(frozen=True)
class Order:
    """What a clip must show; see `World.describe`."""

    character: str
    action: str | None
    scene: str
    seed: int
    duration: float
    speed: str
    then: str | None
    relation: str | None
    other: str | None
    count: int
    style: str | None
    camera: str
    event: str | None
    becomes: str | None
    look: str | None


def _action(text: str, who: Character, where: Scene) -> str:
    action = action_named(text)
    mode = mode_in(who, where)
    if not allowed(action, mode):
        possible = ", ".join(a for a in ACTIONS if allowed(a, mode))
        raise InputError(f"{who.name!r} cannot {action!r} in {where.name!r}; it can: {possible}")
    return action


def _look(where: Scene, look: str | None) -> str | None:
    if look is None:
        return None
    return choose(f"look of {where.name!r}", look, [key for key, _ in where.looks])


def _check(order: Order) -> None:
    if not 0 <= order.duration <= LONGEST:
        raise InputError(f"duration must be 0 to {LONGEST:.0f} seconds, got {order.duration}")
    if not 1 <= order.count <= 3:
        raise InputError(f"count must be 1 to 3, got {order.count}")
    extras = {"then": order.then, "becomes": order.becomes, "relation": order.relation, "event": order.event}
    given = [name for name, value in extras.items() if value]
    if len(given) > 1 and set(given) != {"relation", "event"}:
        raise InputError(f"choose one of {', '.join(given)}: a clip tells one story")
    if order.duration <= 0 and (order.then or order.becomes or order.event or order.camera != "static"):
        raise InputError("a still picture (duration 0) has no second action, event or camera move")


def _canonical(order: Order, who: Character, where: Scene) -> Order:
    """The same order with every name in its canonical spelling, so that paraphrases give the same clip."""
    return replace(
        order,
        character=who.name,
        action=_action(order.action, who, where) if order.action else None,
        scene=where.name,
        speed=speed_named(order.speed),
        then=_action(order.then, who, where) if order.then else None,
        relation=choose("relation", order.relation, RELATIONS) if order.relation else None,
        other=character(order.other).name if order.other else None,
        style=choose("style", order.style, STYLES) if order.style else None,
        camera=choose("camera", order.camera, CAMERAS),
        event=choose("event", order.event, [e for e in EVENTS if e != "transform"]) if order.event else None,
        becomes=character(order.becomes).name if order.becomes else None,
        look=_look(where, order.look),
    )


def describe(order: Order, version: str) -> Clip:
    """Build one clip; ValueError in one line for names that do not exist or do not go together."""
    _check(order)
    who, where = character(order.character), scene(order.scene)
    order = _canonical(order, who, where)
    rng = generator(order.seed, "storybook", version, "describe", *(str(v) for v in vars(order).values()))
    place = sample.setting(rng, where, order.look)
    clip = Clip(version, order.seed, int(rng.integers(1 << 30)), order.duration, place, (), style=order.style)
    clip = _happens(order, clip, where, rng)
    if order.count > 1 or order.relation or order.other:
        return _several(order, clip, who, where, rng)
    action = order.action if order.action and order.duration > 0 else "stay"
    if order.then:
        actor = sample.sequence(rng, who, where, action, order.then, order.duration)
        return replace(clip, actors=(actor,))
    actor = sample.solo(rng, who, where, action, order.speed, order.duration)
    if order.becomes:
        actor = sample.transformed(rng, actor, where, order.duration, order.becomes)
        return replace(
            clip, actors=(actor,), events=(Event("transform", actor.changes_at, actor.changes_at),)
        )
    camera = order.camera
    if camera == "static":
        return replace(clip, actors=(actor,))
    if camera not in sample.cameras_for(action):
        suited = ", ".join(sorted(set(sample.cameras_for(action)))) or "static"
        raise InputError(f"camera {camera!r} does not suit {action!r}; suited: {suited}")
    moving, actor = sample.camera_for(rng, actor, where, order.duration, camera)
    return replace(clip, actors=(actor,), camera=moving)


def _happens(order: Order, clip: Clip, where: Scene, rng: sample.Generator) -> Clip:
    if not order.event:
        return clip
    kind = order.event
    if not where.open:
        raise InputError(f"event {kind!r} needs open sky by day, not {where.name!r}")
    return replace(clip, events=(sample.event(rng, kind, order.duration),))


def _several(order: Order, clip: Clip, who: Character, where: Scene, rng: sample.Generator) -> Clip:
    kind = order.relation or "together"
    if order.other is None and kind != "together":
        raise InputError(f"relation {kind!r} needs a second character: give `other`")
    if order.duration <= 0 and kind not in STILL:
        raise InputError(f"relation {kind!r} needs motion; a still picture can show: {', '.join(STILL)}")
    cast = [who, character(order.other)] if order.other else [who] * max(2, order.count)
    if not fits(kind, cast[0], cast[1], where):
        raise InputError(f"{cast[0].name!r} and {cast[1].name!r} cannot be {kind!r} in {where.name!r}")
    action = order.action if order.duration > 0 else None
    way = -1 if action and action.endswith("left") else 1 if action and action.endswith("right") else None
    group = relate(rng, kind, cast, where, order.duration, action, way)
    camera = group.camera if not clip.events else type(group.camera)()
    return replace(clip, actors=group.actors, camera=camera, relation=Relation(kind, len(cast)))
