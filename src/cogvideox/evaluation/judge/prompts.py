"""Fixed prompts, each with the clip of Storybook that it tells."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from cogvideox.data.storybook import Clip, World
from cogvideox.data.storybook.labels import Labels, labels
from cogvideox.evaluation.judge.reading import FPS

SEED = 1_000_003
"""Of the world that the prompts are from; no recipe trains on it."""
PROMPTS = 16
"""Of each set."""
VARIANTS = 50
"""Paraphrases among which one is looked for that tells all that is asked."""


@dataclass(frozen=True)
class PromptSet:
    """Prompts of one kind."""

    scores: tuple[str, ...]
    """What is judged; see `scores.score`."""
    kind: Callable[[Clip], str | None]
    """What is special about a clip, so that all kinds come up alike; None: it does not belong here."""
    split: str = "train"
    """"heldout": compositions that training never shows."""
    searched: int = 1000
    """Clips of the world among which the prompts are; held-out ones take long to find."""
    frames: int = 17


@dataclass(frozen=True)
class Case:
    """One prompt."""

    of: str
    """Name of its set."""
    number: int
    prompt: str
    clip: Clip
    frames: int

    @property
    def labels(self) -> Labels:
        return labels(self.clip, self.frames, FPS)


def _plain(clip: Clip) -> bool:
    return clip.style is None and clip.camera.kind == "static" and not clip.events


def _single(clip: Clip) -> str | None:
    alone = len(clip.actors) == 1 and len(clip.actors[0].moves) == 1
    return "" if alone and _plain(clip) else None


def _two(clip: Clip) -> str | None:
    kinds = {actor.character for actor in clip.actors}
    return "" if len(clip.actors) == len(kinds) == 2 and _plain(clip) else None


def _relation(clip: Clip) -> str | None:
    plain = clip.relation and clip.style is None and not clip.events
    return clip.relation.kind if plain and clip.relation else None


def _camera(clip: Clip) -> str | None:
    moves = clip.camera.kind != "static" and clip.style is None and clip.relation is None
    return clip.camera.kind if moves else None


def _style(clip: Clip) -> str | None:
    alone = len(clip.actors) == 1 and len(clip.actors[0].moves) == 1 and not clip.events
    return clip.style if alone and clip.camera.kind == "static" else None


def _narrative(clip: Clip) -> str | None:
    if clip.style or clip.relation:
        return None
    if clip.events:
        return clip.events[0].kind
    # Twice, for there are more stories of this kind.
    return f"sequence {clip.index % 2}" if len(clip.actors[0].moves) > 1 else None


def _lasting(clip: Clip) -> str | None:
    """One that is in the picture to the end."""
    stays = not clip.actors[0].moves[-1].action.startswith(("leave", "recede"))
    return _single(clip) if stays else None


SETS = {
    "single": PromptSet(("characters", "count", "scene", "motion"), _single),
    "two characters": PromptSet(("characters", "count", "scene"), _two),
    "relation": PromptSet(("characters", "relation"), _relation),
    "camera": PromptSet(("characters", "camera"), _camera),
    "style": PromptSet(("characters", "style"), _style),
    "narrative": PromptSet(("characters", "order"), _narrative),
    "held-out composition": PromptSet(("characters", "count", "scene", "motion"), _single, "heldout", 120),
    "10 seconds": PromptSet(("characters", "scene", "end"), _lasting, frames=81),
}
"""The sets by name. "single" and "held-out composition" differ only in what training has shown."""


@lru_cache(maxsize=len(SETS))
def cases(name: str) -> tuple[Case, ...]:
    """The prompts of a set, always the same; what is special about them comes up equally often, so far as
    the world makes it: one of each kind, then a second one, and so on.
    """
    asked, found = SETS[name], dict[str, list[Clip]]()
    world = World(seed=SEED, split=asked.split)
    for index in range(asked.searched):
        clip = world.clip(index, (asked.frames - 1) / FPS)
        kind = asked.kind(clip)
        if kind is not None:
            found.setdefault(kind, []).append(clip)
    rounds = [clips[k] for k in range(PROMPTS) for _, clips in sorted(found.items()) if k < len(clips)]
    assert len(rounds) >= PROMPTS, f"{len(rounds)} clips for {name}"
    return tuple(
        Case(name, number, _telling(clip), clip, asked.frames) for number, clip in enumerate(rounds[:PROMPTS])
    )


def _telling(clip: Clip) -> str:
    """The first short caption that also tells how the camera moves, where it does."""
    captions = (clip.short_caption(variant) for variant in range(VARIANTS))
    if clip.camera.kind == "static":
        return next(captions)
    return next(text for text in captions if "the camera" in text.lower() or "the view" in text.lower())
