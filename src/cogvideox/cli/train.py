"""`cogvideox train`: run a recipe, or go on with it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from cogvideox.cli.encode import encode

if TYPE_CHECKING:
    from cogvideox.generation.generate import Place
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
    device: Annotated[str | None, typer.Option(help="cpu, cuda or mps; default: the best one.")] = None,
    dtype: Annotated[str | None, typer.Option(help="bf16 or fp32; default: as the device can.")] = None,
) -> None:
    """Train what RECIPE says; the same command resumes after a stop."""
    from cogvideox.core.errors import InputError
    from cogvideox.core.heap import keep_freed_memory
    from cogvideox.generation.generate import Place
    from cogvideox.training.interrupt import Stopped
    from cogvideox.training.live import View
    from cogvideox.training.metrics import TensorBoard, WandB, Writer, available
    from cogvideox.training.recipe import load_recipe
    from cogvideox.training.run import run_recipe

    plan, place = load_recipe(recipe, changes or ()), Place.pick(device, dtype)
    keep_freed_memory()
    if dry_run:
        _dry_run(plan, workers, place)
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
        typer.echo(run_recipe(plan, output, workers=workers, writers=writers, place=place))
    except Stopped as stopped:
        typer.echo(stopped)


def _dry_run(recipe: AnyRecipe, workers: int, place: Place) -> None:
    """The plan, then a rehearsal where there is memory for it."""
    from rich.console import Console

    from cogvideox.core.device import memory
    from cogvideox.core.launch import processes
    from cogvideox.generation.plan import gib
    from cogvideox.parallel.training import Scheme, connect
    from cogvideox.training.dryrun import needed, rehearse, table
    from cogvideox.training.interrupt import Stopped

    console = Console(highlight=False, soft_wrap=True)
    console.print(table(recipe, place.dtype))
    connect(Scheme(), place.device.type)  # each process has a GPU of its own, whose memory is looked at
    need, free = needed(recipe, processes(), place.dtype), memory(place.device).free
    if need > free:
        console.print(f"not tried: a process here needs {gib(need)}, {gib(free)} are free")
        return
    try:
        done = rehearse(recipe, workers, place)
    except Stopped:  # there is nothing to go on with
        raise KeyboardInterrupt from None
    console.print(
        f"one step of stage {done.stage}: {done.seconds:.3g} s; with one validation, {gib(done.peak)} at most"
    )


class _RunsRecipes(TyperGroup):
    """`train RECIPE` is short for `train run RECIPE`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in (*self.commands, "--help"):
            args = ["run", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_RunsRecipes, help="Train what a recipe says, or prepare data for it.", no_args_is_help=True
)
app.command("run")(train)
app.command("encode")(encode)
