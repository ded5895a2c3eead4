"""Whether clips can be trained on: all faults of a set at once, before a model is loaded."""

from __future__ import annotations

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from cogvideox.core.errors import InputError
from cogvideox.data.manifest import Row
from cogvideox.data.samples import Grid, Rule, Sample, pixels
from cogvideox.data.storybook.rows import SCHEME

STILL = 0.5
"""Mean change between neighbouring frames, of 255, below which a clip stands still."""
WORDS = 200
"""Words of a caption beyond which text encoders cut it."""


@dataclass(frozen=True)
class Report:
    """What was found."""

    rows: tuple[Row, ...]
    """All rows; those that cannot be used are rejected, with the reason."""
    shapes: Counter[tuple[int, int, int]]
    """(frames, height, width) as trained -> clips."""
    remarks: tuple[str, ...]
    """What does not keep a clip from being used, but may not be meant."""

    @property
    def kept(self) -> int:
        return sum(row.rejected is None for row in self.rows)

    @property
    def faults(self) -> list[str]:
        """One line for each row that cannot be used."""
        return [f"{row.id} {row.source}: {row.rejected}" for row in self.rows if row.rejected]


def check(rows: Sequence[Row], folder: Path, rule: Rule, patch: Grid, fps: float) -> Report:
    """Read every clip as training would, in the shape that `rule` gives it at `fps` frames a second."""
    found, shapes, remarks = [], Counter[tuple[int, int, int]](), []
    alike: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        sample = row.rejected or rule.apply(row, patch, fps)
        if isinstance(sample, Sample):
            try:
                remarks += _look(sample, folder, alike)
                shapes[sample.frames, sample.height, sample.width] += 1
                found.append(row)
                continue
            except InputError as error:
                sample = str(error)
        found.append(replace(row, rejected=sample))
    remarks += [f"{', '.join(same)} are the same clip" for same in alike.values() if len(same) > 1]
    return Report(tuple(found), shapes, tuple(remarks))


def _look(sample: Sample, folder: Path, alike: dict[str, list[str]]) -> list[str]:
    row, remarks = sample.row, []
    frames = pixels(sample, folder)
    if not row.source.startswith(SCHEME):
        alike[hashlib.sha256(frames.tobytes()).hexdigest()].append(row.source)
    if len(frames) > 1 and np.abs(np.diff(frames.astype(np.int16), axis=0)).mean() < STILL:
        remarks.append(f"{row.id} {row.source}: stands still")
    for _, caption in sample.captions:
        if len(caption.split()) > WORDS:
            remarks.append(f"{row.id} {row.source}: a caption of {len(caption.split())} words will be cut")
    return remarks


def moved(rows: Sequence[Row], folder: Path, home: Path) -> list[Row]:
    """Rows whose sources lie in `folder`, for a manifest that lies in `home`."""
    return [
        row
        if row.source.startswith(SCHEME)
        else replace(row, source=os.path.relpath(folder / row.source, home))
        for row in rows
    ]
