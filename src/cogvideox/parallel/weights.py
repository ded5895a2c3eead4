"""Where the weights of a model in training live, and how gradients reach those that step them.

Every tensor has an owner, the one process that keeps its fp32 master, moments and average (ZeRO: Rajbhandari
et al. 2020), whole: what needs whole matrices, as Muon does, stays exact, and a checkpoint fits any number of
processes. The model itself stands in every process (`Replicas`) or in shards (`Sharded`, FSDP2).

Summed gradients depend on the number of processes only by the order of addition.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from cogvideox.core.errors import InputError
from cogvideox.parallel.groups import Group


class Weights(Protocol):
    """How a model's weights are divided. All processes make the same calls in the same order.

    `parameters` are those of the model as they stand in this process, `owners` the ranks in `group` of their
    owners, and `mine` the values of those that this process owns, whole and in order.
    """

    @property
    def group(self) -> Group | None:
        """Those among whom all tensors are owned; None for a process that is alone."""
        ...

    def place(self, module: nn.Module) -> None:
        """Bring a module, the same in every process, into its place."""
        ...

    def whole(self, parameters: Sequence[Tensor], owners: Sequence[int]) -> list[Tensor]:
        """Parameters -> `mine`."""
        ...

    def collect(
        self, gradients: Sequence[Tensor], parameters: Sequence[Tensor], owners: Sequence[int]
    ) -> list[Tensor]:
        """Gradients as this process holds them -> `mine`, summed over all processes."""
        ...

    def spread(self, parameters: Sequence[Tensor], owners: Sequence[int], mine: Sequence[Tensor]) -> None:
        """`mine` -> parameters, which are filled."""
        ...

    def to_first(
        self, parameters: Sequence[Tensor], owners: Sequence[int], mine: Sequence[Tensor]
    ) -> list[Tensor]:
        """`mine` -> all of them, on the CPU of the run's first process. The others get none."""
        ...


def assign(sizes: Sequence[int], ranks: int) -> list[int]:
    """The owner of each tensor: the largest first, each to the rank that has least."""
    load, found = [0] * ranks, [0] * len(sizes)
    for index in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        found[index] = min(range(ranks), key=load.__getitem__)
        load[found[index]] += sizes[index]
    return found


def owned_by(owners: Sequence[int], rank: int) -> list[int]:
    """Places of the tensors that a rank owns."""
    return [index for index, owner in enumerate(owners) if owner == rank]


def local(parameter: Tensor) -> Tensor:
    """The part of a parameter, or of its gradient, that this process holds."""
    return parameter.to_local() if isinstance(parameter, DTensor) else parameter


def blocks_of(module: nn.Module) -> nn.ModuleList:
    """A module's blocks. InputError when it has none."""
    blocks = getattr(module, "blocks", None)
    if not isinstance(blocks, nn.ModuleList):
        raise InputError(
            f"{type(module).__name__} has no blocks: it cannot be sharded, recomputed or compiled"
        )
    return blocks


class Replicas:
    """Every process has the whole model. One alone has no group, and nothing to say to others."""

    def __init__(self, group: Group | None = None) -> None:
        self.group = group

    def place(self, module: nn.Module) -> None:
        """All begin with the first one's weights."""
        if self.group is not None:
            for tensor in [*module.parameters(), *module.buffers()]:
                tensor.data.copy_(self.group.broadcast(tensor.detach(), 0, tensor))

    def whole(self, parameters: Sequence[Tensor], owners: Sequence[int]) -> list[Tensor]:
        return [parameters[index] for index in owned_by(owners, self.group.rank if self.group else 0)]

    def collect(
        self, gradients: Sequence[Tensor], parameters: Sequence[Tensor], owners: Sequence[int]
    ) -> list[Tensor]:
        if self.group is None:
            return list(gradients)
        mine: list[Tensor] = []
        for rank in range(self.group.size):
            if those := [gradients[index] for index in owned_by(owners, rank)]:
                flat = torch.cat([gradient.flatten() for gradient in those])
                self.group.reduce(flat, rank)
                mine = _unflatten(flat, those) if rank == self.group.rank else mine
        return mine

    def spread(self, parameters: Sequence[Tensor], owners: Sequence[int], mine: Sequence[Tensor]) -> None:
        if self.group is None:
            for parameter, value in zip(parameters, mine, strict=True):
                parameter.copy_(value)
            return
        for rank in range(self.group.size):
            if those := [parameters[index] for index in owned_by(owners, rank)]:
                dtype = _common(those)
                flat = those[0].new_empty(sum(one.numel() for one in those), dtype=dtype)
                if rank == self.group.rank:
                    flat = torch.cat([value.flatten().to(dtype) for value in mine])
                flat = self.group.broadcast(flat, rank, flat)
                for parameter, value in zip(those, _unflatten(flat, those), strict=True):
                    parameter.copy_(value)

    def to_first(
        self, parameters: Sequence[Tensor], owners: Sequence[int], mine: Sequence[Tensor]
    ) -> list[Tensor]:
        if self.group is None:
            return [one.cpu() for one in mine]
        return _to_first(self.group, parameters, owners, mine)


class Sharded:
    """Every process has a part of each tensor (FSDP2: Zhao et al. 2023); blocks come together one by one.

    A mesh of two axes (HSDP) has copies of the model along its first axis, each with masters of its own, and
    the parts of one along its last.
    """

    def __init__(self, mesh: DeviceMesh) -> None:
        shards = mesh[mesh.mesh_dim_names[-1]] if mesh.mesh_dim_names else mesh
        self.mesh, self.group = mesh, Group(shards.get_group(), shards.get_local_rank(), shards.size())

    def place(self, module: nn.Module) -> None:
        """Shard each of a transformer's blocks, and the rest. InputError for modules without blocks."""
        # Summed in fp32, rounded to the precision of the weights once a micro-batch. On GPUs: not run here.
        policy = MixedPrecisionPolicy(reduce_dtype=torch.float32, cast_forward_inputs=False)
        for part in [*blocks_of(module), module]:
            fully_shard(part, mesh=self.mesh, mp_policy=policy)
            assert isinstance(part, FSDPModule)
            part.set_gradient_divide_factor(1.0)  # sums: the loop divides by the weight of all
            part.set_force_sum_reduction_for_comms(True)

    def whole(self, parameters: Sequence[Tensor], owners: Sequence[int]) -> list[Tensor]:
        return self.collect([local(parameter.detach()) for parameter in parameters], parameters, owners)

    def collect(
        self, gradients: Sequence[Tensor], parameters: Sequence[Tensor], owners: Sequence[int]
    ) -> list[Tensor]:
        """Everyone sends each owner its parts. FSDP2 has summed them already, at the end of backward."""
        by_owner = [owned_by(owners, rank) for rank in range(self.group.size)]
        send = [[gradients[index].flatten() for index in those] for those in by_owner]
        shapes = [parameters[index].shape for index in by_owner[self.group.rank]]
        lengths = [[self._lengths(shape)[rank] for shape in shapes] for rank in range(self.group.size)]
        came = self._exchange(gradients[0].new_empty(0), send, lengths)
        return [torch.cat(parts).view(shape) for *parts, shape in zip(*came, shapes, strict=True)]

    def spread(self, parameters: Sequence[Tensor], owners: Sequence[int], mine: Sequence[Tensor]) -> None:
        """Every owner sends each its parts."""
        dtype = _common(parameters)
        pieces = [value.flatten().to(dtype).split(self._lengths(value.shape)) for value in mine]
        send = [[piece[rank] for piece in pieces] for rank in range(self.group.size)]
        targets = [[local(parameters[i]) for i in owned_by(owners, rank)] for rank in range(len(send))]
        lengths = [[target.numel() for target in those] for those in targets]
        came = self._exchange(local(parameters[0]).new_empty(0, dtype=dtype), send, lengths)
        for values, those in zip(came, targets, strict=True):
            for target, value in zip(those, values, strict=True):
                target.copy_(value.view(target.shape))

    def to_first(
        self, parameters: Sequence[Tensor], owners: Sequence[int], mine: Sequence[Tensor]
    ) -> list[Tensor]:
        another_copy = self.mesh.ndim > 1 and self.mesh.get_local_rank(0) > 0
        return [] if another_copy else _to_first(self.group, parameters, owners, mine)

    def _exchange(
        self, empty: Tensor, send: Sequence[Sequence[Tensor]], lengths: Sequence[Sequence[int]]
    ) -> list[tuple[Tensor, ...]]:
        """Flat pieces for each rank -> those of the given lengths from each, of the precision of `empty`."""
        counts, receive = [sum(map(len, pieces)) for pieces in send], [sum(of) for of in lengths]
        flat = torch.cat([empty, *(piece for pieces in send for piece in pieces)])
        came = self.group.exchange(flat, counts, receive).split(receive)
        return [rows.split(list(of)) for rows, of in zip(came, lengths, strict=True)]

    def _lengths(self, shape: torch.Size) -> list[int]:
        """Numbers of a tensor of that shape in each process: rows in equal parts, the last ones get less."""
        each = -(-shape[0] // self.group.size)
        cuts = [min(rank * each, shape[0]) for rank in range(self.group.size + 1)]
        return [(end - start) * shape[1:].numel() for start, end in pairwise(cuts)]


def _to_first(
    group: Group, parameters: Sequence[Tensor], owners: Sequence[int], mine: Sequence[Tensor]
) -> list[Tensor]:
    """Values of all tensors, fp32, from their owners, one after the other; for the group's rank 0."""
    own, found = iter(mine), []
    for parameter, owner in zip(parameters, owners, strict=True):
        value = next(own) if owner == group.rank else None
        if value is not None and group.rank:
            group.send(value.contiguous(), 0).wait()
        elif group.rank == 0:
            if value is None:
                value = torch.empty(parameter.shape, device=local(parameter).device)
                group.receive(value, owner)
            found.append(value.cpu())
    return found


def _common(tensors: Sequence[Tensor]) -> torch.dtype:
    """The precision that holds them all."""
    return functools.reduce(torch.promote_types, (tensor.dtype for tensor in tensors))


def _unflatten(flat: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """One tensor after the other -> those of the shapes of `like`."""
    parts = flat.split([one.numel() for one in like])
    return [part.view(one.shape) for part, one in zip(parts, like, strict=True)]
