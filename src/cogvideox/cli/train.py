"""`cogvideox train`: run a recipe, or go on with it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from cogvideox.training.recipe import AnyRecipe


def train(
    recipe: Annotated[Path, typer.Argument(help="YAML file, such as recipes/mini/vae.yaml")],
    output: Annotated[Path | None, typer.Option(help="folder of the run; one that was begun goes on")] = None,
    changes: Annotated[
        list[str] | None, typer.Option("--set", help="KEY=VALUE, such as optimizer.lr=1e-4; may be repeated.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the plan, try one step and one validation, keep nothing.")
    ] = False,
    workers: Annotated[int, typer.Option(help="processes that prepare data")] = 1,
    wandb: Annotated[str | None, typer.Option(help="project of Weights & Biases to report to")] = None,
) -> None:
    """Train what RECIPE says; the same command resumes after a stop."""
    from cogvideox.core.errors import InputError
    from cogvideox.core.heap import keep_freed_memory
    from cogvideox.training.interrupt import Stopped
    from cogvideox.training.live import View
    from cogvideox.training.metrics import TensorBoard, WandB, Writer, available
    from cogvideox.training.recipe import load_recipe
    from cogvideox.training.run import run_recipe

    plan = load_recipe(recipe, changes or ())
    keep_freed_memory()
    if dry_run:
        _dry_run(plan, workers)
        return
    if output is None:
        raise InputError("--output DIR says where the run goes")
    writers: list[Writer] = [View()]
    if available("tensorboard"):
        writers.append(TensorBoard())
    else:
        typer.echo("no events for TensorBoard: pip install 'cogvideox[train]' first", err=True)
    if wandb is not None:
        writers.append(WandB(wandb))
    try:
        typer.echo(run_recipe(plan, output, workers=workers, writers=writers))
    except Stopped as stopped:
        typer.echo(stopped)


def _dry_run(recipe: AnyRecipe, workers: int) -> None:
    """The plan, then a rehearsal where there is memory for it."""
    from rich.console import Console

    from cogvideox.core.device import memory, pick_device
    from cogvideox.core.launch import processes
    from cogvideox.generation.plan import gib
    from cogvideox.training.dryrun import needed, rehearse, table
    from cogvideox.training.interrupt import Stopped

    console = Console(highlight=False, soft_wrap=True)
    console.print(table(recipe))
    need, free = needed(recipe, processes()), memory(pick_device()).free
    if need > free:
        console.print(f"not tried: a process here needs {gib(need)}, {gib(free)} are free")
        return
    try:
        done = rehearse(recipe, workers)
    except Stopped:  # there is nothing to go on with
        raise KeyboardInterrupt from None
    console.print(
        f"one step of stage {done.stage}: {done.seconds:.3g} s; with one validation, {gib(done.peak)} at most"
    )
