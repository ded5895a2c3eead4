"""Styles: whole-picture filters, the same at every time and, in proportion, at every size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from cogvideox.core.rng import generator

Frame = NDArray[np.uint8]
Array = NDArray[np.float32]
Filter = Callable[[Frame], Frame]

PIXELS = 44
"""Blocks along the short side in pixel art."""


def _grey(frame: Frame) -> Array:
    return np.asarray(Image.fromarray(frame).convert("L"), np.float32)


def _red(frame: Frame) -> NDArray[np.uint8]:
    """Grey tones as through a red filter, which sets characters off against blue and green."""
    weights = np.asarray([128, 104, 24], np.uint16)
    return ((frame * weights).sum(-1, dtype=np.uint16) >> 8).astype(np.uint8)


def _noise(seed: int, height: int, width: int, cells: float, name: str) -> Array:
    """Smooth static texture in 0..1 with `cells` cells along the short side."""
    unit = min(height, width)
    shape = (max(2, round(cells * height / unit)), max(2, round(cells * width / unit)))
    lattice = generator(seed, "style", name).random(shape).astype(np.float32)
    return np.asarray(Image.fromarray(lattice).resize((width, height), Image.Resampling.BICUBIC), np.float32)


def _blur(frame: Frame, radius: float) -> Frame:
    return np.asarray(Image.fromarray(frame).filter(ImageFilter.GaussianBlur(radius)))


def _edges(grey: Array) -> Array:
    """Size of the brightness gradient, per pixel step."""
    gx = np.zeros_like(grey)
    gy = np.zeros_like(grey)
    gx[:, 1:-1] = grey[:, 2:] - grey[:, :-2]
    gy[1:-1] = grey[2:] - grey[:-2]
    return (np.sqrt(gx * gx + gy * gy) / 2).astype(np.float32)


def _bytes(values: NDArray[Any]) -> Frame:
    return np.clip(values, 0, 255).astype(np.uint8)


def _vignette(height: int, width: int) -> Array:
    y = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    x = np.linspace(-1, 1, width, dtype=np.float32)[None, :]
    return (1 - 0.28 * np.clip(x * x + y * y - 0.35, 0, 2))[..., None].astype(np.float32)


def _wobble(
    seed: int, height: int, width: int, reach: float, cells: float
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Rows and columns to read from, shifted by up to `reach` pixels."""
    dy = (_noise(seed, height, width, cells, "rows") - 0.5) * 2 * reach
    dx = (_noise(seed, height, width, cells, "columns") - 0.5) * 2 * reach
    rows = np.clip(np.arange(height)[:, None] + np.round(dy), 0, height - 1).astype(np.intp)
    columns = np.clip(np.arange(width)[None, :] + np.round(dx), 0, width - 1).astype(np.intp)
    return rows, columns


def pixel_art(seed: int, height: int, width: int) -> Filter:
    """Coarse blocks and few colours."""
    unit = min(height, width)
    size = (max(1, round(PIXELS * width / unit)), max(1, round(PIXELS * height / unit)))

    def apply(frame: Frame) -> Frame:
        small = np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BOX), np.float32)
        grey = small.mean(-1, keepdims=True)
        rich = np.clip(grey + 1.25 * (small - grey), 0, 255)
        levels = (np.round(rich / 42.5) * 42.5).astype(np.uint8)
        return np.asarray(Image.fromarray(levels).resize((width, height), Image.Resampling.NEAREST))

    return apply


def watercolor(seed: int, height: int, width: int) -> Filter:
    """Pale washes with wavy, darker edges on rough paper."""
    unit = min(height, width)
    rows, columns = _wobble(seed, height, width, 0.013 * unit, 16)
    paper = 0.9 + 0.16 * _noise(seed, height, width, 60, "paper")
    wash = 0.82 + 0.36 * _noise(seed, height, width, 5, "wash")

    def apply(frame: Frame) -> Frame:
        wet = _blur(frame[rows, columns], 0.011 * unit)
        flat = np.asarray(
            Image.fromarray(wet).quantize(20, Image.Quantize.FASTOCTREE).convert("RGB"), np.float32
        )
        flat = 0.5 * flat + 0.5 * wet
        rim = np.clip(_edges(_grey(wet)) * (unit / 128) / 14, 0, 1)
        pale = 255 - (255 - flat) * (0.62 * wash + 0.45 * rim)[..., None]
        return _bytes(pale * paper[..., None])

    return apply


def oil_painting(seed: int, height: int, width: int) -> Filter:
    """Short thick strokes of strong colour with a raised surface."""
    unit = min(height, width)
    rows, columns = _wobble(seed, height, width, 0.017 * unit, 34)
    stroke = _noise(seed, height, width, 46, "stroke")

    def apply(frame: Frame) -> Frame:
        picture = Image.fromarray(frame[rows, columns])
        if unit <= 320:
            picture = picture.filter(ImageFilter.MedianFilter(3))
        daub = np.asarray(picture, np.float32)
        grey = daub.mean(-1, keepdims=True)
        daub = grey + 1.35 * (daub - grey)
        height_map = grey[..., 0] * 0.25 + stroke * 60
        light = np.zeros_like(height_map)
        light[1:, 1:] = height_map[1:, 1:] - height_map[:-1, :-1]
        return _bytes(daub + (light * unit / 128 * 1.1)[..., None])

    return apply


def black_and_white(seed: int, height: int, width: int) -> Filter:
    """Grey tones with strong contrast."""
    tone = np.clip((np.arange(256) / 255 - 0.5) * 1.3 + 0.5, 0, 1)
    table = (255 * (0.55 * tone + 0.45 * tone * tone * (3 - 2 * tone))).astype(np.uint8)

    def apply(frame: Frame) -> Frame:
        return np.repeat(table[_red(frame)][..., None], 3, -1)

    return apply


def sepia(seed: int, height: int, width: int) -> Filter:
    """Brown tones of an old photograph, dark towards the corners."""
    grey = 255 * (np.arange(256, dtype=np.float32)[:, None] / 255) ** 0.85
    table = np.clip(
        grey * np.asarray([1.02, 0.82, 0.58], np.float32) + np.asarray([26, 16, 6], np.float32), 0, 255
    )
    corner = _vignette(height, width)

    def apply(frame: Frame) -> Frame:
        return _bytes(table[_red(frame)] * corner)

    return apply


def neon(seed: int, height: int, width: int) -> Filter:
    """Glowing coloured outlines on black."""
    unit = min(height, width)
    y = np.linspace(0, 1, height, dtype=np.float32)[:, None]
    x = np.linspace(0, 1, width, dtype=np.float32)[None, :]
    phase = generator(seed, "style", "neon").random() + 0.6 * x + 0.5 * y
    hue = np.stack([0.5 + 0.5 * np.cos(2 * np.pi * (phase - k / 3)) for k in range(3)], -1)

    def apply(frame: Frame) -> Frame:
        soft = _blur(frame, 0.006 * unit)
        lines = np.clip(
            np.max([_edges(soft[..., k].astype(np.float32)) for k in range(3)], 0) * (unit / 128) / 26, 0, 1
        )
        source = frame.astype(np.float32)
        rich = source / np.maximum(source.max(-1, keepdims=True), 1)
        colour = 255 * np.clip(0.5 * rich + 0.7 * hue, 0, 1)
        bright = _bytes(lines[..., None] * colour)
        glow = _blur(bright, 0.03 * unit).astype(np.float32)
        return _bytes(source * np.asarray([0.1, 0.07, 0.16], np.float32) + bright + 0.9 * glow)

    return apply


def pencil_sketch(seed: int, height: int, width: int) -> Filter:
    """Grey pencil lines and hatching on white paper."""
    unit = min(height, width)
    paper = 0.93 + 0.1 * _noise(seed, height, width, 70, "paper")
    y = np.arange(height, dtype=np.float32)[:, None] / unit
    x = np.arange(width, dtype=np.float32)[None, :] / unit
    hatch = np.sin((x + y) * 2 * np.pi * 26)

    def apply(frame: Frame) -> Frame:
        grey = _grey(frame)
        soft = np.asarray(
            Image.fromarray(grey.astype(np.uint8)).filter(ImageFilter.GaussianBlur(0.03 * unit)), np.float32
        )
        dodge = np.clip(grey * 255 / np.maximum(soft, 1) - 8, 0, 255)
        line = np.clip(_edges(grey) * (unit / 128) * 3.4, 0, 185)
        dark = np.clip((150 - soft) / 150, 0, 1)
        tone = dodge * 0.35 + 165 - line - 80 * dark * np.clip(hatch, 0, 1) - 30 * dark
        return np.repeat(_bytes(tone * paper)[..., None], 3, -1)

    return apply


def comic(seed: int, height: int, width: int) -> Filter:
    """Flat bright colours with black outlines and printed dots in the shadows."""
    unit = min(height, width)
    y = np.arange(height, dtype=np.float32)[:, None] / unit
    x = np.arange(width, dtype=np.float32)[None, :] / unit
    dots = np.sin((x + y) * 2 * np.pi * 22) * np.sin((x - y) * 2 * np.pi * 22)

    def apply(frame: Frame) -> Frame:
        soft = _blur(frame, 0.006 * unit)
        grey = _grey(soft)
        values = soft.astype(np.float32)
        mean = values.mean(-1, keepdims=True)
        values = mean * 1.12 + 1.45 * (values - mean) + 22
        flat = np.round(np.clip(values, 0, 255) / 51) * 51
        shadow = (np.clip((105 - grey) / 60, 0, 1) * (dots > 0.2))[..., None]
        ink = np.clip((_edges(grey) * (unit / 128) - 15) / 12, 0, 1)[..., None]
        return _bytes((flat * (1 - 0.25 * shadow)) * (1 - ink))

    return apply


_FILTERS: dict[str, Callable[[int, int, int], Filter]] = {
    "pixel art": pixel_art,
    "watercolor": watercolor,
    "black and white": black_and_white,
    "oil painting": oil_painting,
    "neon": neon,
    "sepia": sepia,
    "pencil sketch": pencil_sketch,
    "comic": comic,
}


def style_filter(style: str, seed: int, height: int, width: int) -> Filter:
    """The filter of a style for one picture size."""
    return _FILTERS[style](seed, height, width)
