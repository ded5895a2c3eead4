"""Who talks when several processes carry out a command."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
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

    def fail(self, message: str, status: int) -> int:
        """One line on standard error."""
        if self.heard():
            print(f"cogvideox: {' '.join(message.split())}", file=self.stream, flush=True)
        return status

    def heard(self) -> bool:
        """Whether what this process has to say about its end is to be heard; then its errors are shown."""
        try:
            first = self.store is None or self.store.add("failed", 1) == 1
        except RuntimeError:  # the store is gone, with its process
            first = True
        if first:
            sys.stderr = self.stream
        return first
