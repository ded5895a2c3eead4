"""`python -m tools.fit_memory`: what the planner says of memory against what fresh processes measure.

Prints measured, estimated and their ratio for weights, sampling, decoding and encoding over a spread of
shapes, widths and precisions, with our kernels and without, then for each kind the units of
`cogvideox.generation.memory` that would make its worst ratio smallest. Write those there when the models or
their kernels change.
"""

from __future__ import annotations

import argparse
import json
import math
import mmap
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import nn

from cogvideox.core.device import DTYPES, peak_memory
from cogvideox.core.heap import one_heap
from cogvideox.core.pack import Pack, Segment
from cogvideox.core.shapes import pixel_frames
from cogvideox.generation.media import encode
from cogvideox.generation.memory import UNITS, Need, decoding, encoding, sampling
from cogvideox.generation.plan import weights_of
from cogvideox.models.specs import ModelSpec, TransformerSpec, VAESpec
from cogvideox.models.transformer.model import Transformer
from cogvideox.models.vae.autoencoder import VAE


@dataclass(frozen=True)
class Case:
    """One measurement. Sizes are latent: (T, H, W)."""

    stage: str
    """weights, sample, decode or encode."""
    latents: tuple[int, int, int] = (1, 1, 1)
    heads: int = 4
    """Of the transformer, 64 wide each."""
    channels: tuple[int, ...] = (32, 32, 64, 128)
    """Of the VAE."""
    blocks: int = 1
    branches: int = 2
    positions: str = "rope"
    dtype: str = "bfloat16"
    native: bool = True
    """With our kernels, where they run."""

    @property
    def transformer(self) -> TransformerSpec:
        positions = (self.positions,)
        return TransformerSpec(layers=2, heads=self.heads, text_dim=64, positions=positions)  # type: ignore[arg-type]

    @property
    def vae(self) -> VAESpec:
        return VAESpec(channels=self.channels, blocks=self.blocks, groups=8)


ROOT = Path(__file__).parents[1]
RELEASED = (128, 256, 256, 512)
WEIGHTS = (Case("weights", heads=30), Case("weights", channels=RELEASED, blocks=3, dtype="float32"))
BF16 = (
    *(Case("sample", (5, 16, 16), heads) for heads in (4, 12, 30)),
    *(Case("sample", latents, 4) for latents in ((1, 16, 16), (13, 16, 16), (9, 32, 48), (13, 60, 90))),
    *(Case("sample", latents, 12) for latents in ((1, 60, 90), (5, 30, 46), (13, 30, 46))),
    *(Case("sample", latents, 30) for latents in ((1, 16, 16), (1, 60, 90), (5, 30, 46), (5, 60, 90))),
    Case("sample", (9, 32, 48), branches=1),
    Case("sample", (5, 30, 46), 12, positions="sincos"),
    Case("sample", (5, 60, 90), 30, positions="sincos"),
    Case("sample", (9, 60, 90), 12),
    *(
        Case(stage, latents)
        for stage in ("decode", "encode")
        for latents in ((1, 16, 16), (5, 16, 16), (41, 16, 16), (2, 30, 46), (5, 32, 32), (5, 60, 90))
    ),
    *(
        Case(stage, latents, channels=RELEASED, blocks=3)
        for stage in ("decode", "encode")
        for latents in ((1, 16, 16), (1, 30, 46), (3, 16, 16), (5, 16, 16), (3, 30, 46), (5, 30, 46))
    ),
)
PLAIN = tuple(
    Case(stage, latents, channels=(16, 32, 64, 128), dtype=dtype)
    for stage in ("decode", "encode")
    for latents in ((5, 24, 24), (5, 48, 48))
    for dtype in ("bfloat16", "float32")
)
FP32 = (
    Case("sample", (5, 16, 16), dtype="float32"),
    Case("sample", (9, 32, 48), dtype="float32"),
    Case("sample", (5, 30, 46), 30, dtype="float32"),
)
CASES = (*BF16, *(replace(case, native=False) for case in BF16), *PLAIN, *FP32)


def estimate(case: Case) -> Need:
    """What the planner says of activations."""
    t, h, w = case.latents
    dtype = DTYPES[case.dtype]
    if case.stage == "sample":
        tokens = 226 + t * h * w // 4
        return sampling(case.transformer, tokens, case.branches, dtype, case.native)
    formula = decoding if case.stage == "decode" else encoding
    return formula(case.vae, pixel_frames(t), 8 * h, 8 * w, dtype, case.native)


def predicted(case: Case) -> int:
    """Bytes that the planner counts."""
    if case.stage != "weights":
        return estimate(case).bytes()
    spec = ModelSpec(name="", transformer=case.transformer, vae=case.vae)
    return weights_of(spec, DTYPES[case.dtype], text_bytes=0).total


def resident() -> int:
    """Resident memory now, bytes."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * mmap.PAGESIZE


def make(build: Callable[[], nn.Module], dtype: torch.dtype) -> nn.Module:
    """A module of ones, without a moment in which more than it is in memory."""
    with torch.device("meta"):
        module = build().to(dtype)
    module.to_empty(device="cpu").eval()
    for weight in module.parameters():
        weight.detach().fill_(1e-3)
    return module


@torch.no_grad()
def measure(case: Case) -> int:
    """Bytes by which the peak of this process rises while the stage runs."""
    one_heap()
    dtype = DTYPES[case.dtype]
    t, h, w = case.latents
    if case.stage == "weights":
        before = resident()
        parts = [make(lambda: Transformer(case.transformer), dtype), make(lambda: VAE(case.vae), dtype)]
        assert parts
        return peak_memory() - before
    if case.stage == "sample":
        model = make(lambda: Transformer(case.transformer), dtype)
        segment = Segment(226, (t, h // 2, w // 2))
        rows = case.branches * segment.video_length
        text = torch.ones(case.branches * 226, 64, dtype=dtype)
        patches = torch.ones(rows, 64, dtype=dtype)
        pack = Pack((segment,) * case.branches, text, patches, torch.tensor([5] * case.branches))
        before = resident()
        model(pack)
        return peak_memory() - before
    vae = make(lambda: VAE(case.vae), dtype)
    assert isinstance(vae, VAE)
    if case.stage == "decode":
        latents = torch.ones(1, 16, *case.latents)
        before = resident()
        for _ in vae.decode_stream(latents):
            pass
        return peak_memory() - before
    frames = torch.full((4 * t - 3, 8 * h, 8 * w, 3), 99, dtype=torch.uint8).numpy()
    before = resident()
    encode(vae, frames)
    return peak_memory() - before


def run(case: Case) -> int:
    """`measure` in a process of its own."""
    command = [sys.executable, "-m", "tools.fit_memory", "--case", json.dumps(asdict(case))]
    environment = os.environ if case.native else os.environ | {"COGVIDEOX_NATIVE": "0"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=environment)
    if done.returncode:
        sys.exit(f"{case} failed:\n{done.stderr}")
    return int(done.stdout)


def show(case: Case) -> int:
    """Measure and print a line."""
    used, guess = run(case), predicted(case)
    print(f"{used / 1e6:8.1f} MB {guess / 1e6:8.1f} estimated {guess / used:5.2f}  {case}", flush=True)
    return used


def worst(measured: dict[Case, int], units: float) -> float:
    """The largest factor between estimate and measurement, either way."""
    ratios = (estimate(case).bytes(units) / used for case, used in measured.items())
    return math.exp(max(abs(math.log(ratio)) for ratio in ratios))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--stage", choices=("weights", "sample", "decode", "encode"), help="measure only this"
    )
    parser.add_argument("--case", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        lists = {name: tuple(options.case[name]) for name in ("latents", "channels")}
        print(measure(Case(**options.case | lists)))
        return
    if options.stage in (None, "weights"):
        for case in WEIGHTS:
            show(case)
    for kind, units in UNITS.items():
        cases = [case for case in CASES if estimate(case).kind == kind]
        if not cases or options.stage not in (None, kind[0]):
            continue
        measured = {case: show(case) for case in cases}
        best = min((tenths / 10 for tenths in range(10, 400)), key=lambda u: worst(measured, u))
        now, then = worst(measured, units), worst(measured, best)
        print(
            f"{kind}: {units} units, worst ratio {now:.2f}; best {best}, worst ratio {then:.2f}", flush=True
        )


if __name__ == "__main__":
    main()
