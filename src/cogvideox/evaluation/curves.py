"""What exact runs tell about plans: how the embeddings and residuals of the transformer change by step.

Shape legend: N steps, L numbers, tokens or both; S segments, C width of the timestep embedding, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn

from cogvideox.core.pack import Pack
from cogvideox.diffusion.samplers import Sampler
from cogvideox.diffusion.stepplan import StepPlan, cheapest, first_block_cache, magcache, teacache
from cogvideox.models.transformer.model import Transformer

SAMPLES = 2**18
"""Numbers of a residual that are looked at, evenly spread: enough for its norms to a tenth of a percent."""


class Recorder(Transformer):
    """A transformer that notes what goes through its blocks in the conditional branch; shares the weights."""

    def __init__(self, transformer: Transformer) -> None:
        nn.Module.__init__(self)
        self.__dict__.update(transformer.__dict__)
        self.embeddings: list[Tensor] = []
        self.firsts: list[Tensor] = []
        self.residuals: list[Tensor] = []

    def stack(self, x_LD: Tensor, temb_SC: Tensor, pack: Pack, depth: int | None = None) -> Tensor:
        before_LD = pack.video_rows(x_LD)
        first_LD = super().stack(x_LD, temb_SC, pack, depth=1)
        after_LD = super().stack(x_LD, temb_SC, pack, depth)
        self.embeddings.append(temb_SC[-1].float().cpu())
        self.firsts.append(_part(pack.per_segment(first_LD - before_LD)[-1]))
        self.residuals.append(_part(pack.per_segment(after_LD - before_LD)[-1]))
        return after_LD


@dataclass(frozen=True)
class Curves:
    """Measurements of exact runs, one row a step."""

    embedding_NL: Tensor
    """Timestep embeddings."""
    first_NL: Tensor
    """Residuals of the first block (part of their numbers)."""
    residual_NL: Tensor
    """Residuals of the whole stack (part of their numbers)."""
    timesteps: tuple[int, ...]
    kicks: tuple[float, ...]
    """How far an error of 1 in v at a step moves the latents."""

    @classmethod
    def of(cls, recorder: Recorder, sampler: Sampler) -> Self:
        """The curves of all clips that `recorder` saw from first to last step, side by side."""
        steps = len(sampler.timesteps)

        def rows(notes: list[Tensor]) -> Tensor:
            return torch.cat([torch.stack(notes[i : i + steps]) for i in range(0, len(notes), steps)], dim=1)

        return cls(
            rows(recorder.embeddings),
            rows(recorder.firsts),
            rows(recorder.residuals),
            sampler.timesteps,
            tuple(kick(sampler, index) for index in range(steps)),
        )

    @cached_property
    def embedding_changes(self) -> list[float]:
        return [0.0, *_changes(self.embedding_NL)]

    @cached_property
    def residual_changes(self) -> list[float]:
        return [0.0, *_changes(self.residual_NL)]

    @cached_property
    def ratios(self) -> list[float]:
        """Mean magnitude of each residual over that of the one before."""
        size = self.residual_NL.abs().mean(dim=1)
        return [1.0, *(size[1:] / size[:-1]).tolist()]

    @cached_property
    def first_changes(self) -> list[list[float]]:
        """[i][k]: relative L1 change of the first block's residual from step i to k."""
        size = self.first_NL.abs().mean(dim=1)
        return [
            ((self.first_NL - row).abs().mean(dim=1) / size[i]).tolist()
            for i, row in enumerate(self.first_NL)
        ]

    def teacache(self, threshold: float, degree: int = 4) -> StepPlan:
        """Its polynomial fitted to this run: from changes of the embedding to changes of the residual."""
        changes = self.embedding_changes[1:]
        fit = np.polyfit(changes, self.residual_changes[1:], min(degree, len(changes) - 1))
        return teacache(self.embedding_changes, fit.tolist(), threshold)

    def magcache(self, threshold: float, longest: int) -> StepPlan:
        return magcache(self.ratios, threshold, longest)

    def first_block_cache(self, threshold: float) -> StepPlan:
        return first_block_cache(self.first_changes, threshold)

    def cheapest(self, full: int) -> StepPlan:
        """The best plan with that many full steps if the errors of this run's residuals add up."""
        return cheapest(self._errors, len(self.timesteps), full)

    @cached_property
    def _products(self) -> np.ndarray:
        """Of all pairs of residuals: every error below is a quadratic form in it."""
        return (self.residual_NL @ self.residual_NL.T).double().numpy()

    def _errors(self, before: int | None, last: int, step: int) -> tuple[float, str]:
        found = [(self._error({last: 1.0}, step), "r")]
        if before is not None:
            t = self.timesteps
            slope = (t[step] - t[last]) / (t[last] - t[before])
            found.append((self._error({last: 1 + slope, before: -slope}, step), "t"))
        return min(found)

    def _error(self, weights: dict[int, float], step: int) -> float:
        """Size of what a weighted sum of earlier residuals misses at `step`, times what it does there."""
        c = np.zeros(len(self.timesteps))
        c[step] = -1.0
        for index, weight in weights.items():
            c[index] = weight
        return self.kicks[step] * float(np.sqrt(max(0.0, c @ self._products @ c)))


def kick(sampler: Sampler, index: int) -> float:
    """How far an error of 1 in v at a step moves the latents."""
    sigma = float((1 - sampler.schedule.alpha_bar[sampler.timesteps[index]]).sqrt())
    c = sampler.coefficients(index)
    return abs(c.pull * (1 + c.extrapolate)) * sigma


def _changes(x_NL: Tensor) -> list[float]:
    """Relative L1 change of each row but the first to the row before."""
    return ((x_NL[1:] - x_NL[:-1]).abs().mean(dim=1) / x_NL[:-1].abs().mean(dim=1)).tolist()


def _part(x_LD: Tensor) -> Tensor:
    flat = x_LD.flatten()
    return flat[:: max(1, len(flat) // SAMPLES)].float().cpu()
