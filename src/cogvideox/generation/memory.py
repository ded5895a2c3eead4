"""Bytes that the activations of each stage need at once, from specs and shapes alone.

What scales with what is written in the formulas; how much is a unit measured on CPUs, and all units stand
here. `python -m tools.fit_memory` measures stages in fresh processes beside these estimates and prints the
units that would fit best: fit them again when the models change.
"""

from __future__ import annotations

from dataclasses import dataclass

from cogvideox.core.shapes import PIXELS_PER_LATENT, decode_plan, encode_plan, latent_frames, pixel_frames
from cogvideox.models.specs import TransformerSpec, VAESpec

Kind = tuple[str, int, bool]
"""Stage, bytes a number, and whether its largest tensors are `LARGE`."""

LARGE = 24 * 2**20
"""Bytes from which on a stage leaves no holes in the heap: glibc gives blocks of 32 MiB back at once, and
some tensors are larger than the unit.
"""
FIXED = {2: 20 * 2**20, 4: 12 * 2**20}
"""What does not scale, by bytes a number: code that is run for the first time, buffers of libraries."""
UNITS: dict[Kind, float] = {
    ("sample", 2, False): 21.5,
    ("sample", 2, True): 14.0,
    ("sample", 4, False): 18.6,
    ("sample", 4, True): 17.8,
    ("decode", 2, False): 9.7,
    ("decode", 2, True): 7.5,
    ("decode", 4, False): 10.0,
    ("decode", 4, True): 8.3,
    ("encode", 2, False): 8.7,
    ("encode", 2, True): 7.1,
    ("encode", 4, False): 11.7,
    ("encode", 4, True): 6.9,
}
"""Tensors alive at once at the peak of a stage (some of half precision's are in fp32 and count twice)."""


@dataclass(frozen=True)
class Need:
    """What the peak of a stage is made of."""

    stage: str
    itemsize: int
    """Bytes a number."""
    unit: int
    """Bytes of its typical tensor: the hidden state of all branches in the transformer, the longest chunk at
    full resolution in the VAE.
    """
    tails: int = 0
    """Bytes that the VAE carries from chunk to chunk."""

    @property
    def kind(self) -> Kind:
        return self.stage, self.itemsize, self.unit >= LARGE

    def bytes(self, units: float | None = None) -> int:
        """The estimate; `units` other than those of `UNITS` are for fitting them."""
        return FIXED[self.itemsize] + round((units or UNITS[self.kind]) * self.unit) + self.tails


def sampling(spec: TransformerSpec, tokens: int, branches: int, itemsize: int) -> Need:
    """One forward with `branches` segments of `tokens`, text included."""
    return Need("sample", itemsize, branches * tokens * spec.width * itemsize)


def residuals(spec: TransformerSpec, tokens: int, branches: int, itemsize: int) -> int:
    """Bytes that a step plan adds: two residuals of each branch, what they are added to, and the sum."""
    return 4 * branches * tokens * spec.width * itemsize


def exchanged(spec: TransformerSpec, tokens: int, own: int, heads: bool, itemsize: int) -> int:
    """Bytes that attention over `tokens` of several processes adds to one that has its `own`: keys and values
    of all, or (by heads) what goes out and comes in, for one segment. Measured: `tools.measure_parallel`.
    """
    return (12 * own if heads else 4 * tokens) * spec.width * itemsize


def decoding(spec: VAESpec, frames: int, height: int, width: int, itemsize: int) -> Need:
    """Decoding a clip of so many pixels chunk by chunk. Long clips need no more than short ones."""
    chunk = pixel_frames(max(decode_plan(latent_frames(frames)).sizes)) + 1  # some tensors have two more
    channels = (2 * spec.channels[0] + spec.channels[1]) // 3  # the last level begins with the width before
    tails = _tails(spec, spec.blocks + 1, height, width)
    return Need("decode", itemsize, chunk * channels * height * width * itemsize, tails * itemsize)


def encoding(spec: VAESpec, frames: int, height: int, width: int, itemsize: int) -> Need:
    """Encoding a clip chunk by chunk, the first of which is the longest."""
    chunk = max(encode_plan(frames).sizes)
    tails = _tails(spec, spec.blocks, height, width)
    return Need("encode", itemsize, chunk * spec.channels[0] * height * width * itemsize, tails * itemsize)


def _tails(spec: VAESpec, blocks: int, height: int, width: int) -> int:
    """Numbers in the two frames before each causal convolution: two in each of a level's `blocks`, and in the
    two blocks in the middle.
    """
    levels = sum(2 * blocks * channels / 4**level for level, channels in enumerate(spec.channels))
    middle = 2 * 2 * spec.channels[-1] / PIXELS_PER_LATENT**2
    return round(2 * height * width * (levels + middle))
