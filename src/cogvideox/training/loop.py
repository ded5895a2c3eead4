"""The training loop: phases of a task, a keyed data stream, checkpoints that resume exactly.

Every batch is a pure function of (recipe seed, step), so a run that was killed and resumed sees the same
data.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader, Dataset

from cogvideox.core.errors import InputError, NonFiniteError
from cogvideox.core.files import write_text
from cogvideox.parallel.training import ALONE, Ranks
from cogvideox.training.checkpoint import Checkpoints, State
from cogvideox.training.interrupt import Interrupt, Stopped, ignore
from cogvideox.training.metrics import Journal, Meter, Writer
from cogvideox.training.optim import MasterOptimizer, lr_scale
from cogvideox.training.task import Metrics, Named, Phase, Stateful, Task, Tolerant

BAD = 10  # steps in a row with numbers that are not finite end the run


@dataclass(frozen=True, kw_only=True)
class Rates:
    """How the weights of a phase are updated."""

    matrix_lr: float | None
    """Muon's rate, for matrices; None: AdamW updates them too."""
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

    def optimizer(self, phase: Phase, ranks: Ranks = ALONE) -> MasterOptimizer:
        """That of a phase, whose module takes its place among the processes."""
        return MasterOptimizer(
            phase.module,
            phase.matrix_blocks,
            matrix_lr=self.matrix_lr,
            lr=self.lr,
            weight_decay=self.weight_decay,
            clip=self.clip,
            ema=self.ema,
            weights=ranks.place(phase.module, phase.within),
        )


@dataclass(frozen=True, kw_only=True)
class Every:
    """How often the loop does what is not training."""

    log: int = 50
    """Steps from one line of the log to the next."""
    evaluate: int = 500
    """Steps from one validation to the next."""
    save_seconds: float = 180.0
    """Time from one checkpoint to the next: what a crash may cost."""
    keep: int = 3
    """Checkpoints that are kept."""


USUAL = Every()


@dataclass(frozen=True)
class Span:
    """The steps of a stage."""

    name: str
    begins: int
    """Its first step."""
    rate: float = 1.0
    """What all rates are multiplied with."""
    anew: bool = False
    """Warm-up and decay begin anew."""
    sequence: int = 1
    """Processes that share each micro-batch."""


class _Tail(Dataset[Any]):
    """The batches from `start` on."""

    def __init__(self, batches: Dataset[Any], start: int, total: int) -> None:
        self.batches, self.start, self.total = batches, start, total

    def __len__(self) -> int:
        return self.total - self.start

    def __getitem__(self, index: int) -> Any:
        try:
            return self.batches[self.start + index]
        except InputError as error:  # raised by the loop: a worker would wrap it in its traceback
            return error


def _stream(batches: Dataset[Any], start: int, total: int, workers: int) -> Iterator[Any]:
    return iter(
        DataLoader(
            _Tail(batches, start, total),
            batch_size=None,
            num_workers=workers,
            prefetch_factor=6 if workers else None,
            worker_init_fn=ignore,
        )
    )


def _takes_part(phase: Phase, step: int) -> bool:
    return phase.begins <= step and (phase.ends is None or step < phase.ends)


@dataclass(frozen=True)
class Taken:
    """What a phase found in a step."""

    totals: list[float]
    """Losses of the micro-batches."""
    weights: list[float]
    """And their weights."""
    metrics: list[Metrics]
    """And what else they say."""
    norm: float
    """Of all gradients together, which are over the sum of the weights."""
    finite: bool
    """All numbers are, in all processes."""


class Trainer:
    """A run: its optimizers, where it stands, and what it does in a step."""

    def __init__(
        self,
        task: Task,
        folder: Path,
        rates: Mapping[str, Rates],
        *,
        steps: int,
        stages: Sequence[Span] = (),
        every: Every = USUAL,
        meter: Meter | None = None,
        writers: Sequence[Writer] = (),
        ranks: Ranks = ALONE,
    ) -> None:
        self.task, self.folder, self.rates, self.steps, self.every = task, folder, rates, steps, every
        self.ranks = ranks
        self.stages = {stage.begins: stage for stage in stages}
        self.optimizers = {phase.name: rates[phase.name].optimizer(phase, ranks) for phase in task.phases}
        self.checkpoints = Checkpoints(folder / "checkpoints", every.keep, ranks.everyone)
        self.journal = Journal()
        self.writers: list[Writer] = [self.journal, *writers] if ranks.first else []
        self.meter = meter or Meter()
        self.step = 0
        """Steps that are done."""
        self.skipped = 0
        """Of these, those that changed nothing, because their numbers were not finite."""
        self.bad = 0
        """Of these, those since the last good one."""
        self.saved, self.saved_at = -1, time.monotonic()

    def stage(self, step: int) -> Span:
        """That of a step, counted from 0."""
        begun = [stage for begins, stage in self.stages.items() if begins <= step]
        return max(begun, key=lambda stage: stage.begins, default=Span("", 0))

    def state(self) -> State:
        """All that a run needs to go on."""
        here = {"step": self.step, "stage": self.stage(self.step).name}
        here |= {"skipped": self.skipped, "bad": self.bad}
        if isinstance(self.task, Stateful):
            here["data"] = self.task.state()
        return {"run": here} | {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()}

    def resume(self) -> None:
        """Go on from the newest checkpoint, if there is one."""
        if found := self.checkpoints.load(self.state()):
            self.step, state = found
            self.saved, here = self.step, state["run"]
            self.skipped, self.bad = here["skipped"], here["bad"]
            if isinstance(self.task, Stateful):
                self.task.restore(self.step, here.get("data", {}))
            for name, optimizer in self.optimizers.items():
                optimizer.load_state_dict(state[name])

    def save(self) -> None:
        """A checkpoint of this step, unless there is one."""
        if self.saved != self.step:
            self.checkpoints.save(self.step, self.state())
            self.saved, self.saved_at = self.step, time.monotonic()

    def advance(self, batch: list[Any]) -> None:
        """One step. Raises NonFiniteError when `BAD` in a row were not finite."""
        self.ranks.share(self.stage(self.step).sequence)
        active = [phase for phase in self.task.phases if _takes_part(phase, self.step)]
        assert active, f"no phase takes part in step {self.step}"
        taken = {phase.name: self._take(phase, batch) for phase in active}
        if all(one.finite for one in taken.values()):
            self.bad = 0
            for name, one in taken.items():
                self.optimizers[name].update(self._scale(name, self.step), one.norm)
                self._measure(name, one)
        else:
            self.bad, self.skipped = self.bad + 1, self.skipped + 1
            self._accuse(taken, batch)
        self.step += 1
        self.meter.steps += 1
        for phase in self.task.phases:
            if phase.ends == self.step:  # what learns after it must see what is kept of it
                self.optimizers[phase.name].settle()
        if self.bad == BAD:
            raise NonFiniteError(
                f"training step {self.step}: the numbers of {BAD} steps in a row were not finite; "
                f"{self.folder / 'bad'} holds them"
            )

    def _take(self, phase: Phase, batch: list[Any]) -> Taken:
        """Gradients of all micro-batches of a phase, over the sum of their weights."""
        for other in self.task.phases:
            other.module.requires_grad_(other.name == phase.name)
        totals, weights, metrics = [], [], []
        optimizer, shares = self.optimizers[phase.name], self.ranks.shares
        for micro, counts in self.ranks.even(batch):
            loss = self.task.loss(phase.name, micro, self.step)
            (loss.total * (counts / shares)).backward()
            optimizer.accumulate()
            if counts:
                totals.append(loss.total.item())
                weights.append(loss.weight)
                metrics.append(loss.metrics)
        bad = sum(not math.isfinite(total) for total in totals)
        weight, bad_ones = self.ranks.sum([sum(weights) / shares, bad])
        norm = optimizer.collect(weight)
        return Taken(totals, weights, metrics, norm, not bad_ones and math.isfinite(norm))

    def _measure(self, name: str, one: Taken) -> None:
        prefix = "" if len(self.task.phases) == 1 else f"{name}_"
        self.meter.add({f"{prefix}norm": (one.norm, 1.0)})
        for total, weight, metrics in zip(one.totals, one.weights, one.metrics, strict=True):
            pairs = {f"{prefix}loss": (total, weight), **metrics}
            self.meter.add(
                {name: (a / self.ranks.shares, b / self.ranks.shares) for name, (a, b) in pairs.items()}
            )

    def _scale(self, name: str, step: int) -> float:
        """What the rates of a phase are multiplied with: warm-up and decay count from where it begins,
        to where it ends.
        """
        phase = next(phase for phase in self.task.phases if phase.name == name)
        ends = self.steps if phase.ends is None else phase.ends
        cuts = [0, phase.begins, *(begins for begins, stage in self.stages.items() if stage.anew), ends]
        begins = max(cut for cut in cuts[:-1] if cut <= step)
        ends = min(cut for cut in cuts[1:] if cut > step)
        return self.stage(step).rate * self.rates[name].scale(step - begins, ends - begins)

    def _accuse(self, taken: Mapping[str, Taken], batch: list[Any]) -> None:
        """Leave the samples and the numbers of a step that was skipped in `bad/`."""
        names = [self.task.ids(micro) if isinstance(self.task, Named) else [] for micro in batch]
        phases = {
            name: {
                "norm": repr(one.norm),
                "losses": [repr(total) for total in one.totals],
                "metrics": [{key: repr(pair) for key, pair in metrics.items()} for metrics in one.metrics],
            }
            for name, one in taken.items()
        }
        records = self.ranks.objects({"step": self.step + 1, "samples": names, "phases": phases})
        if not self.ranks.first:
            return
        (self.folder / "bad").mkdir(exist_ok=True)
        record = records if len(records) > 1 else records[0]
        write_text(self.folder / "bad" / f"{self.step + 1:08d}.json", json.dumps(record, indent=1))

    def report(self) -> None:
        """A line of the log; with it, when it is due, a validation."""
        sums = {name: (total, weight) for name, (total, weight) in self.meter.sums.items()}
        for other in self.ranks.objects(sums)[1:]:
            self.meter.add(other)
        if isinstance(self.task, Tolerant):
            for reasons in self.ranks.objects(self.task.lost.reasons):
                self.task.lost.add(reasons)
        means = self.meter.read() if self.meter.steps else {}
        extra: dict[str, float] = {}
        if self._due(self.every.evaluate):
            home = self.folder / "validation"
            home.mkdir(exist_ok=True)
            self.ranks.share(1)  # the first process judges alone
            averages = {name: optimizer.ema_weights() for name, optimizer in self.optimizers.items()}
            extra = self.ranks.lead(lambda: self.task.evaluate(averages, home, self.step))
        head = {"step": self.step} | ({"stage": self.stage(self.step - 1).name} if self.stages else {})
        last = self.step - 1
        name = next(phase.name for phase in self.task.phases if _takes_part(phase, last))
        rate = self.rates[name].lr * self._scale(name, last)
        self._tell(head | means | {"lr": rate, "skipped": self.skipped} | extra)
        self.meter.clear()

    def _tell(self, line: Mapping[str, Any]) -> None:
        for writer in self.writers:
            writer.write(line)

    def _due(self, every: int) -> bool:
        return self.step % every == 0 or self.step == self.steps or self.step in self.stages

    def run(self, workers: int, interrupt: Interrupt) -> None:
        """Do the steps that are left. Raises Stopped when it was asked to end."""
        (unseen,) = self.ranks.any(self.ranks.first and self.journal.last < self.step)
        if 0 < self.step and unseen and self._due(self.every.evaluate):
            self.report()  # a validation that the run did not live to see
        stream = _stream(self.task.batches(), self.step, self.steps, workers)
        while self.step < self.steps:
            if self.step in self.stages:
                self._tell({"step": self.step, "begins": self.stage(self.step).name})
            with self.ranks.at(f"step {self.step + 1}"):
                batch = next(stream)
                if isinstance(batch, InputError):
                    raise batch
                self.advance(batch)
                self._after(interrupt)

    def _after(self, interrupt: Interrupt) -> None:
        """What is due after a step; all processes do the same."""
        for writer in self.writers:
            writer.tick(self.step, self.meter.read())
        judged = self._due(self.every.evaluate)
        late = time.monotonic() - self.saved_at > self.every.save_seconds
        late, asked = self.ranks.any(late, interrupt.asked)
        if late or judged or self.step in self.stages:  # whatever may go wrong while it is judged
            self.save()
        if judged or self._due(self.every.log):
            self.report()
        if asked:
            self.save()
            self.checkpoints.wait()
            raise Stopped(self.step, self.steps)


def train(
    task: Task,
    folder: Path,
    rates: Mapping[str, Rates],
    *,
    steps: int,
    stages: Sequence[Span] = (),
    every: Every = USUAL,
    workers: int = 1,
    meter: Meter | None = None,
    writers: Sequence[Writer] = (),
    ranks: Ranks = ALONE,
) -> dict[str, MasterOptimizer]:
    """Train the phases of `task` for `steps` steps in `folder`, each by its `rates`; continues from the
    folder's newest checkpoint when there is one.

    Writes `checkpoints/`, `metrics.jsonl`, `validation/` and, of steps that were not finite, `bad/`;
    `writers` are told of all numbers. Raises NonFiniteError when `BAD` steps in a row were not finite, and
    Stopped, with all saved, after SIGTERM or Ctrl-C. Of several processes all call this, each with batches of
    its own; the first one writes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    run = Trainer(
        task,
        folder,
        rates,
        steps=steps,
        stages=stages,
        every=every,
        meter=meter,
        writers=writers,
        ranks=ranks,
    )
    with Interrupt() as interrupt:
        run.resume()
        for writer in run.writers:
            writer.open(folder, run.step, steps)
        try:
            run.run(workers, interrupt)
            run.checkpoints.wait()
        finally:
            run.checkpoints.close()
            for writer in run.writers:
                writer.close()
    return run.optimizers
