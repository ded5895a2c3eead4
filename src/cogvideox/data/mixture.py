"""What a stage trains on: filters by label, score and shape, and their shares."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from cogvideox.core.errors import InputError, nearest
from cogvideox.data.samples import Sample

MOTION = frozenset({"motion", "flow"})
"""Scores that pictures cannot have."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Samples that meet all conditions, and their share in the stage."""

    share: float = 1.0
    """Of the stage's samples, by the sum of all shares."""
    label: str | None = None
    """That a row has."""
    frames: tuple[int, int] | None = None
    """Fewest and most."""
    largest: tuple[int, int, int] | None = None
    """Frames, height and width. No sample has more frames, more pixels or a longer short side; of a row that
    is there in several shapes, the largest of those is taken.
    """
    least: Mapping[str, float] = field(default_factory=dict)
    """Score -> its lowest value; a sample without the score has not enough, but pictures need none of
    `MOTION`.
    """
    best: Mapping[str, float] = field(default_factory=dict)
    """Score -> the share of the samples, the best by that score, that is taken of those that meet all else.
    """

    def of(self, samples: Sequence[Sample]) -> list[int]:
        """Which they are. InputError when there is none."""
        found = [index for index, sample in enumerate(samples) if self.takes(sample)]
        if self.largest is not None:
            rows = {samples[i].row.id: i for i in sorted(found, key=lambda i: samples[i].numbers)}
            found = sorted(rows.values())
        for score, share in self.best.items():
            scored = [index for index in found if score in samples[index].row.scores]
            scored.sort(key=lambda index: (-samples[index].row.scores[score], index))
            found = sorted(scored[: math.ceil(share * len(scored))])
        if not found:
            labels = {label for sample in samples for label in sample.row.labels}
            wrong = self.label is not None and self.label not in labels
            hint = f"label {self.label!r}{nearest(self.label or '', labels)}" if wrong else f"{self}"
            raise InputError(f"a stage asks for samples that are not there: {hint}")
        return found

    def takes(self, sample: Sample) -> bool:
        """Whether it meets all conditions that do not depend on other samples."""
        scores, still = sample.row.scores, sample.row.frames == 1
        return (
            (self.label is None or self.label in sample.row.labels)
            and (self.frames is None or self.frames[0] <= sample.frames <= self.frames[1])
            and (self.largest is None or sample.within(self.largest))
            and all(
                scores.get(name, -math.inf) >= value
                for name, value in self.least.items()
                if not (still and name in MOTION)
            )
        )


def repeats(samples: Sequence[Sample], choices: Sequence[Choice]) -> list[float]:
    """How often each sample comes in an epoch, in the proportions of the shares; the most wanted one once.

    InputError when a choice finds nothing.
    """
    wanted = [0.0] * len(samples)
    for choice in choices:
        found = choice.of(samples)
        for index in found:
            wanted[index] += choice.share / len(found)
    most = max(wanted)
    return [each / most for each in wanted]


def held_out(samples: Sequence[Sample], count: int) -> list[int]:
    """The samples of about `count` sources, at most one in ten, for validation: of each shape in turn the
    source with the lowest hash, so that rare clips count as much as many images.

    No source is both trained on and judged by, in whatever shape or span, and a manifest that grows in the
    shapes that it has keeps most of them.
    """
    shapes: dict[tuple[int, int, int], set[str]] = {}
    for sample in samples:
        shapes.setdefault((sample.frames, sample.height, sample.width), set()).add(sample.row.source)
    all_sources = set[str]().union(*shapes.values())
    ranked = [few_sources(sources, count) for sources in shapes.values()]
    turns = (source for turn in itertools.zip_longest(*ranked) for source in turn if source is not None)
    # Shapes of less than ten sources lend none, then others make up for them.
    order = dict.fromkeys(itertools.chain(turns, sorted(all_sources, key=_hash)))
    few = set(itertools.islice(order, min(count, len(all_sources) // 10)))
    return [index for index, sample in enumerate(samples) if sample.row.source in few]


def few_sources(sources: Iterable[str], count: int) -> list[str]:
    """About `count` of them, at most one in ten: those with the lowest hashes, in their order."""
    found = sorted(set(sources), key=_hash)
    return found[: min(count, len(found) // 10)]


def _hash(name: str) -> bytes:
    return hashlib.blake2b(name.encode(), digest_size=8).digest()
