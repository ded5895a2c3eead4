"""Training the VAE on clips that lie on several processes, each with a slice of time (paper section 2.1).

The first rank has the clip's first frame extra. Causal convolutions get the two frames before a slice from
the rank before; the backward pass sends their gradients back. Resampling never crosses a border, for slices
are cut between latents. The models stay as they are: a `Slice` is their `Carry`.

Each rank takes the loss of its own frames, its share of the clip's; gradients of weights, summed over ranks,
are those that one process has.

Shape legend: B batch, C channels, T frames or latents, H W height and width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor, nn

from cogvideox.core.errors import InputError
from cogvideox.core.shapes import FRAMES_PER_LATENT, decode_plan, encode_plan, latent_frames, pixel_frames
from cogvideox.models.vae.autoencoder import VAE, Posterior
from cogvideox.models.vae.layers import Carry, group_norm
from cogvideox.parallel.groups import Group
from cogvideox.parallel.sequence import span
from cogvideox.parallel.vae import pooled_norm

HALO = 2
"""Frames that a causal convolution sees before its own."""


@dataclass(frozen=True)
class Whole:
    """A clip that is on one process, or the same on several: the plain way, and that of images."""

    copies: int = 1
    """Processes that do the same work, each for its part of the loss."""

    def cut(self, x: Tensor, axis: int = 2) -> Tensor:
        """The part of a clip's frames or latents, along `axis`, that is worked on here."""
        return x

    def own(self, frame: int) -> int | None:
        """The number here of a frame of the clip; None if it is elsewhere."""
        return frame

    def share(self, length: int) -> float:
        """The part of the loss that `length` frames or latents from here stand for."""
        return 1 / self.copies

    def sum(self, x: Tensor) -> Tensor:
        """Over the processes that work on the clip; not differentiable."""
        return x * self.copies

    def carry(self) -> Carry:
        """For modules that take the clip in one piece."""
        return Carry(None, lead=True, last=True)

    def posterior(self, vae: VAE, video_BCTHW: Tensor) -> Posterior:
        """`VAE.posterior` of what is here."""
        return vae.posterior(video_BCTHW)

    def decode(self, vae: VAE, latents_BCTHW: Tensor) -> Tensor:
        """`VAE.decode` of what is here."""
        return vae.decode(latents_BCTHW)


@dataclass(frozen=True)
class Slices:
    """A clip cut along time, as one rank of a group sees it; used like `Whole`."""

    group: Group
    latents: tuple[int, ...]
    """Of each rank; two or more, for a halo has one source."""
    pooled: bool = False
    """The VAE's norms pool over the whole clip, as in one chunk. Else over each chunk of its plans."""
    copies = 1
    """See `Whole`."""

    @property
    def bounds(self) -> tuple[int, int]:
        """From and to of this rank's latents."""
        before = sum(self.latents[: self.group.rank])
        return before, before + self.latents[self.group.rank]

    @property
    def lead(self) -> bool:
        """The clip's first frame is here."""
        return self.group.rank == 0

    def _span(self, factor: int) -> tuple[int, int]:
        """From and to of this rank's frames, `factor` of which are a latent."""
        start, end = (k and factor * (k - 1) + 1 for k in self.bounds)
        return start, end

    def cut(self, x: Tensor, axis: int = 2) -> Tensor:
        start, end = self._span((x.shape[axis] - 1) // (sum(self.latents) - 1))
        return x.narrow(axis, start, end - start)

    def own(self, frame: int) -> int | None:
        start, end = self._span(FRAMES_PER_LATENT)
        return frame - start if start <= frame < end else None

    def factor(self, length: int) -> int:
        """Frames of a latent, when all frames that are here are `length`."""
        return (length - self.lead) // (self.latents[self.group.rank] - self.lead)

    def share(self, length: int) -> float:
        return length / (self.factor(length) * (sum(self.latents) - 1) + 1)

    def sum(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return self.group.gather(x[None], [1] * self.group.size).sum(0)

    def carry(self) -> Carry:
        return Slice(self)

    def posterior(self, vae: VAE, video_BCTHW: Tensor) -> Posterior:
        carry = self._chunked(_encoder_chunks(pixel_frames(sum(self.latents))))
        return Posterior.of(vae.encoder(_channels_last(video_BCTHW), carry))

    def decode(self, vae: VAE, latents_BCTHW: Tensor) -> Tensor:
        carry = self._chunked(decode_plan(sum(self.latents)).sizes)
        frames: Tensor = vae.decoder(_channels_last(vae.unscaled(latents_BCTHW)), carry)
        return frames

    def _chunked(self, sizes: tuple[int, ...]) -> Carry:
        """The carry of a clip of chunks of so many latents, whole ones of which are here."""
        if self.pooled:
            return Slice(self)
        start, end = self.bounds
        chunks = [size for size, last in zip(sizes, accumulate(sizes), strict=True) if start < last <= end]
        assert sum(chunks) == end - start, "slices begin and end with chunks"
        return Slice(self, chunks)


Clip = Whole | Slices


def slices(group: Group, frames: int, *, pooled: bool = False) -> Clip:
    """How the ranks of a group share a clip of that many frames. A picture is not cut.

    The function that is trained is exactly what `VAE.posterior` and `VAE.decode` compute by their default
    plans, or, `pooled`, by `whole_plan`. Raises InputError when there are more processes than chunks of the
    encoder's plan or, pooled, pairs of latents.
    """
    found = pieces(frames, group.size, pooled=pooled)
    return Whole(group.size) if len(found) == 1 else Slices(group, found, pooled)


def pieces(frames: int, processes: int, *, pooled: bool = False) -> tuple[int, ...]:
    """Latents that each process gets of a clip; all of them in one piece when it is not cut. InputError as
    `slices`.
    """
    latents = latent_frames(frames)
    if latents == 1 or processes == 1:
        return (latents,)
    smallest = (1,) * latents if pooled else _encoder_chunks(frames)
    most = latents // HALO if pooled else len(smallest)
    if most < processes:
        raise InputError(f"{frames} frames can be cut along time for {most} processes, not {processes}")
    spans = (span(len(smallest), processes, rank) for rank in range(processes))
    return tuple(sum(smallest[start:end]) for start, end in spans)


class Slice(Carry):
    """What a rank's slice of a clip needs of the others."""

    native = False

    def __init__(self, slices: Slices, chunks: Sequence[int] = ()) -> None:
        """Norms pool over each of the `chunks` here (their latents), or over the whole clip."""
        super().__init__(None, lead=slices.lead, last=True)
        self.slices, self.chunks = slices, chunks

    def pad(self, x_BCTHW: Tensor) -> Tensor:
        """Two frames in front: the last ones of the rank before, or the clip's first frame twice."""
        rank, size = self.slices.group.rank, self.slices.group.size
        send, receive = [0] * size, [0] * size
        if rank < size - 1:
            send[rank + 1] = HALO
        if rank > 0:
            receive[rank - 1] = HALO
        leaving = x_BCTHW[:, :, x_BCTHW.shape[2] - sum(send) :].movedim(2, 0)
        # Empty on the first rank, and joined all the same: all ranks must meet in the backward pass.
        head = _channels_last(self.slices.group.exchange(leaving, send, receive).movedim(0, 2))
        first = x_BCTHW[:, :, :1]
        return torch.cat([first, first, head, x_BCTHW] if rank == 0 else [head, x_BCTHW], dim=2)

    def group_norm(self, x_BCTHW: Tensor, norm: nn.GroupNorm) -> Tensor:
        if not self.chunks:
            return pooled_norm(x_BCTHW, norm, self.slices.group)
        factor = self.slices.factor(x_BCTHW.shape[2])
        sizes = [factor * size for size in self.chunks]
        sizes[0] -= (factor - 1) * self.lead
        return torch.cat([group_norm(part, norm) for part in x_BCTHW.split(sizes, dim=2)], dim=2)


def _encoder_chunks(frames: int) -> tuple[int, ...]:
    """Latents of each chunk in which a clip is encoded. Chunks of the decoder end where these do, too."""
    first, *rest = encode_plan(frames).sizes
    return (latent_frames(first), *(size // FRAMES_PER_LATENT for size in rest))


def _channels_last(x_BCTHW: Tensor) -> Tensor:
    return x_BCTHW.contiguous(memory_format=torch.channels_last_3d)
