"""Moving details of a scene: twinkling stars, shimmering water, falling rain and snow, rising bubbles.

Each effect is a small value; `prepare` turns it into a painter for one picture size, whose `draw(frame, time,
shift)` changes a uint8 (H, W, 3) frame in place. `shift` is the camera's movement in frame widths and
heights.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cogvideox.core.rng import generator
from cogvideox.data.storybook.paint import Colour

Frame = NDArray[np.uint8]


class Painter(Protocol):
    """Something that changes a frame at a time."""

    front: bool
    """Drawn over the characters."""
    level: float
    """Share of the particles that are shown, 0 to 1."""

    def draw(self, frame: Frame, time: float, shift: tuple[float, float]) -> None:
        """Change `frame` in place."""


@dataclass(frozen=True)
class Kind:
    """How one kind of particle looks and moves. Speeds in short sides per second."""

    colour: tuple[int, int, int]
    radius: float
    """Radius in short sides."""
    density: float
    """Particles per square short side."""
    fall: float
    """Downward speed, negative rises."""
    drift: float
    """Sideways speed."""
    sway: float
    """Amplitude of the sideways swing."""
    alpha: float
    stretch: float = 1.0
    """Length over width (rain)."""
    blink: float = 0.0
    """Blinks per second (fireflies, stars)."""
    ring: bool = False
    """Hollow (bubbles)."""


KINDS = {
    "snow": Kind((255, 255, 255), 0.011, 90, 0.22, 0.03, 0.025, 0.9),
    "rain": Kind((205, 222, 240), 0.0045, 110, 1.6, -0.12, 0.0, 0.5, stretch=9),
    "bubbles": Kind((220, 245, 255), 0.016, 16, -0.16, 0.0, 0.02, 0.65, ring=True),
    "embers": Kind((255, 170, 60), 0.008, 26, -0.25, 0.03, 0.03, 0.9, blink=0.7),
    "petals": Kind((255, 190, 215), 0.012, 14, 0.1, 0.06, 0.05, 0.85),
    "leaves": Kind((226, 120, 40), 0.014, 14, 0.14, 0.05, 0.06, 0.9),
    "fireflies": Kind((255, 240, 140), 0.011, 14, 0.0, 0.01, 0.05, 0.95, blink=0.5),
    "dust": Kind((255, 235, 190), 0.006, 20, 0.015, 0.12, 0.02, 0.5),
    "sparkles": Kind((255, 255, 255), 0.009, 16, 0.02, 0.0, 0.02, 0.9, blink=0.6),
}


@dataclass(frozen=True)
class Particles:
    """Many small things in the air or the water."""

    kind: str
    seed: int
    amount: float = 1.0
    """Multiplies the kind's density."""
    top: float = 0.0
    bottom: float = 1.0
    """Band of the frame that they fill (normalised y)."""
    colour: Colour | None = None
    front: bool = True


@dataclass(frozen=True)
class Stars:
    """Twinkling stars, fixed to the far sky."""

    seed: int
    bottom: float
    """Lowest star (normalised y)."""
    amount: float = 1.0
    skip: tuple[float, ...] = ()
    """Hill line below which no star shows: normalised y at equal distances from left to right (empty: none).
    """


@dataclass(frozen=True)
class Shimmer:
    """Light moving over water: a band of travelling bright and dark waves."""

    seed: int
    top: float
    bottom: float
    strength: float = 16.0
    """Largest change of brightness, of 255."""
    colour: Colour = (255.0, 255.0, 255.0)
    speed: float = 0.5
    """Waves per second."""
    fine: float = 18.0
    """Waves per short side at the top of the band; they widen towards the viewer."""
    vertical: bool = False
    """The light runs straight down (a waterfall)."""
    left: float = 0.0
    right: float = 1.0


Effect = Particles | Stars | Shimmer


class _Particles:
    def __init__(self, effect: Particles, height: int, width: int) -> None:
        kind = KINDS[effect.kind]
        unit = min(height, width)
        rng = generator(effect.seed, "particles", effect.kind)
        area = width / unit * height / unit * (effect.bottom - effect.top)
        count = max(3, min(400, round(kind.density * effect.amount * area)))
        self.front = effect.front
        self.level = 1.0
        self.kind, self.unit, self.size = kind, unit, (height, width)
        self.band = (effect.top * height / unit, effect.bottom * height / unit)
        self.colour = np.asarray(effect.colour or kind.colour, np.float32)
        u = rng.random((7, count)).astype(np.float32)
        self.x0, self.y0, self.phase = u[0], u[1], u[2] * 2 * np.pi
        self.scale = 0.55 + 0.75 * u[3]
        self.swing = 0.5 + u[4]
        self.radius = np.maximum(kind.radius * self.scale * unit, 0.45)
        self.alpha = kind.alpha * np.minimum(1.0, kind.radius * self.scale * unit / 0.45)
        reach_x = math.ceil(float(self.radius.max())) + 1
        reach_y = math.ceil(float(self.radius.max()) * kind.stretch) + 1
        self.dx = np.arange(-reach_x, reach_x + 1)[None, None, :]
        self.dy = np.arange(-reach_y, reach_y + 1)[None, :, None]

    def draw(self, frame: Frame, time: float, shift: tuple[float, float]) -> None:
        kind, unit = self.kind, self.unit
        height, width = self.size
        top, bottom = self.band
        # They wrap around a window a little larger than the band, so that none pops up inside it.
        pad = 0.06
        across = width / unit + 2 * pad
        down = bottom - top + 2 * pad
        sway = kind.sway * np.sin(self.phase + 2 * np.pi * 0.4 * self.swing * time)
        x = (
            self.x0 * across + kind.drift * self.scale * time + sway - shift[0] * width / unit
        ) % across - pad
        y = (self.y0 * down + kind.fall * self.scale * time - shift[1] * height / unit) % down - pad + top
        x, y = x * unit - 0.5, y * unit - 0.5
        column, row = np.floor(x).astype(int), np.floor(y).astype(int)
        gap_x = self.dx - (x - column)[:, None, None]
        gap_y = (self.dy - (y - row)[:, None, None]) / kind.stretch
        if kind.stretch > 1:
            gap_x = gap_x - gap_y * (kind.drift / kind.fall) * kind.stretch
        distance = np.sqrt(gap_x * gap_x + gap_y * gap_y)
        radius = self.radius[:, None, None]
        cover = np.clip(radius + 0.5 - distance, 0, 1)
        if kind.ring:
            cover = cover * np.clip(0.35 + (distance / radius) ** 3, 0, 1)
        alpha = self.alpha
        if kind.blink:
            alpha = alpha * (
                0.15
                + 0.85 * (0.5 + 0.5 * np.sin(self.phase * 3 + 2 * np.pi * kind.blink * self.swing * time))
            )
        weight = cover * alpha[:, None, None]
        if self.level < 1:
            weight[round(self.level * len(weight)) :] = 0
        rows = np.broadcast_to(row[:, None, None] + self.dy, weight.shape)
        columns = np.broadcast_to(column[:, None, None] + self.dx, weight.shape)
        keep = (weight > 0.02) & (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
        blend_points(frame, rows[keep], columns[keep], weight[keep], self.colour)


def blend_points(frame: Frame, rows: NDArray[np.int_], columns: NDArray[np.int_], weight: NDArray[np.float32],
                 colour: NDArray[np.float32]) -> None:  # fmt: skip
    """Blend one colour into single pixels of a frame."""
    old = frame[rows, columns].astype(np.float32)
    frame[rows, columns] = (old + weight[:, None] * (colour - old)).astype(np.uint8)


class _Stars:
    front = False
    level = 1.0

    def __init__(self, effect: Stars, height: int, width: int) -> None:
        unit = min(height, width)
        rng = generator(effect.seed, "stars")
        count = round(70 * effect.amount * width / unit * (effect.bottom * height / unit))
        u = rng.random((5, max(4, count))).astype(np.float32)
        keep = np.ones(u.shape[1], bool)
        if effect.skip:
            line = np.interp(u[0], np.linspace(0, 1, len(effect.skip)), effect.skip)
            keep = u[1] * effect.bottom < line - 0.02
        u = u[:, keep]
        self.x, self.y = u[0] * width - 0.5, u[1] * effect.bottom * height - 0.5
        size = 0.0035 + 0.008 * u[2] ** 3
        self.radius = np.maximum(size * unit, 0.5)
        self.bright = np.minimum(1.0, size * unit / 0.5)
        self.phase, self.rate = u[3] * 2 * np.pi, 0.3 + 0.9 * u[4]
        reach = math.ceil(float(self.radius.max(initial=1.0))) + 1
        self.grid = np.arange(-reach, reach + 1)

    def draw(self, frame: Frame, time: float, shift: tuple[float, float]) -> None:
        height, width = frame.shape[:2]
        x, y = self.x - 0.15 * shift[0] * width, self.y - 0.15 * shift[1] * height
        column, row = np.floor(x).astype(int), np.floor(y).astype(int)
        gap_x = self.grid[None, None, :] - (x - column)[:, None, None]
        gap_y = self.grid[None, :, None] - (y - row)[:, None, None]
        cover = np.clip(self.radius[:, None, None] + 0.5 - np.sqrt(gap_x * gap_x + gap_y * gap_y), 0, 1)
        glow = self.bright * (0.62 + 0.38 * np.sin(self.phase + 2 * np.pi * self.rate * time))
        weight = (cover * glow[:, None, None]).astype(np.float32)
        rows = np.broadcast_to(row[:, None, None] + self.grid[None, :, None], weight.shape)
        columns = np.broadcast_to(column[:, None, None] + self.grid[None, None, :], weight.shape)
        keep = (weight > 0.02) & (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
        blend_points(frame, rows[keep], columns[keep], weight[keep], np.asarray((255, 252, 235), np.float32))


class _Shimmer:
    front = False
    level = 1.0

    def __init__(self, effect: Shimmer, height: int, width: int) -> None:
        unit = min(height, width)
        rng = generator(effect.seed, "shimmer")
        self.rows = slice(max(0, round(effect.top * height)), min(height, round(effect.bottom * height)))
        self.columns = slice(max(0, round(effect.left * width)), min(width, round(effect.right * width)))
        size = (max(1, self.columns.stop - self.columns.start), max(1, self.rows.stop - self.rows.start))
        lattice = rng.random((2, 9, 13)).astype(np.float32)
        rough, patch = (
            np.asarray(Image.fromarray(f).resize(size, Image.Resampling.BICUBIC)) for f in lattice
        )
        depth = np.linspace(0, 1, size[1], dtype=np.float32)[:, None]
        band = (effect.bottom - effect.top) * height / unit
        along = depth if effect.vertical else np.log1p(3 * depth) / math.log(4)
        across = np.linspace(0, size[0] / unit, size[0], dtype=np.float32)[None, :]
        self.phase = (
            2
            * np.pi
            * (effect.fine * 0.35 * band * along + 1.6 * rough + (6 if effect.vertical else 0.8) * across)
        )
        edge = np.clip(depth * 6, 0, 1) * np.clip((1 - depth) * 6, 0, 1)
        self.weight = (effect.strength / 255 * (0.35 + 0.65 * patch) * edge).astype(np.float32)
        self.speed = effect.speed if not effect.vertical else effect.speed * 3
        self.colour = np.asarray(effect.colour, np.float32)

    def draw(self, frame: Frame, time: float, shift: tuple[float, float]) -> None:
        view = frame[self.rows, self.columns]
        wave = np.sin(self.phase - np.float32(2 * np.pi * self.speed * time))
        light = (self.weight * wave)[..., None]
        old = view.astype(np.float32)
        new = old + light * np.where(light > 0, self.colour, old)
        view[...] = np.clip(new, 0, 255).astype(np.uint8)


def prepare(effect: Effect, height: int, width: int) -> Painter:
    """The painter of `effect` for one picture size."""
    if isinstance(effect, Particles):
        return _Particles(effect, height, width)
    if isinstance(effect, Stars):
        return _Stars(effect, height, width)
    return _Shimmer(effect, height, width)
