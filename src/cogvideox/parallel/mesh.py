"""The processes that torchrun started, and how the work on one clip is divided among them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal, Self

import torch.distributed as dist

from cogvideox.core.device import claim
from cogvideox.core.errors import InputError, nearest
from cogvideox.core.launch import processes, rank_here
from cogvideox.parallel.groups import TIMEOUT, Group, answering

Attention = Literal["sequence", "ulysses"]
Cut = Literal["time", "space"]
_WORDS = ("auto", "cfg", "sequence", "ulysses", "time", "space")


@dataclass(frozen=True)
class Way:
    """What was asked for, in words joined by "+"; what was not is decided by the number of processes."""

    cfg: bool = False
    """The branches of guidance run in two halves of the processes."""
    attention: Attention | None = None
    """Tokens are shared: keys and values are gathered ("sequence"), or heads exchanged for rows ("ulysses").
    """
    cut: Cut | None = None
    """The VAE's work is divided in chunks of time, or in rows of the frame."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """From words such as "cfg+sequence". InputError for unknown words or two that exclude each other."""
        words = text.split("+")
        for word in words:
            if word not in _WORDS:
                raise InputError(f"unknown way to be parallel {word!r}{nearest(word, _WORDS)}")
        for rivals in (("sequence", "ulysses"), ("time", "space")):
            if set(rivals) <= set(words):
                raise InputError(f"parallel {text!r}: choose {' or '.join(rivals)}")
        attention: Attention | None = "ulysses" if "ulysses" in words else None
        cut: Cut | None = "space" if "space" in words else "time" if "time" in words else None
        return cls("cfg" in words, attention or ("sequence" if "sequence" in words else None), cut)


@dataclass(frozen=True)
class Mesh:
    """The processes that sample one clip, `branches` x `sequence.size` of them, as one of them sees them."""

    everyone: Group
    sequence: Group
    """Those that work on the same branch of guidance: each holds a share of its tokens."""
    ulysses: bool = False

    @property
    def branches(self) -> int:
        return self.everyone.size // self.sequence.size

    @property
    def branch(self) -> int:
        """The branch of guidance that this process works on."""
        return self.everyone.rank // self.sequence.size


@dataclass(frozen=True)
class World:
    """All processes of a run, as one of them sees them. Every one makes the same calls in the same order."""

    everyone: Group
    back: Group
    """Everyone once more: what goes from the last rank back to the first never waits behind other traffic."""
    half: Group | None
    """This process's half of them; None for odd numbers, which have none."""
    way: Way

    @classmethod
    def of(cls, way: Way, members: Sequence[int], timeout: timedelta = TIMEOUT) -> Self:
        """Of the processes with these ranks; all that torch knows of must call this."""
        half = len(members) // 2
        parts = [members, members] + ([] if len(members) % 2 else [members[:half], members[half:]])
        everyone, back, *halves = (Group.of(part, timeout) for part in parts)
        return cls(everyone, back, next((group for group in halves if group.rank >= 0), None), way)

    @property
    def first(self) -> bool:
        """The process that talks and writes."""
        return self.everyone.rank == 0

    @property
    def slabs(self) -> int:
        """Pieces that the VAE's frames are cut into; 1: chunks of time are dealt instead."""
        return self.everyone.size if self.way.cut == "space" else 1

    def mesh(self, guided: bool) -> Mesh:
        """For a clip with or without guidance. InputError when what was asked for does not fit it."""
        way, size = self.way, self.everyone.size
        cfg = way.cfg or (guided and way.attention is None and self.half is not None)
        if cfg and not guided:
            raise InputError("cfg divides the branches of guidance, and this clip has none: use sequence")
        if cfg and self.half is None:
            raise InputError(f"cfg needs an even number of processes, not {size}: use sequence")
        if way.cfg and way.attention is None and size > 2:
            raise InputError(f"cfg alone divides among 2 processes, not {size}: use cfg+sequence")
        sequence = self.half if cfg and self.half is not None else self.everyone
        return Mesh(self.everyone, sequence, way.attention == "ulysses")

    def check(self, guided: bool, heads: int, rows: int) -> None:
        """InputError when a model of so many heads or a clip of so many rows of latents cannot be divided."""
        mesh = self.mesh(guided)
        if mesh.ulysses and heads % mesh.sequence.size:
            raise InputError(
                f"ulysses cannot divide {heads} heads among {mesh.sequence.size} processes; sequence can"
            )
        if self.slabs > rows:
            raise InputError(
                f"space cannot divide {rows} rows of latents among {self.slabs} processes; time can"
            )

    def facts(self, guided: bool) -> dict[str, int | str]:
        """How the work is divided, for records."""
        mesh = self.mesh(guided)
        return {
            "processes": self.everyone.size,
            "branches": mesh.branches,
            "attention": self.way.attention or "sequence",
            "vae": self.way.cut or "time",
        }

    def describe(self, guided: bool) -> str:
        """How the work is divided, for people."""
        mesh = self.mesh(guided)
        shares = f"{mesh.sequence.size} shares of the tokens"
        exchange = "heads exchanged" if mesh.ulysses else "keys gathered"
        ways = ["a branch of guidance for each half"] if mesh.branches > 1 else []
        ways += [f"{shares}, {exchange}"] if mesh.sequence.size > 1 else []
        ways += ["the VAE's frames cut in rows" if self.slabs > 1 else "the VAE's chunks dealt"]
        return f"{self.everyone.size} processes: {'; '.join(ways)}"


def join(timeout: timedelta = TIMEOUT) -> dist.Store:
    """Meet the other processes that torchrun started. Returns what all of them can read and write."""
    claim(rank_here())
    with answering():
        store, rank, size = next(dist.rendezvous("env://", timeout=timeout))
        dist.init_process_group(store=store, rank=rank, world_size=size, timeout=timeout)
    return store


def connect(parallel: str | None) -> World | None:
    """The processes of this run, to be used as `parallel` says; None for one that is alone.

    InputError for an unknown way, or for a single process that is asked for more than "auto".
    """
    if parallel is None:
        return None
    way = Way.parse(parallel)
    if not dist.is_initialized() and processes() > 1:
        join()
    size = dist.get_world_size() if dist.is_initialized() else 1
    if size == 1 and way != Way():
        raise InputError(f"parallel {parallel!r} needs several processes: start them with torchrun")
    return World.of(way, range(size)) if size > 1 else None
