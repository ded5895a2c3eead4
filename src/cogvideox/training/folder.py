"""A run's folder: what it was made from, by whom and where."""

from __future__ import annotations

import contextlib
import json
import platform
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

import cogvideox
from cogvideox.core.device import describe
from cogvideox.core.errors import InputError
from cogvideox.core.files import write_text
from cogvideox.generation.generate import Place
from cogvideox.parallel.training import ALONE, Ranks
from cogvideox.training.loop import Rates, train
from cogvideox.training.metrics import Meter, Writer
from cogvideox.training.optim import MasterOptimizer
from cogvideox.training.recipe import AnyRecipe
from cogvideox.training.task import Task

PACKAGES = ("torch", "numpy", "transformers", "safetensors", "av")


@dataclass(frozen=True)
class Run:
    """Where a recipe is trained, and by whom."""

    folder: Path
    place: Place
    """Where models compute, and in what. Models are written in bf16, samples are encoded in its precision."""
    workers: int = 1
    """Processes that prepare data."""
    writers: Sequence[Writer] = ()
    """Who is told of its numbers."""
    ranks: Ranks = ALONE

    def train(
        self, recipe: AnyRecipe, task: Task, rates: Mapping[str, Rates], meter: Meter | None = None
    ) -> dict[str, MasterOptimizer]:
        """All stages of the recipe."""
        return train(
            task,
            self.folder,
            rates,
            steps=sum(stage.steps for stage in recipe.stages),
            stages=recipe.spans,
            every=recipe.every,
            workers=self.workers,
            meter=meter,
            writers=self.writers,
            ranks=self.ranks,
        )


def begin(folder: Path, recipe: AnyRecipe, command: Sequence[str], place: Place) -> None:
    """Write `recipe.yaml`, with every default and change in it, and add this start to `environment.json`.

    A run that has checkpoints goes on with the recipe it was begun with: only the last stage may have become
    longer, and `every` and `parallel` may change. Raises InputError naming the first key that differs.
    """
    folder.mkdir(parents=True, exist_ok=True)
    resolved: dict[str, Any] = recipe.model_dump(mode="json")
    path = folder / "recipe.yaml"
    if path.exists() and any(any(folder.glob(f"{where}checkpoints/[!.]*")) for where in ("", "text/")):
        begun = yaml.safe_load(path.read_text(encoding="utf-8"))
        with contextlib.suppress(ValidationError):  # keys that are new since then get their defaults
            begun = type(recipe).model_validate(begun).model_dump(mode="json")
        _compare(begun, resolved, folder)
    write_text(path, yaml.safe_dump(resolved, sort_keys=False, width=110))
    path = folder / "environment.json"
    starts = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    write_text(path, json.dumps([*starts, environment(command, place)], indent=1))


def _compare(begun: dict[str, Any], now: dict[str, Any], folder: Path) -> None:
    old: dict[str, Any] = dict(_leaves(begun))
    new: dict[str, Any] = dict(_leaves(now))
    last = f"stages.{len(now['stages']) - 1}.steps"
    for key in dict.fromkeys((*old, *new)):
        before, after = old.get(key), new.get(key)
        longer = key == last and before is not None and after > before
        if before != after and not longer and not key.startswith(("every.", "parallel.")):
            raise InputError(
                f"{folder} was begun with another recipe: {key} was {before} and is now {after}; "
                "take a new --output"
            )


def _leaves(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """(key, value) of all that is neither section nor list."""
    if not isinstance(node, (dict, list)) or not node:
        yield path.removeprefix("."), node
        return
    for key, value in node.items() if isinstance(node, dict) else enumerate(node):
        yield from _leaves(value, f"{path}.{key}")


def environment(command: Sequence[str], place: Place) -> dict[str, Any]:
    """What a run depends on beside its recipe."""
    versions = {"cogvideox": cogvideox.__version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "unknown"
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": list(command),
        "versions": versions,
        "commit": commit(),
        "machine": platform.node(),
        "system": platform.platform(),
        "hardware": describe(place.device),
        "precision": str(place.dtype).removeprefix("torch."),
    }


def commit() -> str | None:
    """That of the sources, "-dirty" when they were changed since; None when they are not in a repository."""
    root = Path(cogvideox.__file__).parents[2]
    if not (root / ".git").exists():
        return None
    asked = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
