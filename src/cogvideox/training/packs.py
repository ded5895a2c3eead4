"""The packed loader: for each step the micro-batches of a rank, each a row of constant token capacity.

What a step trains on is a function of (samples, stage, seed, step): rows are planned from metadata, and every
random choice is keyed by (seed, step, place), the place of a segment among all segments of the global step.
So neither the number of ranks nor that of workers matters, and a resume needs the step alone.

Shape legend: C channels, T H W latent grid, L text tokens, D text width.
"""

from __future__ import annotations

import copy
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.utils.data import Dataset

from cogvideox.core import rng
from cogvideox.core.errors import InputError
from cogvideox.data.encoded import Store
from cogvideox.data.mixture import Choice, held_out, repeats
from cogvideox.data.plan import LOOK_AHEAD, Cost, Plan, Position, Row, deal, imbalance
from cogvideox.data.samples import Sample
from cogvideox.diffusion.timesteps import iid, per_rank, stratified
from cogvideox.models.specs import ModelSpec, PositionPolicy
from cogvideox.parallel.training import fit

Share = Annotated[float, Field(ge=0.0, le=1.0)]
VALIDATION = -1
"""Stands for the step in the keys of validation's noise."""


@dataclass(frozen=True, kw_only=True)
class DiffusionStage:
    """A part of the run with one mixture of samples."""

    steps: int
    capacity: int
    """Tokens of a row, text included: what one forward and backward pass holds."""
    rows: int = 1
    """Rows of a step, of all ranks together."""
    data: tuple[Choice, ...] = (Choice(),)
    """Which samples, in which shares."""
    positions: PositionPolicy | None = None
    """The model's policy from this stage on; None: as it was built."""
    sequence: int = 1
    """Processes that share a row, if so many divide those that there are."""


def stage_of(stages: Sequence[DiffusionStage], step: int) -> DiffusionStage:
    """That of a step, counted from 0."""
    return stages[bisect_right(list(accumulate(stage.steps for stage in stages)), step)]


@dataclass(frozen=True, kw_only=True)
class Objective:
    """How samples become losses."""

    drop_text: Share = 0.1
    """Probability that a sample is trained without its text, for classifier-free guidance."""
    drop_image: Share = 0.05
    """Probability that a sample is trained without its image condition, where the model has one."""
    known: Share = 0.0
    """Probability that a clip comes with its first latent frame or frames given, on which no loss is taken.
    """
    continued: Share = 0.3
    """Share of those clips that continue a prefix of random length, as from the middle of a longer clip:
    their first latent, which holds a single frame, is left out.
    """
    prefix_noise: Annotated[int, Field(ge=0, lt=1000)] = 0
    """Given frames are noised to a timestep drawn from 0 to this; 0: they are clean, as generation gives
    them.
    """
    subject_weight: Annotated[float, Field(gt=0)] = 1.0
    """How many times errors where the subject is count; the weights of a sample have mean 1."""
    per: Literal["sample", "number"] = "sample"
    """Whose errors count alike: those of all samples, or those of all latent numbers."""
    timesteps: Literal["uniform", "per-rank", "iid"] = "uniform"
    """Explicit uniform sampling over all segments of the step; the paper's, an interval for each rank;
    independent draws.
    """
    captions: Mapping[str, float] = field(default_factory=dict)
    """Kind of caption -> weight; kinds that are not named have weight 0, unless none is."""

    def check(self, spec: ModelSpec) -> None:
        """InputError for what generation with the model would not match."""
        if self.known and not spec.first_frame:
            raise InputError("known > 0 trains to go on from clean frames: the model needs first_frame: true")


@dataclass(frozen=True)
class Item:
    """One segment of a row as the data process delivers it."""

    name: str
    latents_CTHW: Tensor
    """A fresh sample of the posterior; zeros where it could not be read."""
    caption: str
    """Empty where the text is dropped."""
    place: int
    """Among the segments of the global step."""
    timestep: int
    text_LD: Tensor | None = None
    """The caption's embedding; None where the trainer makes it."""
    drop_text: bool = False
    known: int = 0
    """Latent frames in front that are given."""
    prefix_timestep: int = 0
    """To which they are noised; 0: not at all."""
    condition_CHW: Tensor | None = None
    """The image condition's latent."""
    subject_THW: Tensor | None = None
    """Bool: where the subject is."""
    unreadable: str = ""
    """Why the sample could not be read: its weight is 0 then."""


@dataclass(frozen=True)
class PackedRow:
    """A micro-batch."""

    items: list[Item]
    """Equal shapes side by side: they run as one batch."""
    capacity: int
    """Tokens that it could hold."""
    imbalance: float
    """Of the step: how much longer than the average the dearest rank takes."""
    positions: PositionPolicy | None = None
    """That of the stage."""
    samples: int = 0
    """Of the step, in all ranks together."""
    after: Position | None = None
    """Where the stream stands after the step; None: samples have an index, and the step says all."""


class PackedBatches(Dataset[Any]):
    """Step -> the rows of this rank, of which there may be none; those that share rows have the same."""

    def __init__(
        self,
        store: Store,
        spec: ModelSpec,
        stages: Sequence[DiffusionStage],
        objective: Objective,
        *,
        seed: int,
        held: int = 0,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        """`held` sources are kept for validation. InputError when a stage asks for what is not there, or for
        samples longer than its rows.
        """
        self.store, self.spec, self.stages, self.objective = store, spec, tuple(stages), objective
        self.seed, self.rank, self.ranks = seed, rank, ranks
        samples, patch = store.samples, spec.transformer.patch
        self.lengths = [spec.transformer.text_length + s.shape(patch).tokens for s in samples]
        self.held = held_out(samples, held)
        self.cost = Cost.of(spec.transformer.width)
        self._plans = [self._plan(stage) for stage in self.stages]
        self._counts: dict[tuple[int, int], int] = {}
        self._packed: tuple[tuple[int, int], list[list[Row]]] = ((-1, -1), [])

    def __len__(self) -> int:
        return sum(stage.steps for stage in self.stages)

    def _plan(self, stage: DiffusionStage) -> Plan:
        kept = set(self.held)
        training = [index for index in range(len(self.lengths)) if index not in kept]
        wanted = [0.0] * len(self.lengths)
        for index, count in zip(
            training, repeats([self.store.samples[i] for i in training], stage.data), strict=True
        ):
            wanted[index] = count
        longest = max((i for i in training if wanted[i]), key=lambda i: self.lengths[i])
        if self.lengths[longest] > stage.capacity:
            name, tokens = self.store.samples[longest].id, self.lengths[longest]
            raise InputError(f"{name} has {tokens} tokens, a row of the stage holds {stage.capacity}")
        return Plan(self.lengths, wanted, stage.capacity, stage.rows, self.seed, LOOK_AHEAD)

    def _epoch(self, stage: int, epoch: int) -> list[list[Row]]:
        """Rows of each step of an epoch; the last one asked for is kept."""
        if self._packed[0] != (stage, epoch):
            self._packed = (stage, epoch), self._plans[stage].epoch(epoch)
            self._counts[stage, epoch] = len(self._packed[1])
        return self._packed[1]

    def rows(self, step: int) -> tuple[DiffusionStage, list[Row]]:
        """The stage of a step, and the step's rows, of all ranks."""
        number, epoch = 0, 0
        while step >= self.stages[number].steps:
            step -= self.stages[number].steps
            number += 1
        while step >= (count := self._counts.get((number, epoch)) or len(self._epoch(number, epoch))):
            step -= count
            epoch += 1
        return self.stages[number], self._epoch(number, epoch)[step]

    def __getitem__(self, step: int) -> list[PackedRow]:
        if not 0 <= step < len(self):
            raise IndexError(step)
        stage, rows = self.rows(step)
        flat = [index for row in rows for index in row]
        places = iter(range(len(flat)))
        placed = [tuple(next(places) for _ in row) for row in rows]
        lengths = [self.lengths[index] for index in flat]
        each = fit(stage.sequence, self.ranks)
        team, teams = self.rank // each, self.ranks // each
        dealt = deal(placed, [self.cost(row, lengths) for row in placed], teams)
        loads = [sum(self.cost(row, lengths) for row in mine) for mine in dealt]
        mine, uneven = dealt[team], imbalance(loads)
        places_here = [place for row in mine for place in row]
        timesteps = self._timesteps(step, len(flat), places_here, team, teams)
        found = []
        for row in mine:
            items = [self.item(step, place, flat[place], timesteps[place]) for place in row]
            items.sort(key=lambda item: item.latents_CTHW.shape)
            found.append(PackedRow(items, stage.capacity, uneven, stage.positions, len(flat)))
        return found

    def _timesteps(
        self, step: int, count: int, mine: Sequence[int], team: int = 0, teams: int = 1
    ) -> dict[int, int]:
        """Place -> timestep, at least for the places of this rank."""
        key = (self.seed, "timesteps", step)
        if self.objective.timesteps == "per-rank":
            return dict(zip(mine, per_rank(len(mine), *key, rank=team, ranks=teams), strict=True))
        draw = stratified if self.objective.timesteps == "uniform" else iid
        return dict(enumerate(draw(count, *key)))

    def item(self, step: int, place: int, index: int, timestep: int) -> Item:
        """A sample as segment `place` of a step."""
        sample, o = self.store.samples[index], self.objective
        draw = rng.generator(self.seed, "sample", step, place)
        caption = _caption(sample, o.captions, draw.random())
        drop_text, drop_image, know, go_on = draw.random(4) < (
            o.drop_text,
            o.drop_image,
            o.known,
            o.continued,
        )
        kind_of = draw.integers(2**31, size=3)  # of the condition, the prefix's length and its noise
        words = "" if drop_text else sample.captions[caption][1]
        try:
            content = self.store.read(index, caption)
        except InputError as error:
            return self._nothing(sample, place, timestep, str(error))
        noise = rng.normal(content.mean_CTHW.shape, self.seed, "posterior", step, place)
        latents, subject = content.drawn(noise), content.subject_THW
        condition, known, frames = None, 0, latents.shape[1]
        if content.conditions is not None:
            condition = content.conditions[kind_of[0] % len(content.conditions)]
        if know and frames > 1:
            known = 1
            if go_on and frames > 2:
                latents, frames = latents[:, 1:], frames - 1
                subject = None if subject is None else subject[1:]
                known = 1 + int(kind_of[1] % (frames - 1))
                if condition is not None:  # as generation continues a clip
                    condition = latents[:, 0] * (self.spec.vae.condition_scale / self.spec.vae.scale)
        return Item(
            name=sample.id,
            latents_CTHW=latents,
            caption=words,
            place=place,
            timestep=timestep,
            text_LD=None if content.texts is None else content.texts[0],
            drop_text=bool(drop_text),
            known=known,
            prefix_timestep=int(kind_of[2] % (o.prefix_noise + 1)),
            condition_CHW=None if drop_image else condition,
            subject_THW=subject,
        )

    def fixed(self, timestep: int) -> list[Item]:
        """The samples held out, all at one timestep and with everything that is known about them: the same
        whenever it is asked for.
        """
        quiet = copy.copy(self)
        quiet.objective = replace(self.objective, drop_text=0.0, drop_image=0.0, known=0.0)
        return [quiet.item(VALIDATION, place, index, timestep) for place, index in enumerate(self.held)]

    def _nothing(self, sample: Sample, place: int, timestep: int, reason: str) -> Item:
        """Stands for a sample that cannot be read: as many tokens, no weight."""
        t, h, w = sample.shape((1, *self.spec.transformer.patch[1:])).latents
        zeros = torch.zeros(self.spec.vae.latent_channels, t, h, w)
        return Item(sample.id, zeros, "", place, timestep, drop_text=True, unreadable=reason)


def _caption(sample: Sample, weights: Mapping[str, float], draw: float) -> int:
    """Which of the sample's captions: a kind by the weights, then any of that kind; `draw` is in [0, 1)."""
    kinds = [kind for kind, _ in sample.captions]
    shares = [weights.get(kind, 0.0) / kinds.count(kind) for kind in kinds]
    if not any(shares):
        shares = [1.0] * len(kinds)
    rest = draw * sum(shares)
    for index, share in enumerate(shares):
        rest -= share
        if rest < 0:
            return index
    return len(shares) - 1
