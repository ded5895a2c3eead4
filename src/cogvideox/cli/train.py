"""`cogvideox train`: run a recipe, or go on with it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def train(
    recipe: Annotated[Path, typer.Argument(help="YAML file, such as recipes/mini/vae.yaml")],
    output: Annotated[Path, typer.Option(help="folder of the run; a checkpoint in it is resumed")],
    workers: Annotated[int, typer.Option(help="processes that prepare data")] = 1,
) -> None:
    """Train what RECIPE says; the same command resumes after a stop."""
    from cogvideox.core.heap import keep_freed_memory
    from cogvideox.training.run import run_recipe

    keep_freed_memory()
    run_recipe(recipe, output, workers)
