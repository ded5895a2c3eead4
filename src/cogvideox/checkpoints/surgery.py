"""From text-to-video to image-to-video: a transformer gets channels for the image condition."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from cogvideox.core import rng
from cogvideox.core.errors import CheckpointError
from cogvideox.models.specs import TransformerSpec
from cogvideox.models.transformer.model import Transformer


def image_to_video(transformer: Transformer, spec: TransformerSpec) -> Transformer:
    """The transformer with the input channels, the learned positions and the `ofs` embedding of `spec` that
    it lacks: a new module in the same precision, which computes the same as the old one until it is trained.

    Every new number that meets the input is zero; behind them nothing is, so that gradients flow. Raises
    CheckpointError when the specs differ in anything else.
    """
    old = transformer.spec
    as_new = replace(old, in_channels=spec.in_channels, positions=spec.positions, ofs_dim=spec.ofs_dim)
    if as_new != spec or spec.in_channels < old.in_channels or not set(old.positions) <= set(spec.positions):
        raise CheckpointError(f"a transformer {old} cannot become {spec}: only image conditions are added")
    with torch.device("meta"):
        new = Transformer(spec, transformer.policy)
    kept, like = transformer.state_dict(), transformer.patch_embed.weight
    state = {
        name: kept[name] if name in kept else _fresh(name, tensor, like)
        for name, tensor in new.state_dict().items()
    }
    # Numbers of a patch are ordered by channel first, and the condition's channels come last.
    columns = state["patch_embed.weight"]
    added = (spec.in_channels - old.in_channels) * math.prod(spec.patch)
    state["patch_embed.weight"] = torch.cat([columns, columns.new_zeros(len(columns), added)], dim=1)
    new.load_state_dict({name: tensor.detach().clone() for name, tensor in state.items()}, assign=True)
    return new


def _fresh(name: str, shape: Tensor, like: Tensor) -> Tensor:
    """Zeros, but for the inner layer of a new embedding, whose outer layer is zero."""
    if name == "ofs_embed.up.weight":
        return (rng.normal(shape.shape, 0, name) * shape.shape[1] ** -0.5).to(like)
    return like.new_zeros(shape.shape)
