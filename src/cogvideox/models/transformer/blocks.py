"""Parts of an expert transformer block (paper section 2.2), with the variants that its ablations compare.

Shape legend: L tokens of the pack, S segments, D width, N heads, K head dim, C width of the timestep
embedding.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cogvideox.core.pack import Pack
from cogvideox.models.specs import TransformerSpec
from cogvideox.models.transformer import kernels
from cogvideox.models.transformer.positions import Rope, apply_rope


@dataclass(frozen=True)
class Modulation:
    """Shift, scale and gate of one sub-layer, each (S, D), for text and video rows of every segment."""

    text: tuple[Tensor, Tensor, Tensor]
    video: tuple[Tensor, Tensor, Tensor]

    def _rows(self, index: int, pack: Pack) -> list[tuple[Tensor, Tensor]]:
        """Vectors (count, 1, D) of each group: (text, video)."""
        counts = [group.count for group in pack.groups]
        texts, videos = self.text[index].split(counts), self.video[index].split(counts)
        return [(t.unsqueeze(1), v.unsqueeze(1)) for t, v in zip(texts, videos, strict=True)]

    def modulate(self, x_LD: Tensor, pack: Pack) -> Tensor:
        """x * (1 + scale) + shift"""
        pieces = []
        rows = zip(pack.split(x_LD), pack.groups, self._rows(0, pack), self._rows(1, pack), strict=True)
        for x, group, shifts, scales in rows:
            parts = x.split([group.segment.text_length, group.segment.video_length], dim=1)
            out = [torch.addcmul(b, p, 1 + a) for p, b, a in zip(parts, shifts, scales, strict=True)]
            pieces.append(torch.cat(out, dim=1).flatten(0, 1))
        return torch.cat(pieces) if len(pieces) > 1 else pieces[0]

    def gated(self, residual_LD: Tensor, x_LD: Tensor, pack: Pack) -> Tensor:
        """residual + gate * x"""
        pieces = []
        rows = zip(pack.split(residual_LD), pack.split(x_LD), pack.groups, self._rows(2, pack), strict=True)
        for residual, x, group, gates in rows:
            sizes = [group.segment.text_length, group.segment.video_length]
            both = zip(residual.split(sizes, dim=1), x.split(sizes, dim=1), gates, strict=True)
            out = [torch.addcmul(r, g, p) for r, p, g in both]
            pieces.append(torch.cat(out, dim=1).flatten(0, 1))
        return torch.cat(pieces) if len(pieces) > 1 else pieces[0]


class ExpertAdaLN(nn.Module):
    """Expert adaptive LayerNorm: timestep -> modulation of attention and MLP, text and video apart."""

    def __init__(self, spec: TransformerSpec) -> None:
        super().__init__()
        self.linear = nn.Linear(spec.time_dim, 12 * spec.width)

    def forward(self, temb_SC: Tensor) -> tuple[Modulation, Modulation]:
        chunks = self.linear(F.silu(temb_SC)).chunk(12, dim=-1)
        first = Modulation(video=chunks[0:3], text=chunks[6:9])
        return first, Modulation(video=chunks[3:6], text=chunks[9:12])


class SharedAdaLN(nn.Module):
    """Ablation "no expert": one modulation for text and video alike."""

    def __init__(self, spec: TransformerSpec) -> None:
        super().__init__()
        self.linear = nn.Linear(spec.time_dim, 6 * spec.width)

    def forward(self, temb_SC: Tensor) -> tuple[Modulation, Modulation]:
        chunks = self.linear(F.silu(temb_SC)).chunk(6, dim=-1)
        return Modulation(chunks[0:3], chunks[0:3]), Modulation(chunks[3:6], chunks[3:6])


class SharedLinear(nn.Linear):
    """One linear layer for all rows of a pack."""

    def forward(self, x_LD: Tensor, pack: Pack) -> Tensor:  # type: ignore[override]
        return super().forward(x_LD)


class TwoLinears(nn.Module):
    """MMDiT's linear layer: separate weights for text and for video rows."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.text = nn.Linear(in_features, out_features)
        self.video = nn.Linear(in_features, out_features)

    def forward(self, x_LD: Tensor, pack: Pack) -> Tensor:
        return pack.join(self.text(pack.text_rows(x_LD)), self.video(pack.video_rows(x_LD)))


def linear(spec: TransformerSpec, in_features: int, out_features: int) -> nn.Module:
    """The linear layer that the spec's modality treatment asks for."""
    return (TwoLinears if spec.modality == "mmdit" else SharedLinear)(in_features, out_features)


SHORT = 512
"""Tokens up to which `attention` trains with plain products on CPUs."""


def attention(q_SNLK: Tensor, k_SNLK: Tensor, v_SNLK: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(K)) v by PyTorch's fused kernel.

    Its backward is slow for short sequences on CPUs, so that training uses plain products there: up to 2.8
    times as fast at 48 segments of 128 tokens, depending on the allocator (docs/log.md).
    """
    if torch.is_grad_enabled() and q_SNLK.device.type == "cpu" and q_SNLK.shape[2] <= SHORT:
        scores = (q_SNLK * q_SNLK.shape[-1] ** -0.5) @ k_SNLK.transpose(-1, -2)
        return scores.softmax(-1) @ v_SNLK
    return F.scaled_dot_product_attention(q_SNLK, k_SNLK, v_SNLK)


class FullAttention(nn.Module):
    """3D full attention over text and video of a segment; LayerNorm on q and k, RoPE on video."""

    def __init__(self, spec: TransformerSpec) -> None:
        super().__init__()
        self.heads = spec.heads
        self.qkv = linear(spec, spec.width, 3 * spec.width)
        self.norm_q = nn.LayerNorm(spec.head_dim, eps=1e-6)
        self.norm_k = nn.LayerNorm(spec.head_dim, eps=1e-6)
        self.out = linear(spec, spec.width, spec.width)

    def forward(self, x_LD: Tensor, pack: Pack, rope: Rope | None) -> Tensor:
        qkv_LD = self.qkv(x_LD, pack)
        if type(self).attend is FullAttention.attend and kernels.attends(self, x_LD):
            return self.out(kernels.attend(self, qkv_LD, pack, rope), pack)
        projected = enumerate(self.project(qkv_LD, pack, rope))
        outputs = [
            self.attend(*qkv, pack, index).transpose(1, 2).flatten(2).flatten(0, 1)
            for index, qkv in projected
        ]
        return self.out(torch.cat(outputs) if len(outputs) > 1 else outputs[0], pack)

    def project(
        self, qkv_LD: Tensor, pack: Pack, rope: Rope | None
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """q, k and v of each group in turn, normed and rotated, each (count, N, L, K)."""
        for index, qkv in enumerate(pack.split(qkv_LD)):
            q, k, v = qkv.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
            q, k = self.norm_q(q), self.norm_k(k)
            if rope is not None:
                text = pack.groups[index].segment.text_length
                q, k = (_rotate_video(x, text, rope[index]) for x in (q, k))
            yield q, k, v

    def attend(self, q_SNLK: Tensor, k_SNLK: Tensor, v_SNLK: Tensor, pack: Pack, index: int) -> Tensor:
        """Attention inside each segment of group `index`, all (count, N, L, K)."""
        return attention(q_SNLK, k_SNLK, v_SNLK)


def _rotate_video(x_SNLK: Tensor, text: int, rope: tuple[Tensor, Tensor]) -> Tensor:
    return torch.cat([x_SNLK[:, :, :text], apply_rope(x_SNLK[:, :, text:], *rope)], dim=2)


class FactorisedAttention(FullAttention):
    """Ablation "2D+1D": half of the heads attend within a frame, the others along time, all to the text."""

    def attend(self, q_SNLK: Tensor, k_SNLK: Tensor, v_SNLK: Tensor, pack: Pack, index: int) -> Tensor:
        segment, half = pack.groups[index].segment, self.heads // 2
        text, (t, h, w) = segment.text_length, segment.grid
        frames = torch.arange(t).repeat_interleave(h * w)
        places = torch.arange(h * w).repeat(t)
        near = torch.ones(segment.length, segment.length, dtype=torch.bool)
        spatial, temporal = near.clone(), near.clone()
        spatial[text:, text:] = frames[:, None] == frames[None]
        temporal[text:, text:] = places[:, None] == places[None]
        masks = torch.stack([spatial] * half + [temporal] * (self.heads - half)).to(q_SNLK.device)
        return F.scaled_dot_product_attention(q_SNLK, k_SNLK, v_SNLK, attn_mask=masks)


class MLP(nn.Module):
    """D -> 4D -> D with the tanh form of GELU."""

    def __init__(self, spec: TransformerSpec) -> None:
        super().__init__()
        self.up = linear(spec, spec.width, 4 * spec.width)
        self.down = linear(spec, 4 * spec.width, spec.width)

    def forward(self, x_LD: Tensor, pack: Pack) -> Tensor:
        return self.down(F.gelu(self.up(x_LD, pack), approximate="tanh"), pack)


class Block(nn.Module):
    """Modulated attention and MLP on the joint sequence of text and video."""

    def __init__(self, spec: TransformerSpec) -> None:
        super().__init__()
        self.modulation = SharedAdaLN(spec) if spec.modality == "shared" else ExpertAdaLN(spec)
        self.norm1 = nn.LayerNorm(spec.width, eps=1e-5)
        self.attention = (FullAttention if spec.attention == "full" else FactorisedAttention)(spec)
        self.norm2 = nn.LayerNorm(spec.width, eps=1e-5)
        self.mlp = MLP(spec)

    def forward(self, x_LD: Tensor, temb_SC: Tensor, pack: Pack, rope: Rope | None) -> Tensor:
        if isinstance(self.modulation, ExpertAdaLN) and kernels.suit(x_LD):
            return kernels.run_block(self, x_LD, temb_SC, pack, rope)
        for_attention, for_mlp = self.modulation(temb_SC)
        h = self.attention(for_attention.modulate(self.norm1(x_LD), pack), pack, rope)
        x_LD = for_attention.gated(x_LD, h, pack)
        h = self.mlp(for_mlp.modulate(self.norm2(x_LD), pack), pack)
        return for_mlp.gated(x_LD, h, pack)
