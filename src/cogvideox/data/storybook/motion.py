"""Where an actor is at a time: position, size, turn and side, from its moves."""

from __future__ import annotations

import math
from dataclasses import dataclass

from cogvideox.data.storybook.cast import Character, character
from cogvideox.data.storybook.sprites import sprite
from cogvideox.data.storybook.state import Actor, Camera, Move
from cogvideox.data.storybook.words import GAITS

GROUND_DEPTH = 0.35
"""Height over width of a circle that lies on the ground."""
STEP = 0.03
"""Seconds over which a direction is measured."""


@dataclass(frozen=True)
class Pose:
    """An actor at one time. Lengths in short sides from the frame's upper left corner."""

    x: float
    y: float
    """Foot (ground, water) or centre (air, free), without `lift`."""
    lift: float
    """Height above `y`."""
    scale: float
    angle: float
    flip: bool
    """Mirrored against the source art."""


@dataclass(frozen=True)
class View:
    """The camera at one time: the frame's shift over the world (fractions of it) and its magnification."""

    x: float
    y: float
    zoom: float
    focus: tuple[float, float]


def view(camera: Camera, time: float, duration: float) -> View:
    """Where the camera is."""
    u = min(1.0, max(0.0, time / duration)) if duration > 0 else 0.5
    kind, amount = camera.kind, camera.amount
    if kind.startswith("pan"):
        way = (u - 0.5) * amount
        shift = {"left": (-way, 0.0), "right": (way, 0.0), "up": (0.0, -way), "down": (0.0, way)}[kind[4:]]
        return View(*shift, 1.0, camera.focus)
    if kind.startswith("follow"):
        return View((u - 0.5) * amount, 0.0, 1.0, camera.focus)
    if kind.startswith("zoom"):
        smooth = u * u * (3 - 2 * u)
        return View(0.0, 0.0, amount ** (smooth if kind == "zoom in" else 1 - smooth), camera.focus)
    return View(0.0, 0.0, 1.0, camera.focus)


def move_at(actor: Actor, time: float) -> Move:
    """The move that is going on at `time` (the last one after the end)."""
    for move in actor.moves:
        if time < move.end:
            return move
    return actor.moves[-1]


def _hop(move: Move, u: float) -> float:
    if not move.hops or u <= 0 or u >= 1:
        return 0.0
    part = (u * move.hops) % 1.0
    air = 1 - move.rest
    s = (part - move.rest / 2) / air
    return 4 * move.height * s * (1 - s) if 0 < s < 1 else 0.0


def _travel(actor: Actor, move: Move, u: float, width: float, height: float) -> tuple[float, float, float]:
    """x, y, scale at a fraction of a move, in short sides."""
    share, lift, grow = u, 0.0, 1.0
    if move.action == "pace":
        share = 0.5 - 0.5 * math.cos(math.pi * move.turns * u)
    x = (move.a.x + (move.b.x - move.a.x) * share) * width + move.a.dx + (move.b.dx - move.a.dx) * share
    y = (move.a.y + (move.b.y - move.a.y) * share) * height
    # Sizes change evenly in proportion, as they seem to for something at a constant speed.
    scale = move.a.scale * (move.b.scale / move.a.scale) ** share
    flat = actor.mode in ("ground", "water")
    if move.action == "circle":
        turn = move.angle + 2 * math.pi * move.turns * u
        x += move.radius * math.cos(turn)
        lift = move.radius * math.sin(turn) * (GROUND_DEPTH if flat else 1.0)
        grow = 1 - 0.45 * lift if flat else 1.0
    elif move.action.startswith("zigzag"):
        wave = math.asin(math.sin(2 * math.pi * move.turns * u)) * 2 / math.pi
        lift = move.radius * wave
        grow = 1 - 0.9 * lift if flat else 1.0
    return x, y - lift, scale * grow


def track(actor: Actor, time: float, width: float, height: float) -> tuple[float, float]:
    """Where the actor's action takes it: x, y in short sides without hops and bobbing."""
    move = move_at(actor, time)
    u = (time - move.start) / max(move.end - move.start, 1e-6)
    return _travel(actor, move, min(1.0, max(0.0, u)), width, height)[:2]


def pose(actor: Actor, time: float, width: float, height: float) -> Pose:
    """The actor at `time` in a frame of `width` x `height` short sides."""
    move = move_at(actor, time)
    who = character(actor.character)
    span = max(move.end - move.start, 1e-6)
    u = min(1.0, max(0.0, (time - move.start) / span))
    x, y, scale = _travel(actor, move, u, width, height)
    before, after = max(0.0, u - STEP / span), min(1.0, u + STEP / span)
    x0, y0, _ = _travel(actor, move, before, width, height)
    x1, y1, _ = _travel(actor, move, after, width, height)
    gap = max((after - before) * span, 1e-6)
    vx, vy = (x1 - x0) / gap, (y1 - y0) / gap
    flip, angle = _turn(who, move, u, vx, vy)
    bob, rhythm = GAITS[who.gait].bob, GAITS[who.gait].rhythm
    lift = _hop(move, u)
    if actor.mode in ("air", "free"):
        y += bob_air(actor, time)
    elif bob and not move.hops:
        # Hops set in and end softly, and rest where the character turns round.
        going = min(1.0, math.hypot(vx, vy) / 0.08, u * span / 0.15, (1 - u) * span / 0.15)
        lift += going * bob * actor.size * scale * abs(math.sin(math.pi * rhythm * actor.rate * time))
    return Pose(x, y, lift, scale, angle + 2 * math.pi * move.spins * u, flip)


def bob_air(actor: Actor, time: float) -> float:
    """Gentle rise and fall of whatever floats, in short sides."""
    return 0.012 * math.sin(2 * math.pi * (0.45 * time + actor.phase))


def _turn(who: Character, move: Move, u: float, vx: float, vy: float) -> tuple[bool, float]:
    """Mirrored or not, and the angle, so that the character looks where it goes."""
    side = move.face
    if abs(vx) > 0.02:
        side = 1 if vx > 0 else -1
    if who.facing == "nose":
        if math.hypot(vx, vy) > 0.04:
            return False, math.atan2(-vy, vx) - who.nose
        return False, 0.0
    if who.facing == "front" or side == 0:
        return False, 0.0
    return (side > 0) == (who.facing == "left"), 0.0


def extent(actor: Actor, scale: float, name: str | None = None) -> tuple[float, float]:
    """Width and height of the whole cell in short sides."""
    width, height = sprite(name or actor.character).size
    mean = math.sqrt(width * height)
    # Long shapes get a little smaller, so that a train is not twice as wide as a cat.
    unit = actor.size * scale / mean * min(1.0, 1.25 / (max(width, height) / mean))
    return width * unit, height * unit
