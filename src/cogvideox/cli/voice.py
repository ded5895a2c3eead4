"""Who talks when several processes carry out a command."""

from __future__ import annotations

import contextlib
import os
import sys
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Self, TextIO

from cogvideox.core import launch

if TYPE_CHECKING:
    from torch.distributed import Store


@dataclass(frozen=True)
class Voice:
    """The first process talks. Of those that fail, the first to do so says why: the others follow from it."""

    stream: TextIO
    """For errors."""
    store: Store | None = None
    """What all processes can write, if there are several."""

    @classmethod
    def find(cls) -> Self:
        """Join the other processes that torchrun started, if it did, and silence all but the first."""
        if launch.processes() == 1:
            return cls(sys.stderr)
        from cogvideox.parallel.mesh import join

        voice = cls(sys.stderr, join())
        if launch.rank() > 0:
            sys.stdout = sys.stderr = open(os.devnull, "w")
        return voice

    def leave(self) -> None:
        """Part from the other processes in peace."""
        if self.store is not None:
            from torch.distributed import destroy_process_group

            destroy_process_group()

    def fail(self, message: str, status: int) -> int:
        """One line on standard error."""
        self.say(f"cogvideox: {' '.join(message.split())}")
        return status

    def say(self, text: str) -> None:
        """Why the run ends, unless another process has said so already."""
        if self.store is None:
            print(text, file=self.stream)
            return
        try:
            first = self.store.add("failed", 1) == 1
        except RuntimeError:  # the store is gone, with its process
            first = True
        if first:
            print(text, file=self.stream, flush=True)
        with contextlib.suppress(
            RuntimeError
        ):  # torchrun ends all when one has ended: not before it has spoken
            self.store.set("said", "") if first else self.store.wait(["said"], timedelta(seconds=5))
