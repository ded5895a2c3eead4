"""The state of a clip: plain frozen values, from which pixels, captions and ground truth all follow.

Units: `x` is a fraction of the frame's width, `y` of its height (downwards), lengths are in short sides of
the frame, times in seconds, angles in radians counter-clockwise.
"""

from __future__ import annotations

from dataclasses import dataclass

ACTIONS = (
    "stay",
    "move left",
    "move right",
    "move up",
    "move down",
    "move up-left",
    "move up-right",
    "move down-left",
    "move down-right",
    "jump",
    "bounce",
    "spin",
    "circle",
    "pace",
    "zigzag left",
    "zigzag right",
    "approach",
    "recede",
    "enter left",
    "enter right",
    "leave left",
    "leave right",
)
"""Every action. "enter left" comes in from the left, "leave left" goes out to the left."""

AIR_ONLY = frozenset(a for a in ACTIONS if a.startswith("move") and a not in ("move left", "move right"))
"""Actions that need air or water all around."""

CAMERAS = ("static", "pan left", "pan right", "pan up", "pan down", "zoom in", "zoom out", "follow")
STYLES = (
    "pixel art",
    "watercolor",
    "black and white",
    "oil painting",
    "neon",
    "sepia",
    "pencil sketch",
    "comic",
)
EVENTS = ("nightfall", "rain", "snow", "transform")
RELATIONS = (
    "left of",
    "right of",
    "above",
    "in front of",
    "chases",
    "meets",
    "jumps over",
    "circles around",
    "together",
    "passes",
)


@dataclass(frozen=True)
class Spot:
    """A place: fraction of the frame plus an offset `dx` in short sides, and a size factor."""

    x: float
    y: float
    dx: float = 0.0
    scale: float = 1.0


@dataclass(frozen=True)
class Move:
    """One action, laid out between two times."""

    action: str
    speed: str
    """"slowly", "quickly" or "" (neither)."""
    start: float
    end: float
    a: Spot
    b: Spot
    face: int = 0
    """-1 left, 1 right: the side it faces while it does not move sideways."""
    hops: int = 0
    """Jumps or bounces during the move."""
    height: float = 0.0
    """Height of a hop."""
    rest: float = 0.0
    """Share of each hop spent on the ground."""
    turns: float = 0.0
    """Circles around `a`, negative clockwise; or half swings between `a` and `b` (pace); or swings (zigzag).
    """
    radius: float = 0.0
    """Radius of the circle, or sideways reach of the zigzag."""
    angle: float = 0.0
    """Where on the circle it starts."""
    spins: float = 0.0
    """Turns about itself."""


@dataclass(frozen=True)
class Actor:
    """A character in a clip."""

    character: str
    size: float
    """Geometric mean of width and height, in short sides, at scale 1."""
    mode: str
    """"ground", "water" (on its surface), "air" or "free" (floats anywhere)."""
    moves: tuple[Move, ...]
    """In order of time, without gaps."""
    phase: float
    """Seconds into the animation loop at time 0."""
    rate: float = 1.0
    """Speed of the animation."""
    order: float = 0.0
    """Added to the depth: larger is nearer to the viewer."""
    rides: bool = False
    """Its path is given in the moving frame of the camera, not in the world."""
    becomes: str | None = None
    """Character that it turns into."""
    changes_at: float = 0.0


@dataclass(frozen=True)
class Camera:
    """How the frame moves over the world, evenly from 0 to the clip's duration."""

    kind: str = "static"
    amount: float = 0.0
    """Frame widths (heights) of a pan, or the largest magnification of a zoom."""
    focus: tuple[float, float] = (0.5, 0.6)
    """Fixed point of a zoom."""


@dataclass(frozen=True)
class Event:
    """Something that happens to the whole scene."""

    kind: str
    """One of `EVENTS`."""
    start: float
    end: float
    seed: int = 0


@dataclass(frozen=True)
class Setting:
    """Where a clip takes place."""

    scene: str
    look: str
    """Key of one of the scene's looks."""
    seed: int
    """Layout, colours and details."""


@dataclass(frozen=True)
class Relation:
    """How the first actor relates to the second."""

    kind: str
    """One of `RELATIONS`."""
    count: int = 2
    """Actors that take part ("together")."""
