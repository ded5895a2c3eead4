"""What a clip shows, as class numbers: the answers that a judge of videos is trained to give.

Shape legend: T frames, H W cells of a grid over the picture.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from cogvideox.data.storybook.cast import cast
from cogvideox.data.storybook.clip import Clip
from cogvideox.data.storybook.scenes import SCENES
from cogvideox.data.storybook.state import ACTIONS, CAMERAS, EVENTS, RELATIONS, STYLES

COUNTS = 4
"""0 to 3 characters."""
SHORTEST = 5
"""Frames below which nobody can tell what a character does."""
INNER = 0.3
"""Cells this share of a box away from its middle, or nearer, show the character for sure."""
UNSURE = -100
"""Class of the cells in the rest of a box: sprites do not fill their corners."""


@lru_cache(maxsize=1)
def vocabulary() -> dict[str, tuple[str, ...]]:
    """The classes of each question, in the order of their numbers; style 0 is none."""
    return {
        "character": tuple(cast()),
        "scene": tuple(SCENES),
        "style": ("none", *STYLES),
        "camera": CAMERAS,
        "event": EVENTS,
        "count": tuple(str(count) for count in range(COUNTS)),
        "motion": ACTIONS,
        "relation": RELATIONS,
    }


@dataclass(frozen=True)
class Question:
    """What a character does during a part of a clip, or how it relates to another one."""

    character: str
    other: str | None
    """Somebody else who is in the clip."""
    first: int
    last: int
    """Frames `first` to `last`, that one not included."""
    motion: str | None
    """One of ACTIONS, the answer; None: this is not what is asked."""
    relation: str | None
    """One of RELATIONS, the answer; None: this is not what is asked."""


@dataclass(frozen=True)
class Labels:
    """The answers for a whole clip."""

    characters: frozenset[str]
    """All that are seen at any time."""
    count: int
    scene: str
    style: str
    camera: str
    events: frozenset[str]
    questions: tuple[Question, ...]


def labels(clip: Clip, frames: int, fps: float = 8) -> Labels:
    """The answers for a clip of `frames` frames in which its action is laid out."""
    people = [actor.character for actor in clip.actors]
    return Labels(
        frozenset(people + [actor.becomes for actor in clip.actors if actor.becomes]),
        len(people),
        clip.setting.scene,
        clip.style or "none",
        clip.camera.kind,
        frozenset(event.kind for event in clip.events),
        tuple(_questions(clip, frames, fps)),
    )


def _questions(clip: Clip, frames: int, fps: float) -> Iterator[Question]:
    people = [actor.character for actor in clip.actors]
    if frames < SHORTEST or any(actor.becomes for actor in clip.actors):
        return
    for k, actor in enumerate(clip.actors):
        if actor.character in people[:k]:
            continue  # those of a kind do the same
        other = next((name for name in people if name != actor.character), None)
        for move in actor.moves:
            first, last = round(move.start * fps), min(frames, round(move.end * fps) + 1)
            if last - first >= SHORTEST:
                yield Question(actor.character, other, first, last, move.action, None)
    if clip.relation:
        other = people[1] if people[1] != people[0] else None
        yield Question(people[0], other, 0, frames, None, clip.relation.kind)


def cells(
    clip: Clip, frames: int, fps: float, rows: int, columns: int, start: float = 0.0
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Who is seen in which cell from `start` seconds on: classes (T, H, W), the background being one more
    than the characters, and for each cell with somebody the box (T, H, W, 4): its middle x, y in short sides
    of the picture away from that of the cell, and the logarithms of its width and height in short sides.
    """
    names = vocabulary()["character"]
    unit = min(rows, columns)
    boxes = clip.truth(frames, fps, 16 * rows, 16 * columns, start)["boxes"]
    classes = np.full((frames, rows, columns), len(names), np.int64)
    targets = np.zeros((frames, rows, columns, 4), np.float32)
    y = ((np.arange(rows) + 0.5) / unit)[:, None]
    x = ((np.arange(columns) + 0.5) / unit)[None, :]
    # Those in front are smaller, as a rule, and are seen where both are.
    order = sorted(range(len(boxes)), key=lambda k: -_area(boxes[k]))
    for frame in range(frames):
        for k in order:
            box, actor = boxes[k][frame], clip.actors[k]
            if box is None:
                continue
            x0, y0, x1, y1 = np.asarray(box) * (columns, rows, columns, rows) / unit
            dx, dy, wide, high = (x0 + x1) / 2 - x, (y0 + y1) / 2 - y, x1 - x0, y1 - y0
            half = 0.5 / unit  # of a cell: the one in the middle always counts
            inside = (abs(dx) <= wide / 2) & (abs(dy) <= high / 2)
            inner = (abs(dx) <= max(half, INNER * wide)) & (abs(dy) <= max(half, INNER * high))
            seen = (
                actor.becomes
                if actor.becomes and start + frame / fps >= actor.changes_at
                else actor.character
            )
            empty = classes[frame] == len(names)
            classes[frame][inside & empty] = UNSURE
            classes[frame][inner] = names.index(seen)
            size = np.full_like(dx + dy, 0.0)
            box_HW4 = np.stack([dx + size, dy + size, np.log(wide) + size, np.log(high) + size], axis=-1)
            targets[frame][inner] = box_HW4[inner]
    return classes, targets


def _area(boxes: list[list[float] | None]) -> float:
    areas = [(x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in filter(None, boxes)]
    return sum(areas) / max(1, len(areas))
