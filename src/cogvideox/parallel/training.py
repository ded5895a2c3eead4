"""Several processes train one model, which stays single-device code: all is applied to it from outside.

Each step's micro-batches are dealt to the processes, or to groups of them that share the tokens of each. The
loss of a step is the sum of all losses over the sum of all weights, so that unequal work weighs right.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, Self, TypeVar, cast

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.utils.checkpoint import checkpoint

from cogvideox.core.errors import InputError, PeerError, nearest
from cogvideox.core.launch import processes
from cogvideox.models.transformer.model import Transformer
from cogvideox.parallel.groups import TIMEOUT, Group
from cogvideox.parallel.mesh import Mesh, join
from cogvideox.parallel.sequence import share_tokens
from cogvideox.parallel.watchdog import Watchdog
from cogvideox.parallel.weights import Replicas, Sharded, Weights, blocks_of

T = TypeVar("T")
_FLAGS, _NUMBERS = ("replicas", "recompute", "compile"), ("sharded", "sequence", "ulysses")


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """How a model is trained by several processes, and how its blocks run."""

    sharded: int | None = None
    """Processes that hold the model once (0: all of them); None: each holds all of it."""
    sequence: int = 1
    """Processes that share the tokens of each micro-batch."""
    ulysses: bool = False
    """They exchange heads for rows, instead of gathering keys."""
    recompute: bool = False
    """Activations inside of blocks are computed again in the backward pass, not kept."""
    compile: bool = False
    """Blocks are compiled, once for each of the first eight shapes of packs; others run as they are."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """From words joined by "+", such as "sharded=8+sequence=2+recompute": "replicas" (the default),
        "sharded" (by all processes) or "sharded=N", "sequence=N" or "ulysses=N", "recompute", "compile".
        InputError for others and for contradictions.
        """
        given: dict[str, int] = {}
        for word in text.split("+"):
            name, equals, number = word.partition("=")
            if name not in _FLAGS + _NUMBERS:
                raise InputError(f"unknown way to be parallel {word!r}{nearest(name, _FLAGS + _NUMBERS)}")
            if equals and (name in _FLAGS or not number.isdecimal() or int(number) < 1):
                raise InputError(f"parallel {word!r}: {name} takes {'no' if name in _FLAGS else 'a'} number")
            if name in ("sequence", "ulysses") and not equals:
                raise InputError(f"parallel {word!r}: say among how many processes, such as {name}=2")
            given[name] = int(number or 0)
        for rivals in ({"replicas", "sharded"}, {"sequence", "ulysses"}):
            if rivals <= given.keys():
                raise InputError(f"parallel {text!r}: choose {' or '.join(sorted(rivals))}")
        return cls(
            sharded=given.get("sharded"),
            sequence=given.get("sequence", given.get("ulysses", 1)),
            ulysses="ulysses" in given,
            recompute="recompute" in given,
            compile="compile" in given,
        )


@dataclass(frozen=True)
class Ranks:
    """The processes of a training, as one of them sees them; by default it is alone. All of them make the
    same calls in the same order.
    """

    scheme: Scheme = Scheme()
    everyone: Group | None = None
    tokens: Mesh | None = None
    """Those that share the tokens of the same micro-batches."""
    shards: DeviceMesh | None = None
    """Copies of the model x its shards."""
    watchdog: Watchdog | None = None

    @classmethod
    def of(cls, scheme: Scheme, timeout: timedelta = TIMEOUT, device: str = "cpu") -> Self:
        """Of all processes that torch knows of. InputError when the scheme does not divide them."""
        size, each = dist.get_world_size(), scheme.sequence
        if size % each:
            raise InputError(f"{size} processes cannot share tokens in groups of {each}")
        if size % (scheme.sharded or 1):
            raise InputError(f"{size} processes cannot hold shards in groups of {scheme.sharded}")
        everyone, tokens, shards = Group.of(range(size), timeout), None, None
        if each > 1:
            groups = [Group.of(range(first, first + each), timeout) for first in range(0, size, each)]
            mine = next(group for group in groups if group.rank >= 0)
            tokens = Mesh(mine, mine, scheme.ulysses)
        if scheme.sharded is not None:
            each = scheme.sharded or size
            shards = init_device_mesh(device, (size // each, each), mesh_dim_names=("copies", "shards"))
            shards = shards if each < size else shards["shards"]
        return cls(
            scheme, everyone, tokens, shards, Watchdog(everyone.rank, size, timeout.total_seconds() / 2)
        )

    @property
    def first(self) -> bool:
        """Whether this process talks and writes."""
        return self.everyone is None or self.everyone.rank == 0

    @property
    def shares(self) -> int:
        """How many processes work on the same micro-batches; each counts for its part of their losses."""
        return self.scheme.sequence if self.everyone else 1

    @property
    def teams(self) -> int:
        """Among how many groups of processes micro-batches are dealt."""
        return self.everyone.size // self.shares if self.everyone else 1

    @property
    def team(self) -> int:
        """That of this process, from 0."""
        return self.everyone.rank // self.shares if self.everyone else 0

    def place(self, module: nn.Module) -> Weights:
        """Apply the scheme to a module, which is the same in every process. Changes it in place.

        InputError when the module has no blocks or no tokens, and the scheme is about them.
        """
        if self.tokens is not None:
            if not isinstance(module, Transformer):
                raise InputError(
                    f"only a transformer's tokens can be shared, not a {type(module).__name__}'s"
                )
            heads, size = module.spec.heads, self.tokens.sequence.size
            if self.scheme.ulysses and heads % size:
                raise InputError(f"ulysses cannot divide {heads} heads among {size} processes; sequence can")
            share_tokens(module, self.tokens)
        if self.scheme.compile or self.scheme.recompute:
            for block in blocks_of(module):
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


def connect(text: str | None) -> Ranks:
    """The processes of this run, to be used as `Scheme.parse` reads it. InputError for an unknown scheme, or
    for a single process that is asked to share.
    """
    scheme = Scheme.parse(text or "replicas")
    if not dist.is_initialized() and processes() > 1:
        join()
    if dist.is_initialized() and dist.get_world_size() > 1:
        return Ranks.of(scheme)
    if scheme != replace(Scheme(), recompute=scheme.recompute, compile=scheme.compile):
        raise InputError(f"parallel {text!r} needs several processes: start them with torchrun")
    return Ranks(scheme)


def change_block(block: nn.Module, *, recompute: bool, compiled: bool) -> None:
    """Let a block compute its activations again in the backward pass, or compile it. Changes it in place."""
    forward: Callable[..., Any] = block.forward
    if recompute:
        forward = functools.partial(checkpoint, forward, use_reentrant=False)
    if compiled:
        forward = torch.compile(forward, dynamic=False)  # symbolic shapes of packs take minutes
    block.forward = forward
