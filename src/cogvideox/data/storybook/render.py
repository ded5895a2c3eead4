"""From the state of a clip to pixels and to ground truth: one geometry for both."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cogvideox.data.storybook import sprites
from cogvideox.data.storybook.ambient import Painter, prepare
from cogvideox.data.storybook.backdrop import Backdrop, Frame, blend
from cogvideox.data.storybook.cast import character
from cogvideox.data.storybook.motion import Pose, View, extent, pose, view
from cogvideox.data.storybook.scenes import scene
from cogvideox.data.storybook.state import Actor

if TYPE_CHECKING:
    from cogvideox.data.storybook.clip import Clip

Box = tuple[float, float, float, float]

SHADOW = 0.42
"""Darkest part of a contact shadow."""


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
    """Where an actor is drawn at a time."""
    unit = min(height, width)
    at = pose(actor, time, width / unit, height / unit)
    shown = name or actor.character
    wide, high = extent(actor, at.scale, shown)
    x, y = _on_screen(at.x, at.y, seen, width / unit, height / unit)
    zoom = seen.zoom * unit
    wide, high, lift = wide * zoom, high * zoom, at.lift * zoom
    grounded = actor.mode in ("ground", "water")
    top = y * unit - lift - (high if grounded else high / 2)
    shape = sprites.sprite(shown)
    cell = shape.cell(actor.phase + time * actor.rate)
    flip, angle = at.flip, at.angle
    if shown != actor.character:
        flip = _same_side(actor, at, shown)
    return Placed(shown, cell, x * unit - wide / 2, top, wide, high, flip, angle, (x * unit, y * unit), lift,
                  y + actor.order)  # fmt: skip


def _same_side(actor: Actor, at: Pose, shown: str) -> bool:
    """Mirror the character that another one turned into, so that it looks the same way."""
    old, new = character(actor.character).facing, character(shown).facing
    return at.flip != (old == "right" and new == "left") if new in ("left", "right") else False


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


def _stamp(frame: Frame, who: Placed, light: NDArray[np.uint16] | None, opacity: float) -> None:
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
        light = scene(clip.setting.scene).light
        self.light = None
        if light != (1.0, 1.0, 1.0):
            self.light = np.asarray([*(round(256 * v) for v in light), 256], np.uint16)

    def frame(self, time: float) -> Frame:
        """The picture at `time`, uint8 (H, W, 3)."""
        clip = self.clip
        seen = view(clip.camera, time, clip.duration)
        picture = self.backdrop.frame(seen, time)
        for painter in self.behind:
            painter.draw(picture, time, (seen.x, seen.y))
        placed = [(place(actor, time, seen, self.height, self.width), actor) for actor in clip.actors]
        for who, actor in sorted(placed, key=lambda pair: pair[0].depth):
            if actor.mode in ("ground", "water"):
                _shadow(picture, who, actor.mode == "water")
            _stamp(picture, who, self.light, 1.0)
        for painter in self.front:
            painter.draw(picture, time, (seen.x, seen.y))
        return picture


def render(clip: Clip, frames: int, fps: float, height: int, width: int, start: float) -> Frame:
    """All frames of a clip, uint8 (T, H, W, 3)."""
    renderer = Renderer(clip, height, width)
    out = np.empty((frames, height, width, 3), np.uint8)
    for k in range(frames):
        out[k] = renderer.frame(start + k / fps)
    return out
