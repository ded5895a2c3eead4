"""Training steps of mini on a real mix of lengths, packed, in buckets and padded, as 8 ranks would share
them.

The mix: 30 % images, else clips of 17 to 81 frames; seven aspect ratios, three areas. All loaders get the
same samples and may hold as many tokens at a time. Ranks wait for the slowest at the end of a step, so its
work is run rank by rank, and the longest of their times is the step's: useful tokens, text included and
padding not, are told for one rank per second of it. The optimizer is left out: it is the same for all.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from benchmarks.case import Build, Case, Side
from cogvideox import load
from cogvideox.checkpoints.hub import MINI
from cogvideox.core import heap, rng
from cogvideox.data.plan import Cost, Plan, deal, fill, imbalance
from cogvideox.diffusion.inputs import Sample, build_pack
from cogvideox.models.specs import TransformerSpec

Grid = tuple[int, int, int]
Micro = list[tuple[Grid, int]]
"""Of each sample of a micro-batch: the token grid that is computed, and its useful tokens."""
Step = list[list[Micro]]
"""Micro-batches of each rank."""

RANKS = 8
ROWS = 2  # micro-batches of a rank and step
HELD = 2  # of the longest samples, as many tokens fit into a micro-batch
SAMPLES = 4000
RATIOS = (1, 4 / 3, 3 / 4, 16 / 9, 9 / 16, 3 / 2, 2 / 3)
AREAS = (64**2, 96**2, 128**2)


def mix(count: int) -> list[Grid]:
    """Token grids of the samples; a token is 16x16 pixels of four frames."""
    draw, grids = rng.generator(0, "mix"), []
    for _ in range(count):
        area, ratio = draw.choice(AREAS), draw.choice(RATIOS)
        h, w = (round((area * r) ** 0.5 / 16) for r in (1 / ratio, ratio))
        grids.append((1 if draw.random() < 0.3 else 1 + int(draw.integers(4, 21)), h, w))
    return grids


def _lengths(grids: Sequence[Grid], text: int) -> list[int]:
    return [text + t * h * w for t, h, w in grids]


def packed(grids: Sequence[Grid], lengths: Sequence[int], capacity: int, cost: Cost) -> Iterator[Step]:
    """Rows of this library, dealt by cost."""
    plan = Plan(lengths, [1.0] * len(lengths), capacity, RANKS * ROWS, seed=0)
    for rows in plan.epoch(0):
        dealt = deal(rows, [cost(row, lengths) for row in rows], RANKS)
        yield [
            [[(grids[i], lengths[i]) for i in sorted(row, key=lambda i: grids[i])] for row in mine]
            for mine in dealt
        ]


def _shared(batches: list[Micro]) -> Iterator[Step]:
    """Batches in random order, each rank the next ones."""
    random.Random(0).shuffle(batches)
    size = RANKS * ROWS
    for first in range(0, len(batches) - size + 1, size):
        yield [batches[first + rank : first + size : RANKS] for rank in range(RANKS)]


def bucketed(
    grids: Sequence[Grid], lengths: Sequence[int], capacity: int, most: int | None
) -> Iterator[Step]:
    """Batches of one exact shape, as many samples as fit or `most`; an epoch's remainders are batches too."""
    buckets: dict[Grid, list[int]] = {}
    for index, grid in enumerate(grids):
        buckets.setdefault(grid, []).append(index)
    batches: list[Micro] = []
    for grid, indices in buckets.items():
        size = min(most or len(indices), capacity // lengths[indices[0]])
        batches += [
            [(grid, lengths[i]) for i in indices[first : first + size]]
            for first in range(0, len(indices), size)
        ]
    yield from _shared(batches)


def padded(grids: Sequence[Grid], lengths: Sequence[int], capacity: int) -> Iterator[Step]:
    """Batches of any samples, filled up to the longest of the batch."""
    batches: list[Micro] = []
    for first in range(0, len(grids) - HELD + 1, HELD):
        those = range(first, first + HELD)
        longest = grids[max(those, key=lambda i: lengths[i])]
        batches.append([(longest, lengths[i]) for i in those])
    yield from _shared(batches)


def plan_numbers(
    grids: Sequence[Grid], lengths: Sequence[int], capacity: int, cost: Cost
) -> dict[str, float]:
    """Fill of an epoch's rows and mean cost imbalance of its whole steps."""
    steps = Plan(lengths, [1.0] * len(lengths), capacity, RANKS * ROWS, seed=0).epoch(0)
    rows = [row for step in steps for row in step]
    uneven = []
    for step in steps[:-1]:
        dealt = deal(step, [cost(row, lengths) for row in step], RANKS)
        uneven.append(imbalance([sum(cost(row, lengths) for row in mine) for mine in dealt]))
    mean = sum(uneven) / max(1, len(uneven))
    return {"fill": fill(rows, lengths, capacity), "imbalance over 8 ranks": mean}


Loader = Callable[[Sequence[Grid], Sequence[int], int, Cost], Iterator[Step]]


def steps_of(loader: Loader, spec: TransformerSpec, samples: int, count: int) -> list[Step]:
    """The first steps of a loader."""
    grids = mix(samples)
    lengths = _lengths(grids, spec.text_length)
    found = loader(grids, lengths, HELD * max(lengths), Cost.of(spec.width))
    return [step for _, step in zip(range(count), found, strict=False)]


def train(loader: Loader, samples: int, count: int) -> Build:
    """Loss and gradients of `count` steps."""

    def make(folder: Path, dtype: torch.dtype) -> Side:
        getattr(heap, "keep_freed_memory", int)()  # as the command does
        model = load(folder, dtype=dtype, device="cpu").transformer.requires_grad_(True)
        spec, numbers = model.spec, {}
        steps = steps_of(loader, spec, samples, count)
        text = rng.normal((spec.text_length, spec.text_dim), 0, "text")
        useful = sum(n for step in steps for rank in step for micro in rank for _, n in micro)

        def work(micro: Micro) -> None:
            latents = [rng.normal((spec.in_channels, t, 2 * h, 2 * w), 0, "x") for (t, h, w), _ in micro]
            pack = build_pack([Sample(x, text, 500) for x in latents], spec, dtype=dtype)
            with torch.enable_grad():
                model(pack).float().square().sum().backward()

        def run() -> None:
            seconds, waited = 0.0, []
            for step in steps:
                times = []
                for rank in step:
                    start = time.perf_counter()
                    for micro in rank:
                        work(micro)
                    times.append(time.perf_counter() - start)
                seconds += max(times)
                waited.append(imbalance(times))
            numbers["useful tokens/s of a rank"] = useful / RANKS / seconds
            numbers["ranks wait"] = sum(waited) / len(waited)

        side = Side(run, (model,), warm=lambda: work(steps[0][0][0]), amount=(useful, "tokens"))
        side.numbers = numbers
        if loader is packed:
            grids = mix(samples)
            lengths = _lengths(grids, spec.text_length)
            numbers.update(plan_numbers(grids, lengths, HELD * max(lengths), Cost.of(spec.width)))
        return side

    return make


LOADERS: dict[str, Loader] = {
    "packed": packed,
    "in buckets of one shape, as many samples as fit": lambda g, n, c, _: bucketed(g, n, c, None),
    "in buckets of one shape, 2 samples at a time": lambda g, n, c, _: bucketed(g, n, c, HELD),
    "padded to the longest of 2": lambda g, n, c, _: padded(g, n, c),
}


def cases(quick: bool) -> tuple[Case, ...]:
    samples, count = (16, 1) if quick else (SAMPLES, 3)
    chosen = list(LOADERS.items())[:1] if quick else list(LOADERS.items())
    return tuple(
        Case("packing", f"a mix of lengths, {name}", {"ours": train(loader, samples, count)}, MINI, once=True)
        for name, loader in chosen
    )
