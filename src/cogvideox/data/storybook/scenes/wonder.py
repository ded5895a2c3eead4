"""Skies and fairy-tale places: starry night, sunset, space, volcano, autumn park, candy land."""

from __future__ import annotations

import math

import numpy as np

from cogvideox.data.storybook import props
from cogvideox.data.storybook.ambient import Particles, Stars
from cogvideox.data.storybook.paint import Canvas, mix, rgb, shade
from cogvideox.data.storybook.scenes.nature import clouds, seed, tone
from cogvideox.data.storybook.scenes.water import sea_band


def starry_night(c: Canvas, look: str) -> None:
    deep = {"blue": tone(c, "0a1440"), "aurora": tone(c, "071a38")}[look]
    c.sky((0, deep), (0.8, tone(c, "2b4a92")))
    slope = (c.y * c.height - 0.35 + 0.35 * (c.x - 0.5) * c.width) / 0.16
    milky = np.exp(-(slope**2)) * (0.25 + 0.75 * c.noise(5, 5, 4))
    c.fill((0.42 * milky).astype(np.float32), rgb("a9b8ff"))
    if look == "aurora":
        line = c.profile(0.3, 0.16, 1.5)[None, :]
        glow = np.exp(-np.clip(line - c.y, 0, 1) * 7) * np.clip((line + 0.05 - c.y) * 16, 0, 1)
        folds = 0.55 + 0.45 * np.sin(c.profile(0, 2.2, 3)[None, :] * 9)
        c.fill((0.75 * glow * folds).astype(np.float32), rgb("52f7b4"))
    hills = c.profile(0.76, 0.05, 1.3)
    skip = tuple(float(v) for v in np.interp(np.linspace(0, 1, 17), c.x[0], hills))
    c.effects.append(Stars(seed(c), 0.75, 1.6, skip))
    if look != "aurora":
        c.disc(c.rng.uniform(0.12, 0.88), c.rng.uniform(0.12, 0.22), 0.06, rgb("fdf6d8"), 0.22, 0.45)
    c.below(hills, tone(c, "1b2c5c"), tone(c, "15224a"), 0.1)
    c.next_layer(0.7)
    pen = c.pen()
    for x in c.spots(0.16, 0.45):
        props.conifer(pen, x, 0.84, c.rng.uniform(0.1, 0.22), tone(c, "14264a"))
    c.merge(pen)
    c.next_layer(1.0)
    ground = tone(c, "2a4a6e")
    c.below(
        c.profile(0.82, 0.02, 1.5),
        ground,
        shade(ground, 0.6),
        0.2,
        0.5 * c.noise(5, 18, 2) + 0.5 * c.noise(45, 30, 1),
        0.2,
    )
    c.effects.append(Particles("fireflies", seed(c), 0.6, 0.65, 1.0))


def sunset(c: Canvas, look: str) -> None:
    c.sky((0, tone(c, "5b3a8c")), (0.25, tone(c, "c4507e")), (0.45, tone(c, "ff8a4c")), (0.62, rgb("ffd76a")))
    x = c.rng.uniform(0.25, 0.75)
    c.disc(x, 0.52, 0.13, rgb("fff0a0"), 0.45, 0.75)
    clouds(c, 0.45, 0.4, rgb("ff9e80"), 0.02)
    if look == "lake":
        sea_band(c, 0.6, 0.84, tone(c, "e8875a"), tone(c, "6a3a78"), 26)
        path = (
            np.exp(-(((c.x - x) * c.width / 0.12) ** 2))
            * np.clip((c.y - 0.6) * 30, 0, 1)
            * np.clip((0.84 - c.y) * 8, 0, 1)
        )
        c.fill((0.7 * path * (0.4 + 0.6 * c.noise(10, 60, 1))).astype(np.float32), rgb("ffe9a0"))
    else:
        c.below(c.profile(0.6, 0.04, 1.5), tone(c, "9c4a62"), tone(c, "7a3a58"), 0.15)
        c.next_layer(0.6)
        c.below(c.profile(0.68, 0.04, 1.6), tone(c, "6d3352"), tone(c, "552a48"), 0.15)
        pen = c.pen()
        for tree in c.spots(0.5, 0.4):
            acacia(pen, tree, 0.71, c.rng.uniform(0.2, 0.32))
        c.merge(pen)
    c.next_layer(1.0)
    ground = tone(c, "6b3350")
    c.below(
        c.profile(0.79, 0.02, 1.6),
        ground,
        shade(ground, 0.6),
        0.2,
        0.5 * c.noise(6, 20, 2) + 0.5 * c.noise(45, 30, 1),
        0.25,
    )
    pen = c.pen()
    for tx, y, scale in props.scatter(c, 22, 1.02, 0.82):
        props.tuft(pen, tx, y, 0.05 * scale, rgb("4a2440"))
    c.merge(pen)


def acacia(pen: props.Pen, x: float, y: float, size: float) -> None:
    """A flat-topped tree in silhouette."""
    dark = rgb("3c1f3c")
    pen.line(x, y, [(0, 0), (0.02 * size, -0.5 * size), (-0.25 * size, -0.75 * size)], dark, 0.07 * size)
    pen.line(x, y, [(0.02 * size, -0.45 * size), (0.25 * size, -0.78 * size)], dark, 0.05 * size)
    for dx, dy, rx in ((-0.25, -0.8, 0.32), (0.22, -0.84, 0.34), (0.0, -0.9, 0.36)):
        pen.blob(x, y, dx * size, dy * size, rx * size, 0.11 * size, dark)


def space(c: Canvas, look: str) -> None:
    c.sky((0, tone(c, "05060f")), (1, tone(c, "120a26")))
    for _ in range(2):
        cloud = np.clip(c.noise(2.2, 2.2, 4) - 0.42, 0, 1) * 2.4
        c.fill(
            (np.clip(cloud, 0, 0.7)).astype(np.float32),
            tone(c, ("5b2a86", "1f4f8f", "8f2f5f")[int(c.rng.integers(3))], 0.15),
        )
    c.effects.append(Stars(seed(c), 1.0, 1.8))
    c.next_layer(0.25)
    if look == "earth":
        planet(c, c.rng.uniform(0.15, 0.85), 1.12, 0.42, "2f7fd6", "3fa05a")
    elif look == "planets":
        planet(
            c, c.rng.uniform(0.1, 0.3), c.rng.uniform(0.15, 0.3), c.rng.uniform(0.1, 0.16), "e07a4f", "b3532f"
        )
        planet(
            c,
            c.rng.uniform(0.7, 0.95),
            c.rng.uniform(0.6, 0.85),
            c.rng.uniform(0.06, 0.12),
            "7fd1c7",
            "4f9fb0",
        )
    else:
        planet(
            c,
            c.rng.uniform(0.2, 0.8),
            c.rng.uniform(0.14, 0.25),
            c.rng.uniform(0.1, 0.14),
            "d8d8d2",
            "a3a39c",
        )


def planet(c: Canvas, x: float, y: float, radius: float, code: str, land: str) -> None:
    """A ball lit from the upper left, with patches of a second colour and a thin glow."""
    dx, dy = (c.x - x) * c.width / radius, (c.y - y) * c.height / radius
    distance = np.sqrt(dx * dx + dy * dy)
    halo = np.exp(-np.clip(distance - 1, 0, 9) * 9) * (distance > 1)
    c.fill((0.4 * halo).astype(np.float32), mix(rgb(code), (255, 255, 255), 0.4))
    patches = np.clip((c.noise(3 / radius * 0.3, 5 / radius * 0.3, 3) - 0.52) * 9, 0, 1)[..., None]
    base = np.asarray(tone(c, code), np.float32)
    paint = base + patches * (np.asarray(tone(c, land), np.float32) - base)
    light = np.clip(0.35 + 0.85 * np.clip(0.6 - 0.55 * dx - 0.6 * dy, 0, 1.1), 0.2, 1.25)[..., None]
    mask = np.clip((1 - distance) * radius * c.unit + 0.5, 0, 1)
    c.fill(mask.astype(np.float32), np.clip(paint * light, 0, 255).astype(np.float32))


def volcano(c: Canvas, look: str) -> None:
    c.sky((0, tone(c, "2a1020")), (0.6, tone(c, "a33a22")))
    clouds(c, 0.4, 0.6, (92, 58, 62), 0.02)
    c.next_layer(0.4)
    x = c.rng.uniform(0.35, 0.65)
    glow = np.exp(-((((c.x - x) * c.width) ** 2 + ((c.y - 0.28) * c.height) ** 2) / 0.04))
    c.fill((0.85 * glow).astype(np.float32), rgb("ffb23f"))
    pen = c.pen()
    stone = tone(c, "4a3436")
    pen.polygon(x, 0.76, [(-0.62, 0), (-0.09, -0.46 * c.height), (0.09, -0.46 * c.height), (0.62, 0)], stone)
    pen.polygon(
        x, 0.76, [(0.12, 0), (0.03, -0.46 * c.height), (0.09, -0.46 * c.height), (0.62, 0)], shade(stone, 0.7)
    )
    pen.blob(x, 0.76, 0, -0.46 * c.height, 0.09, 0.025, rgb("ffce4f"))
    for k in (-1, 0, 1):
        points = [(0.05 * k, -0.46 * c.height)]
        for step in range(1, 7):
            points.append(
                (k * (0.05 + 0.05 * step) + c.rng.uniform(-0.025, 0.025), (-0.46 + 0.075 * step) * c.height)
            )
        pen.line(x, 0.76, points, rgb("ff5a1f"), 0.034)
        pen.line(x, 0.76, points, rgb("ffc13f"), 0.014)
    c.merge(pen, 0.12)
    c.next_layer(1.0)
    if look == "lava":
        sea_band(c, 0.72, 0.82, rgb("ffb030"), rgb("f2541b"), 40)
    ground = tone(c, "42302f")
    texture = 0.5 * c.noise(9, 16, 3) + 0.5 * c.noise(45, 45, 1)
    c.below(c.profile(0.79, 0.03, 2.2), ground, shade(ground, 0.6), 0.2, texture, 0.4)
    c.effects.append(Particles("embers", seed(c)))


def autumn_park(c: Canvas, look: str) -> None:
    sky = tone(c, "a8d4e8") if look == "clear" else tone(c, "d8d0bd")
    c.sky((0, sky), (0.6, rgb("fdf1d6")))
    c.next_layer(0.4)
    leaves = ("e07b28", "d9482b", "efb52c", "c9622a")
    for depth, (y, low, high, gap) in enumerate(((0.64, 0.26, 0.36, 0.17), (0.7, 0.4, 0.52, 0.34))):
        pen = c.pen()
        for x in c.spots(gap, 0.4):
            leaf = mix(tone(c, leaves[int(c.rng.integers(4))]), rgb("fdf1d6"), 0.35 - 0.35 * depth)
            props.round_tree(pen, x, y + 0.02, c.rng.uniform(low, high), leaf, c.rng)
        ground = mix(tone(c, "c99a45"), rgb("fdf1d6"), 0.2 - 0.2 * depth)
        c.below(c.profile(y, 0.015, 2), ground, shade(ground, 0.8), 0.2, c.noise(20, 20, 2), 0.2)
        c.merge(pen, 0.12)
        c.next_layer(0.7)
    c.next_layer(1.0)
    path = tone(c, "c9a06a")
    c.below(
        c.profile(0.74, 0.015, 2),
        path,
        shade(path, 0.75),
        0.3,
        0.5 * c.noise(10, 22, 2) + 0.5 * c.noise(40, 40, 1),
        0.2,
    )
    pen = c.pen()
    for x, y, scale in props.scatter(c, 70, 1.02, 0.75):
        tint = tone(c, leaves[int(c.rng.integers(4))])
        pen.blob(x, y, 0, 0, 0.02 * scale, 0.011 * scale, tint)
    c.merge(pen)
    c.effects.append(Particles("leaves", seed(c)))


def candy_land(c: Canvas, look: str) -> None:
    c.sky((0, tone(c, "f7a8d8")), (0.6, tone(c, "fff0c9")))
    clouds(c, 0.42, 0.6, (255, 240, 250))
    if look == "rainbow":
        distance = np.sqrt(((c.x - 0.5) * c.width) ** 2 + ((c.y - 0.68) * c.height) ** 2)
        for k, code in enumerate(("ff5c5c", "ffb04a", "ffe94a", "6fdc6f", "5cb8ff", "b27bff")):
            ring = np.clip(1.2 - np.abs(distance - (0.46 - 0.028 * k)) / 0.014, 0, 1)
            c.fill((0.75 * ring).astype(np.float32), rgb(code))
    for depth, code in enumerate(("c9a8f0", "8fdcc4")):
        hill = tone(c, code)
        stripes = (np.sin((c.y * c.height * 1.6 + c.x * c.width) * 40) > 0).astype(np.float32)
        c.below(c.profile(0.6 + 0.07 * depth, 0.06, 1.5), hill, shade(hill, 0.85), 0.2, stripes, 0.06)
        c.next_layer(0.5 + 0.2 * depth)
        pen = c.pen()
        for x in c.spots(0.3, 0.4):
            lollipop(pen, c, x, 0.7 + 0.06 * depth, c.rng.uniform(0.18, 0.3))
        c.merge(pen)
    c.next_layer(1.0)
    icing = tone(c, "ffd0e4")
    c.below(c.profile(0.75, 0.02, 3), icing, shade(icing, 0.88), 0.3, c.noise(5, 12, 2), 0.08)
    pen = c.pen()
    for x, y, scale in props.scatter(c, 60, 1.02, 0.78):
        angle = c.rng.uniform(0, math.pi)
        reach = 0.016 * scale
        sprinkle = [
            (-math.cos(angle) * reach, -math.sin(angle) * reach),
            (math.cos(angle) * reach, math.sin(angle) * reach),
        ]
        pen.line(
            x,
            y,
            sprinkle,
            rgb(("ff4f81", "4fc3f7", "ffd740", "69f0ae", "b388ff")[int(c.rng.integers(5))]),
            0.011,
        )
    c.merge(pen)


def lollipop(pen: props.Pen, c: Canvas, x: float, y: float, size: float) -> None:
    """A swirled lollipop."""
    tint = rgb(("ff4f81", "4fc3f7", "ffb300", "66d98a", "b06bff")[int(c.rng.integers(5))])
    pen.box(x, y, -0.025 * size, -size * 0.7, 0.025 * size, 0, (250, 250, 250))
    for k, radius in enumerate((0.3, 0.24, 0.18, 0.12, 0.06)):
        pen.blob(
            x,
            y,
            0.01 * k * size,
            -0.78 * size,
            radius * size,
            radius * size,
            tint if k % 2 == 0 else (255, 250, 250),
        )
