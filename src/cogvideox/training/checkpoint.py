"""Checkpoints of a run: what it needs to go on as if it had never stopped."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch

from cogvideox.core.files import atomic_path

State = dict[str, dict[str, Any]]
"""Tensors and numbers, nested; the same keys at every step of a run."""


class Checkpoints:
    """The last `keep` checkpoints in a folder. Each is there whole or not at all."""

    def __init__(self, folder: Path, keep: int = 3) -> None:
        self.folder, self.keep = folder, keep

    def save(self, step: int, state: State) -> None:
        """Keep `state`, which may change as soon as this returns; forget the oldest."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with atomic_path(self._path(step)) as partial:
            torch.save(state, partial)
        for old in self.steps()[: -self.keep]:
            self._path(old).unlink()

    def load(self, template: State) -> tuple[int, State] | None:
        """Step and state of the newest checkpoint, None if there is none. `template`, a state of the same
        run, may be overwritten.
        """
        for left in self.folder.glob(".*"):  # half of a checkpoint, of a run that was killed
            shutil.rmtree(left, ignore_errors=True)
        steps = self.steps()
        return (steps[-1], torch.load(self._path(steps[-1]), weights_only=True)) if steps else None

    def steps(self) -> list[int]:
        """Those of the checkpoints that are there, oldest first."""
        return sorted(int(path.stem) for path in self.folder.glob("*.pt"))

    def _path(self, step: int) -> Path:
        return self.folder / f"{step:08d}.pt"
