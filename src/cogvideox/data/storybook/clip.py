"""A clip: the whole state of a short film, and the ways to look at it (pixels, captions, ground truth)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cogvideox.core.errors import InputError
from cogvideox.data.storybook.state import Actor, Camera, Event, Relation, Setting

LONGEST = 3600.0
"""Seconds; a guard against mistaken units."""


@dataclass(frozen=True)
class Clip:
    """A clip of Storybook: a pure function of (world version, seed, index, duration); no pixels until
    `render`.
    """

    world: str
    """Version of the world that made it."""
    seed: int
    index: int
    duration: float
    """Seconds over which the action is laid out; 0 is a still picture."""
    setting: Setting
    actors: tuple[Actor, ...]
    camera: Camera = field(default_factory=Camera)
    events: tuple[Event, ...] = ()
    style: str | None = None
    relation: Relation | None = None

    @property
    def caption(self) -> str:
        """One caption: short or dense, chosen by the clip's key."""
        from cogvideox.data.storybook.captions import caption

        return caption(self)

    def short_caption(self, variant: int = 0) -> str:
        """A short caption, about 5 to 15 words; variants are paraphrases."""
        from cogvideox.data.storybook.captions import short_caption

        return short_caption(self, variant)

    def dense_caption(self, variant: int = 0) -> str:
        """A dense caption in order of time, at most 100 words; variants are paraphrases."""
        from cogvideox.data.storybook.captions import dense_caption

        return dense_caption(self, variant)

    def triples(self) -> list[tuple[str, str, str]]:
        """Every (character, action, scene) that is seen."""
        scene = self.setting.scene
        found = []
        for actor in self.actors:
            found += [(actor.character, move.action, scene) for move in actor.moves]
            if actor.becomes:
                found += [
                    (actor.becomes, move.action, scene) for move in actor.moves if move.end > actor.changes_at
                ]
        return found

    def render(
        self, frames: int = 17, fps: float = 8, height: int = 128, width: int = 128, start: float = 0.0
    ) -> NDArray[np.uint8]:
        """Frames at times start + k / fps seconds, uint8 (frames, height, width, 3). ValueError for illegal
        sizes.
        """
        from cogvideox.data.storybook.render import render

        check_picture(frames, fps, height, width, start)
        return render(self, frames, fps, height, width, start)

    def truth(
        self, frames: int = 17, fps: float = 8, height: int = 128, width: int = 128, start: float = 0.0
    ) -> dict[str, Any]:
        """What is where: characters, boxes per frame, speeds, camera, scene, events, style; see
        `truth.truth`.
        """
        from cogvideox.data.storybook.truth import truth

        check_picture(frames, fps, height, width, start)
        return truth(self, frames, fps, height, width, start)


def check_picture(frames: int, fps: float, height: int, width: int, start: float) -> None:
    """Refuse illegal picture sizes with one clear line."""
    if frames < 1:
        raise InputError(f"frames must be at least 1, got {frames}")
    if not fps > 0:
        raise InputError(f"fps must be above 0, got {fps}")
    if not 16 <= min(height, width) or max(height, width) > 4096:
        raise InputError(f"height and width must be 16 to 4096 pixels, got {height}x{width}")
    if not 0 <= start <= LONGEST:
        raise InputError(f"start must be 0 to {LONGEST:.0f} seconds, got {start}")
