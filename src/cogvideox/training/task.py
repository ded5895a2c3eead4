"""What is trained: the contract between the loop and its tasks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn
from torch.utils.data import Dataset

from cogvideox.core.errors import InputError

Metrics = Mapping[str, tuple[float, float]]
"""Name -> (weighted sum, weight): means come out right over micro-batches, steps and ranks.

Of those in `COUNTS` the sums themselves are meant. With several phases, one of them counts.
"""
COUNTS = ("samples", "tokens", "capacity", "flops")
"""Samples that were trained on, their tokens, tokens that there was room for, and operations of the model,
forward and backward.
"""


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
    """A module and the loss that trains it, as each of the two of a GAN.

    The gradients of all phases of a step are there before any of them moves, so that a step is made or
    skipped as a whole.
    """

    name: str
    module: nn.Module
    begins: int = 0
    """The first step in which it takes part."""
    matrix_blocks: Callable[[str, Tensor], int] = lambda name, parameter: 0
    """How many matrices a parameter holds, by its name; see `MasterOptimizer`."""
    within: nn.Module | None = None
    """The model that runs, where `module` is but a part of it, such as an adapter."""
    ends: int | None = None
    """The first step in which it no longer takes part, its averaged weights being in its place."""


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


@runtime_checkable
class Named(Protocol):
    """A task that can say what is in a micro-batch."""

    def ids(self, micro: Any) -> list[str]:
        """Names of the samples."""
        ...


@runtime_checkable
class Stateful(Protocol):
    """A task whose batches depend on more than the step."""

    def state(self) -> dict[str, Any]:
        """What JSON holds, after the last step."""
        ...

    def restore(self, step: int, state: Mapping[str, Any]) -> None:
        """Let the batches go on after so many steps, before they are asked for."""
        ...


@runtime_checkable
class Tolerant(Protocol):
    """A task that goes on without the few samples that it cannot read."""

    lost: Unreadable


LOST = 0.01
"""Share of the samples that may be unreadable before a run ends."""


class Unreadable:
    """Samples that could not be read, and when they are too many. Each process knows of its own, until the
    loop tells all of all.
    """

    def __init__(self, known: int) -> None:
        """`known`: how many samples there are."""
        self.known, self.reasons = known, dict[str, str]()

    def add(self, reasons: Mapping[str, str]) -> None:
        """Remember them, by name. InputError when they are more than `LOST`."""
        self.reasons.update(reasons)
        if self.reasons and len(self.reasons) > LOST * self.known:
            name, reason = next(iter(self.reasons.items()))
            told = f"{len(self.reasons)} of {self.known} samples cannot be read, more than {LOST:.0%}"
            raise InputError(f"{told}; the first, {name}: {reason}")
