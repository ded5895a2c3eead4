"""Write clips of Storybook to a folder: videos or pictures, a manifest with captions and ground truth, a
contact sheet.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from cogvideox.core.errors import InputError
from cogvideox.core.files import atomic_path
from cogvideox.data.manifest import Row, write_manifest
from cogvideox.data.storybook.clip import Clip, check_picture
from cogvideox.data.storybook.render import Renderer
from cogvideox.data.storybook.world import VERSION, World
from cogvideox.data.video import WRITERS, Frames, write_image, write_video

LICENCE = "MIT (sprites: Microsoft Fluent Emoji via LobeHub)"
SHEET_CLIPS = 24
"""Clips on the contact sheet."""
SHEET_FRAMES = 4
SHEET_SIDE = 128
"""Height of a picture on the contact sheet."""
CHUNK = 16
"""Frames rendered at a time."""


@dataclass(frozen=True)
class Export:
    """What to write."""

    count: int
    frames: int = 17
    fps: float = 8.0
    height: int = 128
    width: int = 128
    seed: int = 0
    split: str = "train"
    level: str = "full"
    start: int = 0
    """Index of the first clip."""
    form: str = "mp4"
    """Suffix of the files: a form of `data.video.write_video`; single frames become PNG."""


def _duration(order: Export) -> float:
    return (order.frames - 1) / order.fps


def _chunks(clip: Clip, order: Export) -> Iterator[Frames]:
    renderer = Renderer(clip, order.height, order.width)
    for first in range(0, order.frames, CHUNK):
        times = (k / order.fps for k in range(first, min(order.frames, first + CHUNK)))
        yield np.stack([renderer.frame(time) for time in times])


def _row(clip: Clip, order: Export, path: Path, folder: Path) -> Row:
    return Row(
        id=f"storybook-{VERSION}-{order.seed}-{order.split}-{order.level}-{clip.index}",
        source=str(path.relative_to(folder)),
        height=order.height,
        width=order.width,
        fps=order.fps if order.frames > 1 else None,
        frames=order.frames,
        captions={"short": (clip.short_caption(),), "dense": (clip.dense_caption(),)},
        truth=clip.truth(order.frames, order.fps, order.height, order.width),
        licence=LICENCE,
        lineage={
            "world": VERSION,
            "seed": order.seed,
            "split": order.split,
            "level": order.level,
            "index": clip.index,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        },
    )


def _strip(frames: Frames, caption: str) -> Image.Image:
    """Some frames of a clip side by side over its caption."""
    picks = np.linspace(0, len(frames) - 1, SHEET_FRAMES).round().astype(int)
    width = round(frames.shape[2] * SHEET_SIDE / frames.shape[1])
    strip = Image.new("RGB", (SHEET_FRAMES * width, SHEET_SIDE + 14), "white")
    for k, pick in enumerate(picks):
        picture = Image.fromarray(frames[pick]).resize((width, SHEET_SIDE), Image.Resampling.BICUBIC)
        strip.paste(picture, (k * width, 0))
    text = caption if len(caption) * 6 < strip.width else caption[: strip.width // 6 - 3] + "..."
    ImageDraw.Draw(strip).text((1, SHEET_SIDE + 1), text, fill="black")
    return strip


def _sheet(strips: list[Image.Image]) -> Image.Image:
    columns = 2 if len(strips) > 1 else 1
    rows = -(-len(strips) // columns)
    width, height = strips[0].size
    sheet = Image.new("RGB", (columns * (width + 6) - 6, rows * height), "white")
    for k, strip in enumerate(strips):
        sheet.paste(strip, ((k % columns) * (width + 6), (k // columns) * height))
    return sheet


def export(order: Export, folder: Path) -> Iterator[Path]:
    """Write the clips one by one, yielding each file; then `manifest.jsonl` and `contact_sheet.png`.

    Files appear whole. InputError for illegal values, at once and before anything is written.
    """
    if order.count < 1:
        raise InputError(f"count must be at least 1, got {order.count}")
    forms = [suffix[1:] for suffix in WRITERS if suffix != ".png"]
    if order.frames > 1 and order.form not in forms:
        raise InputError(f"cannot write clips as {order.form!r}; choose one of {', '.join(forms)}")
    check_picture(order.frames, order.fps, order.height, order.width, 0.0)
    world = World(order.seed, order.split, order.level)
    first = world.clip(order.start, _duration(order))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make the folder {folder}: {error.strerror}") from None
    return _write(order, folder, world, first)


def _write(order: Export, folder: Path, world: World, first: Clip) -> Iterator[Path]:
    rows: list[Row] = []
    strips: list[Image.Image] = []
    for index in range(order.start, order.start + order.count):
        clip = first if index == order.start else world.clip(index, _duration(order))
        path = folder / f"{index:06d}.{'png' if order.frames == 1 else order.form}"
        note = {"caption": clip.caption, "index": index, "seed": order.seed, "world": VERSION}
        if order.frames == 1:
            write_image(path, next(_chunks(clip, order))[0], note)
        else:
            write_video(path, _chunks(clip, order), order.fps, note)
        rows.append(_row(clip, order, path, folder))
        if len(strips) < SHEET_CLIPS:
            seconds = _duration(order) / max(1, SHEET_FRAMES - 1)
            few = clip.render(SHEET_FRAMES, 1 / seconds if seconds else order.fps, order.height, order.width)
            strips.append(_strip(few, clip.caption))
        yield path
    write_manifest(folder / "manifest.jsonl", rows)
    with atomic_path(folder / "contact_sheet.png") as partial:
        _sheet(strips).save(partial)
