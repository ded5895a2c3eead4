"""The training loop: stages of a recipe, a keyed data stream, checkpoints that resume exactly.

Every batch is a pure function of (recipe seed, step), so a run that was killed and resumed sees the same data.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from cogvideox.core.errors import NonFiniteError
from cogvideox.core.files import atomic_path
from cogvideox.training.optim import MasterOptimizer


class Task(Protocol):
    """What is trained: a model, its data, its loss, how it is judged and how it is kept."""

    model: nn.Module

    def batches(self) -> Dataset[Any]:
        """Batch of each step, indexed by the global step."""
        ...

    def loss(self, batch: Any, step: int) -> tuple[Tensor, dict[str, float]]: ...

    def is_matrix(self, name: str, parameter: Tensor) -> bool: ...

    def evaluate(self, weights: dict[str, Tensor], folder: Path, step: int) -> dict[str, float]:
        """Judge `weights` on fixed held-out data; may leave pictures in `folder`."""
        ...


def lr_scale(step: int, total: int, warmup: int, decay_from: float) -> float:
    """Linear warm-up, constant, then a cosine to 0 over the last part of the run (from `decay_from` * total)."""
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

    Writes `checkpoint.pt` (atomically, every `save_seconds`) and one JSON line a measurement to `log.jsonl`. Raises
    NonFiniteError when ten steps in a row were not finite.
    """
    folder.mkdir(parents=True, exist_ok=True)
    optimizer = MasterOptimizer(
        task.model,
        task.is_matrix,
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
    log = (folder / "log.jsonl").open("a", encoding="utf-8")
    began, saved, bad = time.monotonic(), time.monotonic(), 0
    sums: dict[str, list[float]] = {}
    for step, batch in enumerate(_stream(task.batches(), start, steps, workers), start):
        loss, metrics = task.loss(batch, step)
        loss.backward()
        norm = optimizer.step(lr_scale(step, steps, warmup, decay_from), step)
        bad = 0 if math.isfinite(norm) else bad + 1
        if bad == 10:
            raise NonFiniteError(f"training step {step}: ten steps in a row had non-finite gradients")
        for name, value in {"loss": loss.item(), "norm": norm, **metrics}.items():
            sums.setdefault(name, []).append(value)
        done = step + 1
        if done % 50 == 0 or done == steps:
            row: dict[str, Any] = {"step": done, **{k: round(sum(v) / len(v), 5) for k, v in sums.items()}}
            row["seconds_per_step"] = round((time.monotonic() - began) / len(sums["loss"]), 3)
            row["skipped"] = optimizer.skipped
            sums = {}
            if done % evaluate_every == 0 or done == steps:
                row |= task.evaluate(optimizer.ema_weights(), folder, done)
            began = time.monotonic()
            log.write(json.dumps(row) + "\n")
            log.flush()
            print(json.dumps(row), flush=True)
        if time.monotonic() - saved > save_seconds or done == steps:
            with atomic_path(checkpoint) as partial:
                torch.save({"step": done, "optimizer": optimizer.state_dict()}, partial)
            saved = time.monotonic()
    log.close()
    return optimizer
