"""From the state of a clip to pixels and to ground truth: one geometry for both."""

from __future__ import annotations

import math
from copy import copy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cogvideox.data.storybook import sprites
from cogvideox.data.storybook.ambient import Painter, prepare
from cogvideox.data.storybook.backdrop import Backdrop, Frame, blend
from cogvideox.data.storybook.cast import character
from cogvideox.data.storybook.events import Nightfall, Weather, sprite_light
from cogvideox.data.storybook.motion import View, extent, pose, view
from cogvideox.data.storybook.scenes import scene
from cogvideox.data.storybook.state import Actor
from cogvideox.data.storybook.styles import style_filter
from cogvideox.data.storybook.words import GAITS

if TYPE_CHECKING:
    from cogvideox.data.storybook.clip import Clip

Box = tuple[float, float, float, float]

SHADOW = 0.42
"""Darkest part of a contact shadow."""
CHANGE = 0.6
"""Seconds in which a character turns into another."""


@dataclass(frozen=True)
class Placed:
    """A sprite on the picture, in pixels."""

    name: str
    cell: int
    left: float
    top: float
    width: float
    height: float
    flip: bool
    angle: float
    foot: tuple[float, float]
    """Point of contact with the ground."""
    lift: float
    """Height above it."""
    sink: float
    """Share of its height under water."""
    depth: float
    """Larger is nearer."""

    def box(self) -> Box:
        """Tight box of the visible sprite, x0, y0, x1, y1 in pixels; it may leave the picture."""
        shape = sprites.sprite(self.name)
        x0, y0, x1, y1 = shape.boxes[self.cell]
        if self.flip:
            x0, x1 = shape.size[0] - x1, shape.size[0] - x0
        sx, sy = self.width / shape.size[0], self.height / shape.size[1]
        box = (self.left + x0 * sx, self.top + y0 * sy, self.left + x1 * sx, self.top + y1 * sy)
        if not self.angle:
            return box
        cx, cy = self.left + self.width / 2, self.top + self.height / 2
        cos, sin = math.cos(self.angle), math.sin(self.angle)
        corners = [(x - cx, y - cy) for x in (box[0], box[2]) for y in (box[1], box[3])]
        xs = [cx + dx * cos + dy * sin for dx, dy in corners]
        ys = [cy - dx * sin + dy * cos for dx, dy in corners]
        return min(xs), min(ys), max(xs), max(ys)


def place(actor: Actor, time: float, seen: View, height: int, width: int, name: str | None = None) -> Placed:
    """Where an actor is drawn at a time; `name` for the character that it turns into."""
    unit = min(height, width)
    shown = name or actor.character
    at = pose(actor if name is None else replace(actor, character=name), time, width / unit, height / unit)
    wide, high = extent(actor, at.scale, shown)
    ahead = View(0.0, 0.0, seen.zoom, seen.focus) if actor.rides else seen
    x, y = _on_screen(at.x, at.y, ahead, width / unit, height / unit)
    zoom = seen.zoom * unit
    wide, high, lift = wide * zoom, high * zoom, at.lift * zoom
    sink = GAITS[character(shown).gait].sink if actor.mode == "water" else 0.0
    top = y * unit - lift - (high / 2 if actor.mode in ("air", "free") else high * (1 - sink))
    cell = sprites.sprite(shown).cell(actor.phase + time * actor.rate)
    foot = (x * unit, y * unit)
    left = x * unit - wide / 2
    return Placed(shown, cell, left, top, wide, high, at.flip, at.angle, foot, lift, sink, y + actor.order)


def _on_screen(x: float, y: float, seen: View, width: float, height: float) -> tuple[float, float]:
    x, y = x - seen.x * width, y - seen.y * height
    fx, fy = seen.focus[0] * width, seen.focus[1] * height
    return fx + (x - fx) * seen.zoom, fy + (y - fy) * seen.zoom


def _shadow(frame: Frame, who: Placed, water: bool) -> None:
    """A soft ellipse under the feet, or a pale ripple on water; weaker and wider as the character rises."""
    rise = who.lift / max(who.height, 1.0)
    strength = (SHADOW if not water else 0.35) / (1 + 2.5 * rise)
    rx, ry = who.width * (0.5 + 0.1 * rise), who.width * 0.11 + 1.0
    cx, cy = who.foot[0], who.foot[1] - ry * 0.35
    x0, x1 = max(0, math.floor(cx - rx)), min(frame.shape[1], math.ceil(cx + rx) + 1)
    y0, y1 = max(0, math.floor(cy - ry)), min(frame.shape[0], math.ceil(cy + ry) + 1)
    if x0 >= x1 or y0 >= y1:
        return
    dx = ((np.arange(x0, x1, dtype=np.float32) + 0.5 - cx) / rx) ** 2
    dy = ((np.arange(y0, y1, dtype=np.float32) + 0.5 - cy) / ry) ** 2
    dark = np.clip(1 - (dx[None, :] + dy[:, None]), 0, 1) * np.float32(strength)
    view_ = frame[y0:y1, x0:x1]
    if water:
        view_ += (dark[..., None] * (255 - view_)).astype(np.uint8)
    else:
        view_ -= (dark[..., None] * view_).astype(np.uint8)


def _spotlight(frame: Frame, who: Placed) -> None:
    """A faint glow behind a character in the dark, so that black ones stay visible."""
    cx, cy = who.left + who.width / 2, who.top + who.height / 2
    radius = 0.75 * max(who.width, who.height)
    x0, x1 = max(0, math.floor(cx - radius)), min(frame.shape[1], math.ceil(cx + radius))
    y0, y1 = max(0, math.floor(cy - radius)), min(frame.shape[0], math.ceil(cy + radius))
    if x0 >= x1 or y0 >= y1:
        return
    dx = ((np.arange(x0, x1, dtype=np.float32) + 0.5 - cx) / radius) ** 2
    dy = ((np.arange(y0, y1, dtype=np.float32) + 0.5 - cy) / radius) ** 2
    glow = np.clip(1 - (dx[None, :] + dy[:, None]), 0, 1) ** 2 * np.float32(0.3)
    part = frame[y0:y1, x0:x1]
    part += (glow[..., None] * (np.float32(225) - part).clip(0)).astype(np.uint8)


def _burst(frame: Frame, who: Placed, u: float) -> None:
    """The flash in which one character turns into another, `u` from 0 to 1."""
    radius = (0.45 + 0.35 * u) * max(who.width, who.height)
    cx, cy = who.left + who.width / 2, who.top + who.height / 2
    dx = np.arange(frame.shape[1], dtype=np.float32)[None, :] + 0.5 - cx
    dy = np.arange(frame.shape[0], dtype=np.float32)[:, None] + 0.5 - cy
    angle = np.arctan2(dy, dx)
    reach = radius * (0.82 + 0.18 * np.cos(10 * angle + 4 * u))
    light = np.clip((1.15 - np.sqrt(dx * dx + dy * dy) / reach) * 3, 0, 1) * np.float32(
        math.sin(math.pi * u) ** 0.7
    )
    colour = np.asarray((255, 250, 225), np.float32)
    np.copyto(frame, frame + light[..., None] * (colour - frame), casting="unsafe")


def _stamp(frame: Frame, who: Placed, light: NDArray[np.uint16] | None, opacity: float = 1.0) -> None:
    x, y, pixels = sprites.draw(
        who.name, who.cell, who.left, who.top, who.width, who.height, who.flip, who.angle
    )
    height, width = frame.shape[:2]
    x0, y0 = max(0, x), max(0, y)
    x1, y1 = min(width, x + pixels.shape[1]), min(height, y + pixels.shape[0])
    if x0 >= x1 or y0 >= y1:
        return
    part = pixels[y0 - y : y1 - y, x0 - x : x1 - x]
    if light is not None:
        part = ((part * light) >> 8).astype(np.uint8)
    if who.sink:
        # Below the waterline the body shows through more and more faintly.
        depth = (np.arange(y0, y1, dtype=np.float32) + 0.5 - who.foot[1] + who.lift) / max(
            who.sink * who.height, 1.0
        )
        shown = np.where(depth < 0, 1.0, np.clip(0.6 - 0.6 * depth, 0.0, 1.0)).astype(np.float32)
        part = (part * shown[:, None, None]).astype(np.uint8)
    if opacity < 1:
        part = (part * np.float32(opacity)).astype(np.uint8)
    blend(frame[y0:y1, x0:x1], part)


class Renderer:
    """A clip at one picture size, with its background already painted."""

    def __init__(self, clip: Clip, height: int, width: int) -> None:
        self.clip, self.height, self.width = clip, height, width
        self.backdrop = Backdrop(clip.setting, height, width, clip.camera)
        painters = [prepare(effect, height, width) for effect in self.backdrop.effects]
        self.behind: list[Painter] = [p for p in painters if not p.front]
        self.front: list[Painter] = [p for p in painters if p.front]
        self.where = scene(clip.setting.scene)
        self.night = [
            Nightfall(e, self.backdrop.canvas, self.backdrop.frame(view(clip.camera, 0, clip.duration), 0))
            for e in clip.events
            if e.kind == "nightfall"
        ]
        self.weather = [Weather(e, height, width) for e in clip.events if e.kind in ("rain", "snow")]
        self.filter = style_filter(clip.style, clip.setting.seed, height, width) if clip.style else None

    def with_actors(self, actors: tuple[Actor, ...]) -> Renderer:
        """The same place with others in it; painting the place is most of the work for a picture."""
        other = copy(self)
        other.clip = replace(self.clip, actors=actors)
        return other

    def frame(self, time: float) -> Frame:
        """The picture at `time`, uint8 (H, W, 3)."""
        clip = self.clip
        seen = view(clip.camera, time, clip.duration)
        picture = self.backdrop.frame(seen, time)
        for painter in self.behind:
            painter.draw(picture, time, (seen.x, seen.y))
        for night in self.night:
            night.draw(picture, time)
        for weather in self.weather:
            weather.draw(picture, time)
        light = self._light(time)
        placed = [(place(actor, time, seen, self.height, self.width), actor) for actor in clip.actors]
        for who, actor in sorted(placed, key=lambda pair: pair[0].depth):
            self._actor(picture, who, actor, time, seen, light)
        for painter in self.front:
            painter.draw(picture, time, (seen.x, seen.y))
        for weather in self.weather:
            weather.fall(picture, time)
        return self.filter(picture) if self.filter else picture

    def _light(self, time: float) -> NDArray[np.uint16] | None:
        dim = sprite_light(self.clip.events, time)
        light = [a * b for a, b in zip(self.where.light, dim, strict=True)]
        return (
            None
            if light == [1.0, 1.0, 1.0]
            else np.asarray([*(round(256 * v) for v in light), 256], np.uint16)
        )

    def _actor(self, picture: Frame, who: Placed, actor: Actor, time: float, seen: View,
               light: NDArray[np.uint16] | None) -> None:  # fmt: skip
        if self.where.dark:
            _spotlight(picture, who)
        if actor.mode in ("ground", "water"):
            _shadow(picture, who, actor.mode == "water")
        if actor.becomes is None:
            _stamp(picture, who, light)
            return
        u = (time - actor.changes_at) / CHANGE + 0.5
        new = place(actor, time, seen, self.height, self.width, actor.becomes)
        if u < 1:
            _stamp(picture, who, light, min(1.0, max(0.0, 1.5 - 2 * u)))
        if u > 0:
            _stamp(picture, new, light, min(1.0, max(0.0, 2 * u - 0.5)))
        if 0 < u < 1:
            _burst(picture, who, u)


def render(clip: Clip, frames: int, fps: float, height: int, width: int, start: float) -> Frame:
    """All frames of a clip, uint8 (T, H, W, 3)."""
    renderer = Renderer(clip, height, width)
    out = np.empty((frames, height, width, 3), np.uint8)
    for k in range(frames):
        out[k] = renderer.frame(start + k / fps)
    return out
