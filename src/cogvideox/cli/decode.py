"""`cogvideox decode`: latents that were kept to a video file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def decode(
    latents: Annotated[Path, typer.Argument(help="Latents file (.safetensors).")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="File to write.")] = None,
    model: Annotated[str | None, typer.Option(help="Model whose VAE decodes; default: as recorded.")] = None,
    dtype: Annotated[str | None, typer.Option(help="bf16, fp16 or fp32; default: as recorded.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or mps.")] = None,
    parallel: Annotated[str, typer.Option(help="With torchrun: time or space.")] = "auto",
) -> None:
    """Decode LATENTS, such as a run that was stopped has left, into a video; the latents file stays."""
    from cogvideox.data.video import WRITERS, check_target
    from cogvideox.generation.console import ConsoleWatch, report_line
    from cogvideox.generation.load import load
    from cogvideox.generation.media import LATENTS, Latents, check_latents
    from cogvideox.generation.render import write

    kept = Latents.load(latents)
    name = latents.name.removesuffix(LATENTS)
    suffix = "" if Path(name).suffix.lower() in WRITERS else ".mp4"
    path = output or latents.with_name(name + suffix)
    check_target(path, kept.info.frames)
    known = kept.metadata.get("model", {})
    watch = ConsoleWatch()
    with watch.stage("load"):
        pipe = load(
            model or known.get("source", "mini"),
            dtype=dtype or known.get("dtype"),
            device=device or known.get("device"),
            compat=known.get("compat"),
            revision=known.get("revision") if model is None else None,
            parallel=parallel,
        )
    check_latents(kept.latents_CTHW, pipe.spec)
    write(pipe, kept, path, watch)
    watch.console.print(report_line(watch.report()), style="dim")
    typer.echo(f"{path}  {kept.info.frames} frames of {kept.info.width}x{kept.info.height}")
