"""Scenes with water: beach, sea, underwater, waterfall."""

from __future__ import annotations

import math

import numpy as np

from cogvideox.data.storybook import props
from cogvideox.data.storybook.ambient import Particles, Shimmer
from cogvideox.data.storybook.paint import Canvas, Colour, mix, rgb, shade
from cogvideox.data.storybook.scenes.nature import clouds, grass, seed, tone


def sea_band(c: Canvas, top: float, bottom: float, far: Colour, near: Colour, strength: float = 18) -> None:
    """Water from the horizon `top` down to `bottom`, with waves that widen towards the viewer."""
    first = c.row(top)
    rows = slice(first, c.h)
    depth = np.clip((c.y[rows] - top) / (bottom - top), 0, 1)
    crest = np.sin((np.log1p(6 * depth) * 11 + 1.5 * c.noise(3, 6, 2, top)) * 2 * math.pi)
    paint = np.asarray(far, np.float32) + depth[..., None] * (
        np.asarray(near, np.float32) - np.asarray(far, np.float32)
    )
    paint = paint * (1 + 0.06 * crest + 0.1 * (c.noise(10, 50, 2, top) - 0.5))[..., None]
    c.fill(1.0, paint.astype(np.float32), rows)
    c.effects.append(Shimmer(seed(c), top, bottom, strength, rgb("f4fbff")))


def beach(c: Canvas, look: str) -> None:
    sky = tone(c, "3fa9f5")
    c.sky((0, sky), (0.5, mix(sky, (255, 255, 255), 0.72)))
    c.disc(c.rng.uniform(0.1, 0.9), c.rng.uniform(0.1, 0.2), 0.06, rgb("fff3a8"), 0.4)
    clouds(c, 0.38, 0.4)
    sea_band(c, 0.47, 0.72, tone(c, "1577b8"), tone(c, "4fd0d6"))
    c.next_layer(0.5)
    pen = c.pen()
    if look == "islands":
        for x in c.spots(0.8, 0.4):
            pen.blob(
                x, 0.475, 0, 0.01, c.rng.uniform(0.12, 0.22), c.rng.uniform(0.03, 0.06), tone(c, "3f8f5f")
            )
            pen.box(x, 0.475, -0.3, 0.003, 0.3, 0.08, tone(c, "1577b8", 0.0))
    c.merge(pen)
    c.next_layer(1.0)
    foam = c.profile(0.685, 0.02, 2.5)
    c.below(foam - 0.012, rgb("e8fbff"), rgb("e8fbff"))
    sand = tone(c, "f6dfa2")
    texture = 0.5 * c.noise(5, 14, 3) + 0.5 * c.noise(50, 50, 1)
    c.below(foam + 0.004, shade(sand, 0.82), shade(sand, 0.84), 0.2)
    c.below(foam + 0.03, sand, shade(sand, 0.85), 0.3, texture, 0.12)
    pen = c.pen()
    if look == "palms":
        for x in c.spots(0.75, 0.3):
            lean = c.rng.uniform(0.15, 0.35) * (1 if x < 0.5 else -1)
            props.palm(pen, x, 0.76, c.rng.uniform(0.4, 0.52), lean)
    if look == "umbrellas":
        for x in c.spots(0.5, 0.3):
            umbrella(c, x, 0.77, c.rng.uniform(0.17, 0.24), pen)
    for x, y, scale in props.scatter(c, 8, 0.99, 0.8):
        shell = (rgb("ff8a80"), rgb("ffffff"), rgb("ffb74d"))[int(c.rng.integers(3))]
        pen.blob(x, y, 0, 0, 0.016 * scale, 0.011 * scale, shell)
    c.merge(pen)


def umbrella(c: Canvas, x: float, y: float, size: float, pen: props.Pen) -> None:
    """A striped beach umbrella."""
    colour = (rgb("e53935"), rgb("1e88e5"), rgb("fbc02d"), rgb("8e24aa"))[int(c.rng.integers(4))]
    pen.line(x, y, [(0, 0), (0, -1.0 * size)], rgb("8d6e63"), 0.012)
    for k in range(6):
        a, b = -math.pi * k / 6, -math.pi * (k + 1) / 6
        wedge = [
            (0.0, -0.8 * size),
            (math.cos(a) * 0.6 * size, -0.8 * size + math.sin(a) * 0.42 * size),
            (math.cos(b) * 0.6 * size, -0.8 * size + math.sin(b) * 0.42 * size),
        ]
        pen.polygon(x, y, wedge, colour if k % 2 else (250, 250, 250))


def sea(c: Canvas, look: str) -> None:
    sky = {"calm": tone(c, "5ab6f5"), "stormy": tone(c, "66727f"), "lighthouse": tone(c, "7cc4f0")}[look]
    c.sky((0, sky), (0.5, mix(sky, (255, 255, 255), 0.6)))
    clouds(
        c, 0.42, 0.85 if look == "stormy" else 0.5, (190, 196, 204) if look == "stormy" else (255, 255, 255)
    )
    far, near = ("2b5d75", "163f57") if look == "stormy" else ("1f86c9", "0b4f9c")
    sea_band(c, 0.5, 1.05, tone(c, far), tone(c, near), 26)
    c.next_layer(0.4)
    if look == "lighthouse":
        pen = c.pen()
        for x in c.spots(1.1, 0.3):
            props.rock(pen, x, 0.535, 0.2, rgb("7a6f66"), c.rng)
            for k in range(5):
                wide = 0.03 - 0.002 * k
                pen.box(
                    x,
                    0.5,
                    -wide,
                    -0.05 * (k + 1),
                    wide,
                    -0.05 * k,
                    rgb("d32f2f") if k % 2 == 0 else (248, 248, 248),
                )
            pen.box(x, 0.5, -0.017, -0.285, 0.017, -0.25, rgb("fff176"))
            pen.polygon(x, 0.5, [(-0.028, -0.285), (0.028, -0.285), (0, -0.32)], rgb("b71c1c"))
        c.merge(pen)
    c.next_layer(1.0)
    pen = c.pen()
    for x, y, scale in props.scatter(c, 26, 1.0, 0.56):
        wide = c.rng.uniform(0.03, 0.07) * scale
        arc = [(wide * k / 4, -0.014 * scale * math.sin(math.pi * (k + 4) / 8)) for k in range(-4, 5)]
        pen.line(x, y, arc, (235, 248, 255), 0.006 + 0.006 * scale, 0.75)
    c.merge(pen)
    if look == "stormy":
        c.effects.append(Particles("rain", seed(c), 0.6))


def underwater(c: Canvas, look: str) -> None:
    top = tone(c, "35b6d9")
    c.sky((0, mix(top, (255, 255, 255), 0.25)), (0.4, top), (1, tone(c, "0b3f7a")))
    slope = c.x * c.width + 0.5 * c.y * c.height
    rays = np.clip(
        np.sin(slope * 11 + c.rng.uniform(0, 6)) * 0.6 + np.sin(slope * 23 + c.rng.uniform(0, 6)) * 0.4, 0, 1
    )
    c.fill((0.3 * rays * np.clip(1 - 1.2 * c.y, 0, 1)).astype(np.float32), (225, 255, 255))
    c.below(c.profile(0.78, 0.09, 1.6), tone(c, "1d6a96"), tone(c, "15507d"), 0.2, c.noise(9, 9, 3), 0.2)
    c.next_layer(0.6)
    c.below(c.profile(0.84, 0.04, 1.8), tone(c, "2a7f9c"), tone(c, "1d5f80"), 0.2, c.noise(12, 12, 2), 0.18)
    pen = c.pen()
    for x in c.spots(0.16, 0.45):
        kelp(pen, c, x, 0.93, c.rng.uniform(0.18, 0.42))
    c.merge(pen)
    c.next_layer(1.0)
    sand = tone(c, "d9c48e")
    c.below(
        c.profile(0.9, 0.02, 2),
        sand,
        shade(sand, 0.75),
        0.15,
        0.5 * c.noise(6, 20, 2) + 0.5 * c.noise(45, 45, 1),
        0.2,
    )
    pen = c.pen()
    for x, y, scale in props.scatter(c, 7, 0.99, 0.92):
        if look == "coral":
            coral(pen, c, x, y, 0.14 * scale)
        else:
            props.rock(pen, x, y, 0.13 * scale, tone(c, "66788c"), c.rng)
    if look == "starfish":
        for x, y, scale in props.scatter(c, 5, 0.99, 0.93):
            star = [
                (
                    math.cos(k * math.pi / 5) * (0.05 if k % 2 else 0.02) * scale,
                    math.sin(k * math.pi / 5) * (0.04 if k % 2 else 0.016) * scale,
                )
                for k in range(10)
            ]
            pen.polygon(x, y, star, rgb("ff7043"))
    c.merge(pen, 0.1)
    c.effects.append(Shimmer(seed(c), 0.0, 0.55, 9, rgb("e0ffff"), 0.3, 10))
    c.effects.append(Particles("bubbles", seed(c)))


def kelp(pen: props.Pen, c: Canvas, x: float, y: float, size: float) -> None:
    """A waving ribbon of seaweed."""
    phase = c.rng.uniform(0, 6)
    green = tone(c, "2e8b57", 0.15)
    spine = [(0.03 * math.sin(phase + k * 0.9) * k / 4, -size * k / 7) for k in range(8)]
    pen.line(x, y, spine, green, 0.028)
    for k in range(1, 8):
        side = 1 if k % 2 else -1
        pen.blob(x, y, spine[k][0] + side * 0.018, spine[k][1], 0.022, 0.012, shade(green, 1.2))


def coral(pen: props.Pen, c: Canvas, x: float, y: float, size: float) -> None:
    """A branching coral."""
    colour = (rgb("ff6f91"), rgb("ff9671"), rgb("c86bfa"), rgb("ffc75f"))[int(c.rng.integers(4))]
    for angle in (-0.9, -0.35, 0.2, 0.75):
        tip = (math.sin(angle) * size, -math.cos(angle) * size)
        pen.line(x, y, [(0, 0), (tip[0] * 0.5, tip[1] * 0.6), tip], colour, size * 0.16)
        pen.blob(x, y, tip[0], tip[1], size * 0.12, size * 0.12, shade(colour, 1.2))
        pen.blob(x, y, tip[0] * 0.5 + 0.15 * size, tip[1] * 0.75, size * 0.09, size * 0.09, colour)


def waterfall(c: Canvas, look: str) -> None:
    sky = tone(c, "9fd8ef")
    c.sky((0, sky), (0.4, (240, 250, 250)))
    rocky = tone(c, "6f6a5f") if look == "rocks" else tone(c, "5c6b4c")
    cliff = 0.5 * c.noise(7, 3, 3) + 0.5 * c.noise(30, 8, 2)
    c.below(c.profile(0.16, 0.08, 2), shade(rocky, 1.15), shade(rocky, 0.6), 0.6, cliff, 0.45)
    pen = c.pen()
    for _ in range(int(26 * c.span)):
        x, y = c.rng.uniform(-c.margin_x, 1 + c.margin_x), c.rng.uniform(0.1, 0.6)
        pen.blob(x, y, 0, 0, c.rng.uniform(0.03, 0.07), c.rng.uniform(0.02, 0.05), tone(c, "3f8a3f", 0.2))
    c.merge(pen, 0.25)
    middle, half = c.rng.uniform(0.3, 0.7), 0.13 / c.width
    edge = c.profile(0.0, 0.02, 3)[: c.h] if c.w >= c.h else np.zeros(c.h, np.float32)
    wobble = np.resize(edge, c.h)[:, None]
    cover = np.clip((half - np.abs(c.x - middle - wobble * 0.5)) * c.width * 24, 0, 1) * np.clip(
        (c.y - 0.17) * 30, 0, 1
    )
    streaks = c.noise(45, 2, 2)
    c.fill(
        cover * np.clip((0.72 - c.y) * 40, 0, 1),
        (np.asarray((214, 240, 250), np.float32) * (0.8 + 0.35 * streaks[..., None])),
    )
    c.effects.append(
        Shimmer(seed(c), 0.17, 0.66, 60, (255, 255, 255), 0.7, 30, True, middle - half, middle + half)
    )
    sea_band(c, 0.64, 0.8, tone(c, "4fb8c9"), tone(c, "2d8fae"), 24)
    mist = np.exp(-(((c.x - middle) * c.width / 0.24) ** 2) - ((c.y - 0.65) * c.height / 0.06) ** 2)
    c.fill((0.85 * mist).astype(np.float32), (250, 253, 255))
    c.next_layer(1.0)
    grass(c, 0.77, "4a9e3d", 30)
    pen = c.pen()
    for x, y, scale in props.scatter(c, 6, 0.99, 0.79):
        props.rock(pen, x, y, 0.09 * scale, tone(c, "8a8578"), c.rng)
        if look == "flowers":
            props.flower(pen, x, y, 0.06 * scale, rgb("ff80ab"))
    c.merge(pen, 0.15)
