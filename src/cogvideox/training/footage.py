"""What a VAE trains on: the synthetic world, or clips and pictures of a manifest. Shape legend: T frames."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Protocol

import numpy as np

from cogvideox.core.errors import InputError
from cogvideox.data.layouts import read_rows
from cogvideox.data.manifest import Row
from cogvideox.data.mixture import few_sources
from cogvideox.data.storybook import World
from cogvideox.data.storybook.rows import SCHEME
from cogvideox.data.video import Frames, read_video

TRIES = 20
"""Clips that are drawn until one can be read."""


@dataclass(frozen=True)
class Cut:
    """A clip as it was drawn."""

    name: str
    video_THWC: Frames
    unreadable: Mapping[str, str] = field(default_factory=dict)
    """Name -> why, of clips that were drawn before it."""


class Footage(Protocol):
    """Where clips come from."""

    known: int
    """How many there are; 0: no end."""

    def cut(self, draw: np.random.Generator, frames: int, fps: int, side: int) -> Cut:
        """A clip from any moment on, drawn by `draw`, its short side `side` pixels."""
        ...

    def check(self, frames: int, fps: int, side: int) -> None:
        """InputError when `cut` could give none."""
        ...

    def held_out(self, count: int, frames: int, side: int) -> Iterator[Frames]:
        """At most `count` square clips at 8 frames a second that `cut` never gives, always the same."""
        ...


@dataclass
class Storybook:
    """Clips of the synthetic world."""

    seed: int
    known = 0

    def check(self, frames: int, fps: int, side: int) -> None:
        pass

    def cut(self, draw: np.random.Generator, frames: int, fps: int, side: int) -> Cut:
        # Long enough for the latest start, so that the action never ends before the clip.
        clip = self._train.clip(index := int(draw.integers(2**31)), duration=1.0 + frames / fps)
        start = float(draw.uniform(0.0, 1.0))
        video = clip.render(frames=frames, fps=fps, height=side, width=side, start=start)
        return Cut(f"clip {index} at {start:.3f} s", video)

    def held_out(self, count: int, frames: int, side: int) -> Iterator[Frames]:
        world = World(seed=self.seed, split="heldout")
        for index in range(count):
            clip = world.clip(index, duration=frames / 8)
            yield clip.render(frames=frames, fps=8, height=side, width=side)

    @cached_property
    def _train(self) -> World:
        return World(seed=self.seed, split="train")


class Recordings:
    """Clips and pictures of a manifest, or of a folder that `cogvideox data check` knows. Nothing is
    enlarged, slowed down or repeated; a picture may come from any clip.
    """

    def __init__(self, manifest: Path, held: int) -> None:
        """About `held` sources, at most one in ten, are kept for `held_out`. InputError for what is no
        manifest.
        """
        rows, self._folder = read_rows(manifest)
        rows = [row for row in rows if not row.rejected]
        if drawn := next((row for row in rows if row.source.startswith(SCHEME)), None):
            raise InputError(f"{manifest}: {drawn.id} is of Storybook, on which a VAE trains without `data`")
        few = few_sources((row.source for row in rows), held)
        self._rows = [row for row in rows if row.source not in few]
        self._held = [row for row in rows if row.source in few]
        self.known = len(rows)
        self._enough: dict[tuple[int, int, int], list[Row]] = {}

    def check(self, frames: int, fps: int, side: int) -> None:
        self._fitting(frames, fps, side)

    def _fitting(self, frames: int, fps: int, side: int) -> list[Row]:
        key = frames, fps, side
        if key not in self._enough:
            self._enough[key] = [row for row in self._rows if _spare(row, *key) is not None]
        if not self._enough[key]:
            raise InputError(f"no clip has {frames} frames at {fps} per second, {side} pixels or more wide")
        return self._enough[key]

    def cut(self, draw: np.random.Generator, frames: int, fps: int, side: int) -> Cut:
        """InputError when no clip is long and large enough, or one after the other cannot be read."""
        rows = self._fitting(frames, fps, side)
        unreadable: dict[str, str] = {}
        for _ in range(TRIES):
            row = rows[int(draw.integers(len(rows)))]
            start = float(draw.uniform(0.0, _spare(row, frames, fps, side) or 0.0))
            scale = side / min(row.height, row.width)
            try:
                size = round(row.height * scale), round(row.width * scale)
                video = self._read(row, frames, fps, size, start)
            except InputError as error:
                unreadable[row.id] = str(error)
            else:
                return Cut(f"{row.id} at {start:.3f} s", video, unreadable)
        name, reason = next(iter(unreadable.items()))
        raise InputError(f"{TRIES} clips in a row cannot be read; the first, {name}: {reason}")

    def held_out(self, count: int, frames: int, side: int) -> Iterator[Frames]:
        fitting = (row for row in self._held if _spare(row, frames, 8, side) is not None)
        return islice(self._readable(fitting, frames, side), count)

    def _readable(self, rows: Iterable[Row], frames: int, side: int) -> Iterator[Frames]:
        for row in rows:
            with contextlib.suppress(InputError):
                yield self._read(row, frames, 8, (side, side), 0.0)

    def _read(self, row: Row, frames: int, fps: int, size: tuple[int, int], start: float) -> Frames:
        start += row.span[0] if row.span else 0.0
        rate = fps if frames > 1 else None
        path = self._folder / row.source
        video = read_video(path, fps=rate, limit=frames, size=size, start=start).frames
        if len(video) < frames:
            raise InputError(f"{row.source} ends {frames - len(video)} frames before its row says")
        return video


def _spare(row: Row, frames: int, fps: int, side: int) -> float | None:
    """Seconds by which a row is longer than a clip; None if it is too short or too small."""
    if min(row.height, row.width) < side:
        return None
    if row.frames == 1 or row.fps is None:
        return 0.0 if frames == 1 else None
    spare = (row.frames - 1) / row.fps - (frames - 1) / fps
    return spare if spare > -1e-6 and (frames == 1 or fps <= row.fps + 1e-6) else None
