"""The training loop: phases of a task, a keyed data stream, checkpoints that resume exactly.

Every batch is a pure function of (recipe seed, step), so a run that was killed and resumed sees the same
data.
"""

from __future__ import annotations

import json
import math
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from cogvideox.core.errors import NonFiniteError
from cogvideox.core.files import atomic_path
from cogvideox.training.optim import MasterOptimizer
from cogvideox.training.task import Loss, Phase, Task

LOG_EVERY = 50  # steps
BAD = 10  # steps in a row with gradients that are not finite end the run


@dataclass(frozen=True, kw_only=True)
class Rates:
    """How the weights of a phase are updated."""

    matrix_lr: float
    """Muon's rate, for matrices."""
    lr: float
    """AdamW's rate, for all others."""
    warmup: int = 50
    """Steps of linear warm-up."""
    decay_from: float = 0.6
    """The share of the steps after which rates follow a cosine to 0."""
    weight_decay: float = 0.0
    clip: float = 1.0
    """The largest norm of all gradients together."""
    ema: float = 0.999

    def scale(self, step: int, total: int) -> float:
        """What both rates are multiplied with."""
        return lr_scale(step, total, self.warmup, self.decay_from)

    def optimizer(self, phase: Phase) -> MasterOptimizer:
        return MasterOptimizer(
            phase.module,
            phase.matrix_blocks,
            matrix_lr=self.matrix_lr,
            lr=self.lr,
            weight_decay=self.weight_decay,
            clip=self.clip,
            ema=self.ema,
        )


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
        self.path, self.steps, self.began = path, 0, time.monotonic()
        self.sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])

    def add(self, metrics: Mapping[str, tuple[float, float]]) -> None:
        """Add weighted sums and weights of any part of a step."""
        for name, pair in metrics.items():
            self.sums[name] = [a + b for a, b in zip(self.sums[name], pair, strict=True)]

    def write(self, head: dict[str, float], tail: dict[str, float]) -> None:
        """One JSON line to the log and the terminal; starts the next means."""
        pace = (time.monotonic() - self.began) / max(1, self.steps)
        means = {name: round(total / weight, 5) for name, (total, weight) in self.sums.items() if weight}
        line = json.dumps({**head, **means, "seconds_per_step": round(pace, 3), **tail})
        with self.path.open("a", encoding="utf-8") as log:
            log.write(line + "\n")
        print(line, flush=True)
        self.sums.clear()
        self.steps, self.began = 0, time.monotonic()


def update(task: Task, phase: Phase, batch: list[Any], step: int) -> tuple[list[Loss], float]:
    """Gradients of all micro-batches of a phase, summed, and the sum of their weights."""
    for other in task.phases:
        other.module.requires_grad_(other.name == phase.name)
    losses = []
    for micro in batch:
        loss = task.loss(phase.name, micro, step)
        loss.total.backward()
        losses.append(loss)
    return losses, sum(loss.weight for loss in losses)


def train(
    task: Task,
    folder: Path,
    rates: Mapping[str, Rates],
    *,
    steps: int,
    evaluate_every: int = 500,
    save_seconds: float = 180.0,
    workers: int = 1,
) -> dict[str, MasterOptimizer]:
    """Train the phases of `task` for `steps` steps in `folder`, each by its `rates`; continues from the
    folder's checkpoint when there is one.

    Writes `checkpoint.pt` (atomically, every `save_seconds`) and one JSON line a measurement to `log.jsonl`.
    Raises NonFiniteError when `BAD` steps in a row were not finite.
    """
    folder.mkdir(parents=True, exist_ok=True)
    optimizers = {phase.name: rates[phase.name].optimizer(phase) for phase in task.phases}
    start, checkpoint = 0, folder / "checkpoint.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        for name, optimizer in optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
        start = state["step"]
    meter, saved, bad = Meter(folder / "log.jsonl"), time.monotonic(), 0
    for done, batch in enumerate(_stream(task.batches(), start, steps, workers), start + 1):
        finite = True
        for phase in (phase for phase in task.phases if done > phase.begins):
            losses, weight = update(task, phase, batch, done - 1)
            scale = rates[phase.name].scale(done - 1, steps)
            norm = optimizers[phase.name].step(scale, done - 1, weight)
            if not math.isfinite(norm):
                finite = False
                continue
            prefix = "" if len(task.phases) == 1 else f"{phase.name}_"
            meter.add({f"{prefix}norm": (norm, 1.0)})
            for loss in losses:
                meter.add({f"{prefix}loss": (loss.total.item(), loss.weight), **loss.metrics})
        meter.steps += 1
        bad = 0 if finite else bad + 1
        if bad == BAD:
            raise NonFiniteError(f"training step {done}: {BAD} steps in a row had non-finite gradients")
        if done % LOG_EVERY == 0 or done == steps:
            extra = {}
            if done % evaluate_every == 0 or done == steps:
                averages = {name: optimizer.ema_weights() for name, optimizer in optimizers.items()}
                extra = task.evaluate(averages, folder, done)
            skipped = sum(optimizer.skipped for optimizer in optimizers.values())
            meter.write({"step": done}, {"skipped": skipped, **extra})
        if time.monotonic() - saved > save_seconds or done == steps:
            with atomic_path(checkpoint) as partial:
                states = {name: optimizer.state_dict() for name, optimizer in optimizers.items()}
                torch.save({"step": done, "optimizers": states}, partial)
            saved = time.monotonic()
    return optimizers
