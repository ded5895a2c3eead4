"""Whether a video shows what its prompt asks for, and how sure the shares are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from cogvideox.evaluation.judge.prompts import Case

END = 17
"""Frames at the end of a long clip in which its characters must still be there."""
PARTS = 3
"""A transformation is seen when its first part shows one character and its last part the other."""


class Reader(Protocol):
    """What `reading.Reading` answers."""

    @property
    def frames(self) -> int: ...

    def characters(self, first: int = 0, last: int | None = None) -> frozenset[str]: ...

    def about(self, question: str) -> str: ...

    def events(self) -> frozenset[str]: ...

    def motion(self, who: str, other: str | None = None, first: int = 0, last: int | None = None) -> str: ...

    def relation(self, who: str, other: str | None) -> str: ...


def score(name: str, case: Case, seen: Reader) -> bool:
    """Whether the video is right about one thing.

    `characters`: exactly those that are told, at any time; `count`, `scene`, `style`, `camera`: the same;
    `motion`, `relation`: the characters are there (others may be too), and every move, or the relation, is
    right; `order`: what happens first happens first; `end`: all characters are there in the last 2 seconds.
    """
    truth = case.labels
    if name == "characters":
        return seen.characters() == truth.characters
    if name == "end":
        return truth.characters <= seen.characters(max(0, seen.frames - END))
    if name == "motion":
        return truth.characters <= seen.characters() and _moves(case, seen)
    if name == "relation":
        asked = next(q for q in truth.questions if q.relation)
        there = truth.characters <= seen.characters()
        return there and seen.relation(asked.character, asked.other) == asked.relation
    if name == "order":
        return _order(case, seen)
    return seen.about(name) == str(getattr(truth, name))


def _moves(case: Case, seen: Reader) -> bool:
    return all(
        seen.motion(q.character, q.other, q.first, q.last) == q.motion
        for q in case.labels.questions
        if q.motion
    )


def _order(case: Case, seen: Reader) -> bool:
    """A sequence: each move in its time. A transformation: one character, then the other. Else the event."""
    actor = case.clip.actors[0]
    if actor.becomes:
        part = max(1, seen.frames // PARTS)
        before, after = seen.characters(0, part), seen.characters(seen.frames - part)
        return (actor.character in before) > (actor.becomes in before) and (
            (actor.becomes in after) > (actor.character in after)
        )
    if case.clip.events:
        return seen.events() == case.labels.events
    return case.labels.characters <= seen.characters() and _moves(case, seen)


@dataclass(frozen=True)
class Share:
    """A share of right videos with its confidence interval."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, hits: Sequence[Sequence[bool]]) -> Share:
        """From the seeds of each prompt: the mean over all, and Wilson's 95 % interval with the prompts as
        its trials, as if all seeds of a prompt were one video. That is wider than the truth, never narrower.
        """
        mean = sum(sum(seeds) / len(seeds) for seeds in hits) / len(hits)
        low, high = wilson(mean, len(hits))
        return cls(round(mean, 4), round(low, 4), round(high, 4))


def wilson(share: float, trials: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's score interval (1927) of a share of `trials`; z = 1.96 covers 95 %."""
    scale = 1 + z * z / trials
    middle = (share + z * z / (2 * trials)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    return max(0.0, middle - half), min(1.0, middle + half)
