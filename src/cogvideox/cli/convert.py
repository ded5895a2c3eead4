"""`cogvideox convert`: between SAT checkpoints, diffusers folders and adapters."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def convert(
    source: Annotated[
        str, typer.Argument(metavar="SRC", help="Model folder, hub id, SAT checkpoint, VAE or adapter.")
    ],
    target: Annotated[Path, typer.Argument(metavar="DST", help="Folder to write; must not exist.")],
    to: Annotated[str, typer.Option(help="Layout to write: diffusers or sat.")] = "diffusers",
    model: Annotated[
        str | None, typer.Option(help="What SRC is: a model's name, or a folder with its configuration.")
    ] = None,
    t5: Annotated[
        Path | None,
        typer.Option(help="Text encoder and tokenizer for a SAT checkpoint: a T5 or model folder."),
    ] = None,
    vae: Annotated[
        Path | None, typer.Option(help="VAE for a SAT checkpoint: 3d-vae.pt, a VAE or a model folder.")
    ] = None,
    tokenizer: Annotated[Path | None, typer.Option(help="Tokenizer folder, if not with the T5.")] = None,
    dtype: Annotated[
        str | None, typer.Option(help="Precision to write: bf16, fp16 or fp32; default: as stored.")
    ] = None,
    alpha: Annotated[
        float | None, typer.Option(help="alpha of an adapter whose file does not say (SAT trains with 1).")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Version of a hub repository.")] = None,
) -> None:
    """Convert models, VAEs and LoRA adapters; weights keep every bit unless --dtype is given."""
    from cogvideox.checkpoints.convert import Parts
    from cogvideox.checkpoints.convert import convert as run

    parts = Parts(model=model, t5=t5, vae=vae, tokenizer=tokenizer)
    typer.echo(run(source, target, to=to, parts=parts, dtype=dtype, alpha=alpha, revision=revision))
