"""The VAE on several processes, as exact as on one: chunks of time dealt to them, or frames cut into rows.

In time, rank r takes chunks r, r + size, ... Every causal convolution receives its tail from the process that
has the chunk before and sends its own to the one that has the next: a chunk is one layer behind the last one.
These are the operations of one process, and so are the frames, bit for bit, and the memory. For inference.

In space, each process has some rows of all frames and of all that the VAE makes of them. Convolutions get the
rows beyond the edges from the neighbours, norms their statistics from all. Equal up to rounding; activations
take less memory with every process, and gradients flow back. CPUs take plain layers here, no kernels.

Shape legend: B batch, C channels, G groups of channels, T frames, H W height and width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice

import torch
import torch.distributed as dist
from torch import Tensor, nn

from cogvideox.core.shapes import PIXELS_PER_LATENT, ChunkPlan, decode_plan
from cogvideox.models.vae.autoencoder import VAE, Posterior
from cogvideox.models.vae.layers import Cache, Carry
from cogvideox.parallel.groups import Group
from cogvideox.parallel.mesh import World
from cogvideox.parallel.sequence import span

Work = Callable[[Tensor, Carry], Tensor]


def decode_stream(
    vae: VAE, latents_BCTHW: Tensor, world: World, plan: ChunkPlan | None = None
) -> Iterator[Tensor]:
    """What `VAE.decode_stream` gives, on every process."""
    plan = plan or decode_plan(latents_BCTHW.shape[2])
    chunks = (vae.unscaled(chunk) for chunk in latents_BCTHW.split(plan.sizes, dim=2))
    yield from _run(vae.decoder, chunks, plan, world, rows=1)


def encode_stream(vae: VAE, chunks: Iterable[Tensor], world: World, plan: ChunkPlan) -> Iterator[Posterior]:
    """What `VAE.encode_stream` gives for chunks that are cut as `plan` says, on every process."""
    videos = (chunk.to(vae.dtype) for chunk in chunks)
    yield from map(Posterior.of, _run(vae.encoder, videos, plan, world, rows=PIXELS_PER_LATENT))


def _run(work: Work, chunks: Iterable[Tensor], plan: ChunkPlan, world: World, rows: int) -> Iterator[Tensor]:
    """`work` on one chunk after the other; `rows` of one are a row of latents."""
    if world.slabs > 1:
        return _in_space(work, chunks, plan, world.everyone, rows)
    return _in_time(work, chunks, plan, world)


# ------------------------------------------------------------------------------------------------ in time


class Relay(Carry):
    """Tails come from the process that has the chunk before and go to the one that has the next."""

    def __init__(self, world: World, index: int, plan: ChunkPlan) -> None:
        super().__init__(None if index == 0 else (), plan.lead, last=index == len(plan.sizes) - 1)
        group, size = world.everyone, world.everyone.size
        self.before, self.after = (group.rank - 1) % size, (group.rank + 1) % size
        self.source = world.back if group.rank == 0 else group
        self.target = world.back if self.after == 0 else group
        self.sent: list[tuple[dist.Work, Tensor]] = []
        """What is on its way, and the memory that must stay as it is until it has arrived."""

    def take(self, x: Tensor, axis: int) -> Tensor | None:
        if self.first:
            return None
        tail = x.new_empty([2 if a == axis else length for a, length in enumerate(x.shape)])
        self.source.receive(tail, self.before)
        # Laid out as one process has it: convolutions of other layouts round otherwise.
        return tail.contiguous(memory_format=torch.channels_last_3d) if axis == 2 else tail

    def keep(self, tail: Tensor) -> None:
        tail = tail.contiguous()
        self.sent.append((self.target.send(tail, self.after), tail))


def _in_time(work: Work, chunks: Iterable[Tensor], plan: ChunkPlan, world: World) -> Iterator[Tensor]:
    """Rounds of one chunk for each process; what they make of it goes to all in order."""
    assert not torch.is_grad_enabled(), "no gradients flow through time: cut frames in space"
    group, count, coming = world.everyone, len(plan.sizes), iter(chunks)
    sent: list[tuple[dist.Work, Tensor]] = []
    for start in range(0, count, group.size):
        own = out = None
        for rank, chunk in enumerate(islice(coming, group.size)):
            like, own = chunk, chunk if rank == group.rank else own
        if own is not None:
            relay = Relay(world, start + group.rank, plan)
            out = work(own.contiguous(memory_format=torch.channels_last_3d), relay)
            # What was sent before is let go only now: it may have waited for the first rank's next chunk.
            for message, _ in sent:
                message.wait()
            sent = relay.sent
        for source in range(min(group.size, count - start)):
            yield group.broadcast(out if source == group.rank else None, source, like)
    for message, _ in sent:
        message.wait()


# ----------------------------------------------------------------------------------------------- in space


class Slab(Carry):
    """Some rows of all frames: neighbours have those above and below."""

    whole = native = False

    def __init__(self, group: Group, previous: Cache | None, lead: bool, *, last: bool) -> None:
        super().__init__(previous, lead, reuse=not torch.is_grad_enabled(), last=last)
        self.group = group

    def border(self, x: Tensor, above: int = 1, below: int = 1) -> Tensor:
        """Rows of the neighbours, and zeros beyond the frame. Differentiable."""
        rank, size = self.group.rank, self.group.size
        # As many rows as come from the other side.
        up, down = x[..., :below, :], x[..., x.shape[-2] - above :, :]
        send, receive = [0] * size, [0] * size
        leaving = []
        if rank > 0:
            send[rank - 1], receive[rank - 1] = up.numel(), down.numel()
            leaving.append(up.flatten())
        if rank < size - 1:
            send[rank + 1], receive[rank + 1] = down.numel(), up.numel()
            leaving.append(down.flatten())
        came = self.group.exchange(torch.cat(leaving), send, receive)
        upper = came[: down.numel()].view_as(down) if rank > 0 else torch.zeros_like(down)
        lower = came[-up.numel() :].view_as(up) if rank < size - 1 else torch.zeros_like(up)
        return torch.cat([upper, x, lower], dim=-2)

    def group_norm(self, x_BCTHW: Tensor, norm: nn.GroupNorm) -> Tensor:
        return pooled_norm(x_BCTHW, norm, self.group)


def pooled_norm(x_BCTHW: Tensor, norm: nn.GroupNorm, group: Group) -> Tensor:
    """`norm` of what lies in pieces on the ranks of `group`. Differentiable.

    Means and variances of the pieces are put together in fp64: no difference of large sums.
    """
    x = x_BCTHW.float()
    variance_BG, mean_BG = torch.var_mean(x.unflatten(1, (norm.num_groups, -1)), (2, 3, 4, 5), correction=0)
    counts_BG = torch.full_like(mean_BG, x[0, 0].numel())
    pieces = group.gather(torch.stack([mean_BG, variance_BG, counts_BG])[None], [1] * group.size)
    means_RBG, variances_RBG, counts_RBG = pieces.double().unbind(1)
    shares_RBG = counts_RBG / counts_RBG.sum(0)
    mean_BG = (shares_RBG * means_RBG).sum(0)
    variance_BG = (shares_RBG * (variances_RBG + (means_RBG - mean_BG).square())).sum(0)
    deviation_BG = (variance_BG + norm.eps).sqrt()
    each = x.shape[1] // norm.num_groups
    scale_BC = norm.weight / deviation_BG.repeat_interleave(each, dim=1)
    shift_BC = norm.bias - mean_BG.repeat_interleave(each, dim=1) * scale_BC
    scale, shift = (y.float()[..., None, None, None] for y in (scale_BC, shift_BC))
    return torch.addcmul(shift, x, scale).to(x_BCTHW.dtype)


def _in_space(
    work: Work, chunks: Iterable[Tensor], plan: ChunkPlan, group: Group, rows: int
) -> Iterator[Tensor]:
    """Each process works on its rows of every chunk; all get the whole."""
    cache: Cache | None = None
    for count, chunk in enumerate(chunks, 1):
        spans = [span(chunk.shape[3] // rows, group.size, rank) for rank in range(group.size)]
        heights = [end - start for start, end in spans]
        assert min(heights) > 0, "fewer rows of latents than processes"
        start, end = (rows * row for row in spans[group.rank])
        own = chunk[..., start:end, :].contiguous(memory_format=torch.channels_last_3d)
        slab = Slab(group, cache, plan.lead, last=count == len(plan.sizes))
        out = work(own, slab)
        cache = slab.cache
        counts = [height * out.shape[3] // heights[group.rank] for height in heights]
        yield group.gather(out.movedim(3, 0), counts).movedim(0, 3)
