"""The training loop: stages of a recipe, a keyed data stream, checkpoints that resume exactly.

Every batch is a pure function of (recipe seed, step), so a run that was killed and resumed sees the same
data.
"""

from __future__ import annotations

import json
import math
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from cogvideox.core.errors import NonFiniteError
from cogvideox.core.files import atomic_path
from cogvideox.training.optim import MasterOptimizer

LOG_EVERY = 50  # steps


class Task(Protocol):
    """What is trained: a model, its data, its loss, how it is judged and how it is kept."""

    @property
    def model(self) -> nn.Module: ...

    def batches(self) -> Dataset[Any]:
        """Batch of each step, indexed by the global step."""
        ...

    def loss(self, batch: Any, step: int) -> tuple[Tensor, dict[str, float]]: ...

    def matrix_blocks(self, name: str, parameter: Tensor) -> int:
        """How many matrices a parameter holds; see `MasterOptimizer`."""
        ...

    def evaluate(self, weights: dict[str, Tensor], folder: Path, step: int) -> dict[str, float]:
        """Judge `weights` on fixed held-out data; may leave pictures in `folder`."""
        ...


def lr_scale(step: int, total: int, warmup: int, decay_from: float) -> float:
    """Linear warm-up, constant, then from `decay_from` * total on a cosine to 0."""
    if step < warmup:
        return (step + 1) / warmup
    start = decay_from * total
    if step <= start:
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - start) / max(1.0, total - start)))


class _Tail(Dataset[Any]):
    """The batches from `start` on."""

    def __init__(self, batches: Dataset[Any], start: int, total: int) -> None:
        self.batches, self.start, self.total = batches, start, total

    def __len__(self) -> int:
        return self.total - self.start

    def __getitem__(self, index: int) -> Any:
        return self.batches[self.start + index]


def _stream(batches: Dataset[Any], start: int, total: int, workers: int) -> Iterator[Any]:
    tail = _Tail(batches, start, total)
    return iter(
        DataLoader(tail, batch_size=None, num_workers=workers, prefetch_factor=6 if workers else None)
    )


class Meter:
    """Means of the metrics since the last line of the log."""

    def __init__(self, path: Path) -> None:
        self.path, self.sums, self.began = path, defaultdict[str, list[float]](list), time.monotonic()

    def add(self, metrics: dict[str, float]) -> None:
        for name, value in metrics.items():
            self.sums[name].append(value)

    def write(self, head: dict[str, float], tail: dict[str, float]) -> None:
        """One JSON line to the log and the terminal; starts the next mean."""
        pace = (time.monotonic() - self.began) / max(1, len(self.sums["loss"]))
        means = {name: round(sum(values) / len(values), 5) for name, values in self.sums.items()}
        line = json.dumps({**head, **means, "seconds_per_step": round(pace, 3), **tail})
        with self.path.open("a", encoding="utf-8") as log:
            log.write(line + "\n")
        print(line, flush=True)
        self.sums.clear()
        self.began = time.monotonic()


def train(
    task: Task,
    folder: Path,
    *,
    steps: int,
    matrix_lr: float,
    lr: float,
    warmup: int = 50,
    decay_from: float = 0.6,
    weight_decay: float = 0.0,
    clip: float = 1.0,
    ema: float = 0.999,
    evaluate_every: int = 500,
    save_seconds: float = 180.0,
    workers: int = 1,
) -> MasterOptimizer:
    """Train `task` for `steps` steps in `folder`; continues from its checkpoint when there is one.

    Writes `checkpoint.pt` (atomically, every `save_seconds`) and one JSON line a measurement to `log.jsonl`.
    Raises NonFiniteError when ten steps in a row were not finite.
    """
    folder.mkdir(parents=True, exist_ok=True)
    optimizer = MasterOptimizer(
        task.model,
        task.matrix_blocks,
        matrix_lr=matrix_lr,
        lr=lr,
        weight_decay=weight_decay,
        clip=clip,
        ema=ema,
    )
    start, checkpoint = 0, folder / "checkpoint.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        optimizer.load_state_dict(state["optimizer"])
        start = state["step"]
    meter, saved, bad = Meter(folder / "log.jsonl"), time.monotonic(), 0
    for done, batch in enumerate(_stream(task.batches(), start, steps, workers), start + 1):
        loss, metrics = task.loss(batch, done - 1)
        loss.backward()
        norm = optimizer.step(lr_scale(done - 1, steps, warmup, decay_from), done - 1)
        bad = 0 if math.isfinite(norm) else bad + 1
        if bad == 10:
            raise NonFiniteError(f"training step {done}: ten steps in a row had non-finite gradients")
        meter.add({"loss": loss.item(), "norm": norm, **metrics})
        if done % LOG_EVERY == 0 or done == steps:
            judged = done % evaluate_every == 0 or done == steps
            extra = task.evaluate(optimizer.ema_weights(), folder, done) if judged else {}
            meter.write({"step": done}, {"skipped": optimizer.skipped, **extra})
        if time.monotonic() - saved > save_seconds or done == steps:
            with atomic_path(checkpoint) as partial:
                torch.save({"step": done, "optimizer": optimizer.state_dict()}, partial)
            saved = time.monotonic()
    return optimizer
