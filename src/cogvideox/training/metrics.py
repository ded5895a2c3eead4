"""Numbers of a run: their means over steps, and where they go."""

from __future__ import annotations

import importlib
import importlib.util
import json
import time
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from cogvideox.core.errors import InputError
from cogvideox.core.files import write_text
from cogvideox.training.task import COUNTS, Metrics

Line = Mapping[str, Any]
"""One measurement: `step`, and numbers or words by name."""


class Meter:
    """Means of the metrics, and rates of the counts, since it was last cleared."""

    def __init__(self, peak: float = 0.0) -> None:
        """`peak`: operations per second that the machine could do; 0: not known."""
        self.peak = peak
        self.clear()

    def clear(self) -> None:
        self.steps, self.began = 0, time.monotonic()
        self.sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])

    def add(self, metrics: Metrics) -> None:
        """Add weighted sums and weights of any part of a step."""
        for name, pair in metrics.items():
            self.sums[name] = [a + b for a, b in zip(self.sums[name], pair, strict=True)]

    def read(self) -> dict[str, float]:
        """Means of all metrics; `tokens` and `samples` of a step and a second, the share of the `capacity`
        that they `fill`, and what share of the machine's peak the model's operations were (`mfu`).
        """
        seconds = max(time.monotonic() - self.began, 1e-9)
        counts = {name: self.sums[name][0] for name in COUNTS if name in self.sums}
        means = {name: a / b for name, (a, b) in self.sums.items() if b and name not in COUNTS}
        for name in ("samples", "tokens"):
            if name in counts:
                means[name] = counts[name] / max(1, self.steps)
                means[f"{name}_per_second"] = counts[name] / seconds
        if counts.get("capacity"):
            means["fill"] = counts["tokens"] / counts["capacity"]
        if self.peak and "flops" in counts:
            means["mfu"] = counts["flops"] / seconds / self.peak
        means["seconds_per_step"] = seconds / max(1, self.steps)
        return {name: float(f"{value:.6g}") for name, value in means.items()}


class Writer:
    """Somebody who is told what happens in a run. This one listens to nothing."""

    def open(self, folder: Path, start: int, steps: int) -> None:
        """The run in `folder` goes on after step `start`, up to `steps`; forget all later ones."""

    def tick(self, step: int, now: Mapping[str, float]) -> None:
        """A step is done; means since the last line."""

    def write(self, line: Line) -> None:
        """A measurement, or the beginning of a stage (`event`)."""

    def close(self) -> None:
        """The run is over, or stops."""


class Journal(Writer):
    """`metrics.jsonl`: one JSON object a line."""

    def __init__(self) -> None:
        self.last = 0
        """Step of the last measurement."""

    def open(self, folder: Path, start: int, steps: int) -> None:
        self.path = folder / "metrics.jsonl"
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []
        # A run that was killed may have written a part of a line, and of steps that are now done again.
        kept = [record for line in lines if (record := _parse(line)) and _step(record) <= start]
        if len(kept) < len(lines):
            write_text(self.path, "".join(json.dumps(record) + "\n" for record in kept))
        self.last = max((record["step"] for record in kept if "begins" not in record), default=0)

    def write(self, line: Line) -> None:
        with self.path.open("a", encoding="utf-8") as log:
            log.write(json.dumps(line) + "\n")
        if "begins" not in line:
            self.last = line["step"]


def _step(line: Line) -> int:
    """The step after which a line was written; the beginning of a stage tells of the one that follows."""
    return int(line["step"]) + ("begins" in line)


def _parse(line: str) -> dict[str, Any] | None:
    try:
        record: dict[str, Any] = json.loads(line)
    except json.JSONDecodeError:
        return None
    return record


class TensorBoard(Writer):
    """Events that `tensorboard --logdir` shows, in the folder `tensorboard`."""

    def open(self, folder: Path, start: int, steps: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.events = SummaryWriter(str(folder / "tensorboard"), purge_step=start + 1)

    def write(self, line: Line) -> None:
        if "begins" in line:
            self.events.add_text("stage", line["begins"], line["step"])
            return
        for name, value in numbers(line).items():
            self.events.add_scalar(name, value, line["step"])
        self.events.flush()

    def close(self) -> None:
        self.events.close()


class WandB(Writer):
    """Weights & Biases. A run that goes on goes on there too, by the id in `wandb.txt`."""

    def __init__(self, project: str) -> None:
        self.project, self.wandb = project, require("wandb", "wandb")

    def open(self, folder: Path, start: int, steps: int) -> None:
        name = folder / "wandb.txt"
        known = name.read_text(encoding="utf-8") if name.exists() else None
        self.run = self.wandb.init(project=self.project, dir=str(folder), id=known, resume="allow")
        write_text(name, self.run.id)

    def write(self, line: Line) -> None:
        self.run.log(numbers(line), step=line["step"])

    def close(self) -> None:
        self.run.finish()


def numbers(line: Line) -> dict[str, float]:
    """What can be drawn as a curve over the step."""
    return {name: x for name, x in line.items() if isinstance(x, (int, float)) and name != "step"}


def available(name: str) -> bool:
    """Whether an optional package is installed; it is not imported."""
    try:
        return importlib.util.find_spec(name) is not None
    except ValueError:  # a module that was put there by hand, or forbidden
        return False


def require(name: str, extra: str) -> ModuleType:
    """Import an optional package. InputError tells how to install it."""
    try:
        return importlib.import_module(name)
    except ImportError:
        raise InputError(f"{name} is not installed; pip install {extra}") from None
