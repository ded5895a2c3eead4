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


@app.command()
def check(
    source: Annotated[Path, typer.Argument(help="a manifest, or a folder of clips with captions")],
    model: Annotated[str, typer.Option(help="model to be trained: its frame rate and sizes")] = "mini",
    shape: Annotated[
        str,
        typer.Option(help="FRAMES, FRAMESxSIDE or FRAMESxHEIGHTxWIDTH; default: the model's"),
    ] = "",
    write: Annotated[Path | None, typer.Option(help="leave a manifest of what was found here")] = None,
) -> None:
    """Read every clip as training would, and tell all faults at once. Exit status 1 if there are any."""
    from cogvideox.checkpoints.folder import read_spec
    from cogvideox.checkpoints.hub import resolve
    from cogvideox.data.check import check as look
    from cogvideox.data.check import moved
    from cogvideox.data.layouts import read_rows
    from cogvideox.data.manifest import check_suffix, write_manifest
    from cogvideox.data.samples import Rule

    spec = read_spec(resolve(model))
    rule = Rule.parse(shape or f"{spec.frames}x{spec.height}x{spec.width}")
    if write is not None:
        check_suffix(write)
    rows, folder = read_rows(source)
    report = look(rows, folder, rule, spec.transformer.patch, float(spec.fps))
    for line in report.faults:
        typer.echo(f"cannot be used: {line}")
    for line in report.remarks:
        typer.echo(f"remark: {line}")
    for (frames, height, width), count in sorted(report.shapes.items()):
        typer.echo(f"{count} of {frames} frames of {width}x{height} at {spec.fps} a second")
    typer.echo(f"{report.kept} of {len(report.rows)} can be used")
    if write is not None:
        write_manifest(write, moved(report.rows, folder, write.parent))
        typer.echo(f"manifest: {write}")
    raise typer.Exit(1 if report.faults or not report.kept else 0)
