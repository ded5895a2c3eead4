"""`cogvideox evaluate`: how good a model is."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Measure how good a model is.", no_args_is_help=True)

Model = Annotated[str, typer.Option(help="mini, a folder or a hub id.")]


@app.callback()
def evaluate() -> None:
    """Measure how good a model is."""


@app.command()
def storybook(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of videos and report; resumes.")],
    model: Model = "mini",
    seeds: Annotated[int, typer.Option(help="Videos of each prompt.")] = 5,
    sets: Annotated[list[str] | None, typer.Option("--set", help="A set of prompts; default: all.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="4 prompts a set, 1 seed, no long clips.")] = False,
) -> None:
    """Score what a model makes of fixed prompts of Storybook, beside true renders and floors."""
    from cogvideox.data.video import check_place
    from cogvideox.evaluation.judge.prompts import SETS
    from cogvideox.evaluation.judge.reading import Judge
    from cogvideox.evaluation.storybook import Order
    from cogvideox.evaluation.storybook import evaluate as run
    from cogvideox.generation.load import load

    check_place(output, folder=True)
    order = Order(tuple(sets or SETS), seeds=seeds)
    if quick:
        order = Order(tuple(sets or (name for name in SETS if SETS[name].frames == 17)), prompts=4, seeds=1)
    judge, pipe = Judge.load(), load(model)
    with typer.progressbar(run(pipe, judge, order, output), length=order.videos, file=sys.stderr) as videos:
        for _ in videos:
            pass
    typer.echo((output / "report.md").read_text(encoding="utf-8"))


@app.command()
def reconstruction(
    model: Model = "mini",
    clips: Annotated[int, typer.Option(help="Held-out clips of Storybook.", min=1)] = 32,
    frames: Annotated[int, typer.Option(help="Frames of each, 4k+1.")] = 17,
    size: Annotated[str | None, typer.Option(help="WIDTHxHEIGHT; default: the model's own.")] = None,
) -> None:
    """Measure what a model's VAE loses of held-out clips of Storybook."""
    from cogvideox.cli.generate import size_of
    from cogvideox.evaluation.reconstruction import reconstruct
    from cogvideox.generation.load import load

    pipe = load(model)
    height, width = size_of(size)
    shape = frames, height or pipe.spec.height, width or pipe.spec.width
    for name, value in reconstruct(pipe.vae, clips, *shape).items():
        typer.echo(f"{name:<18}{value:9.3f}")
