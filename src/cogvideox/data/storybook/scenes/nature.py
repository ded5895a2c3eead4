"""Open country: meadow, forest, snow, mountains, desert, farm, autumn park, waterfall, volcano."""

from __future__ import annotations

import numpy as np

from cogvideox.data.storybook import props
from cogvideox.data.storybook.ambient import Particles
from cogvideox.data.storybook.paint import Canvas, Colour, mix, rgb, shade

PETALS = {"red": rgb("e53935"), "yellow": rgb("fdd835"), "white": rgb("fafafa"), "purple": rgb("9c4dcc")}


def seed(c: Canvas) -> int:
    """A seed for a moving detail."""
    return int(c.rng.integers(2**31))


def tone(c: Canvas, code: str, amount: float = 0.06) -> Colour:
    """A colour with a small change of hue and brightness, different in every clip."""
    base = rgb(code)
    push = c.rng.uniform(1 - amount, 1 + amount, 3) * c.rng.uniform(1 - amount, 1 + amount)
    return (min(255.0, base[0] * push[0]), min(255.0, base[1] * push[1]), min(255.0, base[2] * push[2]))


def clouds(
    c: Canvas, bottom: float, amount: float = 0.5, colour: Colour = (255, 255, 255), speed: float = 0.03
) -> None:
    """Soft drifting clouds between the top and `bottom`."""
    direction = 1.0 if c.rng.random() < 0.5 else -1.0
    c.drifting(direction * speed, 0.1)
    last = max(2, c.row(bottom))
    noise = c.noise(2.2, 5.0, 4)[:last]
    level = c.y[:last] + c.margin_y
    fade = np.clip((bottom + c.margin_y - level) / (bottom + c.margin_y) * 2.2, 0, 1)
    # The layer repeats itself, so its left edge goes on where its right edge ends: mirrored.
    ramp = np.clip(np.arange(c.w, dtype=np.float32) / (0.2 * c.w), 0, 1)[None, :]
    noise = noise * ramp + noise[:, ::-1] * (1 - ramp)
    cover = np.clip((noise - (0.66 - 0.25 * amount)) * 5.5, 0, 1) * fade
    light = 0.9 + 0.1 * np.clip((noise - 0.5) * 4, 0, 1)
    c.fill(cover * 0.95, np.asarray(colour, np.float32) * light[..., None], slice(0, last))
    c.end_drift(0.2)


def grass(
    c: Canvas, y: float, code: str, tufts: float = 40, wave: float = 0.02, dark: float = 0.72
) -> Colour:
    """Textured grass from `y` down, with tufts; returns its colour."""
    green = tone(c, code)
    texture = 0.5 * c.noise(4, 14, 2) + 0.5 * c.noise(50, 20, 1)
    c.below(c.profile(y, wave, 1.5), green, shade(green, dark), 1 - y, texture, 0.22)
    pen = c.pen()
    for x, foot, scale in props.scatter(c, tufts, 1.02, y + 0.04):
        props.tuft(pen, x, foot, 0.045 * scale, shade(green, 0.8 + 0.35 * c.rng.random()))
    c.merge(pen)
    return green


def meadow(c: Canvas, look: str) -> None:
    blue = tone(c, "4aa8f0")
    c.sky((0, blue), (0.6, mix(blue, (255, 255, 255), 0.65)))
    c.disc(c.rng.uniform(0.1, 0.9), c.rng.uniform(0.08, 0.2), 0.055, rgb("fff3b0"), 0.4)
    clouds(c, 0.5, 0.5)
    c.below(c.profile(0.53, 0.06, 1.2), tone(c, "7fc8a0"), tone(c, "5fae7d"), 0.2, c.noise(8, 8, 2), 0.12)
    c.next_layer(0.5)
    hill = tone(c, "69b84a")
    c.below(c.profile(0.6, 0.05, 1.5), hill, shade(hill, 0.8), 0.2, c.noise(12, 20, 2), 0.16)
    pen = c.pen()
    for x in c.spots(0.45):
        if c.rng.random() < 0.7:
            props.round_tree(
                pen,
                x,
                0.625 + c.rng.uniform(-0.01, 0.02),
                c.rng.uniform(0.14, 0.24),
                tone(c, "3f8f3a"),
                c.rng,
            )
    c.merge(pen, 0.08)
    c.next_layer(1.0)
    grass(c, 0.64, "5cb338")
    pen = c.pen()
    for x, y, scale in props.scatter(c, 34, 1.0, 0.68):
        props.flower(pen, x, y, 0.05 * scale, PETALS[look])
    c.merge(pen)


def forest(c: Canvas, look: str) -> None:
    mist = tone(c, "cfe8c0") if look == "sunlit" else tone(c, "b9c9c4")
    c.sky((0, mix(mist, (255, 255, 255), 0.2)), (0.7, mist))
    c.below(c.profile(0.6, 0.03, 2), mix(rgb("3f7d4a"), mist, 0.65), mix(rgb("2f6b3a"), mist, 0.4), 0.12)
    for depth, (size, y, count) in enumerate(((0.75, 0.66, 0.12), (0.9, 0.71, 0.2))):
        pen = c.pen()
        leaf = mix(tone(c, "2f6b3a"), mist, 0.62 - 0.3 * depth)
        for x in c.spots(count, 0.45):
            props.conifer(pen, x, y, size * c.rng.uniform(0.7, 1.0), leaf)
        c.merge(pen)
        c.next_layer(0.4 + 0.2 * depth)
    green = grass(c, 0.7, "3f7d34", 26)
    c.next_layer(1.0)
    pen = c.pen()
    for x in c.spots(0.42, 0.3):
        wide = c.rng.uniform(0.06, 0.09)
        trunk = tone(c, "5d4030")
        foot = 0.74 + c.rng.uniform(0, 0.03)
        pen.polygon(
            x,
            foot,
            [(-wide, 0.02), (wide, 0.02), (wide * 0.55, -1.2 * c.height), (-wide * 0.55, -1.2 * c.height)],
            trunk,
        )
        pen.polygon(
            x,
            foot,
            [(wide * 0.2, 0.01), (wide, 0.02), (wide * 0.55, -1.2 * c.height), (wide * 0.2, -1.2 * c.height)],
            shade(trunk, 0.75),
        )
    c.merge(pen, 0.2)
    canopy = tone(c, "2c6a2f")
    noise = c.noise(9, 9, 3)
    shadow = np.clip((0.2 + 0.14 * (noise - 0.5) * 4 - c.y) * 14, 0, 1)
    c.fill(shadow, np.asarray(canopy, np.float32) * (0.6 + 0.8 * c.noise(26, 26, 2))[..., None])
    if look == "sunlit":
        beam = np.clip(np.sin((c.x * c.width + 0.6 * c.y * c.height) * 9 + c.rng.uniform(0, 6)), 0, 1) ** 3
        c.fill((0.28 * beam * np.clip(1 - c.y, 0, 1)).astype(np.float32), rgb("fff6c8"))
        c.effects.append(Particles("dust", seed(c), 0.7))
    pen = c.pen()
    for x, y, scale in props.scatter(c, 5, 0.98, 0.78):
        pen.box(x, y, -0.012 * scale, -0.04 * scale, 0.012 * scale, 0, rgb("f3e5d0"))
        pen.blob(x, y, 0, -0.04 * scale, 0.035 * scale, 0.022 * scale, rgb("d84335"))
    for x, y, scale in props.scatter(c, 18, 1.02, 0.74):
        props.tuft(pen, x, y, 0.07 * scale, shade(green, 0.7 + 0.5 * c.rng.random()))
    c.merge(pen)


def snow(c: Canvas, look: str) -> None:
    top = tone(c, "8fbfe8") if look == "clear" else tone(c, "a9b8c8")
    c.sky((0, top), (0.65, mix(top, (255, 255, 255), 0.7)))
    if look == "clear":
        clouds(c, 0.4, 0.4)
    pen = c.pen()
    for x in c.spots(0.6, 0.4):
        props.mountain(
            c, pen, x, 0.64, c.rng.uniform(0.6, 0.9), c.rng.uniform(0.18, 0.34), tone(c, "9db4cf"), True
        )
    c.merge(pen)
    c.next_layer(0.5)
    c.below(c.profile(0.61, 0.04, 1.5), rgb("eaf3fb"), rgb("cfe0f0"), 0.2, c.noise(5, 12, 2), 0.05)
    pen = c.pen()
    for x in c.spots(0.2, 0.45):
        if c.rng.random() < 0.8:
            props.conifer(
                pen, x, 0.645 + c.rng.uniform(-0.02, 0.02), c.rng.uniform(0.16, 0.3), tone(c, "2f6f63"), 1.0
            )
    c.merge(pen)
    c.next_layer(1.0)
    texture = 0.6 * c.noise(3, 9, 3) + 0.4 * c.noise(40, 40, 1)
    c.below(c.profile(0.67, 0.03, 1.3), rgb("fbfdff"), tone(c, "bcd3ea", 0.03), 0.4, texture, 0.07)
    if look == "falling":
        c.effects.append(Particles("snow", seed(c)))


def mountains(c: Canvas, look: str) -> None:
    top = {"blue": tone(c, "3f8fdc"), "misty": tone(c, "9fb3c4"), "dawn": tone(c, "7d8fd6")}[look]
    low = {"blue": rgb("d8eefc"), "misty": rgb("e4e8ea"), "dawn": rgb("ffd9c0")}[look]
    c.sky((0, top), (0.6, low))
    clouds(c, 0.35, 0.45)
    for depth in range(2):
        pen = c.pen()
        stone = mix(tone(c, "6c7488"), low, 0.45 - 0.4 * depth)
        for x in c.spots(0.62 - 0.1 * depth, 0.3):
            high = c.rng.uniform(0.34, 0.52) - 0.1 * depth
            props.mountain(c, pen, x, 0.74, c.rng.uniform(0.75, 1.05), high, stone, True)
        c.merge(pen, 0.12)
        c.next_layer(0.4 + 0.2 * depth)
    hill = tone(c, "4f7d4a")
    c.below(c.profile(0.7, 0.04, 1.6), hill, shade(hill, 0.75), 0.15, c.noise(14, 14, 2), 0.2)
    pen = c.pen()
    for x in c.spots(0.13, 0.45):
        props.conifer(pen, x, 0.75, c.rng.uniform(0.09, 0.17), shade(hill, 0.75))
    c.merge(pen)
    c.next_layer(1.0)
    stony = tone(c, "9a9286")
    c.below(
        c.profile(0.77, 0.02, 2),
        stony,
        shade(stony, 0.7),
        0.25,
        0.5 * c.noise(10, 22, 2) + 0.5 * c.noise(45, 45, 1),
        0.28,
    )
    pen = c.pen()
    for x, y, scale in props.scatter(c, 7, 0.99, 0.79):
        props.rock(pen, x, y, 0.07 * scale, tone(c, "8d8a88"), c.rng)
    c.merge(pen, 0.2)


def desert(c: Canvas, look: str) -> None:
    top = tone(c, "58b4e8") if look != "dusk" else tone(c, "d9856b")
    low = rgb("fdeccb") if look != "dusk" else rgb("ffd9a0")
    c.sky((0, top), (0.6, low))
    c.disc(c.rng.uniform(0.15, 0.85), c.rng.uniform(0.12, 0.25), 0.07, rgb("fff2b8"), 0.45)
    if look == "pyramids":
        pen = c.pen()
        for x in c.spots(0.6, 0.3):
            size = c.rng.uniform(0.2, 0.34)
            pen.polygon(x, 0.62, [(-size, 0), (size, 0), (0, -size * 0.95)], tone(c, "d8a964"))
            pen.polygon(x, 0.62, [(size * 0.25, 0), (size, 0), (0, -size * 0.95)], tone(c, "a97c42"))
        c.merge(pen, 0.15)
    c.next_layer(0.4)
    for depth in range(3):
        sand = mix(tone(c, "edb95e", 0.04), low, 0.3 - 0.15 * depth)
        ripple = c.profile(0, 0.06, 1)
        level = c.y * c.height
        waves = 0.5 + 0.5 * np.sin((level * (26 + 8 * depth) + ripple[None, :] * 60) * 2).astype(np.float32)
        texture = 0.55 * waves + 0.45 * c.noise(30, 30, 2)
        c.below(
            c.profile(0.59 + 0.06 * depth, 0.05 - 0.01 * depth, 1.1),
            shade(sand, 1.04),
            shade(sand, 0.74),
            0.25,
            texture,
            0.1,
        )
        if depth < 2:
            c.next_layer(0.6 + 0.2 * depth)
    pen = c.pen()
    for x in c.spots(0.5, 0.45):
        if look != "pyramids" or c.rng.random() < 0.4:
            props.cactus(pen, x, 0.74 + c.rng.uniform(-0.02, 0.03), c.rng.uniform(0.14, 0.26), c.rng)
    for x, y, scale in props.scatter(c, 4, 0.99, 0.78):
        props.rock(pen, x, y, 0.06 * scale, tone(c, "b07f52"), c.rng)
    c.merge(pen, 0.1)
    c.effects.append(Particles("dust", seed(c), 0.6))
