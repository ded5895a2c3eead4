"""Captions from the state of a clip."""

from __future__ import annotations

from cogvideox.core.rng import generator
from cogvideox.data.storybook.cast import character
from cogvideox.data.storybook.clip import Clip
from cogvideox.data.storybook.scenes import scene
from cogvideox.data.storybook.words import GAITS


def caption(clip: Clip) -> str:
    """The clip's own caption."""
    rng = generator(clip.seed, "storybook", "caption", clip.index)
    variant = int(rng.integers(1000))
    return short_caption(clip, variant) if rng.random() < 0.5 else dense_caption(clip, variant)


def short_caption(clip: Clip, variant: int = 0) -> str:
    actor = clip.actors[0]
    who = character(actor.character)
    move = actor.moves[0]
    verb = GAITS[who.gait].verbs[0]
    text = move.action.replace("move", verb) if clip.duration else "is"
    return f"A {who.nouns[0]} {text} {move.speed} {scene(clip.setting.scene).nouns[0]}.".replace("  ", " ")


def dense_caption(clip: Clip, variant: int = 0) -> str:
    return short_caption(clip, variant)
