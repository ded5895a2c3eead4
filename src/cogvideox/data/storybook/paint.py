"""A small painter's kit for backgrounds: gradients, noise, hills, soft discs and drawn shapes, all in scene
units.

Positions are normalised: x and y run from 0 to 1 over the frame (a canvas may reach further, for camera
moves). Sizes and frequencies are in units of the frame's short side, so that a scene looks the same at every
resolution. A canvas works at about twice the output resolution and is scaled down at the end.

Legend: `H W` canvas pixels, arrays are float32 with colours in 0..255.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Array = NDArray[np.float32]
Colour = tuple[float, float, float]
Paint = Colour | Array


def rgb(code: str) -> Colour:
    """A colour from hex digits, "ffcc00"."""
    return (float(int(code[0:2], 16)), float(int(code[2:4], 16)), float(int(code[4:6], 16)))


def mix(a: Colour, b: Colour, weight: float) -> Colour:
    """Colour between `a` (weight 0) and `b` (weight 1)."""
    return (a[0] + (b[0] - a[0]) * weight, a[1] + (b[1] - a[1]) * weight, a[2] + (b[2] - a[2]) * weight)


def shade(colour: Colour, factor: float) -> Colour:
    """Brighter (factor > 1) or darker colour."""
    r, g, b = (min(255.0, c * factor) for c in colour)
    return (r, g, b)


def ints(colour: Colour, alpha: float = 1.0) -> tuple[int, int, int, int]:
    """Colour for ImageDraw, with an alpha of 0..1."""
    return (int(colour[0]), int(colour[1]), int(colour[2]), int(255 * alpha))


@dataclass
class Layer:
    """A painted layer: premultiplied colour (H, W, 3), alpha (H, W) or None if opaque, and how it moves."""

    colour: Array
    alpha: Array | None
    parallax: float
    """Share of the camera's movement that it follows: 0 infinitely far, 1 where the characters are."""
    drift: float = 0.0
    """Own movement to the right in short sides per second; the layer repeats itself."""


@dataclass
class Canvas:
    """The picture that a scene is painted on, see the module's text for units."""

    width: float
    """Width of the frame in short sides."""
    height: float
    """Height of the frame in short sides."""
    unit: float
    """Pixels per short side, of the canvas."""
    margin_x: float
    """How far the canvas reaches beyond the frame on the left and on the right, in frame widths."""
    margin_y: float
    """The same above and below, in frame heights."""
    rng: np.random.Generator
    layered: bool
    """Keep layers apart (the camera moves)."""
    layers: list[Layer] = field(default_factory=list)
    effects: list[Any] = field(default_factory=list)
    """Moving details, see `ambient`."""
    sun: tuple[float, float] | None = None
    """Where the sun or moon was painted (normalised)."""
    lights: list[tuple[float, float, float, float]] = field(default_factory=list)
    """Windows that light up at night: x0, y0, x1, y1 in canvas pixels."""

    def __post_init__(self) -> None:
        self.w = max(2, round(self.width * (1 + 2 * self.margin_x) * self.unit))
        self.h = max(2, round(self.height * (1 + 2 * self.margin_y) * self.unit))
        self.span = self.width * (1 + 2 * self.margin_x)
        self.colour: Array = np.zeros((self.h, self.w, 3), np.float32)
        self.alpha: Array | None = None
        self.parallax = 0.0
        rows = (np.arange(self.h, dtype=np.float32) + 0.5) / self.h
        columns = (np.arange(self.w, dtype=np.float32) + 0.5) / self.w
        self.y: Array = (rows * (1 + 2 * self.margin_y) - self.margin_y)[:, None].astype(np.float32)
        self.x: Array = (columns * (1 + 2 * self.margin_x) - self.margin_x)[None, :].astype(np.float32)

    # ---- geometry ----------------------------------------------------------------------------------------

    def px(self, x: float) -> float:
        """Canvas column of a normalised x."""
        return (x + self.margin_x) / (1 + 2 * self.margin_x) * self.w

    def py(self, y: float) -> float:
        """Canvas row of a normalised y."""
        return (y + self.margin_y) / (1 + 2 * self.margin_y) * self.h

    def row(self, y: float) -> int:
        """First canvas row at or below a normalised y, kept inside the canvas."""
        return min(self.h, max(0, math.floor(self.py(y))))

    def spots(self, spacing: float, jitter: float = 0.35) -> list[float]:
        """Jittered normalised x positions about `spacing` short sides apart, over the whole canvas."""
        span = 1 + 2 * self.margin_x
        count = max(1, round(self.span / spacing))
        offsets = self.rng.uniform(-jitter, jitter, count)
        return [float(-self.margin_x + span * (k + 0.5 + offsets[k]) / count) for k in range(count)]

    # ---- fields ------------------------------------------------------------------------------------------

    def noise(self, fx: float, fy: float, octaves: int = 3, top: float | None = None) -> Array:
        """Smooth noise in about 0..1 with `fx`, `fy` cells per short side, from normalised y `top` down;
        (rows, W).
        """
        start = 0 if top is None else min(self.row(top), self.h - 1)
        high = (1 + 2 * self.margin_y if top is None else 1 + self.margin_y - top) * self.height
        total = np.zeros((self.h - start, self.w), np.float32)
        weight = 0.0
        for octave in range(octaves):
            cells_x = max(1, math.ceil(self.span * fx * 2**octave))
            cells_y = max(1, math.ceil(high * fy * 2**octave))
            lattice = self.rng.random((cells_y + 1, cells_x + 1), np.float32)
            image = Image.fromarray(lattice).resize((self.w, self.h - start), Image.Resampling.BICUBIC)
            total += np.asarray(image) * np.float32(0.5**octave)
            weight += 0.5**octave
        return total / np.float32(weight)

    def profile(self, y: float, amplitude: float, frequency: float, octaves: int = 3) -> Array:
        """A hill line: normalised y of the edge for each column, (W,), within `amplitude` of `y`."""
        count = max(2, math.ceil(self.span * frequency))
        total = np.zeros(self.w, np.float32)
        weight = 0.0
        for octave in range(octaves):
            lattice = self.rng.random((1, count * 2**octave + 1), np.float32)
            total += (
                np.asarray(Image.fromarray(lattice).resize((self.w, 1), Image.Resampling.BICUBIC))[0]
                * 0.5**octave
            )
            weight += 0.5**octave
        return np.float32(y) + (total / np.float32(weight) - np.float32(0.5)) * np.float32(2 * amplitude)

    # ---- painting ----------------------------------------------------------------------------------------

    def fill(self, mask: Array | float, paint: Paint, rows: slice = slice(None)) -> None:
        """Blend `paint` over some rows with weight `mask` (0..1)."""
        view = self.colour[rows]
        weight = np.asarray(mask, np.float32)
        if weight.ndim == 2:
            weight3 = weight[..., None]
        else:
            weight3 = weight
        view += weight3 * (np.asarray(paint, np.float32) - view)
        if self.alpha is not None:
            self.alpha[rows] += weight * (1 - self.alpha[rows])

    def sky(self, *stops: tuple[float, Colour]) -> None:
        """Vertical gradient through (y, colour) stops, over the whole canvas."""
        ys = [s[0] for s in stops]
        ramp = np.stack([np.interp(self.y[:, 0], ys, [s[1][k] for s in stops]) for k in range(3)], -1)
        self.fill(1.0, ramp[:, None, :].astype(np.float32))

    def below(self, profile: Array, top: Colour, bottom: Colour, depth: float = 0.3,
              texture: Array | None = None, strength: float = 0.2) -> None:  # fmt: skip
        """Fill all below a hill line with a gradient over `depth`, modulated by a full-height texture."""
        first = self.row(float(profile.min()))
        if first >= self.h:
            return
        rows = slice(first, self.h)
        gap = (self.y[rows] - profile[None, :]) * np.float32(self.h / (1 + 2 * self.margin_y))
        mask = np.clip(gap + 0.5, 0, 1)
        level = np.clip((self.y[rows] - profile[None, :]) / depth, 0, 1)[..., None]
        paint = np.asarray(top, np.float32) + level * (
            np.asarray(bottom, np.float32) - np.asarray(top, np.float32)
        )
        if texture is not None:
            paint = paint * (1 + strength * (texture[rows] - 0.5) * 2)[..., None]
        self.fill(mask, paint, rows)

    def disc(
        self, x: float, y: float, radius: float, colour: Colour, glow: float = 0.0, strength: float = 0.6
    ) -> None:
        """A round light with a soft halo that reaches `glow` short sides further."""
        self.sun = (x, y)
        dx = (self.x - x) * self.width
        dy = (self.y - y) * self.height
        distance = np.sqrt(dx * dx + dy * dy)
        if glow:
            halo = np.clip(1 - (distance - radius) / glow, 0, 1) ** 2 * strength
            self.fill(halo.astype(np.float32), colour)
        self.fill(
            np.clip((radius - distance) * self.unit + 0.5, 0, 1).astype(np.float32), shade(colour, 1.08)
        )

    def grain(self, amount: float, fx: float = 40, fy: float = 40) -> None:
        """Fine texture over everything painted on this layer so far."""
        self.colour *= (1 + amount * (self.noise(fx, fy, 2) - 0.5) * 2)[..., None]

    # ---- drawn shapes ------------------------------------------------------------------------------------

    def pen(self) -> Pen:
        """Start drawing shapes; `merge` puts them on the layer."""
        return Pen(self)

    def merge(self, pen: Pen, texture: float = 0.0) -> None:
        """Blend drawn shapes onto the current layer."""
        box = pen.image.getbbox()
        if box is None:
            return
        pixels = np.asarray(pen.image.crop(box)).astype(np.float32)
        alpha = pixels[..., 3:] / 255
        colour = pixels[..., :3]
        if texture:
            grain = self.noise(36, 36, 1)[box[1] : box[3], box[0] : box[2]]
            colour = colour * (1 + texture * (grain - 0.5) * 2)[..., None]
        view = self.colour[box[1] : box[3], box[0] : box[2]]
        view += alpha * (colour - view)
        if self.alpha is not None:
            region = self.alpha[box[1] : box[3], box[0] : box[2]]
            region += alpha[..., 0] * (1 - region)

    # ---- layers ------------------------------------------------------------------------------------------

    def next_layer(self, parallax: float) -> None:
        """What follows is nearer and moves with the camera by `parallax`; nothing happens if the camera is
        still.
        """
        if self.layered:
            self._push(0.0)
            self.parallax = parallax

    def drifting(self, speed: float, parallax: float) -> None:
        """Start a layer that moves by itself (clouds); end it with `end_drift`."""
        self._push(0.0)
        self._speed = speed
        self.parallax = parallax

    def end_drift(self, parallax: float) -> None:
        """Close a drifting layer."""
        self._push(self._speed)
        self.parallax = parallax

    def _push(self, drift: float) -> None:
        self.layers.append(Layer(self.colour, self.alpha, self.parallax, drift))
        self.colour = np.zeros((self.h, self.w, 3), np.float32)
        self.alpha = np.zeros((self.h, self.w), np.float32)

    def finish(self) -> list[Layer]:
        """All layers, far to near."""
        self._push(0.0)
        return self.layers


class Pen:
    """Flat shapes with ImageDraw, in scene units. Colours are 0..255 triples."""

    def __init__(self, canvas: Canvas) -> None:
        self.canvas = canvas
        self.image = Image.new("RGBA", (canvas.w, canvas.h))
        self.draw = ImageDraw.Draw(self.image)

    def _points(self, x: float, y: float, shape: list[tuple[float, float]]) -> list[tuple[float, float]]:
        unit = self.canvas.unit
        left, top = self.canvas.px(x), self.canvas.py(y)
        return [(left + dx * unit, top + dy * unit) for dx, dy in shape]

    def polygon(
        self, x: float, y: float, shape: list[tuple[float, float]], colour: Colour, alpha: float = 1.0
    ) -> None:
        """Polygon with corners given in short sides from (`x`, `y`)."""
        self.draw.polygon(self._points(x, y, shape), fill=ints(colour, alpha))

    def box(self, x: float, y: float, dx0: float, dy0: float, dx1: float, dy1: float, colour: Colour,
            alpha: float = 1.0) -> None:  # fmt: skip
        """Rectangle with corners given in short sides from (`x`, `y`)."""
        (a, b), (c, d) = self._points(x, y, [(dx0, dy0), (dx1, dy1)])
        self.draw.rectangle((min(a, c), min(b, d), max(a, c), max(b, d)), fill=ints(colour, alpha))

    def light(self, x: float, y: float, dx0: float, dy0: float, dx1: float, dy1: float) -> None:
        """Note a window that lights up at night."""
        (a, b), (c, d) = self._points(x, y, [(dx0, dy0), (dx1, dy1)])
        self.canvas.lights.append((a, b, c, d))

    def blob(self, x: float, y: float, dx: float, dy: float, rx: float, ry: float, colour: Colour,
             alpha: float = 1.0) -> None:  # fmt: skip
        """Ellipse centred `dx`, `dy` short sides from (`x`, `y`)."""
        ((cx, cy),) = self._points(x, y, [(dx, dy)])
        unit = self.canvas.unit
        self.draw.ellipse(
            (cx - rx * unit, cy - ry * unit, cx + rx * unit, cy + ry * unit), fill=ints(colour, alpha)
        )

    def line(self, x: float, y: float, shape: list[tuple[float, float]], colour: Colour, width: float,
             alpha: float = 1.0) -> None:  # fmt: skip
        """Polyline of `width` short sides."""
        thick = max(1, round(width * self.canvas.unit))
        self.draw.line(self._points(x, y, shape), fill=ints(colour, alpha), width=thick, joint="curve")
