"""`cogvideox generate`: words, pictures and clips to video files."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from cogvideox.generation.console import ConsoleWatch
    from cogvideox.generation.session import Planned, Session

NAMES = (
    *(
        "prompt",
        "negative",
        "image",
        "video",
        "strength",
        "extend",
        "frames",
        "seconds",
        "fps",
        "height",
        "width",
    ),
    *("aspect", "steps", "guidance", "dynamic_guidance", "sampler", "seed", "quality", "plan"),
)
PARALLEL = "With torchrun: cfg, sequence or ulysses, and time or space, joined by +."
FORMS = "File (.mp4 .webm .gif .webp .png .png-folder .safetensors) or folder."
LOADING = (
    *("model", "revision", "dtype", "device", "compat"),
    *("lora", "allow_partial", "calibration", "parallel"),
)

Text = Annotated[str | None, typer.Argument(metavar="PROMPT", help="What is to be seen.", show_default=False)]
Str = str | None
Float = float | None
Int = int | None


def _option(panel: str, text: str, *names: str) -> Any:
    """An option in a panel of the help."""
    return typer.Option(*names, help=text, rich_help_panel=panel)


def generate(
    prompt: Text = None,
    model: Annotated[Str, _option("Model", "mini, 2b, 5b, ..., a folder or a hub id.")] = None,
    revision: Annotated[Str, _option("Model", "Version of the hub's model.")] = None,
    output: Annotated[Path | None, _option("Output", FORMS, "--output", "-o")] = None,
    image: Annotated[Str, _option("Input", "Picture of the first frame.")] = None,
    video: Annotated[Str, _option("Input", "Clip to repaint.")] = None,
    strength: Annotated[Float, _option("Input", "How much of it is repainted, 0 to 1.")] = None,
    extend: Annotated[Str, _option("Input", "Clip or latents to continue.")] = None,
    seconds: Annotated[Float, _option("Shape", "Length of the finished clip.")] = None,
    frames: Annotated[Int, _option("Shape", "The same in frames.")] = None,
    fps: Annotated[Float, _option("Shape", "Frames per second.")] = None,
    size: Annotated[Str, _option("Shape", "WIDTHxHEIGHT.")] = None,
    aspect: Annotated[Str, _option("Shape", "Such as 16:9, at the model's own size.")] = None,
    steps: Annotated[Int, _option("Sampling", "Sampling steps.")] = None,
    guidance: Annotated[Float, _option("Sampling", "Scale of guidance; 1: none, twice as fast.")] = None,
    dynamic_guidance: Annotated[Str, _option("Sampling", "constant, official, smooth or off.")] = None,
    negative: Annotated[Str, _option("Input", "What to stay away from.")] = None,
    seed: Annotated[Int, _option("Sampling", "Same seed, same video.")] = None,
    count: Annotated[int, _option("Sampling", "Videos per prompt: seeds SEED, SEED+1, ...")] = 1,
    prompts: Annotated[Path | None, _option("Input", "One prompt a line, or JSONL of settings.")] = None,
    sampler: Annotated[Str, _option("Sampling", "ddim, dpm++2m-sde or dpm++2m-ode.")] = None,
    quality: Annotated[Str, _option("Sampling", "exact, high or fast: as calibrated for the model.")] = None,
    plan: Annotated[Str, _option("Sampling", "Step plan, or a file of `cogvideox calibrate`.")] = None,
    lora: Annotated[list[str] | None, _option("Model", "FILE[:weight]; may be repeated.")] = None,
    allow_partial: Annotated[bool, _option("Model", "Merge what fits of a LoRA.", "--allow-partial")] = False,
    dtype: Annotated[Str, _option("Model", "bf16, fp16 or fp32.")] = None,
    device: Annotated[Str, _option("Model", "cpu, cuda or mps.")] = None,
    offload: Annotated[str, _option("Model", "auto, none or cpu.")] = "auto",
    parallel: Annotated[str, _option("Model", PARALLEL)] = "auto",
    compat: Annotated[Str, _option("Model", "diffusers: its conventions and seeds.")] = None,
    preview: Annotated[bool, _option("Output", "Show pictures while sampling.", "--preview")] = False,
    dry_run: Annotated[bool, _option("Output", "Show the plan and stop.", "--dry-run")] = False,
    repeat: Annotated[Path | None, _option("Input", "Repeat the request in a file.", "--from")] = None,
    as_json: Annotated[bool, _option("Output", "One JSON object a video on stdout.", "--json")] = False,
) -> None:
    """Make videos. Files hold their request; the latents are kept until the video is written."""
    began = time.monotonic()
    height, width = size_of(size)
    calibration, plan = (plan, None) if plan and Path(plan).is_file() else (None, plan)
    options = locals()
    given = {name: options[name] for name in NAMES if options[name] is not None}
    from cogvideox.core.errors import InputError
    from cogvideox.generation import jobs
    from cogvideox.generation.console import ConsoleWatch
    from cogvideox.generation.session import Session

    watch = ConsoleWatch(began=began)
    record = {} if repeat is None else jobs.recorded(repeat)
    base = jobs.override(jobs.repeatable(record, repeat, given) if repeat else {}, given)
    if calibration is not None and prompts is None and "quality" not in base:
        raise InputError(f"{calibration} holds presets: choose one, --quality high or --quality fast")
    todo = jobs.place(jobs.expand(base, jobs.rows(base, prompts), count), output)
    session = Session.of({name: options[name] for name in LOADING}, record, offload)
    planned = session.plan(todo, accepted=given)
    _show(session, planned, watch)
    if dry_run:
        _foretell(planned, watch, as_json)
    else:
        watch.seconds["start"] = time.monotonic() - began
        _make(session, planned, watch, preview, as_json)


def size_of(size: str | None) -> tuple[int | None, int | None]:
    """(height, width) from WIDTHxHEIGHT."""
    from cogvideox.core.errors import InputError

    if size is None:
        return None, None
    width, _, height = size.lower().partition("x")
    if not (width.isdecimal() and height.isdecimal()):
        raise InputError(f"size {size!r} is not WIDTHxHEIGHT, such as 720x480")
    return int(height), int(width)


def _show(session: Session, planned: list[Planned], watch: ConsoleWatch) -> None:
    """The plan of the first video; the others differ in words and seeds."""
    from cogvideox.generation.console import plan_lines

    for line in plan_lines(session, planned[0]):
        watch.console.print(line)
    if len(planned) > 1:
        watch.console.print(f"{len(planned)} videos")


def _foretell(planned: list[Planned], watch: ConsoleWatch, as_json: bool) -> None:
    """What making the videos would say, each note once; the whole plans as JSON."""
    for note in dict.fromkeys(note for one in planned for note in one.settings.notes):
        watch.note(note)
    for one in planned if as_json else ():
        typer.echo(json.dumps(one.facts()))


def _make(
    session: Session, planned: list[Planned], watch: ConsoleWatch, preview: bool, as_json: bool
) -> None:
    """Load the model and make one video after the other."""
    from cogvideox.generation.console import ConsoleWatch, report_line
    from cogvideox.generation.render import render

    with watch.stage("load"):
        pipe = session.open(planned, watch)
    for one in planned:
        path = one.job.output
        if preview:
            watch.preview_to(path.with_name(path.name + ".preview.png"))
        try:
            made = render(pipe, one.job.request, one.inputs, path, watch)
        finally:
            watch.end()
        report = watch.report()
        watch.console.print(report_line(report), style="dim")
        if as_json:
            facts: dict[str, Any] = {"file": str(path), "seconds": report, "notes": watch.notes}
            typer.echo(json.dumps(facts | dict(made.metadata)))
        else:
            info = made.info
            typer.echo(f"{path}  {info.frames} frames of {info.width}x{info.height} at {made.fps:g} fps")
        watch = ConsoleWatch(watch.console)
