"""Two or three characters that have to do with each other: side by side, one chasing the other, meeting,
passing.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from cogvideox.data.storybook.cast import Character
from cogvideox.data.storybook.motion import GROUND_DEPTH, extent
from cogvideox.data.storybook.plan import ANIMATION, PACE, allowed, mode_in, plan, room_for, speeds_for
from cogvideox.data.storybook.scenes import Scene
from cogvideox.data.storybook.state import Actor, Camera, Move, Spot

STILL = ("left of", "right of", "above", "in front of", "together")
"""Relations that a still picture can show."""
FLAT = ("ground", "water")
IN_PLACE = ("stay", "jump", "bounce", "spin")
GAP = 0.04
"""Space between neighbours in short sides."""


@dataclass(frozen=True)
class Group:
    """The actors of a relation and the camera that it needs."""

    actors: tuple[Actor, ...]
    camera: Camera = field(default_factory=Camera)


def fits(kind: str, first: Character, second: Character, where: Scene) -> bool:
    """Whether two characters can be in a relation in a scene."""
    a, b = mode_in(first, where), mode_in(second, where)
    if kind == "above":
        return (a == "air" and b in FLAT) or a == b == "free"
    if kind in ("jumps over", "in front of"):
        return a == b and a in FLAT
    if kind in ("left of", "right of"):
        return True
    return a == b


def _actor(rng: np.random.Generator, who: Character, where: Scene, size: float, speed: str = "") -> Actor:
    return Actor(
        who.name, size * who.size, mode_in(who, where), (), float(rng.uniform(0, 3)), ANIMATION[speed]
    )


def _half(actor: Actor) -> float:
    return extent(actor, 1.0)[0] / 2


def _line(rng: np.random.Generator, actors: list[Actor], where: Scene) -> float:
    """A common y for neighbours: of the ground if they share it."""
    bands = [room_for(a, where, rng).band for a in actors]
    low, high = max(b[0] for b in bands), min(b[1] for b in bands)
    return float(rng.uniform(min(low, high), high))


def _own_line(rng: np.random.Generator, actor: Actor, where: Scene) -> float:
    return float(rng.uniform(*room_for(actor, where, rng).band))


def _at(
    rng: np.random.Generator, actor: Actor, where: Scene, action: str, duration: float, spot: Spot, face: int
) -> Actor:
    move = plan(action, "", 0.0, max(duration, 1e-3), room_for(actor, where, rng), spot)
    return replace(actor, moves=(replace(move, face=face),))


def _travel(actor: Actor, action: str, speed: str, duration: float, a: Spot, b: Spot) -> Actor:
    way = 1 if b.x + b.dx > a.x + a.dx else -1
    return replace(actor, moves=(Move(action, speed, 0.0, max(duration, 1e-3), a, b, way),))


def _pick(rng: np.random.Generator, options: tuple[str, ...]) -> str:
    return options[int(rng.integers(len(options)))]


def _in_place_of(mode: str) -> tuple[str, ...]:
    return tuple(action for action in IN_PLACE if allowed(action, mode))


def beside(
    rng: np.random.Generator,
    kind: str,
    first: Character,
    second: Character,
    where: Scene,
    duration: float,
    action: str | None,
) -> Group:
    """One to the left or right of the other; the first may do something in its place."""
    a, b = (
        _actor(rng, first, where, rng.uniform(0.3, 0.38)),
        _actor(rng, second, where, rng.uniform(0.3, 0.38)),
    )
    side = -1 if kind == "left of" else 1
    ya = yb = _line(rng, [a, b], where)
    if a.mode != b.mode:
        ya, yb = _own_line(rng, a, where), _own_line(rng, b, where)
    shift = (_half(a) - _half(b)) * side * -0.5
    spot_a = Spot(0.5, ya, side * (_half(a) + GAP / 2) + shift)
    spot_b = Spot(0.5, yb, -side * (_half(b) + GAP / 2) + shift)
    action = action or (_pick(rng, _in_place_of(a.mode)) if duration > 0 else "stay")
    toward = -side if rng.random() < 0.7 else side
    return Group(
        (
            _at(rng, a, where, action, duration, spot_a, toward),
            _at(rng, b, where, "stay", duration, spot_b, side),
        )
    )


def above(
    rng: np.random.Generator,
    first: Character,
    second: Character,
    where: Scene,
    duration: float,
    action: str | None,
) -> Group:
    """A flyer over something below it."""
    a, b = (
        _actor(rng, first, where, rng.uniform(0.27, 0.34)),
        _actor(rng, second, where, rng.uniform(0.28, 0.35)),
    )
    high_a, high_b = extent(a, 1.0)[1], extent(b, 1.0)[1]
    x = 0.5 + float(rng.uniform(-0.12, 0.12))
    if b.mode == "free":
        yb = 0.95 - high_b / 2
        ya = max(high_a / 2 + 0.03, yb - high_b / 2 - high_a / 2 - 0.06)
    else:
        yb = room_for(b, where, rng).band[1]
        ya = max(high_a / 2 + 0.02, yb - high_b - high_a / 2 - 0.05)
    action = action or (_pick(rng, ("stay", "spin", "circle")) if duration > 0 else "stay")
    face = int(rng.choice([-1, 1]))
    upper = _at(rng, a, where, action, duration, Spot(x, ya), face)
    if action == "circle":
        move = upper.moves[0]
        radius = 0.1
        upper = replace(
            upper, moves=(replace(move, a=Spot(x, max(ya, high_a / 2 + radius)), b=move.a, radius=radius),)
        )
    return Group((upper, _at(rng, b, where, "stay", duration, Spot(x, yb), face)))


def in_front(
    rng: np.random.Generator,
    first: Character,
    second: Character,
    where: Scene,
    duration: float,
    action: str | None,
) -> Group:
    """A nearer one that partly hides a farther one."""
    a, b = (
        _actor(rng, first, where, rng.uniform(0.27, 0.32)),
        _actor(rng, second, where, rng.uniform(0.42, 0.48)),
    )
    near, far = room_for(a, where, rng).band, room_for(b, where, rng).band
    side = float(rng.choice([-1, 1]))
    shift = 0.5 * _half(b) * side
    spot_a, spot_b = Spot(0.5, near[1], shift), Spot(0.5, min(far[0], near[1] - 0.05), -shift)
    action = action or (_pick(rng, IN_PLACE[:3]) if duration > 0 else "stay")
    face = int(rng.choice([-1, 1]))
    front = replace(_at(rng, a, where, action, duration, spot_a, face), order=0.5)
    return Group((front, _at(rng, b, where, "stay", duration, spot_b, face)))


def chase(
    rng: np.random.Generator, first: Character, second: Character, where: Scene, duration: float, way: int
) -> Group:
    """The first runs after the second; the camera may follow them."""
    speed = "quickly" if rng.random() < 0.5 else ""
    a = _actor(rng, first, where, rng.uniform(0.27, 0.33), speed)
    b = _actor(rng, second, where, rng.uniform(0.27, 0.33), speed)
    y = _line(rng, [a, b], where)
    action = "move right" if way > 0 else "move left"
    behind, ahead = -way * (_half(a) + GAP), way * (_half(b) + GAP)
    slow, fast = PACE[speed]
    if duration > 1.2 and rng.random() < 0.5:
        amount = way * min(2.2, float(rng.uniform(slow, fast)) * 1.2 * duration)
        camera = Camera("follow", amount)
        x0, x1 = 0.5 - amount / 2, 0.5 + amount / 2
    else:
        camera = Camera()
        reach = min(0.5, max(0.2, fast * duration))
        if speed == "quickly" and duration > 1.2:
            reach = 0.9
        x0, x1 = 0.5 - way * reach / 2, 0.5 + way * reach / 2
    chaser = _travel(a, action, speed, duration, Spot(x0, y, behind), Spot(x1, y, behind))
    chased = _travel(b, action, speed, duration, Spot(x0, y, ahead), Spot(x1, y, ahead))
    return Group((chaser, chased), camera)


def meet(
    rng: np.random.Generator, first: Character, second: Character, where: Scene, duration: float, way: int
) -> Group:
    """They come from both sides and stop in front of each other."""
    a, b = (
        _actor(rng, first, where, rng.uniform(0.29, 0.36)),
        _actor(rng, second, where, rng.uniform(0.29, 0.36)),
    )
    y = _line(rng, [a, b], where)
    actors = []
    for actor, side in ((a, -way), (b, way)):
        edge, half = (0.0 if side < 0 else 1.0), _half(actor)
        rest = Spot(0.5, y, side * (half + GAP / 2))
        walk = Move(
            "move right" if side < 0 else "move left",
            "",
            0.0,
            0.75 * duration,
            Spot(edge, y, -side * half * 0.6),
            rest,
            -side,
        )
        actors.append(
            replace(actor, moves=(walk, Move("stay", "", 0.75 * duration, duration, rest, rest, -side)))
        )
    return Group((actors[0], actors[1]))


def passing(
    rng: np.random.Generator, first: Character, second: Character, where: Scene, duration: float, way: int
) -> Group:
    """They go in opposite directions, the first nearer to the viewer."""
    a, b = (
        _actor(rng, first, where, rng.uniform(0.29, 0.35)),
        _actor(rng, second, where, rng.uniform(0.27, 0.33)),
    )
    near, far = room_for(a, where, rng).band, room_for(b, where, rng).band
    ya, yb = near[1], far[0]
    if a.mode not in FLAT:
        ya, yb = (
            min(0.94 - extent(a, 1.0)[1] / 2, near[1] + 0.1),
            max(extent(b, 1.0)[1] / 2 + 0.02, far[0] - 0.08),
        )
    actors = []
    for actor, side, y in ((a, way, ya), (b, -way, yb)):
        half = _half(actor)
        left, right = Spot(0.0, y, half * 0.7), Spot(1.0, y, -half * 0.7)
        start, end = (left, right) if side > 0 else (right, left)
        actors.append(_travel(actor, "move right" if side > 0 else "move left", "", duration, start, end))
    return Group((replace(actors[0], order=0.3), actors[1]))


def jump_over(
    rng: np.random.Generator, first: Character, second: Character, where: Scene, duration: float, way: int
) -> Group:
    """The first runs up and leaps over the second."""
    a, b = (
        _actor(rng, first, where, rng.uniform(0.25, 0.3)),
        _actor(rng, second, where, rng.uniform(0.21, 0.25)),
    )
    y = room_for(b, where, rng).band[1]
    left, right = Spot(0.0, y, _half(a) * 0.9), Spot(1.0, y, -_half(a) * 0.9)
    start, end = (left, right) if way > 0 else (right, left)
    height = min(extent(b, 1.0)[1] + 0.12, y - extent(a, 1.0)[1] - 0.01)
    leap = _travel(a, "jump", "", duration, start, end)
    leap = replace(leap, moves=(replace(leap.moves[0], hops=1, height=height, rest=0.3),), order=0.2)
    return Group((leap, _at(rng, b, where, "stay", duration, Spot(0.5, y), -way)))


def orbit(
    rng: np.random.Generator, first: Character, second: Character, where: Scene, duration: float
) -> Group:
    """The first goes round the second."""
    a, b = (
        _actor(rng, first, where, rng.uniform(0.2, 0.24)),
        _actor(rng, second, where, rng.uniform(0.26, 0.31)),
    )
    room_b = room_for(b, where, rng)
    turns = max(1.0, round(0.3 * duration)) * float(rng.choice([-1, 1]))
    radius = min(0.49 - _half(a) * 0.8, _half(b) + _half(a) + 0.03)
    y = min(sum(room_b.band) / 2, 0.95 - GROUND_DEPTH * radius) if b.mode in FLAT else 0.5
    centre = Spot(0.5, y)
    circle = Move("circle", "", 0.0, max(duration, 1e-3), centre, centre, turns=turns, radius=radius)
    return Group(
        (replace(a, moves=(circle,)), _at(rng, b, where, "stay", duration, centre, int(rng.choice([-1, 1]))))
    )


def together(
    rng: np.random.Generator, cast: list[Character], where: Scene, duration: float, action: str | None
) -> Group:
    """Two or three do the same side by side."""
    options = (*_in_place_of(mode_in(cast[0], where)), "move left", "move right", "move left", "move right")
    action = action or (_pick(rng, options) if duration > 0 else "stay")
    speeds = [s for s in speeds_for(action, duration) if s != "quickly"] or [""]
    speed = speeds[int(rng.integers(len(speeds)))] if action.startswith("move") else ""
    size = rng.uniform(0.3, 0.36) if len(cast) == 2 else rng.uniform(0.23, 0.27)
    actors = [_actor(rng, who, where, size, speed) for who in cast]
    y = _line(rng, actors, where)
    width = sum(2 * _half(a) for a in actors) + GAP * (len(actors) - 1)
    way = {"move left": -1, "move right": 1}.get(action, 0)
    slow, fast = PACE[speed]
    d = min(max(0.12, 1.12 - width), max(slow * duration, min(fast * duration, 0.5))) if way else 0.0
    face = int(rng.choice([-1, 1]))
    left, group = -width / 2, []
    for actor in actors:
        middle = left + _half(actor)
        left += 2 * _half(actor) + GAP
        a, b = Spot(0.5 - way * d / 2, y, middle), Spot(0.5 + way * d / 2, y, middle)
        if way:
            group.append(_travel(actor, action, speed, duration, a, b))
        else:
            group.append(_at(rng, actor, where, action, duration, a, face))
    return Group(tuple(group))


def relate(
    rng: np.random.Generator,
    kind: str,
    cast: list[Character],
    where: Scene,
    duration: float,
    action: str | None = None,
    way: int | None = None,
) -> Group:
    """Actors for a relation between the characters of `cast`; `way` is 1 for right, -1 for left."""
    first, second = cast[0], cast[1]
    way = way or int(rng.choice([-1, 1]))
    if kind in ("left of", "right of"):
        return beside(rng, kind, first, second, where, duration, action)
    if kind == "above":
        return above(rng, first, second, where, duration, action)
    if kind == "in front of":
        return in_front(rng, first, second, where, duration, action)
    if kind == "together":
        return together(rng, cast, where, duration, action)
    if kind == "circles around":
        return orbit(rng, first, second, where, duration)
    moving = {"chases": chase, "meets": meet, "passes": passing, "jumps over": jump_over}
    return moving[kind](rng, first, second, where, duration, way)
