"""What is trained: the contract between the loop and its tasks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn
from torch.utils.data import Dataset

Metrics = Mapping[str, tuple[float, float]]
"""Name -> (weighted sum, weight): means come out right over micro-batches, steps and ranks."""


@dataclass(frozen=True)
class Loss:
    """Of one micro-batch. The loss of a step is the sum of all totals over the sum of all weights, those of
    all micro-batches of all ranks: never a mean of means.
    """

    total: Tensor
    """Sum of the samples' losses, each times its weight; differentiable."""
    weight: float
    """Sum of the samples' weights; 0 where nothing could be read."""
    metrics: Metrics


@dataclass(frozen=True)
class Phase:
    """A module and the loss that trains it. Phases of a step follow each other, as the two of a GAN do."""

    name: str
    module: nn.Module
    begins: int = 0
    """The first step in which it takes part."""
    matrix_blocks: Callable[[str, Tensor], int] = lambda name, parameter: 0
    """How many matrices a parameter holds, by its name; see `MasterOptimizer`."""


class Task(Protocol):
    """Data, losses, and how the result is judged."""

    @property
    def phases(self) -> Sequence[Phase]: ...

    def batches(self) -> Dataset[list[Any]]:
        """Micro-batches of each step, indexed by the global step; a pure function of it."""
        ...

    def loss(self, phase: str, micro: Any, step: int) -> Loss:
        """That of a phase, whose module alone takes gradients meanwhile."""
        ...

    def evaluate(self, weights: Mapping[str, dict[str, Tensor]], folder: Path, step: int) -> dict[str, float]:
        """Judge averaged weights (by phase) on fixed held-out data; may leave pictures in `folder`."""
        ...
