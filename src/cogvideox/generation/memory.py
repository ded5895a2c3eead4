"""Bytes that the activations of each stage need at once, from specs and shapes alone.

What scales with what is written in the formulas; how much is a unit measured on CPUs, and all units stand
here. `python -m tools.fit_memory` measures stages in fresh processes beside these estimates and prints the
units that would fit best: fit them again when the models or their kernels change.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from cogvideox.core.shapes import PIXELS_PER_LATENT, decode_plan, encode_plan, latent_frames, pixel_frames
from cogvideox.models.specs import TransformerSpec, VAESpec
from cogvideox.models.transformer import kernels as transformer_kernels
from cogvideox.models.vae import kernels as vae_kernels

Way = Literal["kernels", "half", "full"]
"""Who computes in what: our kernels in bf16, PyTorch in half precision, PyTorch in fp32."""
Kind = tuple[str, Way, bool]
"""Stage, way, and whether its largest tensors are `LARGE`."""

LARGE = 24 * 2**20
"""Bytes from which on a stage leaves no holes in the heap: glibc gives blocks of 32 MiB back at once, and
some tensors are larger than the unit.
"""
FIXED: dict[Way, int] = {"kernels": 20 * 2**20, "half": 20 * 2**20, "full": 12 * 2**20}
"""What does not scale: code that is run for the first time, buffers of libraries."""
SCRATCH = 16 * 2**20
"""Of the VAE's kernels and of PyTorch's convolutions beside them."""
UNITS: dict[Kind, float] = {
    ("sample", "kernels", False): 13.1,
    ("sample", "kernels", True): 10.0,
    ("sample", "half", False): 21.5,
    ("sample", "half", True): 14.0,
    ("sample", "full", False): 18.6,
    ("sample", "full", True): 17.8,
    ("decode", "kernels", False): 3.2,
    ("decode", "kernels", True): 2.8,
    ("decode", "half", False): 9.7,
    ("decode", "half", True): 7.5,
    ("decode", "full", False): 10.0,
    ("decode", "full", True): 8.3,
    ("encode", "kernels", False): 5.2,
    ("encode", "kernels", True): 2.7,
    ("encode", "half", False): 8.7,
    ("encode", "half", True): 7.1,
    ("encode", "full", False): 11.7,
    ("encode", "full", True): 6.9,
}
"""Tensors alive at once at the peak of a stage (some of half precision's are in fp32 and count twice)."""


@dataclass(frozen=True)
class Need:
    """What the peak of a stage is made of."""

    stage: str
    way: Way
    unit: int
    """Bytes of its typical tensor: the hidden state of all branches in the transformer, the longest chunk at
    full resolution in the VAE.
    """
    tails: int = 0
    """Bytes that the VAE carries from chunk to chunk."""
    packed: int = 0
    """Bytes of the largest convolution's weights as the VAE's kernels read them."""

    @property
    def kind(self) -> Kind:
        return self.stage, self.way, self.unit >= LARGE

    def bytes(self, units: float | None = None) -> int:
        """The estimate; `units` other than those of `UNITS` are for fitting them."""
        return FIXED[self.way] + round((units or UNITS[self.kind]) * self.unit) + self.tails + self.packed


def sampling(
    spec: TransformerSpec, tokens: int, branches: int, dtype: torch.dtype, native: bool = True
) -> Need:
    """One forward with `branches` segments of `tokens`, text included."""
    way = _way(dtype, native and transformer_kernels.serve(spec))
    return Need("sample", way, branches * tokens * spec.width * dtype.itemsize)


def residuals(spec: TransformerSpec, tokens: int, branches: int, dtype: torch.dtype) -> int:
    """Bytes that a step plan adds: two residuals of each branch, what they are added to, and the sum."""
    return 4 * branches * tokens * spec.width * dtype.itemsize


def exchanged(spec: TransformerSpec, tokens: int, own: int, heads: bool, dtype: torch.dtype) -> int:
    """Bytes that attention over `tokens` of several processes adds to one that has its `own`: keys and values
    of all, or (by heads) what goes out and comes in, for one segment. Measured: `tools.measure_parallel`.
    """
    return (12 * own if heads else 4 * tokens) * spec.width * dtype.itemsize


def decoding(
    spec: VAESpec, frames: int, height: int, width: int, dtype: torch.dtype, native: bool = True
) -> Need:
    """Decoding a clip of so many pixels chunk by chunk. Long clips need no more than short ones."""
    chunks = decode_plan(latent_frames(frames)).sizes
    longest = pixel_frames(max(chunks)) + 1  # some tensors have two more
    channels = (2 * spec.channels[0] + spec.channels[1]) // 3  # the last level begins with the width before
    before = (*spec.channels[1:], spec.channels[-1])
    tails = _tails(spec, before, spec.blocks + 1) + spec.channels[0] if len(chunks) > 1 else 0
    return _coding("decode", spec, longest * channels, tails, height * width, dtype, native)


def encoding(
    spec: VAESpec, frames: int, height: int, width: int, dtype: torch.dtype, native: bool = True
) -> Need:
    """Encoding a clip chunk by chunk, the first of which is the longest."""
    chunks = encode_plan(frames).sizes
    tails = _tails(spec, spec.channels[:1] + spec.channels, spec.blocks) if len(chunks) > 1 else 0
    return _coding("encode", spec, max(chunks) * spec.channels[0], tails, height * width, dtype, native)


def _coding(
    stage: str, spec: VAESpec, longest: int, tails: float, pixels: int, dtype: torch.dtype, native: bool
) -> Need:
    """`longest` chunk and one frame of all `tails` are numbers of a pixel."""
    way, size = _way(dtype, native and vae_kernels.serve(spec)), pixels * dtype.itemsize
    packed = 2 * vae_kernels.packed_size(spec.channels[-1], spec.channels[-1])
    packed = packed + SCRATCH if way == "kernels" else 0
    return Need(stage, way, longest * size, round(2 * tails * size), packed)


def _tails(spec: VAESpec, before: tuple[int, ...], blocks: int) -> float:
    """Numbers of a pixel in one frame before each causal convolution: two in each block of a level, the first
    with the width `before` the level, and in the two blocks in the middle.
    """
    levels = zip(before, spec.channels, strict=False)
    inside = (
        (first + (2 * blocks - 1) * channels) / 4**level for level, (first, channels) in enumerate(levels)
    )
    return sum(inside) + 4 * spec.channels[-1] / PIXELS_PER_LATENT**2


def _way(dtype: torch.dtype, kernels: bool) -> Way:
    if kernels and dtype == torch.bfloat16:
        return "kernels"
    return "half" if dtype.itemsize == 2 else "full"
