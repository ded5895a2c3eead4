"""One pack, several processes: each holds a share of the tokens, and only attention looks at all of them.

The transformer stays as it is. It runs on a `Share`, a pack of parts of segments; `share_attention` lets its
blocks attend to the parts of all processes, and `gather_video` puts the output together. With two branches of
guidance, each half of the processes holds tokens of its own branch only.

In training, let each process take the loss of its own rows: gradients of weights, summed over the processes,
are those that one process has for the sum of the losses.

Shape legend: L tokens, S segments of a group, N heads, K head dim, P numbers per patch, X some of q, k and v.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from itertools import groupby
from typing import Any, Self

import torch
from torch import Tensor

from cogvideox.core.errors import InputError
from cogvideox.core.pack import Group as SegmentGroup
from cogvideox.core.pack import Pack, Segment
from cogvideox.models.transformer.blocks import FullAttention, attention, rows_of
from cogvideox.models.transformer.model import Transformer
from cogvideox.models.transformer.positions import Rope
from cogvideox.parallel.mesh import Mesh


def span(length: int, size: int, rank: int) -> tuple[int, int]:
    """From and to of a rank's share of `length` rows: as equal as can be, the first ones get one more."""
    each, more = divmod(length, size)
    start = rank * each + min(rank, more)
    return start, start + each + (rank < more)


def part(segment: Segment, size: int, rank: int) -> Segment:
    """A rank's share of a segment's text and video tokens."""
    start, end = span(segment.text_length, size, rank)
    rows = span(segment.video_length, size, rank)
    return replace(segment, text_length=end - start, text_start=start, rows=rows)


def _none(segment: Segment) -> Segment:
    """What the processes of the other branch hold of it."""
    return replace(segment, text_length=0, rows=(0, 0))


@dataclass(frozen=True, kw_only=True)
class Share(Pack):
    """The tokens of a pack that one process holds."""

    mesh: Mesh
    parts: tuple[tuple[Segment, ...], ...] = field(repr=False)
    """The shapes of the segments' parts that each rank of `mesh.everyone` holds."""

    @cached_property
    def _runs(self) -> list[tuple[tuple[Segment, ...], int]]:
        """Runs of neighbouring segments of which each rank holds equal parts: the parts, and how many."""
        return [(parts, len(list(run))) for parts, run in groupby(zip(*self.parts, strict=True))]

    @cached_property
    def groups(self) -> tuple[SegmentGroup, ...]:
        """The same groups on every rank, even if this one holds parts of one shape of two of them."""
        return tuple(SegmentGroup(parts[self.mesh.everyone.rank], count) for parts, count in self._runs)

    @cached_property
    def lengths(self) -> list[list[int]]:
        """Rows of each group that each rank of this branch holds."""
        first, size = self.mesh.branch * self.mesh.sequence.size, self.mesh.sequence.size
        ranks = range(first, first + size)
        return [[count * parts[rank].length for parts, count in self._runs] for rank in ranks]

    def alone(self) -> tuple[Pack, ...]:
        return tuple(
            Share(**_fields(one), mesh=self.mesh, parts=tuple(zip(shapes, strict=True)))
            for one, shapes in zip(super().alone(), zip(*self.parts, strict=True), strict=True)
        )


def _fields(pack: Pack) -> dict[str, Any]:
    return {one.name: getattr(pack, one.name) for one in fields(pack)}


def share(pack: Pack, mesh: Mesh) -> Share:
    """This process's share of a pack that all processes have. With branches, each of them gets one of the
    segments; if there are fewer, the last branches do.
    """
    branches, size = mesh.branches, mesh.sequence.size
    idle = branches - len(pack.segments)
    assert branches == 1 or idle >= 0

    def of(rank: int) -> tuple[Segment, ...]:
        return tuple(
            part(segment, size, rank % size) if branches == 1 or rank // size == idle + s else _none(segment)
            for s, segment in enumerate(pack.segments)
        )

    mine = of(mesh.everyone.rank)
    texts = pack.text_LC.split([segment.text_length for segment in pack.segments])
    videos = pack.per_segment(pack.video_LP)
    return Share(
        segments=mine,
        text_LC=torch.cat([t[s.text_start :][: s.text_length] for t, s in zip(texts, mine, strict=True)]),
        video_LP=torch.cat([v[slice(*(s.rows or ()))] for v, s in zip(videos, mine, strict=True)]),
        timestep_S=pack.timestep_S,
        ofs=pack.ofs,
        mesh=mesh,
        parts=tuple(tuple(s.shape() for s in of(rank)) for rank in range(mesh.everyone.size)),
    )


def gather_video(video_LP: Tensor, pack: Share) -> Tensor:
    """Video rows of a share -> those of the whole pack, on every process. Differentiable."""
    lengths = [[segment.video_length for segment in segments] for segments in pack.parts]
    everyones = pack.mesh.everyone.gather(video_LP, [sum(of_rank) for of_rank in lengths])
    pieces = [rows.split(of_rank) for rows, of_rank in zip(everyones, lengths, strict=True)]
    return torch.cat([piece for of_segment in zip(*pieces, strict=True) for piece in of_segment])


# ------------------------------------------------------------------------------------------------ attention


def share_attention(transformer: Transformer) -> None:
    """Let a transformer run on shares of packs; whole packs it takes as before. Changes it in place.

    InputError for the ablation that attends within frames and along time.
    """
    if transformer.spec.attention != "full":
        raise InputError(f"tokens of {transformer.spec.attention} attention cannot be shared")
    for block in transformer.blocks:
        attention = block.attention
        assert isinstance(attention, FullAttention)
        block.attention = SharedAttention.of(attention)


class SharedAttention(FullAttention):
    """Attention over the tokens of all processes of a branch; of whole packs, that of `FullAttention`."""

    @classmethod
    def of(cls, original: FullAttention) -> Self:
        """With the parameters of another."""
        new = cls.__new__(cls)
        new.__dict__ = original.__dict__
        return new

    def forward(self, x_LD: Tensor, pack: Pack, rope: Rope | None) -> Tensor:
        if not isinstance(pack, Share) or pack.mesh.sequence.size == 1:
            return super().forward(x_LD, pack, rope)
        projected = self.project(self.qkv(x_LD, pack), pack, rope)
        attend = _exchange_heads if pack.mesh.ulysses else _gather_keys
        return self.out(attend(list(projected), pack).flatten(1), pack)


Heads = tuple[Tensor, ...]
"""q, k and v of a group, or some of them, each (S, N, L, K)."""


def _gather_keys(projected: Sequence[Heads], pack: Share) -> Tensor:
    """This rank's queries to all keys: keys and values of all ranks come here. Returns (L, N, K)."""
    counts = [sum(lengths) for lengths in pack.lengths]
    everyones = pack.mesh.sequence.gather(_rows([heads[1:] for heads in projected]), counts)
    pairs = zip(projected, _groups(everyones, pack), strict=True)
    return torch.cat([rows_of(attention(heads[0], k, v)) for heads, (k, v) in pairs])


def _exchange_heads(projected: Sequence[Heads], pack: Share) -> Tensor:
    """Ulysses (Jacobs et al. 2023): all tokens of a part of the heads come here, results go back. Returns
    (L, N, K).
    """
    group, counts = pack.mesh.sequence, [sum(lengths) for lengths in pack.lengths]
    mine = [counts[group.rank]] * group.size
    rows_LXNK = _rows(projected)
    if rows_LXNK.shape[2] % group.size:
        raise InputError(f"ulysses cannot divide {rows_LXNK.shape[2]} heads among {group.size} processes")
    by_rank = rows_LXNK.unflatten(2, (group.size, -1)).movedim(2, 0).flatten(0, 1)
    received = group.exchange(by_rank, mine, counts).split(counts)
    outputs = [
        rows_of(attention(q, k, v)).unflatten(0, (g.count, -1))
        for (q, k, v), g in zip(_groups(received, pack), pack.groups, strict=True)
    ]
    back = group.exchange(_by_rank(outputs, pack), counts, mine)
    return back.unflatten(0, (group.size, -1)).movedim(0, 1).flatten(1, 2)


def _rows(projected: Sequence[Heads]) -> Tensor:
    """Heads of all groups as rows of the pack, (L, X, N, K)."""
    return torch.cat([torch.stack([rows_of(x) for x in heads], dim=1) for heads in projected])


def _groups(everyones: Sequence[Tensor], pack: Share) -> list[Heads]:
    """Rows (L, X, N, K) of each rank -> heads of each group, the tokens of all ranks one after the other:
    attention does not ask for their order.
    """
    pieces = [rows.split(lengths) for rows, lengths in zip(everyones, pack.lengths, strict=True)]
    return [
        torch.cat([rows.unflatten(0, (group.count, -1)) for rows in of_group], dim=1)
        .permute(2, 0, 3, 1, 4)
        .unbind()
        for of_group, group in zip(zip(*pieces, strict=True), pack.groups, strict=True)
    ]


def _by_rank(outputs: Sequence[Tensor], pack: Share) -> Tensor:
    """Outputs (S, L, N, K) of each group, tokens of all ranks one after the other -> rows (L, N, K), those of
    the first rank first.
    """
    pieces = []
    for index, (x_SLNK, group) in enumerate(zip(outputs, pack.groups, strict=True)):
        each = [lengths[index] // group.count for lengths in pack.lengths]
        pieces.append([rows.flatten(0, 1) for rows in x_SLNK.split(each, dim=1)])
    return torch.cat([rows for of_rank in zip(*pieces, strict=True) for rows in of_rank])
