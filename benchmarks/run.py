"""`make bench`: speed and memory of the main parts on this machine, each case in a process of its own.

`python -m benchmarks.run` runs all cases and prints a table; `--only NAME` runs some, `--json FILE` keeps the
numbers.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from cogvideox.core.device import describe, peak_memory, pick_device, pick_dtype
from cogvideox.core.files import write_text
from cogvideox.core.heap import one_heap
from cogvideox.core.shapes import latent_frames
from cogvideox.models.specs import SPECS, VAESpec
from cogvideox.models.transformer.blocks import attention
from cogvideox.models.vae.autoencoder import VAE

Result = dict[str, float | str]


def timed(function: Callable[[], object], repeats: int = 3) -> float:
    """Median seconds of a call, after one warm-up."""
    function()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def storybook(side: int) -> Result:
    """Frames per second of one core, over 17-frame clips of the full world."""
    from cogvideox.data.storybook import World

    torch.set_num_threads(1)
    world, clips = World(seed=0), 40
    for index in range(150):  # every sprite decoded: steady state
        world.clip(index, duration=2.0).render(frames=1, fps=8, height=side, width=side)
    start = time.perf_counter()
    for index in range(1000, 1000 + clips):
        world.clip(index, duration=2.0).render(frames=17, fps=8, height=side, width=side)
    return {"frames_per_second": round(clips * 17 / (time.perf_counter() - start), 1)}


def small_vae() -> VAE:
    """A VAE of mini's size with random weights."""
    torch.manual_seed(0)
    return (
        VAE(VAESpec(channels=(32, 32, 64, 128), blocks=1, groups=8))
        .eval()
        .to(pick_dtype(None, pick_device("cpu")))
    )


@torch.no_grad()
def decode_memory(frames: int) -> Result:
    """Peak memory while a clip of 256x256 is decoded chunk by chunk, frames thrown away as a writer would."""
    vae = small_vae()
    latents = torch.randn(1, 16, latent_frames(frames), 32, 32)
    start = time.perf_counter()
    count = sum(chunk.shape[2] for chunk in vae.decode_stream(latents))
    assert count == frames
    return {"peak_mb": round(peak_memory() / 1e6, 1), "seconds": round(time.perf_counter() - start, 2)}


@torch.no_grad()
def vae_speed(part: str) -> Result:
    """Seconds for 17 frames of 128x128 at mini's size."""
    vae = small_vae()
    video = torch.randn(1, 3, 17, 128, 128).clamp(-1, 1)
    latents = vae.encode(video)
    seconds = timed(lambda: vae.encode(video) if part == "encode" else vae.decode(latents))
    return {"seconds": round(seconds, 3)}


@torch.no_grad()
def transformer_layer(name: str) -> Result:
    """Seconds of a layer at a released width, 2 segments of 2,250 video tokens (1/8 of 49x480x720)."""
    from dataclasses import replace

    from cogvideox.core.pack import Pack, Segment
    from cogvideox.models.transformer.model import Transformer

    spec = replace(SPECS[name].transformer, layers=1)
    model = Transformer(spec).eval().to(pick_dtype(None, pick_device("cpu")))
    dtype, segment = model.patch_embed.weight.dtype, Segment(spec.text_length, (2, 25, 45))
    patches = torch.randn(2 * segment.video_length, model.patch_embed.in_features).to(dtype)
    text = torch.randn(2 * spec.text_length, spec.text_dim).to(dtype)
    pack = Pack((segment, segment), text, patches, torch.tensor([500, 500]))
    return {"seconds": round(timed(lambda: model(pack)), 3)}


def attention_training(function: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Result:
    """Milliseconds of attention forward and backward at mini's size: 48 segments, 4 heads, 128 tokens."""
    dtype = pick_dtype(None, pick_device("cpu"))
    q, k, v = (torch.randn(48, 4, 128, 64).to(dtype).requires_grad_() for _ in range(3))
    gradient = torch.ones(48, 4, 128, 64, dtype=dtype)
    return {"ms": round(1000 * timed(lambda: function(q, k, v).backward(gradient), repeats=20), 1)}


CASES: dict[str, Callable[[], Result]] = {
    "storybook 128x128, one core": lambda: storybook(128),
    "storybook 64x64, one core": lambda: storybook(64),
    "vae decode memory, 17 frames": lambda: decode_memory(17),
    "vae decode memory, 161 frames": lambda: decode_memory(161),
    "vae encode 17x128x128": lambda: vae_speed("encode"),
    "vae decode 17x128x128": lambda: vae_speed("decode"),
    "transformer layer, 2b": lambda: transformer_layer("2b"),
    "transformer layer, 5b": lambda: transformer_layer("5b"),
    "attention in training, fused": lambda: attention_training(F.scaled_dot_product_attention),
    "attention in training, plain": lambda: attention_training(attention),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="run the cases whose name contains this")
    parser.add_argument("--json", type=Path, help="write the numbers here")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        one_heap()  # as the command does
        print(json.dumps(CASES[options.case]()))
        return
    print(f"{describe(pick_device('cpu'))}, torch {torch.__version__}")
    results: dict[str, Result] = {}
    for name in (n for n in CASES if options.only in n):
        command = [sys.executable, "-m", "benchmarks.run", "--case", name]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"{name} failed:\n{done.stderr}")
        results[name] = json.loads(done.stdout.splitlines()[-1])
        print(f"{name:34} " + "  ".join(f"{k} {v}" for k, v in results[name].items()), flush=True)
    short, long = (results.get(f"vae decode memory, {n} frames") for n in (17, 161))
    if short and long:
        print(
            f"161 frames need {float(long['peak_mb']) / float(short['peak_mb']):.2f} times the memory of 17"
        )
    if options.json:
        write_text(options.json, json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
