"""What processes say to each other. Rows are the first axis; counts of rows may differ, and may be 0.

Sums over processes of what is computed from exchanged and gathered rows have the gradients that one process
would have: the backward pass returns rows to where they came from. gloo on CPUs, NCCL on GPUs (not run here).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Self

import torch
import torch.distributed as dist
from torch import Tensor

from cogvideox.core.errors import PeerError

TIMEOUT = timedelta(minutes=30)
"""How long a process waits for one that stands still. One that ends is noticed at once."""
_LOST = ("gloo", "nccl", "connection", "timed out", "timeout", "socket")


@contextlib.contextmanager
def answering() -> Iterator[None]:
    """What torch raises inside when a process is lost becomes a PeerError."""
    try:
        yield
    except RuntimeError as error:
        if not any(word in str(error).lower() for word in _LOST):
            raise
        raise PeerError("another process of this run ended or does not answer") from error


@dataclass(frozen=True)
class Group:
    """Some of a run's processes, as one of them sees them."""

    handle: dist.ProcessGroup
    rank: int
    """Of this process, among them."""
    size: int

    @classmethod
    def of(cls, members: Sequence[int], timeout: timedelta = TIMEOUT) -> Self:
        """Processes by their ranks in the run. All of the run must make the same groups in the same order;
        only members may use theirs.
        """
        with answering():
            handle = dist.new_group(list(members), timeout=timeout)
        rank = dist.get_rank()
        return cls(handle, members.index(rank) if rank in members else -1, len(members))

    def exchange(self, x: Tensor, send: Sequence[int], receive: Sequence[int]) -> Tensor:
        """`send[r]` rows go to rank r, `receive[r]` come from it, in the order of ranks. Differentiable."""
        return _Exchange.apply(x, send, receive, self)

    def gather(self, x: Tensor, counts: Sequence[int]) -> Tensor:
        """The rows of every rank, of which there are `counts`, in the order of ranks. Differentiable."""
        return _Gather.apply(x, counts, self)

    def broadcast(self, x: Tensor | None, source: int, like: Tensor) -> Tensor:
        """What the rank `source` holds, of any shape; `like` has its precision, device and number of axes."""
        shape = torch.tensor([0] * like.ndim if x is None else x.shape)
        with answering():
            dist.broadcast(shape, group_src=source, group=self.handle)
            out = like.new_empty(shape.tolist()) if x is None else x.contiguous()
            dist.broadcast(out, group_src=source, group=self.handle)
        return out

    def any(self, flag: bool) -> bool:
        """Whether any rank says so."""
        return bool(self.most([int(flag)])[0])

    def most(self, numbers: Sequence[int]) -> list[int]:
        """The largest of each number over the ranks."""
        found = torch.tensor(numbers)
        with answering():
            dist.all_reduce(found, dist.ReduceOp.MAX, group=self.handle)
        return [int(number) for number in found]

    def sum(self, numbers: Sequence[float]) -> list[float]:
        """The sum of each number over the ranks, the same bits in all of them."""
        total = torch.tensor(numbers, dtype=torch.float64)
        with answering():
            dist.all_reduce(total, group=self.handle)
        return total.tolist()

    def reduce(self, x: Tensor, to: int) -> None:
        """Sum over the ranks, into the `x` of one; that of the others is void afterwards."""
        with answering():
            dist.reduce(x, group_dst=to, group=self.handle)

    def objects(self, value: Any) -> list[Any]:
        """What every rank says, in the order of ranks; anything that can be pickled."""
        found: list[Any] = [None] * self.size
        with answering():
            dist.all_gather_object(found, value, group=self.handle)
        return found

    def send(self, x: Tensor, to: int) -> dist.Work:
        """Send without waiting for the receiver; `x` must stay as it is until the returned work is done."""
        with answering():
            work = dist.isend(x, group_dst=to, group=self.handle)
        assert work is not None
        return work

    def receive(self, x: Tensor, source: int) -> None:
        """Fill `x` with what `source` sends next."""
        with answering():
            dist.recv(x, group_src=source, group=self.handle)


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x: Tensor, send: Sequence[int], receive: Sequence[int], group: Group) -> Tensor:
        context.way = receive, send, group
        out = x.new_empty(sum(receive), *x.shape[1:])
        with answering():
            dist.all_to_all_single(out, x.contiguous(), list(receive), list(send), group=group.handle)
        return out

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        return _Exchange.apply(gradient, *context.way), None, None, None


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x: Tensor, counts: Sequence[int], group: Group) -> Tensor:
        context.counts, context.group = counts, group
        out, mine = x.new_empty(sum(counts), *x.shape[1:]), x.contiguous()
        parts = out.split(list(counts))
        parts[group.rank].copy_(mine)
        # Each to each: nothing is padded, nothing copied twice, as torch's own gathering would on CPUs.
        others = [rank for rank in range(group.size) if rank != group.rank]
        send = [_to(dist.isend, mine, group, rank) for rank in others if mine.numel()]
        receive = [_to(dist.irecv, parts[rank], group, rank) for rank in others if parts[rank].numel()]
        with answering():
            for work in dist.batch_isend_irecv(send + receive) if send or receive else ():
                work.wait()
        return out

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        counts, group = context.counts, context.group
        mine = counts[group.rank]
        back = _Exchange.apply(gradient, counts, [mine] * group.size, group)
        return back.unflatten(0, (group.size, mine)).sum(0), None, None


def _to(do: Callable[..., Any], x: Tensor, group: Group, peer: int) -> dist.P2POp:
    return dist.P2POp(do, x, group=group.handle, group_peer=peer)
