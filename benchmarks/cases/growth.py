"""Decoding against frames and against pixels: each clip in a fresh process, frames thrown away as a writer
would.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.case import Build, Case, Side
from benchmarks.cases.vae import load
from cogvideox.checkpoints.hub import MINI
from cogvideox.core import rng
from cogvideox.core.shapes import latent_frames

FRAMES, SIZE = (9, 17, 33, 65, 97, 161), 256
SIZES, LENGTH = (64, 128, 256, 384), 17


def stream(frames: int, size: int) -> Build:
    def make(folder: Path, dtype: torch.dtype) -> Side:
        vae = load(folder, dtype)
        z = rng.normal((1, 16, latent_frames(frames), size // 8, size // 8), 0, "latents").to(dtype)

        def run() -> None:
            assert sum(chunk.shape[2] for chunk in vae.decode_stream(z)) == frames

        return Side(run, (vae,), warm=lambda: vae.decode(z[:, :, :1]), amount=(frames, "frames"))

    return make


def name(frames: int, size: int) -> str:
    return f"mini vae decode memory, {frames}x{size}x{size}"


def cases(quick: bool) -> tuple[Case, ...]:
    shapes = [(9, 64)] if quick else [(n, SIZE) for n in FRAMES]
    shapes += [(LENGTH, size) for size in SIZES if not quick and size != SIZE]
    return tuple(
        Case("growth", name(*shape), {"ours": stream(*shape)}, MINI / "vae", exact=False, once=True)
        for shape in shapes
    )


def exponent(amounts: Sequence[float], costs: Sequence[float]) -> float:
    """The power of `amounts` that `costs` grow with: slope of a line through their logarithms."""
    return float(np.polyfit(np.log(amounts), np.log(costs), 1)[0])


def growth(found: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """From our numbers by case, against frames and against pixels: exponents of time and of memory above the
    loaded model, and the peak of the whole process for the most by that for 17 frames of 256x256. Axes with a
    case missing are left out.
    """
    axes = {
        "frames": [(n, name(n, SIZE)) for n in FRAMES],
        "pixels": [(size**2, name(LENGTH, size)) for size in SIZES],
    }
    told = {}
    for axis, points in axes.items():
        if all(case in found for _, case in points):
            amounts = [amount for amount, _ in points]
            seconds, above = ([found[case][key] for _, case in points] for key in ("median", "above"))
            most, middle = points[-1][1], name(LENGTH, SIZE)
            told[axis] = {
                "time exponent": exponent(amounts, seconds),
                "memory exponent": exponent(amounts, above),
                "peak by that of 17x256x256": found[most]["peak"] / found[middle]["peak"],
            }
    return told
