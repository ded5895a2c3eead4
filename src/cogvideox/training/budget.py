"""What a step costs, from specs alone: operations, and bytes of each process. Every formula stands here.

Legend: L tokens of a row, D width of the transformer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, nn

from cogvideox.core.pack import Segment
from cogvideox.core.shapes import plan_shape
from cogvideox.models.specs import TransformerSpec
from cogvideox.models.transformer.model import Transformer

META = torch.device("meta")
FULL = torch.float32.itemsize
SAVED = 24
"""Tensors (L, D) that a block saves for its backward, as tests/training/test_budget.py counts them."""


def forward_flops(spec: TransformerSpec, segments: Iterable[Segment]) -> float:
    """Floating point operations of the transformer for a row: linear layers by its tokens, attention by the
    squares of its segments' lengths, modulation by their number. A product of numbers and its sum are 2.
    """
    width, time = spec.width, spec.time_dim
    modulation = 6 if spec.modality == "shared" else 12
    per_token = spec.layers * 12 * width**2
    per_segment = time * (spec.layers * modulation * width + 2 * width + width + time)
    per_segment += 2 * (spec.ofs_dim or 0) ** 2
    text, patch = spec.text_dim * width, spec.in_channels * prod(spec.patch) * width
    total = 0.0
    for segment in segments:
        length, video = segment.length, segment.video_length
        total += per_segment + per_token * length + spec.layers * 2 * width * length**2
        total += text * segment.text_length + (patch + width * spec.patch_dim) * video
    return 2 * total


def train_flops(spec: TransformerSpec, segments: Iterable[Segment]) -> float:
    """Forward and backward, which takes twice as much; what checkpointing does again is not counted."""
    return 3 * forward_flops(spec, segments)


def largest_row(spec: TransformerSpec, capacity: int, frames: int, height: int, width: int) -> list[Segment]:
    """The dearest row: as many samples of the largest shape as fit, and a piece of one more."""
    grid = plan_shape(spec.patch, frames, height, width).grid
    whole = Segment(spec.text_length, grid)
    rest = capacity % whole.length - spec.text_length
    last = [Segment(spec.text_length, (1, 1, rest))] if rest > 0 else []
    return [whole] * (capacity // whole.length) + last


@dataclass(frozen=True)
class Need:
    """Bytes of one process."""

    weights: int
    gradients: int
    masters: int
    """Weights in fp32."""
    moments: int
    """Of AdamW (two of each weight) or Muon (one), in fp32."""
    average: int
    """EMA of the weights, in fp32."""
    activations: int
    """What the backward needs, at its largest."""

    @property
    def total(self) -> int:
        """The peak: activations are gone when the update makes fp32 gradients, as large as the masters."""
        held = self.weights + self.gradients + self.masters + self.moments + self.average
        return held + max(self.activations, self.masters)


def need(
    module: nn.Module,
    matrix_blocks: Callable[[str, Tensor], int] | None,
    *,
    dtype: torch.dtype = torch.bfloat16,
    activations: int = 0,
    shards: int = 1,
    frozen: nn.Module | None = None,
) -> Need:
    """Bytes of training `module` (it may be on the meta device) in a precision, in equal parts on so many
    processes; `frozen` is there in full and is not trained.

    `matrix_blocks` says which parameters Muon updates, as for `MasterOptimizer`; None: none.
    """
    count, moments, beside = 0, 0, sum(p.numel() for p in frozen.parameters()) if frozen else 0
    for name, parameter in module.named_parameters():
        count += parameter.numel()
        moments += parameter.numel() * (1 if matrix_blocks and matrix_blocks(name, parameter) else 2)
    part = -(-count // shards)
    return Need(
        weights=dtype.itemsize * (part + beside),
        gradients=dtype.itemsize * part,
        masters=FULL * part,
        moments=FULL * -(-moments // shards),
        average=FULL * part,
        activations=activations,
    )


def activations(
    spec: TransformerSpec,
    tokens: int,
    *,
    recompute: bool,
    dtype: torch.dtype = torch.bfloat16,
    shards: int = 1,
) -> int:
    """Bytes that a row of `tokens` needs for the backward of the transformer.

    With `recompute` (activation checkpointing) each block keeps its input and one block at a time all of its
    own. Of sharded weights, two blocks are there in full, and the gradient of one.
    """
    tensor = tokens * spec.width * dtype.itemsize
    gathered = 3 * dtype.itemsize * block_parameters(spec) if shards > 1 else 0
    return tensor * (spec.layers + SAVED if recompute else spec.layers * SAVED) + gathered


def kept(run: Callable[[], Tensor], module: nn.Module) -> int:
    """Bytes that `run` keeps for its backward, each piece of memory once, the weights of `module` left out.
    On the meta device this costs nothing.
    """
    weights = {p.untyped_storage()._cdata for p in module.parameters()}
    found: dict[int, torch.UntypedStorage] = {}

    def keep(x: Tensor) -> Tensor:
        found[x.untyped_storage()._cdata] = x.untyped_storage()  # held, so that no other takes its number
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        result = run()
    assert result.requires_grad
    return sum(storage.nbytes() for number, storage in found.items() if number not in weights)


def block_parameters(spec: TransformerSpec) -> int:
    """Weights of one block."""
    return sum(parameter.numel() for parameter in on_meta(spec).blocks[0].parameters())


def on_meta(spec: TransformerSpec) -> Transformer:
    """The transformer without its numbers."""
    with META:
        return Transformer(spec)
