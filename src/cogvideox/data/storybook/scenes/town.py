"""Built places: city by day and at night, a street in the rain, a room, a farm."""

from __future__ import annotations

import numpy as np

from cogvideox.data.storybook import props
from cogvideox.data.storybook.ambient import Particles, Shimmer, Stars
from cogvideox.data.storybook.paint import Canvas, Colour, Pen, mix, rgb, shade
from cogvideox.data.storybook.scenes.nature import clouds, grass, seed, tone

WALLS = ("c98b6b", "d9b48f", "8fa3b8", "b7a6c9", "9fb89a", "cfc3b0", "b56b5f", "e0c77f")


def skyline(
    c: Canvas,
    base: float,
    low: float,
    high: float,
    haze: Colour,
    fade: float,
    lit: float,
    glass: Colour,
    windows: bool = False,
) -> None:
    """A row of towers with their feet at `base`, mixed with the haze by `fade`."""
    pen = c.pen()
    x = -c.margin_x - 0.1
    while x < 1 + c.margin_x + 0.1:
        wide = c.rng.uniform(0.16, 0.28)
        wall = mix(tone(c, WALLS[int(c.rng.integers(len(WALLS)))]), haze, fade)
        props.tower(
            pen,
            x + wide / 2 / c.width,
            base,
            wide * 0.96,
            c.rng.uniform(low, high),
            wall,
            lit,
            c.rng,
            mix(glass, haze, fade),
            windows,
        )
        x += wide / c.width
    c.merge(pen, 0.06)


def road(c: Canvas, y: float, code: str, stripe: Colour) -> None:
    """Pavement, kerb and a road with a dashed line from `y` down."""
    flat = np.full(c.w, y, np.float32)
    stone = tone(c, "b9b3a8")
    c.below(flat, shade(stone, 0.9), stone, 0.04, c.noise(24, 24, 2), 0.1)
    asphalt = tone(c, code, 0.03)
    c.below(
        flat + 0.035,
        shade(asphalt, 0.8),
        shade(asphalt, 1.1),
        0.2,
        0.5 * c.noise(50, 50, 1) + 0.5 * c.noise(5, 5, 2),
        0.14,
    )
    pen = c.pen()
    for x in c.spots(0.24, 0.0):
        pen.polygon(
            x, (y + 1.04) / 2, [(-0.06, 0.012), (0.06, 0.012), (0.05, -0.008), (-0.05, -0.008)], stripe
        )
    c.merge(pen)


def lamp(pen: Pen, x: float, y: float, size: float, glow: Colour) -> None:
    """A street lamp."""
    pen.box(x, y, -0.012 * size, -size, 0.012 * size, 0, rgb("3a3f47"))
    pen.box(x, y, -0.05 * size, -0.03 * size, 0.05 * size, 0, rgb("3a3f47"))
    pen.blob(x, y, 0, -size, 0.06 * size, 0.06 * size, glow)


def city(c: Canvas, look: str) -> None:
    sky = tone(c, "6fbdf2")
    c.sky((0, sky), (0.6, rgb("e6f3fb")))
    clouds(c, 0.4, 0.45)
    skyline(c, 0.78, 0.35, 0.55, rgb("cfe2f0"), 0.6, 0.0, rgb("a8c8e0"))
    c.next_layer(0.6)
    skyline(c, 0.8, 0.2, 0.42, rgb("ffffff"), 0.05, 0.05, rgb("8fc3e8"), True)
    c.next_layer(1.0)
    road(c, 0.795, "6b6f76", (245, 245, 240))
    pen = c.pen()
    for x in c.spots(0.34, 0.2):
        if look == "trees":
            props.round_tree(pen, x, 0.825, c.rng.uniform(0.16, 0.22), tone(c, "3f9a45"), c.rng)
        else:
            lamp(pen, x, 0.825, 0.26, rgb("fff7d6"))
    c.merge(pen)


def night_city(c: Canvas, look: str) -> None:
    c.sky((0, tone(c, "0b1030")), (0.7, tone(c, "3a2f6b")))
    c.effects.append(Stars(seed(c), 0.3, 0.8))
    if look == "moon":
        c.disc(c.rng.uniform(0.15, 0.85), 0.14, 0.065, rgb("f5efc9"), 0.3, 0.4)
    skyline(c, 0.78, 0.35, 0.56, tone(c, "2a2a5e"), 0.75, 0.35, rgb("1c2350"))
    c.next_layer(0.6)
    skyline(c, 0.8, 0.22, 0.44, tone(c, "12142e"), 0.82, 0.5, rgb("151a3a"))
    pen = c.pen()
    if look == "neon":
        for x in c.spots(0.3, 0.3):
            sign = (rgb("ff2e88"), rgb("2ef2ff"), rgb("b6ff2e"), rgb("ffb02e"))[int(c.rng.integers(4))]
            high = c.rng.uniform(0.1, 0.17)
            pen.box(x, 0.74, -0.045, -high - 0.02, 0.045, 0.0, (20, 20, 40))
            pen.box(x, 0.74, -0.03, -high, 0.03, -0.02, sign)
            pen.box(x, 0.74, -0.014, -high + 0.02, 0.014, -0.04, (255, 255, 255))
    c.merge(pen)
    c.next_layer(1.0)
    road(c, 0.795, "2c2e42", rgb("d9c36a"))
    for x in c.spots(0.5, 0.2):
        pool = np.exp(-(((c.x - x) * c.width / 0.16) ** 2) - ((c.y - 0.87) * c.height / 0.06) ** 2)
        c.fill((0.5 * pool).astype(np.float32), rgb("ffd48a"))
        halo = np.exp(-(((c.x - x) * c.width) ** 2 + ((c.y - 0.825) * c.height + 0.26) ** 2) / 0.006)
        c.fill((0.6 * halo).astype(np.float32), rgb("ffdf9e"))
        pen = c.pen()
        lamp(pen, x, 0.825, 0.26, rgb("fff3c4"))
        c.merge(pen)


def rainy_street(c: Canvas, look: str) -> None:
    sky = tone(c, "7d8a98")
    c.sky((0, shade(sky, 0.8)), (0.6, tone(c, "b4bec7")))
    skyline(c, 0.72, 0.32, 0.5, rgb("aab4bf"), 0.75, 0.15, rgb("8c9aa8"))
    c.next_layer(0.6)
    pen = c.pen()
    for x in c.spots(0.36, 0.05):
        shop(pen, c, x, 0.755, 0.34)
    c.merge(pen, 0.06)
    c.next_layer(1.0)
    wet = tone(c, "55606d", 0.03)
    c.below(np.full(c.w, 0.75, np.float32), shade(wet, 1.35), shade(wet, 0.75), 0.25, c.noise(6, 30, 3), 0.3)
    for x in c.spots(0.22, 0.4):
        tint = (rgb("ffd27a"), rgb("ff8a80"), rgb("80d8ff"))[int(c.rng.integers(3))]
        gleam = (
            np.exp(-(((c.x - x) * c.width / 0.05) ** 2))
            * np.clip((c.y - 0.76) * 8, 0, 1)
            * np.clip((1.05 - c.y) * 4, 0, 1)
        )
        c.fill((0.32 * gleam * c.noise(8, 40, 2)).astype(np.float32), tint)
    if look == "puddles":
        pen = c.pen()
        for x, y, scale in props.scatter(c, 5, 0.99, 0.8):
            pen.blob(x, y, 0, 0, 0.13 * scale, 0.025 * scale, rgb("a9bccb"))
            pen.blob(x, y, 0.01, 0.004, 0.1 * scale, 0.017 * scale, rgb("c6d6e2"))
        c.merge(pen)
    c.effects.append(Shimmer(seed(c), 0.78, 1.0, 14, (230, 240, 255), 0.8, 24))
    c.effects.append(Particles("rain", seed(c)))


def shop(pen: Pen, c: Canvas, x: float, y: float, wide: float) -> None:
    """A shop front with an awning and a warm window."""
    wall = tone(c, WALLS[int(c.rng.integers(len(WALLS)))])
    high = c.rng.uniform(0.34, 0.46)
    pen.box(x, y, -wide / 2, -high, wide / 2, 0, shade(wall, 0.72))
    for dx in (-0.3, 0.0, 0.3):
        pen.box(
            x,
            y,
            (dx - 0.09) * wide,
            -high + 0.04,
            (dx + 0.09) * wide,
            -high + 0.12,
            rgb("ffe2a0") if c.rng.random() < 0.5 else rgb("5f6d7a"),
        )
    pen.box(x, y, -0.42 * wide, -0.16, 0.16 * wide, -0.015, rgb("ffd98a"))
    pen.box(x, y, 0.22 * wide, -0.16, 0.42 * wide, 0, rgb("5b4334"))
    stripe = (rgb("d84343"), rgb("2f7fc1"), rgb("3d9a5b"), rgb("e0a030"))[int(c.rng.integers(4))]
    for k in range(6):
        left = -wide * 0.47 + k * wide * 0.94 / 6
        tint = stripe if k % 2 == 0 else (242, 242, 242)
        pen.polygon(
            x,
            y,
            [
                (left, -0.155),
                (left + wide * 0.157, -0.155),
                (left + wide * 0.14, -0.215),
                (left + wide * 0.02, -0.215),
            ],
            tint,
        )


def room(c: Canvas, look: str) -> None:
    wall = {"blue": tone(c, "9cc7e0"), "pink": tone(c, "f2b5c4"), "green": tone(c, "a9d3a5")}[look]
    c.sky((0, shade(wall, 1.05)), (0.75, shade(wall, 0.9)))
    paper = (np.sin(c.x * c.width * 2 * np.pi * 9) > 0.2).astype(np.float32) * np.ones_like(c.y)
    c.fill(0.22 * paper, shade(wall, 1.18))
    c.fill((0.15 * np.clip(c.noise(2, 2, 2) - 0.3, 0, 1)).astype(np.float32), (60, 50, 70))
    pen = c.pen()
    for k, x in enumerate(c.spots(0.62, 0.12)):
        (window if k % 2 == 0 else picture)(pen, c, x, 0.5)
    pen.box(-c.margin_x, 0.755, 0, -0.03, c.span, 0.004, (250, 246, 238))
    c.merge(pen)
    c.next_layer(1.0)
    wood = tone(c, "b9814e")
    grainy = 0.6 * c.noise(3, 60, 2) + 0.4 * c.noise(30, 60, 1)
    c.below(np.full(c.w, 0.757, np.float32), shade(wood, 0.85), shade(wood, 1.1), 0.25, grainy, 0.25)
    pen = c.pen()
    for k in range(1, 5):
        y = 0.757 + 0.27 * (k / 4.5) ** 1.5
        pen.box(-c.margin_x, y, 0, 0, c.span, 0.004, shade(wood, 0.65))
    rug = tone(c, "c0435a")
    for grow, tint in ((1.0, shade(rug, 0.85)), (0.86, rgb("f3dcc0")), (0.78, rug), (0.45, shade(rug, 1.25))):
        pen.blob(0.5, 0.9, 0, 0, 0.43 * grow, 0.085 * grow, tint)
    c.merge(pen, 0.1)


def window(pen: Pen, c: Canvas, x: float, y: float) -> None:
    """A window with curtains, its sill at `y`."""
    pen.box(x, y, -0.17, -0.32, 0.17, 0.0, (250, 248, 242))
    pen.box(x, y, -0.15, -0.3, 0.15, -0.02, rgb("a8dcff"))
    pen.blob(x, y, 0.03, -0.04, 0.1, 0.06, rgb("7cc576"))
    pen.box(x, y, -0.15, -0.02, 0.15, 0.02, (250, 248, 242))
    pen.box(x, y, -0.008, -0.3, 0.008, 0, (250, 248, 242))
    pen.box(x, y, -0.15, -0.165, 0.15, -0.15, (250, 248, 242))
    cloth = tone(c, "e8785a", 0.15)
    for side in (-1, 1):
        pen.polygon(
            x,
            y,
            [
                (side * 0.2, -0.36),
                (side * 0.05, -0.36),
                (side * 0.14, -0.16),
                (side * 0.13, 0.05),
                (side * 0.21, 0.05),
            ],
            cloth,
        )


def picture(pen: Pen, c: Canvas, x: float, y: float) -> None:
    """A framed picture above a chest of drawers."""
    pen.box(x, y, -0.12, -0.3, 0.12, -0.1, rgb("8a5a2b"))
    pen.box(x, y, -0.1, -0.28, 0.1, -0.12, tone(c, "f4d58d", 0.2))
    pen.polygon(x, y, [(-0.08, -0.12), (0.0, -0.23), (0.08, -0.12)], tone(c, "5f8f7a", 0.2))
    pen.box(x, 0.757, -0.16, -0.2, 0.16, 0.0, rgb("a86b3c"))
    for row in (-0.18, -0.09):
        pen.box(x, 0.757, -0.14, row, 0.14, row + 0.07, rgb("c58650"))
        pen.blob(x, 0.757, 0, row + 0.035, 0.012, 0.012, rgb("f0d9a0"))


def farm(c: Canvas, look: str) -> None:
    sky = tone(c, "63b7ef")
    c.sky((0, sky), (0.6, rgb("f3f6e4")))
    clouds(c, 0.42, 0.5)
    field = tone(c, "b8c94f")
    waves = (0.5 + 0.5 * np.sin(c.y * c.height * 2 * np.pi * 26)).astype(np.float32)
    c.below(c.profile(0.56, 0.03, 1.2), field, shade(field, 0.85), 0.15, waves * np.ones_like(c.x), 0.12)
    c.next_layer(0.55)
    wheat = tone(c, "e2bd4a")
    rows = (0.5 + 0.5 * np.sin(np.log(np.maximum(c.y - 0.5, 0.02)) * 34)).astype(np.float32) * np.ones_like(
        c.x
    )
    c.below(
        c.profile(0.62, 0.02, 1.4),
        wheat,
        shade(wheat, 0.8),
        0.15,
        0.6 * rows + 0.4 * c.noise(40, 30, 1),
        0.22,
    )
    pen = c.pen()
    for k, x in enumerate(c.spots(0.55, 0.25)):
        if k % 2 == 0 or look == "barn":
            barn(pen, x, 0.68, c.rng.uniform(0.26, 0.34), tone(c, "c0392b"))
        else:
            windmill(pen, c, x, 0.67, 0.34)
    c.merge(pen, 0.05)
    c.next_layer(1.0)
    grass(c, 0.69, "7ab648", 26)
    pen = c.pen()
    for x in c.spots(0.13, 0.0):
        pen.box(x, 0.735, -0.012, -0.09, 0.012, 0.01, rgb("f4efe6"))
        pen.polygon(x, 0.735, [(-0.012, -0.09), (0.012, -0.09), (0, -0.105)], rgb("f4efe6"))
    for level in (-0.07, -0.035):
        pen.box(-c.margin_x, 0.735, 0, level, c.span, level + 0.013, rgb("e6dfd2"))
    c.merge(pen)


def barn(pen: Pen, x: float, y: float, size: float, wall: Colour) -> None:
    """A red barn and its silo."""
    pen.box(x, y, 0.52 * size, -0.95 * size, 0.78 * size, 0, rgb("c9ced3"))
    pen.blob(x, y, 0.65 * size, -0.95 * size, 0.13 * size, 0.13 * size, rgb("9aa4ad"))
    roof = [(-0.5, -0.5), (-0.38, -0.8), (0.0, -1.0), (0.38, -0.8), (0.5, -0.5)]
    pen.polygon(x, y, [(-0.5 * size, 0), *[(a * size, b * size) for a, b in roof], (0.5 * size, 0)], wall)
    pen.line(x, y, [(a * size * 1.08, b * size) for a, b in roof], rgb("6d3a34"), 0.05 * size)
    pen.box(x, y, -0.2 * size, -0.42 * size, 0.2 * size, 0, rgb("f7efe6"))
    pen.box(x, y, -0.17 * size, -0.39 * size, 0.17 * size, 0, shade(wall, 0.8))
    pen.line(x, y, [(-0.17 * size, -0.39 * size), (0.17 * size, 0)], rgb("f7efe6"), 0.03 * size)
    pen.line(x, y, [(0.17 * size, -0.39 * size), (-0.17 * size, 0)], rgb("f7efe6"), 0.03 * size)


def windmill(pen: Pen, c: Canvas, x: float, y: float, size: float) -> None:
    """A windmill with four sails."""
    pen.polygon(
        x,
        y,
        [(-0.2 * size, 0), (0.2 * size, 0), (0.11 * size, -0.7 * size), (-0.11 * size, -0.7 * size)],
        rgb("efe4d0"),
    )
    pen.polygon(
        x,
        y,
        [(0.05 * size, 0), (0.2 * size, 0), (0.11 * size, -0.7 * size), (0.05 * size, -0.7 * size)],
        rgb("cfc2a8"),
    )
    pen.polygon(
        x, y, [(-0.14 * size, -0.68 * size), (0.14 * size, -0.68 * size), (0, -0.88 * size)], rgb("8c4a3a")
    )
    start = c.rng.uniform(0, 1.5)
    for k in range(4):
        angle = start + k * np.pi / 2
        tip = (np.cos(angle) * 0.5 * size, -0.7 * size + np.sin(angle) * 0.5 * size)
        pen.line(x, y, [(0, -0.7 * size), tip], rgb("7a5c46"), 0.05 * size)
        pen.line(
            x, y, [(tip[0] * 0.3, -0.7 * size + (tip[1] + 0.7 * size) * 0.3), tip], rgb("fbf6ea"), 0.09 * size
        )
