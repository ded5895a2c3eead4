"""The pack: several samples of any shapes in one sequence (paper section 3.1, Multi-Resolution Frame Pack).

A clip, an image and each branch of classifier-free guidance are the same thing, a `Segment`. Attention never
crosses segments, so a sample gives the same result packed as alone. Shape legend: S segments, L tokens of the
whole pack (text and video), C channels, T H W latent grid, P numbers per patch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby

import torch
from torch import Tensor

Grid = tuple[int, int, int]
Span = tuple[int, int] | None
"""Tokens of a grid, from and to, in (t, h, w) order; None: all of them."""


@dataclass(frozen=True)
class Segment:
    """One sample of a pack."""

    text_length: int
    """Text tokens, padding included."""
    grid: Grid
    """Tokens of the sample along (t, h, w)."""
    weight: float = 1.0
    """Weight of the sample's loss."""
    sample: str = ""
    """Id of the sample, for logs and keyed randomness."""
    text_start: int = 0
    """Text tokens of the sample before those that are here: several processes may share it."""
    rows: Span = None
    """The video tokens that are here."""

    @property
    def video_length(self) -> int:
        if self.rows is not None:
            return self.rows[1] - self.rows[0]
        t, h, w = self.grid
        return t * h * w

    @property
    def length(self) -> int:
        return self.text_length + self.video_length

    def shape(self) -> Segment:
        """The segment without what makes it one sample among others of its shape."""
        return replace(self, weight=1.0, sample="")


@dataclass(frozen=True)
class Group:
    """A run of neighbouring segments of one shape: what attention and modulation handle as a batch."""

    segment: Segment
    count: int

    @property
    def length(self) -> int:
        return self.count * self.segment.length


@dataclass(frozen=True)
class Pack:
    """The input of the transformer. Put segments of equal shape side by side: they run as one batch."""

    segments: tuple[Segment, ...]
    text_LC: Tensor
    """Text embeddings of all segments, one after the other: (sum of text lengths, text_dim)."""
    video_LP: Tensor
    """Patches of all segments, one after the other, as `patchify` orders them: (sum of video lengths, P)."""
    timestep_S: Tensor
    """Timestep index of each segment, 0 (clean) to 999 (noise)."""
    ofs: float | None = None
    """The `ofs` scalar of 1.5-5B-I2V (2.0 as released); None for other models."""

    def __post_init__(self) -> None:
        text, video = sum(s.text_length for s in self.segments), sum(s.video_length for s in self.segments)
        if (len(self.text_LC), len(self.video_LP)) != (text, video):
            raise ValueError(
                f"the segments hold {text} text and {video} video tokens, "
                f"the tensors {len(self.text_LC)} and {len(self.video_LP)}"
            )
        if len(self.timestep_S) != len(self.segments):
            raise ValueError(f"{len(self.segments)} segments but {len(self.timestep_S)} timesteps")

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        shapes = groupby(self.segments, key=Segment.shape)
        return tuple(Group(shape, len(list(run))) for shape, run in shapes)

    @cached_property
    def kind_L(self) -> Tensor:
        """Segment and modality of every token of the joint sequence, int32 on the CPU: 2s for video tokens of
        segment s, 2s + 1 for its text.
        """
        counts = [n for s in self.segments for n in (s.text_length, s.video_length)]
        kinds = torch.arange(2 * len(self.segments), dtype=torch.int32) ^ 1  # text stands first
        return kinds.repeat_interleave(torch.tensor(counts))

    def alone(self) -> tuple[Pack, ...]:
        """Each segment in a pack of its own."""
        texts = self.text_LC.split([segment.text_length for segment in self.segments])
        rows = zip(
            self.segments, texts, self.per_segment(self.video_LP), self.timestep_S.split(1), strict=True
        )
        return tuple(Pack((s,), text, video, timestep, self.ofs) for s, text, video, timestep in rows)

    def split(self, x_LD: Tensor) -> list[Tensor]:
        """Joint sequence (L, D) -> one view (count, length, D) for each group."""
        parts = x_LD.split([group.length for group in self.groups])
        return [p.unflatten(0, (g.count, -1)) for p, g in zip(parts, self.groups, strict=True)]

    def join(self, text_LD: Tensor, video_LD: Tensor) -> Tensor:
        """Text and video rows -> the joint sequence [text, video] of each segment in turn."""
        texts = text_LD.split([g.count * g.segment.text_length for g in self.groups])
        videos = video_LD.split([g.count * g.segment.video_length for g in self.groups])
        pairs = zip(texts, videos, self.groups, strict=True)
        return torch.cat(
            [
                torch.cat([t.unflatten(0, (g.count, -1)), v.unflatten(0, (g.count, -1))], dim=1).flatten(0, 1)
                for t, v, g in pairs
            ]
        )

    def text_rows(self, x_LD: Tensor) -> Tensor:
        """The text rows of a joint sequence."""
        pairs = zip(self.split(x_LD), self.groups, strict=True)
        return torch.cat([x[:, : g.segment.text_length].flatten(0, 1) for x, g in pairs])

    def video_rows(self, x_LD: Tensor) -> Tensor:
        """The video rows of a joint sequence."""
        pairs = zip(self.split(x_LD), self.groups, strict=True)
        return torch.cat([x[:, g.segment.text_length :].flatten(0, 1) for x, g in pairs])

    def per_segment(self, video_LP: Tensor) -> tuple[Tensor, ...]:
        """Video rows (all segments) -> one (video_length, P) for each segment."""
        return video_LP.split([segment.video_length for segment in self.segments])


def token_grid(latents: Sequence[int], patch: Grid) -> Grid:
    """Latent grid (T, H, W) -> token grid. Raises ValueError when the patch does not divide it."""
    if any(n % p for n, p in zip(latents, patch, strict=True)):
        raise ValueError(f"latent grid {tuple(latents)} is not a multiple of the patch {patch}")
    t, h, w = (n // p for n, p in zip(latents, patch, strict=True))
    return t, h, w


def patchify(x_CTHW: Tensor, patch: Grid) -> Tensor:
    """Latents (C, T, H, W) -> patches (L, P): tokens in (t, h, w) order, numbers in (c, t, h, w) order."""
    channels = x_CTHW.shape[0]
    (t, h, w), (pt, ph, pw) = token_grid(x_CTHW.shape[1:], patch), patch
    x = x_CTHW.reshape(channels, t, pt, h, ph, w, pw)
    return x.permute(1, 3, 5, 0, 2, 4, 6).reshape(t * h * w, channels * pt * ph * pw)


def unpatchify(x_LP: Tensor, grid: Grid, patch: Grid) -> Tensor:
    """Inverse of `patchify` for a token grid (t, h, w)."""
    (t, h, w), (pt, ph, pw) = grid, patch
    x = x_LP.reshape(t, h, w, -1, pt, ph, pw)
    return x.permute(3, 0, 4, 1, 5, 2, 6).reshape(-1, t * pt, h * ph, w * pw)
