"""Lay out actions: from an action's name to a `Move` that completes, or is plain to see, in the time there
is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from cogvideox.data.storybook.cast import Character
from cogvideox.data.storybook.motion import GROUND_DEPTH, extent
from cogvideox.data.storybook.scenes import Scene
from cogvideox.data.storybook.state import AIR_ONLY, Actor, Move, Spot
from cogvideox.data.storybook.words import GAITS

PACE = {"slowly": (0.05, 0.085), "": (0.11, 0.28), "quickly": (0.4, 0.62)}
"""Speeds in frame widths (heights) per second."""
BEAT = {"slowly": 0.55, "": 1.0, "quickly": 1.9}
"""Speed of repeated actions, relative to normal."""
ANIMATION = {"slowly": 0.7, "": 1.0, "quickly": 1.5}
"""Speed of the character's own animation."""
SHORTEST_SLOW = 1.6
"""Below this many seconds nothing can be seen to be slow."""


@dataclass(frozen=True)
class Ground:
    """Room to move for one actor in a scene."""

    mode: str
    band: tuple[float, float]
    """Allowed y: upper (far) and lower (near)."""
    half: float
    """Half its width in short sides at scale 1."""
    high: float
    """Its height in short sides at scale 1."""
    rng: np.random.Generator


def mode_in(who: Character, where: Scene) -> str:
    """How a character is in a scene: on the ground, on water, in the air or floating freely."""
    gait = GAITS[who.gait]
    if gait.water:
        if where.free and who.gait in ("swim", "paddle"):
            return "free"
        if where.water and who.gait != "swim":
            return "water"
        if where.water and "surface" in who.home:
            return "water"
        if where.free:
            return "free"
        return "air" if who.gait == "swim" else "ground" if where.ground else "water"
    if gait.air:
        return "free" if where.free else "air"
    if where.ground:
        return "ground"
    return "free" if where.free else "water"


def band_of(mode: str, where: Scene) -> tuple[float, float]:
    """The y range of a mode in a scene."""
    band = {"ground": where.ground, "water": where.water, "air": where.sky, "free": where.free}[mode]
    assert band is not None
    return band


def speeds_for(action: str, duration: float) -> tuple[str, ...]:
    """Speeds at which an action can be shown in `duration` seconds."""
    if action in ("stay", "jump") or duration <= 0:
        return ("",)
    straight = action.startswith(("move", "enter", "leave", "zigzag"))
    options = [""]
    if duration >= SHORTEST_SLOW:
        options.append("slowly")
    if duration <= 2.6 or not straight:
        options.append("quickly")
    if straight and duration > 8:
        options.remove("")
    return tuple(options)


def allowed(action: str, mode: str) -> bool:
    """Whether an action makes sense in a mode: nobody jumps in the air."""
    return action != "jump" if mode in ("air", "free") else action not in AIR_ONLY


def room_for(actor: Actor, where: Scene, rng: np.random.Generator) -> Ground:
    """The room that an actor has in a scene: its whole body stays in the picture."""
    wide, high = extent(actor, 1.0)
    low, near = band_of(actor.mode, where)
    if actor.mode in ("air", "free"):
        low, near = max(low, high / 2 + 0.02), min(near, 0.96 - high / 2)
        near = max(low, near)
    else:
        # Feet low enough that the head is inside the frame.
        low = min(near, max(low, high + 0.03))
    return Ground(actor.mode, (low, near), wide / 2, high, rng)


def _margin(room: Ground) -> float:
    return min(0.46, room.half * 0.96 + 0.01)


def _anywhere(room: Ground, wide: float = 0.5) -> Spot:
    """A place around the middle: `wide` is the share of the free width that is used."""
    rng, free = room.rng, 0.5 - _margin(room)
    x = 0.5 + rng.uniform(-1, 1) * free * wide
    return Spot(float(x), float(rng.uniform(*room.band)))


def _distance(room: Ground, speed: str, duration: float, most: float, least: float = 0.0) -> float:
    low, high = PACE[speed]
    return float(
        min(
            most,
            max(least, min(high, most / duration) * duration * room.rng.uniform(0.85, 1.0), low * duration),
        )
    )


def _straight(
    room: Ground, action: str, speed: str, duration: float, begin: Spot | None
) -> tuple[Spot, Spot]:
    where = action.split()[1]
    sx = -1 if "left" in where else 1 if "right" in where else 0
    sy = -1 if "up" in where else 1 if "down" in where else 0
    # Something quick may cross the whole frame, from one edge to the other.
    slack = 0.75 if speed == "quickly" and begin is None else 0.0
    margin = _margin(room) - slack * room.half
    air = room.mode in ("air", "free")
    overlap = slack * 0.5 * room.high
    top, bottom = (room.high / 2 + 0.01 - overlap, 0.97 - room.high / 2 + overlap) if air else room.band
    if begin is None:
        y = float(room.rng.uniform(*room.band))
        d = _distance(room, speed, duration, max(0.2, 1 - 2 * margin if sx else bottom - top))
        free = max(0.0, (1 - 2 * margin - d)) / 2
        x = 0.5 - sx * d / 2 + float(room.rng.uniform(-1, 1)) * (free if sx else 0.6 * (0.5 - margin))
        if sy:
            tall = min(d if not sx else 0.8 * d, bottom - top)
            y = (bottom if sy < 0 else top) + sy * float(room.rng.uniform(0, 1)) * max(
                0.0, bottom - top - tall
            )
            return Spot(x, y), Spot(x + sx * d, y + sy * tall)
        return Spot(x, y), Spot(x + sx * d, y)
    reach_x = (1 - margin - begin.x) if sx > 0 else (begin.x - margin)
    reach_y = (bottom - begin.y) if sy > 0 else (begin.y - top)
    d = _distance(room, speed, duration, max(0.18, reach_x) if sx else max(0.15, reach_y))
    x = begin.x + sx * d
    y = begin.y + sy * (min(max(0.12, reach_y), d) if sy else 0)
    return begin, Spot(x, y, begin.dx, begin.scale)


def _gate(room: Ground, action: str, speed: str, duration: float, begin: Spot | None) -> tuple[Spot, Spot]:
    """Enter and leave: between a place inside and one just outside the frame."""
    side = -1 if action.endswith("left") else 1
    inside = begin or _anywhere(room, 0.7)
    outside = Spot(
        0.0 if side < 0 else 1.0, inside.y, side * (room.half * inside.scale * 1.02 + 0.02), inside.scale
    )
    return (outside, inside) if action.startswith("enter") else (inside, outside)


def _depth(room: Ground, action: str, begin: Spot | None) -> tuple[Spot, Spot]:
    """Approach and recede: along the depth of the scene."""
    rng = room.rng
    top, bottom = room.band
    x = begin.x if begin else float(0.5 + rng.uniform(-0.12, 0.12))
    small, large = float(rng.uniform(0.32, 0.42)), float(rng.uniform(1.1, 1.25))
    far_x = float(x + (0.5 - x) * 0.4 + rng.uniform(-0.08, 0.08))
    if room.mode in ("ground", "water"):
        far, near = Spot(far_x, top - 0.04, 0.0, small), Spot(x, bottom, 0.0, large)
    else:
        middle = (top + bottom) / 2
        far, near = (
            Spot(far_x, middle - 0.06, 0.0, small),
            Spot(x, min(0.9 - room.high / 2, middle + 0.05), 0.0, large),
        )
    if action == "approach":
        return (begin or far), (near if begin is None else Spot(x, near.y, begin.dx, begin.scale * 1.9))
    return (begin or near), (far if begin is None else Spot(far_x, far.y, begin.dx, begin.scale * 0.4))


def heading(action: str) -> int:
    """-1 or 1 if an action goes to the left or right, else 0."""
    side = -1 if action.endswith("left") else 1 if action.endswith("right") else 0
    return -side if action.startswith("enter") else side


def plan(action: str, speed: str, start: float, end: float, room: Ground, begin: Spot | None = None) -> Move:
    """A move for `action` between two times, from `begin` if the actor is already somewhere."""
    rng, duration = room.rng, max(end - start, 1e-3)
    face = heading(action) or int(rng.choice([-1, 1]))
    beat = BEAT[speed]
    if action.startswith("move"):
        a, b = _straight(room, action, speed, duration, begin)
        return Move(action, speed, start, end, a, b, face)
    if action.startswith(("enter", "leave")):
        a, b = _gate(room, action, speed, duration, begin)
        return Move(action, speed, start, end, a, b, face)
    if action in ("approach", "recede"):
        a, b = _depth(room, action, begin)
        return Move(action, speed, start, end, a, b, face)
    if action.startswith("zigzag"):
        straight = "move " + action.split()[1]
        a, b = _straight(room, straight, speed, duration, begin)
        swings = max(1.0, round(duration * 0.55 * beat * 2) / 2 + 0.5)
        return Move(
            action,
            speed,
            start,
            end,
            a,
            b,
            face,
            turns=swings,
            radius=0.1 if room.mode in ("air", "free") else 0.05,
        )
    if action == "pace":
        margin = _margin(room)
        half = min(0.5 - margin, 0.26)
        a = begin or Spot(float(0.5 - face * half), float(rng.uniform(*room.band)))
        way = 1 if a.x < 0.5 else -1
        b = Spot(a.x + way * max(0.22, 2 * half * float(rng.uniform(0.8, 1.0))), a.y, a.dx, a.scale)
        swings = max(2, round(duration * 0.75 * beat))
        return Move(action, speed, start, end, a, b, way, turns=float(swings))
    return _in_place(action, speed, start, end, room, begin, face)


def _in_place(
    action: str, speed: str, start: float, end: float, room: Ground, begin: Spot | None, face: int
) -> Move:
    """Actions that end where they began."""
    rng, duration, beat = room.rng, max(end - start, 1e-3), BEAT[speed]
    air = room.mode in ("air", "free")
    at = begin or _anywhere(room)
    head = max(0.08, (at.y - room.high / 2 if air else at.y - room.high) - 0.01)
    if action == "jump":
        hops = max(1, round(duration / 1.6))
        return Move(
            action,
            speed,
            start,
            end,
            at,
            at,
            face,
            hops,
            min(0.34, max(0.14, head)),
            0.35 if duration > 1 else 0.15,
        )
    if action == "bounce":
        return Move(
            action,
            speed,
            start,
            end,
            at,
            at,
            face,
            max(2, round(duration * 1.5 * beat)),
            min(0.16, max(0.09, head)),
            0.0,
        )
    if action == "spin":
        turns = max(1.0, round(duration * 0.45 * beat))
        return Move(action, speed, start, end, at, at, face, spins=turns * float(rng.choice([-1, 1])))
    if action == "circle":
        radius = float(min(0.24, max(0.1, 0.49 - room.half)))
        way = float(rng.choice([-1, 1]))
        if air:
            centre_y = float(
                np.clip(
                    at.y, room.high / 2 + radius, max(room.high / 2 + radius, 0.97 - room.high / 2 - radius)
                )
            )
            radius = min(radius, 0.2)
        else:
            centre_y = min(at.y, 0.96 - GROUND_DEPTH * radius)
        # From a place at the side, the circle lies towards the middle.
        angle = math.pi if begin and begin.x < 0.5 else 0.0
        shift = -radius * math.cos(angle) if begin else 0.0
        centre = Spot(at.x if begin else 0.5, at.y if begin else centre_y, at.dx + shift, at.scale)
        turns = max(1.0, round(duration * 0.34 * beat)) * way
        return Move(action, speed, start, end, centre, centre, face, turns=turns, radius=radius, angle=angle)
    return Move("stay", "", start, end, at, at, face)


def end_of(move: Move) -> Spot:
    """Where a move leaves its actor."""
    if move.action == "circle":
        return Spot(move.a.x, move.a.y, move.a.dx + move.radius * math.cos(move.angle), move.a.scale)
    if move.action == "pace" and round(move.turns) % 2 == 0:
        return move.a
    return move.b
