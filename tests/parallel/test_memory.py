"""Memory of each process falls with their number: measured, and as the planner expects."""

import ctypes
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from cogvideox.core.device import Memory
from cogvideox.core.shapes import plan_shape
from cogvideox.generation.plan import make_plan, weights_of
from cogvideox.models.specs import SPECS
from cogvideox.parallel.groups import Group
from cogvideox.parallel.mesh import Way, World
from tests.parallel.processes import together, world
from tools.fit_memory import Case
from tools.measure_parallel import rise

SAMPLE = Case("sample", (5, 30, 46), 8, dtype="float32")
DECODE = Case("decode", (3, 20, 24), dtype="float32")


def measure(case: Case, way: str, folder: Path) -> None:
    ctypes.CDLL(None).mallopt(-3, 65536)  # M_MMAP_THRESHOLD: what is freed leaves the process at once
    size, rank = dist.get_world_size(), dist.get_rank()
    grown = rise(case, world(way) if size > 1 else None)
    (folder / f"{size}-{rank}").write_text(str(grown))


@pytest.mark.skipif(sys.platform != "linux", reason="measured as Linux tells it")
@pytest.mark.parametrize(
    ("case", "way", "bounds"),
    [
        (SAMPLE, "cfg", {2: 0.7}),
        (SAMPLE, "sequence", {2: 0.7, 4: 0.5}),
        (SAMPLE, "ulysses", {4: 0.5}),
        (DECODE, "space", {2: 0.8}),  # in smaller pieces PyTorch convolves in ways that take more
    ],
    ids=["cfg", "sequence", "ulysses", "space"],
)
def test_the_largest_process_needs_less_than_one_alone(tmp_path, case, way, bounds):
    peaks = {}
    for size in (1, *bounds):
        together(size, measure, case, way, tmp_path)
        peaks[size] = max(int((tmp_path / f"{size}-{rank}").read_text()) for rank in range(size))
    assert peaks[1] > 100e6  # more than what the heap may hide
    for size, bound in bounds.items():
        assert peaks[size] < bound * peaks[1], peaks


def plan(way: str | None, size: int = 4):
    spec = SPECS["5b"]
    everyone, half = (Group(None, 0, count) for count in (size, size // 2))
    several = None if way is None else World(everyone, everyone, half, Way.parse(way))
    dtype = torch.float32  # in bf16 kernels serve those whose tokens are not shared
    return make_plan(
        spec,
        plan_shape(spec.transformer.patch, spec.frames, spec.height, spec.width),
        13,
        guided=True,
        dtype=dtype,
        memory=Memory(2**40, 2**40),
        weights=replace(weights_of(spec, dtype), text=0),
        world=several,
    )


def test_the_plan_is_that_of_each_process():
    alone = plan(None)
    assert plan("cfg", 2).sampling < 0.6 * alone.sampling
    assert plan("sequence").sampling < 0.6 * alone.sampling
    assert plan("cfg+sequence").sampling < plan("cfg", 2).sampling
    assert plan("ulysses", 8).sampling < plan("sequence", 8).sampling < plan("sequence").sampling
    assert plan("sequence+time").decoding == alone.decoding
    assert plan("sequence+space").decoding < 0.3 * alone.decoding
    assert plan("cfg+sequence").tokens == alone.tokens  # of the clip
