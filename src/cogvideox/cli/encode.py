"""`cogvideox train encode`: a manifest's latents and text embeddings, once and for all."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def encode(
    manifest: Annotated[Path, typer.Argument(help=".parquet or .jsonl")],
    model: Annotated[str, typer.Option(help="model whose VAE and text encoder encode: mini, folder, hub id")],
    output: Annotated[Path, typer.Option(help="folder of the shards; what is in it already is kept")],
    shapes: Annotated[
        str, typer.Option(help="FRAMES, FRAMESxSIDE (short side) or FRAMESxHEIGHTxWIDTH (at most), ...")
    ],
    fps: Annotated[float | None, typer.Option(help="frames per second; default: the model's")] = None,
    texts: Annotated[bool, typer.Option(help="store text embeddings; else the trainer makes them")] = True,
    seed: Annotated[int, typer.Option(help="of the noise on image conditions")] = 0,
    workers: Annotated[int, typer.Option(help="processes that draw and decode")] = 1,
    device: Annotated[str | None, typer.Option(help="where to encode")] = None,
    dtype: Annotated[str | None, typer.Option(help="bf16, fp16 or fp32; default: as the device can")] = None,
) -> None:
    """Encode MANIFEST for training; the same command goes on after a stop."""
    from cogvideox.data.samples import Rule
    from cogvideox.training.encode import Order, encode_manifest

    order = Order(
        manifest=manifest,
        model=model,
        output=output,
        rules=tuple(Rule.parse(shape.strip()) for shape in shapes.split(",")),
        fps=fps,
        texts=texts,
        seed=seed,
        workers=workers,
        device=device,
        dtype=dtype,
    )
    typer.echo(encode_manifest(order, lambda told: typer.echo(told, err=True)))
