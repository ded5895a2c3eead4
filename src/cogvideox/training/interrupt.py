"""How a run is asked to end: SIGTERM, as clusters send it, or Ctrl-C."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any, Self

ASKED = (signal.SIGTERM, signal.SIGINT)


class Stopped(BaseException):
    """A run ended before its last step because it was asked to; all is saved. No error: exit status 0."""

    def __init__(self, step: int, steps: int) -> None:
        super().__init__(f"stopped after step {step:,} of {steps:,}, all is saved; the same command goes on")


class Interrupt:
    """While it is entered, the first signal only makes `asked` true; a second one acts as it always does."""

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # others cannot listen to signals
            self._before = {number: signal.signal(number, self._ask) for number in ASKED}
        return self

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        self.__exit__()

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}


def ignore(worker: int) -> None:
    """For processes that prepare data: signals go to the whole group, and the loop still needs them."""
    for number in ASKED:
        signal.signal(number, signal.SIG_IGN)
