"""Limits of control groups, on files as Linux shows them."""

import pytest
import torch

from cogvideox.core import device
from cogvideox.core.cgroup import group_limits

GIB = 2**30


def write(root, files):
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


def group(folder, version, limit, used, active=0, inactive=0):
    """Files of one group."""
    names = ("memory.max", "memory.current") if version == 2 else LEGACY
    prefix = "" if version == 2 else "total_"
    stat = f"anon {used}\n{prefix}active_file {active}\n{prefix}inactive_file {inactive}\nshmem 5\n"
    contents = (f"{limit}\n", f"{used}\n", stat)
    return {f"{folder}/{name}": text for name, text in zip((*names, "memory.stat"), contents, strict=True)}


LEGACY = ("memory.limit_in_bytes", "memory.usage_in_bytes")
UNLIMITED = 9223372036854771712  # how version 1 says it


def test_without_groups_nothing_is_limited(tmp_path):
    assert list(group_limits(tmp_path)) == []
    write(tmp_path, {"proc/self/cgroup": "0::/user.slice\n"})  # the root group of a host has no limit
    assert list(group_limits(tmp_path)) == []


def test_version_2_counts_all_groups_around(tmp_path):
    top = "sys/fs/cgroup"
    write(tmp_path, {"proc/self/cgroup": "0::/job.slice/step:1\n"})
    write(tmp_path, group(f"{top}/job.slice/step:1", 2, "max", 2 * GIB))
    write(tmp_path, group(f"{top}/job.slice", 2, 8 * GIB, 5 * GIB, active=GIB, inactive=2 * GIB))
    assert list(group_limits(tmp_path)) == [(8 * GIB, 2 * GIB)]


def test_version_2_in_a_container_is_the_top(tmp_path):
    write(tmp_path, {"proc/self/cgroup": "0::/\n"} | group("sys/fs/cgroup", 2, 4 * GIB, GIB))
    assert list(group_limits(tmp_path)) == [(4 * GIB, GIB)]


@pytest.mark.parametrize("seen", ["sys/fs/cgroup/memory/docker/af12", "sys/fs/cgroup/memory"])
def test_version_1_on_the_host_and_in_a_container(tmp_path, seen):
    lines = "11:cpu,cpuacct:/docker/af12\n4:hugetlb,memory:/docker/af12\n0::/\n"
    write(tmp_path, {"proc/self/cgroup": lines} | group(seen, 1, 6 * GIB, 5 * GIB, inactive=GIB))
    assert list(group_limits(tmp_path)) == [(6 * GIB, 4 * GIB)]


def test_the_narrowest_limit_is_what_can_be_had(tmp_path, monkeypatch):
    cpu = torch.device("cpu")
    monkeypatch.setattr(device, "_system_memory", lambda: device.Memory(64 * GIB, 16 * GIB))
    for groups, expected in (
        ([], (64 * GIB, 16 * GIB)),
        ([(UNLIMITED, 40 * GIB)], (64 * GIB, 16 * GIB)),
        ([(UNLIMITED, 40 * GIB), (8 * GIB, 2 * GIB)], (8 * GIB, 6 * GIB)),
        ([(32 * GIB, GIB), (8 * GIB, 9 * GIB)], (8 * GIB, 0)),
    ):
        monkeypatch.setattr(device, "group_limits", lambda groups=groups: iter(groups))
        assert device.memory(cpu) == device.Memory(*expected)
