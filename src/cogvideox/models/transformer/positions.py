"""Positions of video tokens (paper section 2.2): 3D RoPE, fixed 3D sin-cos, learned tables.

All come from one coordinate per axis and token, so no table bounds a shape and height and width are alike.
Shape legend: L tokens, D width, K head dim. Tables are computed in fp32 on the CPU.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cogvideox.core.pack import Grid, Pack, Span
from cogvideox.models.specs import TransformerSpec

Axes = tuple[Tensor, Tensor, Tensor]


def coordinates(grid: Grid, policy: str, base: Grid) -> Axes:
    """One coordinate per index along t, h and w, fp32.

    `extrapolate`: integers, whatever the size (the paper's choice: local detail is kept). `interpolate`:
    height and width are fitted, aspect ratio kept, into the centre of the base grid (what diffusers does for
    the 1.0 models); equal to integers at the base size.
    """
    t, h, w = grid
    time = torch.arange(t, dtype=torch.float32)
    if policy == "extrapolate":
        return time, torch.arange(h, dtype=torch.float32), torch.arange(w, dtype=torch.float32)
    if policy != "interpolate":
        raise ValueError(f"position policy {policy!r} is neither 'extrapolate' nor 'interpolate'")
    _, base_h, base_w = base
    if h / w > base_h / base_w:
        box_h, box_w = base_h, round(base_h / h * w)
    else:
        box_h, box_w = round(base_w / w * h), base_w
    top, left = round((base_h - box_h) / 2.0), round((base_w - box_w) / 2.0)
    rows = torch.linspace(top, (top + box_h) * (h - 1) / h, h, dtype=torch.float32)
    columns = torch.linspace(left, (left + box_w) * (w - 1) / w, w, dtype=torch.float32)
    return time, rows, columns


def _grid_of(parts: Sequence[Tensor], span: Span) -> Tensor:
    """Per-axis tables (t, Kt), (h, Kh), (w, Kw) -> (t*h*w, Kt+Kh+Kw), or the rows of a span."""
    t, h, w = (len(p) for p in parts)
    if span is not None:
        token = torch.arange(*span)
        indices = (token // (h * w), token // w % h, token % w)
        return torch.cat([part[index] for part, index in zip(parts, indices, strict=True)], dim=-1)
    time = parts[0][:, None, None].expand(-1, h, w, -1)
    rows = parts[1][None, :, None].expand(t, -1, w, -1)
    columns = parts[2][None, None].expand(t, h, -1, -1)
    return torch.cat([time, rows, columns], dim=-1).flatten(0, 2)


def rope_table(axes: Axes, head_dim: int, span: Span = None, theta: float = 10000.0) -> Tensor:
    """Rotation angles of the channel pairs of each token, (L, K/2): 1/4 for t, 3/8 for h, 3/8 for w."""
    parts = []
    for axis, dim in zip(axes, (head_dim // 4, head_dim // 8 * 3, head_dim // 8 * 3), strict=True):
        frequencies = theta ** -(torch.arange(0, dim, 2, dtype=torch.float32) / dim)
        parts.append(torch.outer(axis, frequencies))
    return _grid_of(parts, span)


def sincos_table(axes: Axes, width: int, spatial_scale: float, span: Span = None) -> Tensor:
    """Fixed additive positions (L, D): D/4 channels for t, 3D/8 for w, 3D/8 for h, each [sin, cos]."""
    t, h, w = axes
    sizes = ((t, width // 4), (h / spatial_scale, width // 8 * 3), (w / spatial_scale, width // 8 * 3))
    parts = []
    for axis, dim in sizes:
        frequencies = 1.0 / 10000.0 ** (torch.arange(dim // 2, dtype=torch.float64) / (dim / 2.0))
        angles = torch.outer(axis.double(), frequencies)
        parts.append(torch.cat([angles.sin(), angles.cos()], dim=1).float())
    table = _grid_of(parts, span)
    time, rows, columns = table.split([dim for _, dim in sizes], dim=1)
    return torch.cat([time, columns, rows], dim=1)


class LearnedPositions(nn.Module):
    """A learned table over the text and the base grid, added to the joint sequence (released only in 5B-I2V).

    Other spatial sizes read the table by linear interpolation; longer clips repeat its last frame.
    """

    def __init__(self, spec: TransformerSpec) -> None:
        super().__init__()
        self.text_length, self.base = spec.text_length, spec.base_grid
        t, h, w = spec.base_grid
        self.table = nn.Parameter(torch.zeros(spec.text_length + t * h * w, spec.width))

    def text(self, length: int, start: int = 0) -> Tensor:
        """(length, D); raises ValueError beyond the table."""
        end = start + length
        if end > self.text_length:
            raise ValueError(f"{end} text tokens, but the learned positions end at {self.text_length}")
        return self.table[start:end]

    def video(self, grid: Grid, span: Span = None) -> Tensor:
        """(t*h*w, D), or the rows of a span."""
        table = self.table[self.text_length :].unflatten(0, self.base)
        t, h, w = grid
        table = table[torch.arange(t).clamp(max=self.base[0] - 1)]
        if (h, w) != self.base[1:]:
            images = table.permute(0, 3, 1, 2).float()
            table = F.interpolate(images, size=(h, w), mode="bilinear").to(table.dtype).permute(0, 2, 3, 1)
        rows_LD = table.flatten(0, 2)
        return rows_LD if span is None else rows_LD[slice(*span)]


class AdditivePositions(nn.Module):
    """What is added to the embedded tokens of a pack: sin-cos, a learned table, or nothing."""

    def __init__(self, spec: TransformerSpec) -> None:
        super().__init__()
        self.spec = spec
        self.learned = LearnedPositions(spec) if "learned" in spec.positions else None

    def forward(self, text_LD: Tensor, video_LD: Tensor, pack: Pack) -> tuple[Tensor, Tensor]:
        if self.learned is not None:
            text = [self.learned.text(s.text_length, s.text_start) for s in pack.segments]
            video = [self.learned.video(s.grid, s.rows) for s in pack.segments]
            return text_LD + torch.cat(text), video_LD + torch.cat(video)
        if "sincos" in self.spec.positions:
            # Always plain integer coordinates: the released 2B divides them by `spatial_scale` at every size.
            scale, base = self.spec.spatial_scale, self.spec.base_grid
            tables = {
                (g.segment.grid, g.segment.rows): sincos_table(
                    coordinates(g.segment.grid, "extrapolate", base), self.spec.width, scale, g.segment.rows
                )
                for g in pack.groups
            }
            added_LD = torch.cat([tables[s.grid, s.rows] for s in pack.segments])
            return text_LD, video_LD + added_LD.to(video_LD)
        return text_LD, video_LD


Rope = list[tuple[Tensor, Tensor]]


def pack_rope(pack: Pack, spec: TransformerSpec, policy: str) -> Rope | None:
    """(cos, sin) of each group, each (video tokens of one segment, K/2) fp32; None without RoPE."""
    if "rope" not in spec.positions:
        return None
    angles = [
        rope_table(coordinates(s.grid, policy, spec.base_grid), spec.head_dim, s.rows)
        for s in (group.segment for group in pack.groups)
    ]
    device = pack.video_LP.device
    return [(a.cos().to(device), a.sin().to(device)) for a in angles]


def apply_rope(x_SNLK: Tensor, cos_LK: Tensor, sin_LK: Tensor) -> Tensor:
    """Rotate neighbouring channel pairs (x0, x1) of the last axis; computed in fp32."""
    even, odd = x_SNLK.float().unflatten(-1, (-1, 2)).unbind(-1)
    rotated = torch.stack([even * cos_LK - odd * sin_LK, odd * cos_LK + even * sin_LK], dim=-1)
    return rotated.flatten(-2).to(x_SNLK.dtype)
