"""Tells where a process stands that has not moved for long, before the others give up waiting for it."""

from __future__ import annotations

import contextlib
import faulthandler
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TextIO


@dataclass
class Watchdog:
    """Of one process. Nothing is watched outside of `at`."""

    rank: int
    size: int
    seconds: float
    """How long a process may stay at one place until it is told."""
    stream: TextIO | None = field(default_factory=lambda: sys.__stderr__)
    """A file with a number; silenced processes talk here nevertheless."""

    @contextlib.contextmanager
    def at(self, place: str) -> Iterator[None]:
        """Print the rank, the place and the stacks of all threads if the block takes too long."""
        began, over = time.monotonic(), threading.Event()

        def watch() -> None:
            if over.wait(self.seconds) or self.stream is None:
                return
            stood = time.monotonic() - began
            print(f"rank {self.rank} of {self.size} has been at {place} for {stood:.0f} s:", file=self.stream)
            self.stream.flush()
            faulthandler.dump_traceback(self.stream)

        thread = threading.Thread(target=watch, name="watchdog", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
