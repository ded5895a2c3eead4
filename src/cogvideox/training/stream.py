"""The packed loader of a manifest that has no index: the look-ahead's state goes into checkpoints."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import accumulate, islice
from pathlib import Path
from typing import cast

from cogvideox.core.errors import InputError
from cogvideox.core.shapes import plan_shape
from cogvideox.data.manifest import Row as Record
from cogvideox.data.plan import LOOK_AHEAD, Cost, Position, Row, stream_rows
from cogvideox.data.samples import Rule, Sample
from cogvideox.data.stream import samples_from
from cogvideox.training.encode import Encoder, Live
from cogvideox.training.packs import DiffusionStage, Objective, PackedBatches, PackedRow, stage_of


class StreamBatches(PackedBatches):
    """Step -> rows of a stream; a function of the manifest and the step. Steps are cheap to reach in their
    order, from the one where `at` stands on.
    """

    def __init__(
        self,
        path: Path,
        encoder: Encoder,
        stages: Sequence[DiffusionStage],
        objective: Objective,
        *,
        seed: int,
        held: int = 0,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        """The first `held` rows that can be used are kept for validation. InputError for a stage whose
        largest clip does not fit into its rows, and for a manifest that is none.
        """
        self.spec, self.stages, self.objective = encoder.spec, tuple(stages), objective
        self.seed, self.rank, self.ranks, self.path = seed, rank, ranks, path
        self.cost = Cost.of(self.spec.transformer.width)
        self.at = 0, Position()
        """A step, and where the stream stands before it."""
        self._rows: Iterator[tuple[list[tuple[int, Sample]], Position]] | None = None
        self._next, self._position = self.at
        self._apart = set[str]()  # sources of validation's samples, whose numbers are below zero
        for stage in self.stages:
            assert stage.data[0].largest is not None
            longest = plan_shape(self.spec.transformer.patch, *stage.data[0].largest).tokens
            if self.spec.transformer.text_length + longest > stage.capacity:
                raise InputError(f"the largest clip of a stage has more tokens than a row, {stage.capacity}")
        found = samples_from(path, 0, partial(self._take, self.stages[-1]))
        self._kept = {-1 - n: sample for n, (_, sample) in enumerate(islice(found, held))}
        self._apart = {sample.row.source for sample in self._kept.values()}
        self.held = list(self._kept)
        self._samples, self._lengths = dict[int, Sample](), dict[int, int]()
        # Looked up by numbers alone, which a dict does as a list.
        self.store = Live(cast("Sequence[Sample]", self._samples), path.parent, encoder)
        self.lengths = cast("list[int]", self._lengths)
        self._show([])

    def _take(self, stage: DiffusionStage, record: Record) -> Sample | str:
        """The sample of a row in a stage, or why it has none."""
        if record.rejected or record.source in self._apart:
            return record.rejected or "is kept for validation"
        largest = stage.data[0].largest  # that of all of them
        assert largest is not None
        rule, patch = Rule.within(*largest), self.spec.transformer.patch
        sample = rule.apply(record, patch, float(self.spec.fps))
        if isinstance(sample, str) or any(choice.takes(sample) for choice in stage.data):
            return sample
        return "is not what the stage takes"

    def _tokens(self, sample: Sample) -> int:
        return self.spec.transformer.text_length + sample.shape(self.spec.transformer.patch).tokens

    def _show(self, rows: Iterable[Sequence[tuple[int, Sample]]]) -> None:
        """Let the samples of a step, and those of validation, be read by their numbers."""
        shown = self._kept | {number: sample for row in rows for number, sample in row}
        self._samples.clear()
        self._samples.update(shown)
        self._lengths.clear()
        self._lengths.update((number, self._tokens(sample)) for number, sample in shown.items())

    def rows(self, step: int) -> tuple[DiffusionStage, list[Row]]:
        if self._rows is None or step < self._next:
            (self._next, self._position), self._rows = self.at, None
        assert self._next <= step, "the stream stands behind the step"
        ends = list(accumulate(stage.steps for stage in self.stages))
        while self._next <= step:
            stage = stage_of(self.stages, self._next)
            if self._rows is None or self._next in ends:
                self._rows = self._stream(stage)
            found = list(islice(self._rows, stage.rows))
            self._position, self._next = found[-1][1], self._next + 1
        self._show(row for row, _ in found)
        return stage, [tuple(number for number, _ in row) for row, _ in found]

    def _stream(self, stage: DiffusionStage) -> Iterator[tuple[list[tuple[int, Sample]], Position]]:
        def source(number: int) -> Iterator[tuple[int, tuple[int, Sample], int]]:
            for at, sample in samples_from(self.path, number, partial(self._take, stage)):
                yield at, (at, sample), self._tokens(sample)

        return stream_rows(source, stage.capacity, LOOK_AHEAD, self._position)

    def __getitem__(self, step: int) -> list[PackedRow]:
        found = super().__getitem__(step)
        return [replace(row, after=self._position) for row in found]
