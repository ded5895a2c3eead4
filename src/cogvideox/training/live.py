"""What a terminal shows of a run: a live table; elsewhere plain lines. On standard error."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from cogvideox.generation.console import duration
from cogvideox.training.metrics import Line, Writer, numbers

RATES = {
    "tokens_per_second": "tokens/s",
    "samples_per_second": "samples/s",
    "fill": "pack fill",
    "mfu": "MFU",
    "seconds_per_step": "s/step",
    "lr": "learning rate",
    "skipped": "skipped steps",
}
"""What is shown under another name, after the losses."""


class View(Writer):
    """Shows how far a run is, its losses and rates, and when it will be done."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(file=sys.stderr, highlight=False, soft_wrap=True)

    def open(self, folder: Path, start: int, steps: int) -> None:
        self.start, self.steps, self.began = start, steps, time.monotonic()
        self.stage = ""
        self.shown: dict[str, float] = {}
        self.live: Live | None = None
        if start:
            self.console.print(f"going on after step {start:,} of {steps:,}")
        if self.console.is_terminal:
            self.live = Live(console=self.console, transient=True, refresh_per_second=2)
            self.live.start()

    def tick(self, step: int, now: Mapping[str, float]) -> None:
        if self.live is not None:
            self.shown = {**self.shown, **now}
            self.live.update(self._table(step))

    def write(self, line: Line) -> None:
        self.stage = str(line.get("begins", line.get("stage", "")))
        if "begins" in line:
            self.console.print(f"stage {self.stage} begins after step {line['step']:,}", markup=False)
            return
        values = numbers(line)
        self.shown = self.shown | values
        told = "  ".join(f"{RATES.get(name, name)} {_short(name, value)}" for name, value in values.items())
        step = f"step {line['step']:,}/{self.steps:,}  {self._left(line['step'])} left"
        self.console.print(f"{step}  {told}", markup=False)

    def close(self) -> None:
        if self.live is not None:
            self.live.stop()

    def _left(self, step: int) -> str:
        """Time until the last step, at the pace so far."""
        spent, done = time.monotonic() - self.began, step - self.start
        return duration(spent / done * (self.steps - step)) if done > 0 else "?"

    def _table(self, step: int) -> Table:
        grid = Table.grid(padding=(0, 2))
        grid.add_row(
            f"step {step:,}/{self.steps:,}",
            ProgressBar(total=self.steps, completed=step, width=40),
            f"{self._left(step)} left",
            self.stage,
        )
        body = Table.grid(padding=(0, 2))
        names = [name for name in self.shown if name not in RATES]
        names += [name for name in RATES if name in self.shown]
        cells = [f"[dim]{RATES.get(name, name)}[/] {_short(name, self.shown[name])}" for name in names]
        for first in range(0, len(cells), 4):
            body.add_row(*cells[first : first + 4])
        whole = Table.grid()
        whole.add_row(grid)
        whole.add_row(body)
        return whole


def _short(name: str, value: float) -> str:
    if name in ("fill", "mfu"):
        return f"{value:.1%}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
