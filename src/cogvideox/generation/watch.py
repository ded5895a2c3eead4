"""What an onlooker learns while a clip is made: stages with their progress, notes, and how long everything
took."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

from cogvideox.data.video import Frames

Advance = Callable[[], None]


class Watch:
    """Takes the time of stages. Subclasses show what happens; this one only keeps the record."""

    def __init__(self, began: float | None = None) -> None:
        """`began`: when, on the monotonic clock, the work began; now if not given."""
        self.began = time.monotonic() if began is None else began
        self.seconds: dict[str, float] = {}
        """Wall time of each stage; stages of one name add up."""
        self.notes: list[str] = []

    @contextlib.contextmanager
    def stage(self, name: str, total: int = 0) -> Iterator[Advance]:
        """A stage of `total` parts (0: unknown); call what it yields after each. Stages do not nest."""
        start = time.monotonic()
        try:
            with self.show(name, total) as advance:
                yield advance
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - start

    def note(self, text: str) -> None:
        """Something that the user should know."""
        self.notes.append(text)

    def report(self) -> dict[str, float]:
        """Seconds by stage, with what was spent between stages as "other": the parts sum to the wall time."""
        spent = time.monotonic() - self.began
        return self.seconds | {"other": max(0.0, spent - sum(self.seconds.values()))}

    @contextlib.contextmanager
    def show(self, name: str, total: int) -> Iterator[Advance]:
        """Display of one stage, for subclasses."""
        yield lambda: None

    @property
    def wants_preview(self) -> bool:
        """Whether `preview` should be called now; asked after each step."""
        return False

    def preview(self, frame: Frames) -> None:
        """A cheap look at what is being sampled, (H, W, 3)."""
