"""Frame pack, planned from metadata alone (paper section 3.1): samples of any length -> rows of one constant
number of tokens -> steps -> ranks.

Nothing is decoded to plan, and a plan is a pure function of (lengths, seed, epoch): resuming needs the step
only, and the number of ranks may change. Images are clips of one frame and fill the holes that clips leave.
"""

from __future__ import annotations

import bisect
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from cogvideox.core import rng
from cogvideox.core.errors import InputError

T = TypeVar("T")
Row = tuple[int, ...]
"""Indices of the samples that lie in one row, in the order in which they were taken."""
LOOK_AHEAD = 256


@dataclass
class Packer:
    """Best fit with look-ahead over a stream of samples: each row begins with the sample that waited longest,
    then takes again and again the longest one that still fits.

    Holds at most `look_ahead` samples. `waiting` is its whole state: a packer with the same samples pushed in
    that order goes on alike.
    """

    capacity: int
    """Tokens of a row."""
    look_ahead: int = LOOK_AHEAD
    _queue: deque[tuple[int, int]] = field(default_factory=deque)
    _sorted: list[tuple[int, int]] = field(default_factory=list)

    @property
    def waiting(self) -> list[int]:
        """Samples that no row has taken yet, the one that waited longest first."""
        kept = set(self._sorted)
        return [index for length, index in self._queue if (length, index) in kept]

    def push(self, index: int, length: int) -> Row | None:
        """Take one sample; gives a row whenever the look-ahead is full. Raises InputError for a sample longer
        than a row.
        """
        if length > self.capacity:
            raise InputError(f"sample {index} has {length} tokens, more than the {self.capacity} of a row")
        self._queue.append((length, index))
        bisect.insort(self._sorted, (length, index))
        return self.take() if len(self._sorted) >= self.look_ahead else None

    def take(self) -> Row | None:
        """One row of the samples that wait; None when there are none."""
        while self._queue and not self._holds(self._queue[0]):
            self._queue.popleft()
        if not self._queue:
            return None
        row, room, best = [], self.capacity, bisect.bisect_left(self._sorted, self._queue[0])
        while best >= 0:
            length, index = self._sorted.pop(best)
            row.append(index)
            room -= length
            best = bisect.bisect_left(self._sorted, (room + 1,)) - 1
        return tuple(row)

    def _holds(self, item: tuple[int, int]) -> bool:
        at = bisect.bisect_left(self._sorted, item)
        return at < len(self._sorted) and self._sorted[at] == item


def pack(samples: Iterable[tuple[int, int]], capacity: int, look_ahead: int = LOOK_AHEAD) -> Iterator[Row]:
    """(index, tokens) of each sample, in order -> rows; every sample is in exactly one."""
    packer = Packer(capacity, look_ahead)
    for index, length in samples:
        if (row := packer.push(index, length)) is not None:
            yield row
    while (row := packer.take()) is not None:
        yield row


@dataclass(frozen=True)
class Position:
    """Where a packed stream stands: with it, a checkpoint lets the stream go on exactly."""

    next: int = 0
    """Number of the next sample of the stream."""
    waiting: tuple[int, ...] = ()
    """Those before it that no row has yet."""


def stream_rows(
    source: Callable[[int], Iterable[tuple[int, T, int]]],
    capacity: int,
    look_ahead: int = LOOK_AHEAD,
    at: Position = Position(),
) -> Iterator[tuple[list[T], Position]]:
    """Rows of a stream that has no index, each with the position after it.

    `source(n)` gives (number, sample, tokens) from number n on; numbers may be left out. Samples that wait
    are not kept in the position: a resume reads them again, from the first of them on.
    """
    packer, held = Packer(capacity, look_ahead), dict[int, T]()
    number = first = min((at.next, *at.waiting))
    for number, sample, tokens in source(first):
        if number < at.next and number not in at.waiting:
            continue
        held[number] = sample
        if (row := packer.push(number, tokens)) is not None:
            yield [held.pop(n) for n in row], Position(number + 1, tuple(packer.waiting))
    while (row := packer.take()) is not None:
        yield [held.pop(n) for n in row], Position(number + 1, tuple(packer.waiting))


def fill(rows: Sequence[Row], lengths: Sequence[int], capacity: int) -> float:
    """The share of the rows' tokens that are samples."""
    return sum(lengths[i] for row in rows for i in row) / (len(rows) * capacity)


def epoch_order(repeats: Sequence[float], seed: int, epoch: int) -> list[int]:
    """Samples of an epoch in random order: sample i as often as `repeats[i]`, fractions by chance."""
    draw, wanted = rng.generator(seed, "epoch", epoch), np.asarray(repeats, dtype=float)
    counts = (wanted + draw.random(len(wanted))).astype(int)
    return draw.permutation(np.repeat(np.arange(len(wanted)), counts)).tolist()


@dataclass(frozen=True)
class Cost:
    """What a row costs: a * tokens for the linear layers + b * sum of squared lengths for attention."""

    a: float
    b: float

    @classmethod
    def of(cls, width: int) -> Cost:
        """That of a transformer of this width, up to a factor: attention is L / (L + 6 D) of a segment."""
        return cls(6.0 * width, 1.0)

    def __call__(self, row: Row, lengths: Sequence[int]) -> float:
        return sum(self.a * lengths[i] + self.b * lengths[i] ** 2 for i in row)


def deal(rows: Sequence[Row], costs: Sequence[float], ranks: int) -> list[list[Row]]:
    """The rows of a step for each rank, as many for each as can be: dearest first.

    Rows that stand in the same place are of like cost, for ranks that wait for each other after every row,
    and the cheapest rank so far gets the dearest of them. Ranks in excess of rows get none.
    """
    order = sorted(range(len(rows)), key=lambda i: (-costs[i], i))
    dealt: list[list[Row]] = [[] for _ in range(ranks)]
    total = [0.0] * ranks
    for first in range(0, len(order), ranks):
        cheapest = sorted(range(ranks), key=lambda r: (total[r], r))
        for rank, row in zip(cheapest, order[first : first + ranks], strict=False):
            dealt[rank].append(rows[row])
            total[rank] += costs[row]
    return dealt


def imbalance(loads: Sequence[float]) -> float:
    """How much longer than the average the dearest rank takes: max / mean - 1."""
    return max(loads) * len(loads) / sum(loads) - 1.0


@dataclass(frozen=True)
class Plan:
    """The rows of every step of a training, for any number of ranks."""

    lengths: Sequence[int]
    """Tokens of each sample, its text included."""
    repeats: Sequence[float]
    """How often each sample is seen in an epoch."""
    capacity: int
    """Tokens of a row."""
    rows_per_step: int
    """Of all ranks together."""
    seed: int
    look_ahead: int = LOOK_AHEAD

    def epoch(self, epoch: int) -> list[list[Row]]:
        """Rows of each step. The last step may have fewer: every sample that is due comes exactly once."""
        samples = ((i, self.lengths[i]) for i in epoch_order(self.repeats, self.seed, epoch))
        rows = list(pack(samples, self.capacity, self.look_ahead))
        return [rows[i : i + self.rows_per_step] for i in range(0, len(rows), self.rows_per_step)]

    def steps(self, start: int = 0) -> Iterator[list[Row]]:
        """Rows of the steps from `start` on, epoch after epoch, without end."""
        epoch = 0
        while True:
            steps = self.epoch(epoch)
            if not steps:
                raise InputError("there is nothing to train on: no sample is due in an epoch")
            yield from steps[start:]
            start, epoch = max(0, start - len(steps)), epoch + 1
