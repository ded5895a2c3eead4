"""`cogvideox calibrate`: what a model's faster ways to sample cost."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from cogvideox.generation.quality import Way


def calibrate(
    model: Annotated[str, typer.Argument(help="mini, 2b, 5b, ..., a folder or a hub id.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="JSON for `generate --plan`.")],
    sampler: Annotated[str | None, typer.Option(help="ddim, dpm++2m-sde or dpm++2m-ode.")] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of the exact result.")] = None,
    guidance: Annotated[float | None, typer.Option(help="Scale of guidance.")] = None,
    frames: Annotated[int | None, typer.Option(help="Frames of the clips.")] = None,
    size: Annotated[str | None, typer.Option(help="WIDTHxHEIGHT.")] = None,
    prompts: Annotated[Path | None, typer.Option(help="One prompt a line; default: eight of ours.")] = None,
    dtype: Annotated[str | None, typer.Option(help="bf16, fp16 or fp32.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or mps.")] = None,
) -> None:
    """Measure time against likeness to the exact result for many ways to sample, and choose the presets.

    Named quality.json in the model's folder, the file is found without --plan.
    """
    from cogvideox.cli.generate import size_of
    from cogvideox.data.video import check_place
    from cogvideox.evaluation.calibrate import PROMPTS, Order
    from cogvideox.evaluation.calibrate import calibrate as run
    from cogvideox.generation.jobs import read_prompts
    from cogvideox.generation.load import load
    from cogvideox.generation.quality import Way
    from cogvideox.generation.request import Request

    check_place(output)
    height, width = size_of(size)
    named = {"sampler": sampler, "steps": steps, "guidance": guidance, "frames": frames}
    request = Request.parse({**named, "height": height, "width": width})
    words = tuple(row["prompt"] for row in read_prompts(prompts)) if prompts else PROMPTS
    pipe = load(model, dtype=dtype, device=device)
    names = "".join(f"{name:>7}" for name in ("PSNR", "worst", "SSIM", "edges"))
    typer.echo(f"{'way':<34}{'steps':>6}{'time':>9}{'faster':>8}{names}  plan")
    for found in run(pipe, Order(request, words)):
        if isinstance(found, Way):
            typer.echo(_row(found))
            continue
        found.write(output)
        for name, way in found.presets.items():
            typer.echo(f"{name}: {way.name}, {way.plan}: {way.price}")
        for name in {"high", "fast"} - set(found.presets):
            typer.echo(f"{name}: no way is good enough")


def _row(way: Way) -> str:
    price = way.price
    numbers = f"{price.psnr:7.1f}{price.worst:7.1f}{price.ssim:7.3f}{price.features:7.3f}"
    return f"{way.name:<34}{way.steps:>6}{price.seconds:>7.2f} s{price.faster:>8.2f}{numbers}  {way.plan}"
