"""`cogvideox data`: make, curate and look at data."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Make, curate and look at data.", no_args_is_help=True)


@app.callback()
def data() -> None:
    """Make, curate and look at data."""


@app.command()
def storybook(
    count: Annotated[int, typer.Option(help="number of clips")],
    out: Annotated[Path, typer.Option(help="folder for clips, manifest.jsonl and contact_sheet.png")],
    frames: Annotated[int, typer.Option(help="frames of a clip; 1 makes pictures")] = 17,
    fps: Annotated[float, typer.Option(help="frames per second")] = 8.0,
    height: Annotated[int, typer.Option(help="pixels")] = 128,
    width: Annotated[int, typer.Option(help="pixels")] = 128,
    seed: Annotated[int, typer.Option(help="seed of the world")] = 0,
    split: Annotated[str, typer.Option(help="train or heldout")] = "train",
    level: Annotated[str, typer.Option(help="single or full")] = "full",
    start: Annotated[int, typer.Option(help="index of the first clip")] = 0,
    form: Annotated[str, typer.Option(help="suffix of the files: mp4, gif, webp, ...")] = "mp4",
) -> None:
    """Write clips of the synthetic world Storybook, with captions and ground truth."""
    from cogvideox.data.storybook.export import Export, export

    order = Export(count, frames, fps, height, width, seed, split, level, start, form)
    with typer.progressbar(export(order, out), length=count, label="storybook", file=sys.stderr) as files:
        for _ in files:
            pass
    typer.echo(f"{count} clips in {out}")
