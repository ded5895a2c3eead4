"""Several processes train one model, which stays single-device code: all is applied to it from outside.

Each step's micro-batches are dealt to the processes, or to groups of them that share the tokens of each. The
loss of a step is the sum of all losses over the sum of all weights, so that unequal work weighs right.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from math import gcd
from typing import Any, Self, TypeVar, cast

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.utils.checkpoint import checkpoint

from cogvideox.core.errors import InputError, PeerError
from cogvideox.core.launch import processes
from cogvideox.models.transformer.model import Transformer
from cogvideox.parallel.groups import TIMEOUT, Group
from cogvideox.parallel.mesh import Mesh, join
from cogvideox.parallel.sequence import share_tokens
from cogvideox.parallel.watchdog import Watchdog
from cogvideox.parallel.weights import Replicas, Sharded, Weights, blocks_of

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """How several processes train a model, and how its blocks run. Where the numbers do not divide the
    processes that there are, the largest that do take their places.
    """

    shards: int = 1
    """Processes that hold the model once; 1: each holds all of it."""
    sequences: tuple[int, ...] = (1,)
    """How many may share the tokens of each micro-batch, at one time or another."""
    ulysses: bool = False
    """They exchange heads for rows, instead of gathering keys."""
    recompute: bool = False
    """Activations inside of blocks are computed again in the backward pass, not kept."""
    clips: bool = False
    """Micro-batches are clips, which their task cuts along time where processes share them."""
    compile: bool = False
    """Blocks are compiled, once for each of the first eight shapes of packs; others run as they are."""


def fit(wanted: int, processes: int) -> int:
    """The largest number up to `wanted` that divides both it and the number of processes."""
    return gcd(wanted, processes)


@dataclass
class Team:
    """The processes that share the tokens of each micro-batch; they may be others in each stage of a run."""

    meshes: Mapping[int, Mesh] = field(default_factory=dict)
    """By how many they are, if more than one."""
    size: int = 1
    """How many they are now."""

    def mesh(self) -> Mesh | None:
        """Those of now; None for one alone."""
        return self.meshes.get(self.size)


@dataclass(frozen=True)
class Ranks:
    """The processes of a training, as one of them sees them; by default it is alone. All of them make the
    same calls in the same order.
    """

    scheme: Scheme = Scheme()
    everyone: Group | None = None
    team: Team = field(default_factory=Team)
    shards: DeviceMesh | None = None
    """Copies of the model x its shards."""
    watchdog: Watchdog | None = None

    @classmethod
    def of(cls, scheme: Scheme, timeout: timedelta = TIMEOUT, device: str = "cpu") -> Self:
        """Of all processes that torch knows of."""
        size, meshes, shards = dist.get_world_size(), {}, None
        everyone = Group.of(range(size), timeout)
        for each in sorted({fit(wanted, size) for wanted in scheme.sequences} - {1}):
            groups = [Group.of(range(first, first + each), timeout) for first in range(0, size, each)]
            mine = next(group for group in groups if group.rank >= 0)
            meshes[each] = Mesh(mine, mine, scheme.ulysses)
        if (each := fit(scheme.shards, size)) > 1:
            shards = init_device_mesh(device, (size // each, each), mesh_dim_names=("copies", "shards"))
            shards = shards if each < size else shards["shards"]
        watchdog = Watchdog(everyone.rank, size, timeout.total_seconds() / 2)
        return cls(scheme, everyone, Team(meshes), shards, watchdog)

    def replicas(self) -> Ranks:
        """The same processes, each with a whole model and with micro-batches of its own."""
        return replace(self, scheme=Scheme(), team=Team(), shards=None)

    @property
    def first(self) -> bool:
        """Whether this process talks and writes."""
        return self.everyone is None or self.everyone.rank == 0

    @property
    def rank(self) -> int:
        """Of this process, from 0."""
        return self.everyone.rank if self.everyone else 0

    @property
    def size(self) -> int:
        """How many processes there are."""
        return self.everyone.size if self.everyone else 1

    @property
    def shares(self) -> int:
        """How many processes work on the same micro-batches now; each counts for its part of their losses."""
        return self.team.size

    @property
    def partners(self) -> Group | None:
        """The processes that work on the same micro-batches now; None for one alone."""
        mesh = self.team.mesh()
        return None if mesh is None else mesh.sequence

    def share(self, wanted: int) -> None:
        """Let so many processes, one of the scheme's `sequences`, share the tokens of micro-batches from now
        on. Those whose rank over their number is the same share them.
        """
        self.team.size = fit(wanted, self.size)
        assert self.team.size == 1 or self.team.mesh() is not None

    def place(self, module: nn.Module, within: nn.Module | None = None) -> Weights:
        """Apply the scheme to a module, which is the same in every process, and to the model that it is a
        part of, if it is not the whole. Changes both in place.

        InputError when they have no blocks or no tokens, and the scheme is about them.
        """
        whole = within or module
        if self.team.meshes and not self.scheme.clips:
            if not isinstance(whole, Transformer):
                raise InputError(f"only a transformer's tokens can be shared, not a {type(whole).__name__}'s")
            heads, size = whole.spec.heads, max(self.team.meshes)
            if self.scheme.ulysses and heads % size:
                raise InputError(f"ulysses cannot divide {heads} heads among {size} processes")
            share_tokens(whole, self.team.mesh)
        if self.scheme.compile or self.scheme.recompute:
            for block in blocks_of(whole):
                change_block(block, recompute=self.scheme.recompute, compiled=self.scheme.compile)
        weights = Replicas(self.everyone) if self.shards is None else Sharded(self.shards)
        weights.place(module)
        return weights

    def even(self, batch: Sequence[T]) -> list[tuple[T, bool]]:
        """A process's micro-batches of a step, and whether each counts.

        Shards come together in all processes at once, so that all must run as many micro-batches: who has
        fewer runs some again, or another's if it has none.
        """
        own = [(micro, True) for micro in batch]
        if self.everyone is None or self.shards is None:
            return own
        most, fewest = self.everyone.most([len(batch), -len(batch)])
        spare = list(batch[:1])
        if most and fewest == 0:
            spare = next(some for some in self.everyone.objects(spare) if some)
        return own + [(micro, False) for micro in spare] * (most - len(own))

    def sum(self, numbers: Sequence[float]) -> list[float]:
        """The sum of each number over all processes."""
        return list(numbers) if self.everyone is None else self.everyone.sum(numbers)

    def any(self, *flags: bool) -> list[bool]:
        """Of each flag, whether any process says so."""
        return list(flags) if self.everyone is None else [*map(bool, self.everyone.most([*map(int, flags)]))]

    def lead(self, do: Callable[[], T]) -> T:
        """What `do` gives in the first process, which alone does it, in all of them; they also raise what it
        raises.
        """
        if self.everyone is None:
            return do()
        value: T | None = None
        fault: Exception | None = None
        if self.first:
            try:
                value = do()
            except Exception as error:
                fault = error
        value, fault = self.everyone.objects((value, fault))[0]
        if fault is not None:
            raise fault
        return cast(T, value)

    def objects(self, value: T) -> list[T]:
        """What each process says."""
        return [value] if self.everyone is None else self.everyone.objects(value)

    @contextlib.contextmanager
    def at(self, place: str) -> Iterator[None]:
        """Tells where this process was when another one was lost, or when it stands still for long."""
        if self.everyone is None or self.watchdog is None:
            yield
            return
        with self.watchdog.at(place):
            try:
                yield
            except PeerError as error:
                raise PeerError(f"rank {self.everyone.rank}, {place}: {error}") from error


ALONE = Ranks()
"""A single process."""


def connect(scheme: Scheme, device: str = "cpu") -> Ranks:
    """The processes of this run, which may be a single one; they compute on devices of that kind."""
    if not dist.is_initialized() and processes() > 1:
        join()
    several = dist.is_initialized() and dist.get_world_size() > 1
    return Ranks.of(scheme, device=device) if several else Ranks(scheme)


def change_block(block: nn.Module, *, recompute: bool, compiled: bool) -> None:
    """Let a block compute its activations again in the backward pass, or compile it. Changes it in place."""
    forward: Callable[..., Any] = block.forward
    if recompute:
        forward = functools.partial(checkpoint, forward, use_reentrant=False)
    if compiled:
        forward = torch.compile(forward, dynamic=False)  # symbolic shapes of packs take minutes
    block.forward = forward
