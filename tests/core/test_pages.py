"""Pages of mapped files: told from other memory, given back without loss."""

import re
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from cogvideox.core.pages import FilePages


def file_memory():
    return 1024 * int(re.search(r"RssFile:\s+(\d+)", Path("/proc/self/status").read_text())[1])


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_released_pages_leave_memory_and_come_back(tmp_path):
    values = torch.arange(4_000_000, dtype=torch.float32)
    save_file({"a": values, "b": values + 1}, tmp_path / "x.safetensors")
    with safe_open(tmp_path / "x.safetensors", "pt") as file:
        a, b = file.get_tensor("a"), file.get_tensor("b")
    pages, total = FilePages(), a.sum() + b.sum()
    assert pages.hold(a)
    assert pages.hold(b[5:7])
    assert not pages.hold(values)
    before = file_memory()
    pages.release(a)
    assert before - file_memory() > 0.9 * a.nbytes
    assert torch.equal(a, values)
    pages.release(values)  # not a file's: stays
    assert a.sum() + b.sum() == total
    assert values[-1] == 3_999_999


def test_memory_that_is_no_file_s_is_left_alone():
    x = torch.ones(3_000_000)
    pages = FilePages()
    assert not pages.hold(x)
    assert not pages.hold(torch.empty(3, device="meta"))
    pages.release(x)
    assert x.sum() == 3_000_000
