"""The sprite pack: lazily decoded animation sheets, scaled and placed with sub-pixel precision."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cogvideox.data.storybook.cast import character

Box = tuple[float, float, float, float]
"""x0, y0, x1, y1."""

PACK = resources.files("cogvideox.assets") / "storybook"
SHEETS_IN_MEMORY = 56
"""Decoded sheets kept (about 4 MB each)."""
SMALL_SHEETS_IN_MEMORY = 160
"""Half-size sheets kept (about 1 MB each)."""
GUTTER = 8
"""Transparent pixels around each cell of a half-size sheet."""
SMALLEST = 0.26
"""Scale below which a cell is isolated before scaling: wide filters would reach its neighbours."""


@dataclass(frozen=True)
class Sprite:
    """Geometry of one animation loop. Cells are `size` pixels; the longer side is 128."""

    name: str
    size: tuple[int, int]
    """Width and height of a cell in pixels."""
    cells: int
    columns: int
    gutter: int
    """Transparent pixels around each cell of the sheet."""
    seconds: float
    """Length of the loop at natural speed."""
    boxes: tuple[tuple[int, int, int, int], ...]
    """Tight alpha box of each cell, in cell pixels."""

    def cell(self, time: float) -> int:
        """Number of the cell shown `time` seconds into the loop."""
        return int(time / self.seconds * self.cells) % self.cells

    def corner(self, cell: int) -> tuple[int, int]:
        """Upper left pixel of a cell on the sheet."""
        width, height = self.size
        row, column = divmod(cell, self.columns)
        return column * (width + 2 * self.gutter) + self.gutter, row * (
            height + 2 * self.gutter
        ) + self.gutter


@lru_cache(maxsize=1)
def table() -> dict[str, Any]:
    """The geometry table of the pack, by character name."""
    rows: dict[str, Any] = json.loads((PACK / "sprites.json").read_text())["sprites"]
    return rows


@lru_cache(maxsize=256)
def sprite(name: str) -> Sprite:
    """Geometry of the character called `name`."""
    row = table()[name]
    boxes = tuple((b[0], b[1], b[2], b[3]) for b in row["boxes"])
    size = (row["size"][0], row["size"][1])
    return Sprite(name, size, row["cells"], row["columns"], row["gutter"], row["seconds"], boxes)


@lru_cache(maxsize=SHEETS_IN_MEMORY)
def sheet(name: str) -> Image.Image:
    """The whole animation as one image with premultiplied alpha (mode RGBa)."""
    with (PACK / f"{character(name).key}.webp").open("rb") as file:
        return Image.open(file).convert("RGBA").convert("RGBa")


@lru_cache(maxsize=SMALL_SHEETS_IN_MEMORY)
def small_sheet(name: str) -> Image.Image:
    """The animation at half size, with wider gutters: for small pictures, quick and light on memory."""
    shape, image = sprite(name), sheet(name)
    width, height = small_cell(shape)
    rows = -(-shape.cells // shape.columns)
    small = Image.new("RGBa", (shape.columns * (width + 2 * GUTTER), rows * (height + 2 * GUTTER)))
    for cell in range(shape.cells):
        x, y = shape.corner(cell)
        # The gutter lets an odd size grow by one transparent pixel.
        half = image.crop((x, y, x + 2 * width, y + 2 * height)).reduce(2)
        small.paste(half, small_corner(shape, cell))
    return small


def small_cell(shape: Sprite) -> tuple[int, int]:
    """Width and height of a cell of the half-size sheet."""
    return (shape.size[0] + 1) // 2, (shape.size[1] + 1) // 2


def small_corner(shape: Sprite, cell: int) -> tuple[int, int]:
    """Upper left pixel of a cell on the half-size sheet."""
    width, height = small_cell(shape)
    row, column = divmod(cell, shape.columns)
    return column * (width + 2 * GUTTER) + GUTTER, row * (height + 2 * GUTTER) + GUTTER


def _isolated(image: Image.Image, box: tuple[int, int, int, int], margin: int) -> Image.Image:
    """A cell alone on a transparent ground, `margin` pixels wider on each side."""
    alone = Image.new("RGBa", (box[2] - box[0] + 2 * margin, box[3] - box[1] + 2 * margin))
    alone.paste(image.crop(box), (margin, margin))
    return alone


def draw(name: str, cell: int, left: float, top: float, width: float, height: float,
         flip: bool = False, angle: float = 0.0) -> tuple[int, int, NDArray[np.uint8]]:  # fmt: skip
    """Scale one cell to `width` x `height` pixels with its corner at the sub-pixel position (`left`, `top`).

    `flip` mirrors it, then `angle` (radians, counter-clockwise) turns it about its centre. Returns the whole-
    pixel position and the premultiplied pixels, uint8 (h, w, 4).
    """
    shape = sprite(name)
    scale_x, scale_y = width / shape.size[0], height / shape.size[1]
    if angle:
        x, y = shape.corner(cell)
        margin = math.ceil(4 / min(scale_x, scale_y))
        alone = _isolated(sheet(name), (x, y, x + shape.size[0], y + shape.size[1]), margin)
        return _turned(alone, scale_x, scale_y, flip, angle, left + width / 2, top + height / 2)
    if max(scale_x, scale_y) <= 0.5:
        image, (x, y) = small_sheet(name), small_corner(shape, cell)
        scale_x, scale_y = 2 * scale_x, 2 * scale_y
    else:
        image, (x, y) = sheet(name), shape.corner(cell)
    if min(scale_x, scale_y) < SMALLEST:
        margin = math.ceil(4 / min(scale_x, scale_y))
        wide = (math.ceil(width / scale_x), math.ceil(height / scale_y))
        image = _isolated(image, (x, y, x + wide[0], y + wide[1]), margin)
        x, y = margin, margin
    x0, y0 = math.floor(left), math.floor(top)
    x1, y1 = math.ceil(left + width), math.ceil(top + height)
    # A mirrored cell is scaled with the mirrored sub-pixel offset, then its pixels are reversed.
    lead = (x1 - (left + width)) if flip else (left - x0)
    corner = (x - lead / scale_x, y - (top - y0) / scale_y)
    box = (*corner, corner[0] + (x1 - x0) / scale_x, corner[1] + (y1 - y0) / scale_y)
    pixels = np.asarray(image.resize((x1 - x0, y1 - y0), Image.Resampling.BICUBIC, box=box))
    return x0, y0, pixels[:, ::-1] if flip else pixels


def _turned(image: Image.Image, scale_x: float, scale_y: float, flip: bool, angle: float,
            centre_x: float, centre_y: float) -> tuple[int, int, NDArray[np.uint8]]:  # fmt: skip
    """Scale an isolated cell, mirror it and turn it about its centre, which comes to the given point."""
    size = (max(1, round(image.width * scale_x)), max(1, round(image.height * scale_y)))
    small = image.resize(size, Image.Resampling.BICUBIC)
    if flip:
        small = small.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    side = math.ceil(math.hypot(*size)) + 2
    square = Image.new("RGBa", (side, side))
    paste = ((side - size[0]) // 2, (side - size[1]) // 2)
    square.paste(small, paste)
    middle = (paste[0] + size[0] / 2, paste[1] + size[1] / 2)
    x0, y0 = math.floor(centre_x - middle[0]), math.floor(centre_y - middle[1])
    shift = (centre_x - middle[0] - x0, centre_y - middle[1] - y0)
    turned = square.rotate(math.degrees(angle), Image.Resampling.BICUBIC, center=middle, translate=shift)  # type: ignore[arg-type]
    return x0, y0, np.asarray(turned)
