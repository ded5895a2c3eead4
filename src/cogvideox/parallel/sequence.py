"""One pack, several processes: each holds a share of the tokens, and only attention looks at all of them.

The transformer stays as it is. It runs on a `Share`, a pack of parts of segments; `share_attention` lets its
blocks attend to the parts of all processes, and `gather_video` puts the output together. With two branches of
guidance, each half of the processes holds tokens of its own branch only.

In training, let each process take the loss of its own rows: gradients of weights, summed over the processes,
are those that one process has for the sum of the losses.

Shape legend: L tokens, N heads, K head dim, P numbers per patch, X q, k and v.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Self

import torch
from torch import Tensor, nn

from cogvideox.core.errors import InputError
from cogvideox.core.pack import Pack, Segment
from cogvideox.models.transformer.blocks import FullAttention, attention
from cogvideox.models.transformer.model import Transformer
from cogvideox.models.transformer.positions import Rope
from cogvideox.parallel.groups import Group
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

    @property
    def counts(self) -> list[list[int]]:
        """Rows of each segment that the ranks of this branch hold."""
        first, size = self.mesh.branch * self.mesh.sequence.size, self.mesh.sequence.size
        return [[one.length for one in ranks[first:][:size]] for ranks in zip(*self.parts, strict=True)]

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
    counts = [sum(of_rank) for of_rank in lengths]
    everyones = pack.mesh.everyone.gather(video_LP, counts).split(counts)
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


def share_tokens(transformer: Transformer, mesh: Callable[[], Mesh | None]) -> None:
    """Let the processes that `mesh()` names at each call, without branches, run a transformer together: whole
    packs in, whole outputs out. Changes it in place; raises InputError as `share_attention` does.

    In training each process takes the same loss over their number: gradients, summed over them, are right.
    """

    def cut(module: nn.Module, inputs: tuple[Pack]) -> tuple[Pack]:
        return inputs if (here := mesh()) is None else (share(inputs[0], here),)

    def join(module: nn.Module, inputs: tuple[Pack], output: Tensor) -> Tensor:
        return gather_video(output, inputs[0]) if isinstance(inputs[0], Share) else output

    share_attention(transformer)
    transformer.register_forward_pre_hook(cut)
    transformer.register_forward_hook(join)


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
        attend, group = _exchange_heads if pack.mesh.ulysses else _gather_keys, pack.mesh.sequence
        outputs, counts = [], iter(pack.counts)
        for qkv in self.project(self.qkv(x_LD, pack), pack, rope):
            # One segment after the other: what comes from the others for one is gone before the next.
            outputs += [attend(*one, group, next(counts)) for one in zip(*qkv, strict=True)]
        return self.out(torch.cat(outputs).flatten(1), pack)


def _gather_keys(q_NLK: Tensor, k_NLK: Tensor, v_NLK: Tensor, group: Group, counts: Sequence[int]) -> Tensor:
    """This rank's queries to all keys of a segment, of which every rank has so many: (L, N, K)."""
    keys_values = group.gather(torch.stack([k_NLK, v_NLK]).permute(2, 0, 1, 3), counts)
    k_NLK, v_NLK = keys_values.permute(1, 2, 0, 3)
    return attention(q_NLK[None], k_NLK[None], v_NLK[None])[0].transpose(0, 1)


def _exchange_heads(
    q_NLK: Tensor, k_NLK: Tensor, v_NLK: Tensor, group: Group, counts: Sequence[int]
) -> Tensor:
    """Ulysses (Jacobs et al. 2023): all tokens of some heads come here, results go back: (L, N, K)."""
    size, mine = group.size, [counts[group.rank]] * group.size
    if len(q_NLK) % size:
        raise InputError(f"ulysses cannot divide {len(q_NLK)} heads among {size} processes")
    heads = torch.stack([q_NLK, k_NLK, v_NLK]).unflatten(1, (size, -1))  # X, rank, heads of the rank, L, K
    came_LXNK = group.exchange(heads.permute(1, 3, 0, 2, 4).flatten(0, 1), mine, counts)
    q, k, v = came_LXNK.permute(1, 2, 0, 3)
    out_LNK = attention(q[None], k[None], v[None])[0].transpose(0, 1)
    back = group.exchange(out_LNK, counts, mine)
    return back.unflatten(0, (size, -1)).transpose(0, 1).flatten(1, 2)
