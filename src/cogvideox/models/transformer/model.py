"""The expert transformer (paper section 2.2): a pack in, video patches out, for all released variants.

Shape legend: L tokens of the pack, S segments, D width, C width of the timestep embedding, P numbers per
patch.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cogvideox.core.pack import Pack
from cogvideox.models.specs import PositionPolicy, TransformerSpec
from cogvideox.models.transformer.blocks import Block
from cogvideox.models.transformer.positions import AdditivePositions, pack_rope


def sinusoid(value_S: Tensor, width: int) -> Tensor:
    """[cos(v f), sin(v f)] with f_k = 10000^(-k / (width/2)), fp32: (S, width)."""
    half = width // 2
    frequencies = torch.exp(-math.log(10000.0) * torch.arange(half, dtype=torch.float32) / half)
    angles = value_S.float()[:, None] * frequencies.to(value_S.device)
    return torch.cat([angles.cos(), angles.sin()], dim=1)


class ScalarEmbedding(nn.Module):
    """Sinusoid of a scalar, then a two-layer MLP."""

    def __init__(self, sinusoid_dim: int, width: int) -> None:
        super().__init__()
        self.sinusoid_dim = sinusoid_dim
        self.up = nn.Linear(sinusoid_dim, width)
        self.down = nn.Linear(width, width)

    def forward(self, value_S: Tensor) -> Tensor:
        x = sinusoid(value_S, self.sinusoid_dim).to(self.up.weight.dtype)
        return self.down(F.silu(self.up(x)))


class OutputLayer(nn.Module):
    """Final norms and the projection of video rows to patches."""

    def __init__(self, spec: TransformerSpec) -> None:
        super().__init__()
        self.norm_joint = nn.LayerNorm(spec.width, eps=1e-5)
        self.norm = nn.LayerNorm(spec.width, eps=spec.out_norm_eps)
        self.modulation = nn.Linear(spec.time_dim, 2 * spec.width)
        self.linear = nn.Linear(spec.width, spec.patch_dim)

    def forward(self, video_LD: Tensor, temb_SC: Tensor, pack: Pack) -> Tensor:
        x = self.norm(self.norm_joint(video_LD))
        shift_SD, scale_SD = self.modulation(F.silu(temb_SC)).chunk(2, dim=-1)
        pieces = []
        sizes = [g.count * g.segment.video_length for g in pack.groups]
        counts = [g.count for g in pack.groups]
        for part, shift, scale in zip(
            x.split(sizes), shift_SD.split(counts), scale_SD.split(counts), strict=True
        ):
            rows = part.unflatten(0, (len(shift), -1))
            pieces.append(torch.addcmul(shift.unsqueeze(1), rows, 1 + scale.unsqueeze(1)).flatten(0, 1))
        return self.linear(torch.cat(pieces))


class Transformer(nn.Module):
    """Predicts v for every video token of a pack.

    `policy` is the position policy ("extrapolate" or "interpolate") for sizes other than the base grid.
    """

    def __init__(self, spec: TransformerSpec, policy: PositionPolicy = "extrapolate") -> None:
        super().__init__()
        self.spec, self.policy = spec, policy
        patch_inputs = spec.in_channels * math.prod(spec.patch)
        self.patch_embed = nn.Linear(patch_inputs, spec.width)
        self.text_embed = nn.Linear(spec.text_dim, spec.width)
        self.positions = AdditivePositions(spec)
        self.time_embed = ScalarEmbedding(spec.width, spec.time_dim)
        self.ofs_embed = ScalarEmbedding(spec.ofs_dim, spec.ofs_dim) if spec.ofs_dim else None
        self.blocks = nn.ModuleList(Block(spec) for _ in range(spec.layers))
        self.output = OutputLayer(spec)

    def time_embedding(self, pack: Pack) -> Tensor:
        """(S, C), `ofs` included."""
        temb_SC = self.time_embed(pack.timestep_S)
        if self.ofs_embed is None:
            return temb_SC
        if pack.ofs is None:
            raise ValueError("this model needs the `ofs` scalar (2.0 as released)")
        return temb_SC + self.ofs_embed(torch.full_like(pack.timestep_S, pack.ofs, dtype=torch.float32))

    def forward(self, pack: Pack) -> Tensor:
        """Pack -> predicted v of all video tokens, (sum of video lengths, P), in the order of
        `pack.video_LP`.

        Packed equals alone: a segment's output does not depend on what it is packed with.
        """
        x_LD, temb_SC = self.embed(pack)
        return self.output(self.stack(x_LD, temb_SC, pack), temb_SC, pack)

    def embed(self, pack: Pack) -> tuple[Tensor, Tensor]:
        """What enters the blocks: the joint sequence (L, D) and the timestep embedding (S, C)."""
        text_LD, video_LD = self.text_embed(pack.text_LC), self.patch_embed(pack.video_LP)
        return pack.join(*self.positions(text_LD, video_LD, pack)), self.time_embedding(pack)

    def stack(self, x_LD: Tensor, temb_SC: Tensor, pack: Pack, depth: int | None = None) -> Tensor:
        """All blocks, or the first `depth`: the joint sequence -> its video rows (sum of video lengths, D),
        which alone go on.
        """
        rope = pack_rope(pack, self.spec, self.policy)
        for block in self.blocks[:depth]:
            x_LD = block(x_LD, temb_SC, pack, rope)
        return pack.video_rows(x_LD)
