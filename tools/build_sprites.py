"""Build the Storybook sprite pack from the unpacked npm packages `@lobehub/fluent-emoji-anim-1..4@1.0.0`
(MIT).

    npm pack @lobehub/fluent-emoji-anim-1@1.0.0    # and -2, -3, -4; unpack each into SOURCE/anim-N/package
    python tools/build_sprites.py SOURCE INDEX.json src/cogvideox/assets/storybook

INDEX.json lists the emoji as `{"pkg": ..., "hex": ..., "short_name": ...}`. For each member of the cast
(`cogvideox.data.storybook.cast`) one WebP sheet is written: the loop at 16 frames/s, cropped to the box that
the whole animation fills and scaled to 128 pixels on its longer side, cells left to right and top to bottom.
`sprites.json` holds the geometry: cell size, number of cells, loop length in seconds, and the tight box of
each cell's alpha.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cogvideox.data.storybook.cast import Character, cast

FPS_SOURCE = 24
FPS_PACK = 16
SIDE = 128
"""Longer side of a cell in pixels."""
GUTTER = 8
"""Transparent pixels around a cell, so that lossy blocks never mix two cells."""
ALPHA_EDGE = 8
"""Alpha (of 255) from which a pixel belongs to the sprite's box."""


def read_loop(path: Path) -> tuple[list[Image.Image], float]:
    """Frames of an animated WebP at `FPS_PACK`, RGBA, and the loop length in seconds."""
    with Image.open(path) as image:
        count = getattr(image, "n_frames", 1)
        seconds = count / FPS_SOURCE
        frames = []
        for k in range(round(seconds * FPS_PACK)):
            image.seek(round(k * FPS_SOURCE / FPS_PACK) % count)
            frames.append(image.convert("RGBA"))
    return frames, seconds


def crop_scale(frames: list[Image.Image]) -> list[Image.Image]:
    """Crop all frames to their common alpha box and scale the longer side to `SIDE`."""
    alpha = np.max([np.asarray(f)[..., 3] for f in frames], axis=0)
    ys, xs = np.nonzero(alpha > ALPHA_EDGE)
    box = (int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1)
    scale = SIDE / max(box[2] - box[0], box[3] - box[1])
    size = (max(1, round((box[2] - box[0]) * scale)), max(1, round((box[3] - box[1]) * scale)))
    return [f.resize(size, Image.Resampling.LANCZOS, box=box) for f in frames]


def sheet(frames: list[Image.Image]) -> tuple[Image.Image, int]:
    """Lay the cells out on one sheet, about as wide as high; returns it and the number of columns."""
    width, height = (s + 2 * GUTTER for s in frames[0].size)
    columns = max(1, round((len(frames) * height / width) ** 0.5))
    rows = -(-len(frames) // columns)
    image = Image.new("RGBA", (columns * width, rows * height))
    for k, frame in enumerate(frames):
        image.paste(frame, ((k % columns) * width + GUTTER, (k // columns) * height + GUTTER))
    return image, columns


def build(who: Character, source: Path, out: Path, quality: int) -> dict[str, Any]:
    """Write one sheet; returns its row of `sprites.json`."""
    frames, seconds = read_loop(source)
    frames = crop_scale(frames)
    image, columns = sheet(frames)
    image.save(out / f"{who.key}.webp", quality=quality, alpha_quality=30, method=6)
    boxes = []
    for frame in frames:
        ys, xs = np.nonzero(np.asarray(frame)[..., 3] > ALPHA_EDGE)
        boxes.append([int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1])
    return {
        "cells": len(frames), "columns": columns, "size": list(frames[0].size), "gutter": GUTTER,
        "seconds": round(seconds, 4), "boxes": boxes,
    }  # fmt: skip


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path)
    parser.add_argument("index", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--quality", type=int, default=62)
    parser.add_argument("--only", nargs="*", help="build just these characters")
    args = parser.parse_args()
    index = {row["short_name"]: row for row in json.loads(args.index.read_text())}
    args.out.mkdir(parents=True, exist_ok=True)
    table_path = args.out / "sprites.json"
    table = json.loads(table_path.read_text())["sprites"] if table_path.exists() else {}
    for name, who in cast().items():
        if args.only and name not in args.only:
            continue
        row = index[who.emoji]
        path = args.source / f"anim-{row['pkg'][-1]}" / "package" / "assets" / f"{row['hex']}.webp"
        table[name] = build(who, path, args.out, args.quality)
        print(f"{name:20} {(args.out / f'{who.key}.webp').stat().st_size / 1024:7.1f} KiB")
    table = {name: table[name] for name in cast() if name in table}
    rows = ",\n".join(f"{json.dumps(k)}: {json.dumps(v, separators=(',', ':'))}" for k, v in table.items())
    table_path.write_text(f'{{"fps": {FPS_PACK}, "side": {SIDE}, "sprites": {{\n{rows}\n}}}}\n')
    total = sum(p.stat().st_size for p in args.out.iterdir())
    print(f"{len(table)} characters, {total / 2**20:.2f} MiB")


if __name__ == "__main__":
    main()
