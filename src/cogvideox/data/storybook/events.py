"""Things that happen to the whole scene: night falls, rain or snow begins. Built on the still picture of the
scene.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cogvideox.core.rng import generator
from cogvideox.data.storybook.ambient import Painter, Particles, Stars, prepare
from cogvideox.data.storybook.paint import Canvas
from cogvideox.data.storybook.state import Event

Frame = NDArray[np.uint8]

NIGHT = (0.26, 0.32, 0.6)
"""Share of red, green and blue that is left of the scene at night."""
NIGHT_SPRITE = (0.62, 0.66, 0.9)
"""The same on the characters, which must stay visible."""
GLOOM = {"rain": (0.72, 0.76, 0.82), "snow": (0.86, 0.88, 0.92)}
"""The same in bad weather."""
MOON = 0.062
"""Radius in short sides."""


def progress(event: Event, time: float) -> float:
    """0 before the event, 1 after it, smooth in between."""
    u = (time - event.start) / max(event.end - event.start, 1e-6)
    u = min(1.0, max(0.0, u))
    return u * u * (3 - 2 * u)


def _grade(frame: Frame, goal: tuple[float, float, float], u: float) -> None:
    gain = np.asarray([round(256 * (1 + (g - 1) * u)) for g in goal], np.uint16)
    np.copyto(frame, (frame * gain) >> 8, casting="unsafe")


class Nightfall:
    """The light goes, stars and a moon come out where the sky is, windows light up."""

    def __init__(self, event: Event, canvas: Canvas, day: Frame) -> None:
        self.event = event
        height, width = day.shape[:2]
        unit = min(height, width)
        self.stars = prepare(Stars(event.seed, 0.34, 1.3), height, width)
        rng = generator(event.seed, "nightfall")
        x, y = canvas.sun or (float(rng.uniform(0.15, 0.85)), float(rng.uniform(0.1, 0.18)))
        rows = (np.arange(height, dtype=np.float32)[:, None] + 0.5 - y * height) / unit
        columns = (np.arange(width, dtype=np.float32)[None, :] + 0.5 - x * width) / unit
        distance = np.sqrt(rows * rows + columns * columns)
        disc = np.clip((MOON - distance) * unit + 0.5, 0, 1)
        craters = np.clip(0.5 + 0.5 * np.sin(columns * 120 + 3) * np.sin(rows * 140), 0, 1)
        halo = 0.3 * np.clip(1 - (distance - MOON) / 0.16, 0, 1) ** 2
        self.moon = np.maximum(disc, halo)[..., None].astype(np.float32)
        self.face = np.asarray((250, 244, 214), np.float32) * (1 - 0.1 * craters)[..., None]
        # The sky is what is bright near the top of the day's picture; hills and trees keep the stars away.
        bright = np.asarray(Image.fromarray(day).convert("L"))
        self.open = (bright > 125) & (np.arange(height)[:, None] < 0.5 * height)
        self.lights = self._lights(canvas, height, width)

    def _lights(self, canvas: Canvas, height: int, width: int) -> NDArray[np.float32] | None:
        if not canvas.lights:
            return None
        mask = Image.new("L", (canvas.w, canvas.h))
        pixels = np.asarray(mask).copy()
        rng = generator(self.event.seed, "windows")
        for x0, y0, x1, y1 in canvas.lights:
            if rng.random() < 0.55:
                pixels[
                    round(y0) : max(round(y0) + 1, round(y1)), round(x0) : max(round(x0) + 1, round(x1))
                ] = 255
        small = Image.fromarray(pixels).resize((width, height), Image.Resampling.BOX)
        return (np.asarray(small, np.float32) / 255)[..., None].astype(np.float32)

    def draw(self, frame: Frame, time: float) -> None:
        """Darken the scene behind the characters."""
        u = progress(self.event, time)
        if u <= 0:
            return
        _grade(frame, NIGHT, u)
        starry = frame.copy()
        self.stars.draw(starry, time, (0.0, 0.0))
        sky = self.open & (frame != starry).any(-1)
        if u < 1:
            starry = (frame + (starry.astype(np.float32) - frame) * u).astype(np.uint8)
        frame[sky] = starry[sky]
        moon = self.moon * u
        np.copyto(frame, frame + moon * (self.face - frame), casting="unsafe")
        if self.lights is not None:
            warm = self.lights * u
            np.copyto(
                frame, frame + warm * (np.asarray((255, 214, 122), np.float32) - frame), casting="unsafe"
            )


class Weather:
    """Rain or snow that begins and grows; the scene gets dull, and snow stays on the ground."""

    def __init__(self, event: Event, height: int, width: int) -> None:
        self.event = event
        self.painter: Painter = prepare(Particles(event.kind, event.seed), height, width)
        y = np.linspace(0, 1, height, dtype=np.float32)[:, None, None]
        self.cover = 0.62 * np.clip((y - 0.6) * 4, 0, 1)

    def draw(self, frame: Frame, time: float) -> None:
        """Dull the scene behind the characters."""
        u = progress(self.event, time)
        if u <= 0:
            return
        _grade(frame, GLOOM[self.event.kind], u)
        if self.event.kind == "snow":
            first = round(0.6 * frame.shape[0])
            low = frame[first:]
            np.copyto(low, low + self.cover[first:] * u * (248 - low.astype(np.float32)), casting="unsafe")

    def fall(self, frame: Frame, time: float) -> None:
        """Draw what falls, over everything."""
        u = progress(self.event, time)
        if u > 0:
            self.painter.level = min(1.0, 2 * u)
            self.painter.draw(frame, time, (0.0, 0.0))


def sprite_light(events: tuple[Event, ...], time: float) -> tuple[float, float, float]:
    """Light on the characters."""
    for event in events:
        if event.kind == "nightfall":
            u = progress(event, time)
            r, g, b = (1 + (goal - 1) * u for goal in NIGHT_SPRITE)
            return r, g, b
    return 1.0, 1.0, 1.0
