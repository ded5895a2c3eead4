"""`cogvideox models`: which models there are."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer


def models(as_json: Annotated[bool, typer.Option("--json", help="JSON on stdout.")] = False) -> None:
    """List the models that have a short name; any folder or hub id in their layout works too."""
    from rich.console import Console
    from rich.table import Table

    from cogvideox.generation.survey import known

    if as_json:
        typer.echo(json.dumps({name: asdict(spec) for name, spec in known().items()}))
        return
    table = Table(
        "name", "makes video from", "native shape", "licence", "where", box=None, header_style="bold"
    )
    for name, spec in known().items():
        shape = f"{spec.frames} frames of {spec.width}x{spec.height} at {spec.fps} fps"
        source = "text, image, clip" if spec.first_frame else "text, clip"
        source = "image" if spec.image_conditioned else source
        table.add_row(name, source, shape, spec.licence, spec.hub or "comes with the package")
    Console(highlight=False).print(table)
