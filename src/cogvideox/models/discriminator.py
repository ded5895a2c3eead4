"""The 3D discriminator that sharpens the VAE (paper section 2.1): patches of a clip, judged real or made.

Causal like the VAE, with the same `Carry`: a picture is a clip of one frame, the first frame of a clip stands
alone, and slices of time may lie on several processes. No BatchNorm: a batch may be a single clip.

Shape legend: B batch, C channels, T frames, H W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cogvideox.models.vae.autoencoder import TIME_LEVELS
from cogvideox.models.vae.layers import Carry, CausalConv3d

LIMIT = 20.0
"""No logit is further from 0. The bound is soft: hinge losses must be able to call a logit back."""


@dataclass(frozen=True, kw_only=True)
class DiscriminatorSpec:
    """Sizes of the discriminator. Not published by the paper."""

    channels: tuple[int, ...] = (32, 64, 128)
    """Width of each level. All halve height and width, the first two time as well."""
    groups: int = 8
    """Groups of every GroupNorm."""


class StridedConv3d(nn.Conv3d):
    """3x4x4 convolution to half the height and width, and half the time if asked.

    Its frames see themselves and the two before, so a clip of 2k+1 frames becomes k+1, the first from itself
    alone; what goes on from a clip gives k for 2k. Frames are not averaged: flicker must be seen.
    """

    def __init__(self, in_channels: int, out_channels: int, time: bool) -> None:
        super().__init__(in_channels, out_channels, (3, 4, 4), stride=(1 + time, 2, 2))

    def forward(self, x_BCTHW: Tensor, carry: Carry) -> Tensor:  # type: ignore[override]
        padded = carry.pad(x_BCTHW)
        if self.stride[0] == 2 and not carry.lead:
            padded = padded[:, :, 1:]  # the frames that count are the second of each pair
        return F.conv3d(padded, self.weight, self.bias, self.stride, (0, 1, 1))


class Discriminator(nn.Module):
    """Clip -> logits of its patches. `logits` may stay in fp32 while the rest is in lower precision."""

    def __init__(self, spec: DiscriminatorSpec) -> None:
        super().__init__()
        self.levels = nn.ModuleList(
            StridedConv3d(*widths, time=level < TIME_LEVELS)
            for level, widths in enumerate(pairwise((3, *spec.channels)))
        )
        # Colours and contrast must reach the first level's features: it has no norm.
        self.norms = nn.ModuleList(nn.GroupNorm(spec.groups, width) for width in spec.channels[1:])
        self.logits = CausalConv3d(spec.channels[-1], 1)

    def forward(self, video_BCTHW: Tensor, carry: Carry) -> Tensor:
        """(B, 3, T, H, W) in [-1, 1] -> (B, 1, T/4, H/8, W/8) within +-LIMIT, positive for real, with three
        levels.
        """
        h = video_BCTHW.contiguous(memory_format=torch.channels_last_3d)
        for level, norm in zip(self.levels, (None, *self.norms), strict=True):
            h = level(h, carry)
            if norm is not None:
                assert isinstance(norm, nn.GroupNorm)
                h = carry.group_norm(h, norm)
            h = F.leaky_relu(h, 0.2)
        return LIMIT * torch.tanh(self.logits(h.to(self.logits.weight.dtype), carry) / LIMIT)
