"""`cogvideox info`: what a file or a model is."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer


def info(
    what: Annotated[str, typer.Argument(metavar="FILE|MODEL", help="A result, latents, or a model.")],
    as_json: Annotated[bool, typer.Option("--json", help="JSON on stdout.")] = False,
) -> None:
    """Show the request in a finished file, or the sizes and traits of a model."""
    path = Path(what)
    is_result = path.is_file() or (path.is_dir() and not (path / "model_index.json").exists())
    facts = _file(path) if is_result else _model(what)
    if as_json:
        typer.echo(json.dumps(facts))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(show_header=False, box=None)
    for name, value in _flat(facts):
        table.add_row(f"[dim]{name}", str(value))
    Console(highlight=False).print(table)


def _file(path: Path) -> dict[str, Any]:
    from cogvideox.data.video import probe, read_metadata
    from cogvideox.generation.media import LATENTS, Latents

    if path.suffix == LATENTS:
        kept = Latents.load(path)
        return {"file": str(path), "holds": asdict(kept.info)} | dict(kept.metadata)
    return {"file": str(path), "holds": asdict(probe(path))} | (read_metadata(path) or {})


def _model(name: str) -> dict[str, Any]:
    from cogvideox.checkpoints.folder import read_spec
    from cogvideox.checkpoints.hub import resolve
    from cogvideox.models.specs import SPECS

    return asdict(SPECS[name] if name in SPECS else read_spec(resolve(name)))


def _flat(facts: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Nested facts as (name, value) rows; empty ones are left out."""
    rows: list[tuple[str, Any]] = []
    for name, value in facts.items():
        if isinstance(value, dict):
            rows += _flat(value, f"{prefix}{name} ")
        elif value not in (None, "", [], ()):
            rows.append((prefix + name, value))
    return rows
