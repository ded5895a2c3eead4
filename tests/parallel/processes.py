"""Real processes that talk through gloo, forked from a server that has imported everything once."""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing import start_processes

from cogvideox.parallel.mesh import Way, World, join

PATIENCE = timedelta(seconds=60)
multiprocessing.set_forkserver_preload(["tests.parallel.processes", "tests.tiny", "cogvideox.parallel.vae"])


def together(size: int, work: Callable[..., None], *arguments: Any) -> None:
    """Run `work` in `size` processes. What one of them raises ends all and is raised here."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    start_processes(_enter, (size, port, work, arguments), nprocs=size, start_method="forkserver")


def _enter(rank: int, size: int, port: int, work: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size)}
    torch.set_num_threads(1)
    join(PATIENCE)
    work(*arguments)
    dist.barrier()
    dist.destroy_process_group()


def relative_error(ours: Tensor, reference: Tensor) -> float:
    """Of the whole tensor. `tests.models.oracle` has it too, but takes long to import."""
    assert ours.shape == reference.shape
    return ((ours.double() - reference.double()).norm() / reference.double().norm()).item()


def world(parallel: str = "auto") -> World:
    """All processes that run together, in the way that `--parallel` would say."""
    return World.of(Way.parse(parallel), range(dist.get_world_size()), PATIENCE)
