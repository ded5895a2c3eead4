"""What processes say to each other, and what happens when one of them is gone."""

import os
import time
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

from cogvideox.core.errors import InputError, PeerError
from cogvideox.parallel.groups import Group
from cogvideox.parallel.mesh import Way, connect
from tests.parallel.processes import together, world

COUNTS = (2, 0, 3)


def own(rank: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return (10 * rank + torch.arange(COUNTS[rank], dtype=dtype))[:, None].expand(-1, 2)


def talk() -> None:
    group = Group.of(range(3))
    everything = torch.cat([own(rank) for rank in range(3)])
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        gathered = group.gather(own(group.rank, dtype), COUNTS)
        assert torch.equal(gathered, everything.to(dtype))
    # Everyone sends rank r its number of rows times r + 1.
    sent = torch.cat([own(group.rank) * (rank + 1) for rank in range(3)])
    came = group.exchange(sent, [COUNTS[group.rank]] * 3, COUNTS)
    assert torch.equal(came, everything * (group.rank + 1))
    like = torch.empty(0, 0)
    for source in (0, 2):
        value = own(source)
        assert torch.equal(group.broadcast(value if group.rank == source else None, source, like), value)
    assert group.any(group.rank == 1)
    assert not group.any(False)


def test_rows_arrive_in_order_from_ranks_with_more_or_less_or_none():
    together(3, talk)


def lose(silent: bool) -> None:
    group = Group.of(range(3), timedelta(seconds=1))
    began = time.monotonic()
    if group.rank == 1:
        if silent:
            time.sleep(2.5)
        os._exit(0)
    with pytest.raises(PeerError, match="ended or does not answer"):
        group.gather(torch.ones(1), [1, 1, 1])
    assert time.monotonic() - began < 3
    os._exit(0)


@pytest.mark.parametrize("silent", [False, True], ids=["ended", "stands still"])
def test_nobody_waits_long_for_one_that_is_lost(silent):
    together(3, lose, silent)


def fail() -> None:
    group = Group.of(range(3))
    if dist.get_rank() == 1:
        raise InputError("rank 1 cannot go on")
    group.any(True)


def test_what_one_raises_ends_all():
    began = time.monotonic()
    with pytest.raises(Exception, match=r"rank 1 cannot go on|ended or does not answer"):
        together(3, fail)
    assert time.monotonic() - began < 30


# --------------------------------------------------------------------------------------------------- meshes


@pytest.mark.parametrize("text", ["tensor", "cfg+", "sequence+ulysses", "space+time", ""])
def test_unknown_and_contradictory_ways_are_refused(text):
    with pytest.raises(InputError, match=r"unknown way|choose"):
        Way.parse(text)


def test_alone_only_auto_is_possible():
    assert connect(None) is None
    assert connect("auto") is None
    with pytest.raises(InputError, match="needs several processes"):
        connect("cfg")


def divide(expected: dict[tuple[str, bool], str]) -> None:
    for (way, guided), outcome in expected.items():
        here = world(way)
        try:
            mesh = here.mesh(guided)
            here.check(guided, heads=6, rows=4)
            found = f"{mesh.branches} x {mesh.sequence.size}{' ulysses' * mesh.ulysses}"
        except InputError as error:
            found = str(error)
        assert outcome in found, (way, guided, found)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (2, {("auto", True): "2 x 1", ("auto", False): "1 x 2", ("ulysses", True): "1 x 2 ulysses"}),
        (
            3,
            {
                ("auto", True): "1 x 3",
                ("cfg", True): "cfg needs an even number of processes, not 3",
                ("space", True): "1 x 3",
                ("ulysses", False): "1 x 3 ulysses",
            },
        ),
        (
            4,
            {
                ("auto", True): "2 x 2",
                ("auto", False): "1 x 4",
                ("cfg", True): "use cfg+sequence",
                ("cfg+ulysses", True): "2 x 2 ulysses",
                ("cfg+sequence", False): "has none",
                ("sequence", True): "1 x 4",
                ("ulysses", True): "cannot divide 6 heads among 4 processes; sequence can",
            },
        ),
        (5, {("space", True): "cannot divide 4 rows of latents among 5 processes; time can"}),
    ],
)
def test_processes_are_divided_as_asked_or_as_their_number_allows(size, expected):
    together(size, divide, expected)
