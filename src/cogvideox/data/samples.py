"""Training samples: rows of a manifest in the shapes that training takes, planned before a pixel is read.

Shape legend: T H W latent grid, T frames where a video is meant.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cogvideox.core.errors import InputError
from cogvideox.core.shapes import PIXELS_PER_LATENT, ClipShape, plan_shape
from cogvideox.data.manifest import Row
from cogvideox.data.storybook.rows import SCHEME, Address, Picture
from cogvideox.data.video import Frames, probe, read_video

FEWEST = 5
"""Frames of a clip: below that it is a picture, or too short."""
RATE_ERROR = 0.02
"""How far a file's rate may be from what its row says."""
Grid = tuple[int, int, int]


@dataclass(frozen=True)
class Sample:
    """A row in one shape."""

    row: Row
    """Without truth and lineage, which training does not look at."""
    frames: int
    """4k+1; 1 for a picture."""
    height: int
    width: int
    fps: float
    """At which frames are taken from the source."""

    @property
    def id(self) -> str:
        return f"{self.row.id}@{self.frames}x{self.height}x{self.width}"

    @property
    def captions(self) -> list[tuple[str, str]]:
        """(kind, caption) of all, in a fixed order."""
        return [(kind, text) for kind, texts in self.row.captions.items() for text in texts]

    @property
    def numbers(self) -> int:
        """Pixels of all frames."""
        return self.frames * self.height * self.width

    def within(self, largest: tuple[int, int, int]) -> bool:
        """Whether its frames, its pixels and its short side are at most those of (frames, height, width)."""
        frames, height, width = largest
        fits = self.frames <= frames and self.height * self.width <= height * width
        return fits and min(self.height, self.width) <= min(height, width)

    def shape(self, patch: Grid) -> ClipShape:
        """In all units of a model with that patch."""
        return plan_shape(patch, self.frames, self.height, self.width)


@dataclass(frozen=True)
class Rule:
    """Which shape a row gets, its aspect ratio kept: "49" is up to 49 frames in the source's size, "49x256" up
    to 49 frames of short side 256, "49x480x720" those of short side 480 or of as many pixels as 480x720,
    whichever is less. Sides are rounded down to what the model takes.
    """

    frames: int
    side: int | None = None
    pixels: int | None = None
    """Most of a frame."""

    @classmethod
    def parse(cls, text: str) -> Rule:
        """InputError for what is no rule."""
        if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*){0,2}", text):
            raise InputError(f"a shape is FRAMES, FRAMESxSIDE or FRAMESxHEIGHTxWIDTH, not {text!r}")
        frames, *sides = map(int, text.split("x"))
        return cls.within(frames, *sides) if len(sides) == 2 else cls(frames, *sides)

    @classmethod
    def within(cls, frames: int, height: int, width: int) -> Rule:
        """FRAMESxHEIGHTxWIDTH."""
        return cls(frames, min(height, width), height * width)

    def apply(self, row: Row, patch: Grid, fps: float) -> Sample | str:
        """The row's sample, or in words why there is none. Nothing is enlarged, slowed down or repeated."""
        frames = 1
        if row.frames > 1:
            assert row.fps is not None
            seen = int((row.frames - 1) * fps / row.fps + 1e-6) + 1
            frames = min(self.frames, seen)
            if frames < FEWEST <= self.frames:
                return f"has {seen} frames at {fps:g} per second, fewer than {FEWEST}"
        short = min(row.height, row.width)
        scale = (self.side or short) / short
        if self.pixels is not None:
            scale = min(scale, (self.pixels / (row.height * row.width)) ** 0.5)
        if scale > 1 and not row.source.startswith(SCHEME):  # Storybook is drawn at any size
            return f"is {row.width}x{row.height}, too small"
        height, width = (
            max(1, int(scale * side + 1e-6) // unit) * unit
            for side, unit in (
                (row.height, PIXELS_PER_LATENT * patch[1]),
                (row.width, PIXELS_PER_LATENT * patch[2]),
            )
        )
        shape = plan_shape(patch, frames, height, width)
        return Sample(replace(row, truth=None, lineage={}), shape.frames, height, width, fps)


@dataclass(frozen=True)
class Selection:
    """The samples of a manifest, and what came of all others: rows * rules = samples + left out."""

    samples: tuple[Sample, ...]
    left_out: Counter[str] = field(default_factory=Counter)
    """Reason -> count."""


def select(rows: Iterable[Row], rules: Sequence[Rule], patch: Grid, fps: float) -> Selection:
    """Each row in each shape, in the order of the manifest. A sample that several rules give comes once."""
    found: dict[str, Sample] = {}
    left_out: Counter[str] = Counter()
    for row in rows:
        for rule in rules:
            sample = f"was rejected: {row.rejected}" if row.rejected else rule.apply(row, patch, fps)
            if isinstance(sample, str):
                left_out[sample] += 1
            elif sample.id in found:
                left_out["is the same in two shapes"] += 1
            else:
                found[sample.id] = sample
    return Selection(tuple(found.values()), left_out)


def pixels(sample: Sample, folder: Path) -> Frames:
    """Frames (T, H, W, 3) of a sample whose manifest lies in `folder`.

    Frames are counted as they are decoded, for headers lie. InputError, saying why, for what is missing,
    damaged, shorter or of another rate than its row says.
    """
    row = sample.row
    if row.source.startswith(SCHEME):
        return _picture(sample).pixels()
    path = folder / row.source
    rate = probe(path).fps
    if sample.frames > 1 and row.fps and rate and abs(rate / row.fps - 1) > RATE_ERROR:
        raise InputError(f"{row.source} has {rate:g} frames per second, its row says {row.fps:g}")
    start, size = row.span[0] if row.span else 0.0, (sample.height, sample.width)
    frames = read_video(path, fps=sample.fps, limit=sample.frames, size=size, start=start).frames
    if len(frames) != sample.frames:
        told = f"{len(frames)} frames at {sample.fps:g} per second"
        raise InputError(f"{row.source} has {told}, its row promises {sample.frames}")
    return frames


def subject(sample: Sample) -> NDArray[np.bool_] | None:
    """Where the subject is, (T, H, W) on the latent grid; None where nobody knows."""
    return _picture(sample).subject() if sample.row.source.startswith(SCHEME) else None


def _picture(sample: Sample) -> Picture:
    row = sample.row
    duration = (row.frames - 1) / (row.fps or 1)
    address = Address.of(row.source)
    return Picture(address, duration, sample.frames, sample.fps, sample.height, sample.width)
