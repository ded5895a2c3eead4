"""Models of released sizes on a machine without their weights: memory and time with random numbers.

`python -m benchmarks.large folder DIR` writes a model folder of 2B's size, in bf16. Its text encoder is a
stand-in: two layers at T5-XXL's width behind mini's tokenizer. `generate DIR CLIP.mp4` makes a clip with it,
`step` runs the transformer once, by default at 49 frames of 720x480. Each prints its peak and time beside
what the planner predicts.
"""

from __future__ import annotations

import argparse
import mmap
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn
from transformers import T5Config, T5EncoderModel

from cogvideox.checkpoints.folder import Model, read_tokenizer, save_model
from cogvideox.checkpoints.hub import MINI
from cogvideox.core.device import peak_memory
from cogvideox.core.heap import one_heap
from cogvideox.core.pack import Grid, Pack, Segment
from cogvideox.diffusion.schedule import make_schedule
from cogvideox.generation.console import plan_lines
from cogvideox.generation.jobs import Job
from cogvideox.generation.memory import sampling
from cogvideox.generation.plan import forward_seconds, measure
from cogvideox.generation.render import render
from cogvideox.generation.request import Request
from cogvideox.generation.session import Session
from cogvideox.generation.watch import Watch
from cogvideox.models.specs import SPECS
from cogvideox.models.text import TextEncoder
from cogvideox.models.transformer.model import Transformer
from cogvideox.models.vae.autoencoder import VAE

M = TypeVar("M", bound=nn.Module)


def random_module(make: Callable[[], M], seed: int = 0) -> M:
    """A module with weights that keep activations of order one, in bf16."""
    with torch.device("meta"):
        module = make().to(torch.bfloat16)
    module.to_empty(device="cpu").requires_grad_(False).eval()
    generator = torch.Generator().manual_seed(seed)
    for name, weight in module.named_parameters():
        if weight.ndim > 1:
            weight.normal_(0.0, weight[0].numel() ** -0.5, generator=generator)
        else:
            weight.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
    return module


def random_model() -> Model:
    """All parts of a 2B-size model; 3.9 GB."""
    tokenizer = read_tokenizer(MINI / "tokenizer")
    config = T5Config(
        vocab_size=len(tokenizer), d_model=4096, d_ff=1024, num_layers=2, num_heads=64,
        feed_forward_proj="gated-gelu",
    )  # fmt: skip
    spec = replace(SPECS["2b"], name="2b-random", dtype="bfloat16", hub=None)
    return Model(
        spec=spec,
        transformer=random_module(lambda: Transformer(spec.transformer, spec.position_policy)),
        vae=random_module(lambda: VAE(spec.vae)),
        text=TextEncoder(tokenizer, random_module(lambda: T5EncoderModel(config)), 226),
        schedule=make_schedule(spec.snr_shift),
        source="random",
        fingerprint="",
    )


def resident() -> int:
    """Resident memory now, bytes."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * mmap.PAGESIZE


def report(what: str, predicted: int, seconds: float, expected: float) -> None:
    """One line: the peak of this process so far and the time, beside what was predicted."""
    print(
        f"{what}: peak {peak_memory() / 2**30:.2f} GiB, predicted {predicted / 2**30:.2f}; "
        f"{seconds:.0f} s, predicted {expected:.0f}",
        flush=True,
    )


def generate(folder: Path, output: Path, size: str, frames: int, steps: int) -> None:
    """A clip from a model folder, as `cogvideox generate` makes it."""
    before = resident()
    width, height = map(int, size.split("x"))
    values = {"prompt": "a red car", "frames": frames, "height": height, "width": width, "steps": steps}
    loading = dict.fromkeys(("revision", "device", "compat", "lora"))
    session = Session.of(loading | {"model": str(folder), "dtype": "bf16"}, {}, "auto")
    [planned] = session.plan([Job(Request.parse(values), output)], values)
    for line in plan_lines(session, planned):
        print(line)
    start, watch = time.perf_counter(), Watch()
    pipe = session.open([planned], watch)
    render(pipe, planned.job.request, planned.inputs, output, watch)
    seconds = time.perf_counter() - start
    report(f"{output}", before + planned.plan.peak, seconds, sum(planned.seconds.values()))
    print({name: round(value, 1) for name, value in watch.report().items()})


@torch.no_grad()
def step(layers: int, branches: int, grid: Grid) -> None:
    """One forward at 2B's width: of the full depth, or of a few layers to foretell it."""
    spec = replace(SPECS["2b"].transformer, layers=layers)
    speeds = measure(torch.device("cpu"), torch.bfloat16)
    model = random_module(lambda: Transformer(spec))
    segment = Segment(spec.text_length, grid)
    generator = torch.Generator().manual_seed(0)
    text, video = (
        torch.randn(branches * count, channels, generator=generator).bfloat16()
        for count, channels in ((segment.text_length, spec.text_dim), (segment.video_length, spec.patch_dim))
    )
    pack = Pack((segment,) * branches, text, video, torch.full((branches,), 500))
    predicted = resident() + sampling(spec, segment.length, branches, torch.bfloat16).bytes()
    expected = branches * forward_seconds(spec, segment.length, speeds)
    start = time.perf_counter()
    assert model(pack).isfinite().all()
    what = f"{layers} layers, {branches} branches of {segment.length} tokens"
    report(what, predicted, time.perf_counter() - start, expected)


def main() -> None:
    one_heap()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("folder", help="write the model folder")
    command.add_argument("path", type=Path)
    command = commands.add_parser("generate", help="make a clip with it")
    command.add_argument("path", type=Path)
    command.add_argument("output", type=Path)
    command.add_argument("--size", default="368x240")
    command.add_argument("--frames", type=int, default=17)
    command.add_argument("--steps", type=int, default=2)
    command = commands.add_parser(
        "step", help="one forward at 2B's width with random weights, without a folder"
    )
    command.add_argument("--layers", type=int, default=30)
    command.add_argument("--branches", type=int, default=2)
    command.add_argument(
        "--grid", type=int, nargs=3, default=(13, 30, 45), help="tokens; 49x480x720 has 13 30 45"
    )
    options = parser.parse_args()
    if options.command == "folder":
        save_model(random_model(), options.path)
    elif options.command == "generate":
        generate(options.path, options.output, options.size, options.frames, options.steps)
    else:
        step(options.layers, options.branches, tuple(options.grid))


if __name__ == "__main__":
    main()
