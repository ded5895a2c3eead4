"""Things that stand in the scenes: trees, houses, rocks, flowers. Sizes in short sides, `y` is the foot."""

from __future__ import annotations

import math

import numpy as np

from cogvideox.data.storybook.paint import Canvas, Colour, Pen, mix, rgb, shade

DARK_TRUNK = rgb("6b4226")


def round_tree(pen: Pen, x: float, y: float, size: float, leaf: Colour, rng: np.random.Generator) -> None:
    """A leafy tree: trunk and overlapping balls of foliage, lit from the upper left."""
    pen.polygon(
        x,
        y,
        [(-0.05 * size, 0), (0.05 * size, 0), (0.03 * size, -0.5 * size), (-0.03 * size, -0.5 * size)],
        DARK_TRUNK,
    )
    balls = [(-0.2, -0.5, 0.2), (0.2, -0.52, 0.2), (0.0, -0.72, 0.25), (0.0, -0.5, 0.22)]
    moved = [(dx + rng.uniform(-0.04, 0.04), dy + rng.uniform(-0.04, 0.04), r) for dx, dy, r in balls]
    for tone, shift, shrink in ((0.72, 0.03, 1.0), (1.0, 0.0, 0.88), (1.22, -0.05, 0.5)):
        for dx, dy, r in moved:
            radius = r * shrink * size
            pen.blob(x, y, (dx + shift) * size, (dy + shift) * size, radius, radius, shade(leaf, tone))


def conifer(pen: Pen, x: float, y: float, size: float, leaf: Colour, snow: float = 0.0) -> None:
    """A fir of three tiers, with snow on its branches if `snow` is above 0."""
    pen.box(x, y, -0.03 * size, -0.15 * size, 0.03 * size, 0, mix(DARK_TRUNK, leaf, 0.55))
    for tier, (low, high, wide) in enumerate(((-0.12, -0.55, 0.26), (-0.36, -0.78, 0.2), (-0.6, -1.0, 0.14))):
        tone = shade(leaf, 0.8 + 0.13 * tier)
        pen.polygon(x, y, [(-wide * size, low * size), (wide * size, low * size), (0, high * size)], tone)
        pen.polygon(x, y, [(0, low * size), (wide * size, low * size), (0, high * size)], shade(tone, 0.82))
        if snow:
            top = high + (low - high) * 0.45
            half = wide * 0.45
            pen.polygon(
                x,
                y,
                [
                    (-half * size, top * size),
                    (0, (top - 0.05) * size),
                    (half * size, top * size),
                    (0, high * size),
                ],
                (240, 246, 255),
            )


def palm(pen: Pen, x: float, y: float, size: float, lean: float) -> None:
    """A leaning palm."""
    spine = [(lean * size * k * k / 16, -size * k * 0.2) for k in range(5)]
    pen.line(x, y, spine, rgb("8a5a33"), 0.055 * size)
    pen.line(x, y, [(a - 0.012 * size, b) for a, b in spine], rgb("b07a48"), 0.02 * size)
    top_x, top_y = spine[-1]
    for k, angle in enumerate(np.linspace(0.15, math.pi - 0.15, 7)):
        reach = 0.42 * size
        mid = (top_x + math.cos(angle) * reach * 0.6, top_y - math.sin(angle) * reach * 0.45)
        tip = (top_x + math.cos(angle) * reach, top_y - math.sin(angle) * reach * 0.35 + 0.17 * size)
        tone = shade(rgb("2f9e4f"), 0.8 + 0.1 * (k % 4))
        pen.polygon(
            x, y, [(top_x, top_y), (mid[0], mid[1] - 0.04 * size), tip, (mid[0], mid[1] + 0.05 * size)], tone
        )
    pen.blob(x, y, top_x, top_y + 0.02 * size, 0.04 * size, 0.04 * size, rgb("6b4226"))


def cactus(pen: Pen, x: float, y: float, size: float, rng: np.random.Generator) -> None:
    """A saguaro with two arms."""
    green, width = rgb("3d8b4f"), 0.16 * size
    arms = [(-0.28, -0.35, -0.7), (0.26, -0.5, -0.85)]
    for dx, low, high in arms if rng.random() < 0.8 else arms[:1]:
        pen.line(
            x, y, [(0, low * size), (dx * size, low * size), (dx * size, high * size)], green, width * 0.75
        )
        pen.blob(x, y, dx * size, high * size, width * 0.37, width * 0.37, green)
    pen.line(x, y, [(0, 0), (0, -size)], green, width)
    pen.blob(x, y, 0, -size, width / 2, width / 2, green)
    for dx in (-0.03, 0.02, 0.06):
        pen.line(
            x, y, [(dx * size, 0), (dx * size, -size)], shade(green, 0.78 if dx > 0 else 1.2), 0.018 * size
        )


def rock(pen: Pen, x: float, y: float, size: float, colour: Colour, rng: np.random.Generator) -> None:
    """A boulder with a lit side."""
    tops = [(-0.5, 0.0), (-0.42, -0.28), (-0.12, -0.45), (0.2, -0.4), (0.45, -0.2), (0.52, 0.0)]
    shape = [(dx * size, dy * size * rng.uniform(0.85, 1.15)) for dx, dy in tops]
    pen.polygon(x, y, shape, shade(colour, 0.78))
    pen.polygon(x, y, [shape[0], shape[1], shape[2], (0.0, -0.12 * size)], shade(colour, 1.15))


def flower(pen: Pen, x: float, y: float, size: float, petal: Colour) -> None:
    """A small flower on a stem."""
    pen.line(x, y, [(0, 0), (0, -size)], rgb("2e7d32"), size * 0.18)
    for k in range(5):
        angle = k * 2 * math.pi / 5
        pen.blob(
            x,
            y,
            math.cos(angle) * size * 0.3,
            -size + math.sin(angle) * size * 0.3,
            size * 0.24,
            size * 0.24,
            petal,
        )
    pen.blob(x, y, 0, -size, size * 0.18, size * 0.18, rgb("ffd54f"))


def tuft(pen: Pen, x: float, y: float, size: float, colour: Colour) -> None:
    """Three blades of grass."""
    for dx, tone in ((-0.4, 0.85), (0.0, 1.15), (0.4, 1.0)):
        pen.polygon(
            x,
            y,
            [(-0.12 * size, 0), (0.12 * size, 0), (dx * size, -size * (1.1 - abs(dx) * 0.5))],
            shade(colour, tone),
        )


def house(pen: Pen, x: float, y: float, size: float, wall: Colour, roof: Colour, lit: bool = False) -> None:
    """A house with a gabled roof, door and windows."""
    pen.box(x, y, -0.5 * size, -0.6 * size, 0.5 * size, 0, wall)
    pen.box(x, y, 0.2 * size, -0.6 * size, 0.5 * size, 0, shade(wall, 0.88))
    pen.polygon(x, y, [(-0.6 * size, -0.58 * size), (0.6 * size, -0.58 * size), (0, -1.05 * size)], roof)
    pen.polygon(
        x, y, [(0, -1.05 * size), (0.6 * size, -0.58 * size), (0.12 * size, -0.58 * size)], shade(roof, 0.82)
    )
    pen.box(x, y, -0.11 * size, -0.34 * size, 0.11 * size, 0, rgb("6b4226"))
    glass = rgb("ffe28a") if lit else rgb("bfe6ff")
    for dx in (-0.34, 0.34):
        pen.box(x, y, (dx - 0.11) * size, -0.46 * size, (dx + 0.11) * size, -0.22 * size, shade(wall, 1.25))
        pen.box(x, y, (dx - 0.085) * size, -0.435 * size, (dx + 0.085) * size, -0.245 * size, glass)


def tower(
    pen: Pen,
    x: float,
    y: float,
    width: float,
    height: float,
    wall: Colour,
    lit: float,
    rng: np.random.Generator,
    glass: Colour,
    windows: bool = False,
) -> None:
    """A block of flats; `lit` is the share of windows with light; `windows` light up at nightfall."""
    pen.box(x, y, -width / 2, -height, width / 2, 0, wall)
    pen.box(x, y, width * 0.28, -height, width / 2, 0, shade(wall, 0.85))
    columns = max(2, round(width / 0.055))
    rows = max(3, round(height / 0.065))
    bright = rng.random((rows, columns))
    tone = rng.random((rows, columns))
    cell_w, cell_h = width / columns, height / rows
    for r in range(rows):
        for c in range(columns):
            on = bright[r, c] < lit
            pane = (
                mix(rgb("ffd27a"), rgb("fff3c4"), tone[r, c]) if on else shade(glass, 0.85 + 0.3 * tone[r, c])
            )
            dx, dy = -width / 2 + c * cell_w, -height + r * cell_h
            pane_at = (dx + cell_w * 0.25, dy + cell_h * 0.3, dx + cell_w * 0.75, dy + cell_h * 0.8)
            pen.box(x, y, *pane_at, pane)
            if windows:
                pen.light(x, y, *pane_at)


def mountain(
    canvas: Canvas, pen: Pen, x: float, base: float, wide: float, high: float, stone: Colour, snow: bool
) -> None:
    """A faceted peak, lit from the left, with a white cap or without; `base` is the y of its foot."""
    rng = canvas.rng
    tip = (rng.uniform(-0.08, 0.08) * wide, -high)
    ridge = (tip[0] + 0.12 * wide, -0.45 * high)
    pen.polygon(x, base, [(-wide / 2, 0), (wide / 2, 0), tip], stone)
    pen.polygon(x, base, [tip, ridge, (0.05 * wide, 0), (wide / 2, 0)], shade(stone, 0.72))
    pen.polygon(
        x, base, [(-wide / 2, 0), tip, (-0.12 * wide, -0.4 * high), (-0.2 * wide, 0)], shade(stone, 1.14)
    )
    if snow:
        left = (-0.5 * wide * 0.34 + tip[0] * 0.66, -high * 0.66)
        right = (0.5 * wide * 0.34 + tip[0] * 0.66, -high * 0.66)
        zig = [
            left,
            (left[0] * 0.5 + tip[0] * 0.5, -high * 0.58),
            (tip[0] + 0.02 * wide, -high * 0.68),
            (right[0] * 0.5 + tip[0] * 0.5, -high * 0.57),
            right,
        ]
        pen.polygon(x, base, [tip, *zig], (246, 250, 255))
        pen.polygon(x, base, [tip, (tip[0] + 0.02 * wide, -high * 0.68), zig[3], right], (205, 218, 240))


def scatter(canvas: Canvas, count: float, near: float, far: float) -> list[tuple[float, float, float]]:
    """Places on the ground, far ones first: (x, y, scale 0.4..1); `count` is per short side of width."""
    number = max(1, round(count * canvas.span))
    depth = np.sort(canvas.rng.random(number) ** 0.7)
    span = 1 + 2 * canvas.margin_x
    xs = canvas.rng.random(number) * span - canvas.margin_x
    return [
        (float(x), far + (near - far) * float(d), 0.4 + 0.6 * float(d))
        for x, d in zip(xs, depth, strict=True)
    ]
