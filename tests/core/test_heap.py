"""Which allocator serves this process, and what to do about it."""

import ctypes.util
import os
import subprocess
import sys

import pytest

from cogvideox.core import heap
from cogvideox.core.heap import allocator, faster_allocator

MAPS = """\
55d0c0a00000-55d0c0a01000 r-xp 00000000 08:01 1052 /usr/bin/python3.11
7f0000000000-7f0000001000 rw-p 00000000 00:00 0 
7f1000000000-7f1000001000 r-xp 00000000 08:01 1053 /usr/lib/x86_64-linux-gnu/{}
7ffc00000000-7ffc00001000 r-xp 00000000 00:00 0 [vdso]
"""


@pytest.mark.parametrize(
    ("mapped", "name"),
    [
        ("libc.so.6", "glibc"),
        ("libtcmalloc_minimal.so.4.5.10", "tcmalloc"),
        ("libjemalloc.so.2", "jemalloc"),
        ("ld-musl-x86_64.so.1", "the system's"),
    ],
)
def test_allocators_are_told_apart(mapped, name):
    assert allocator(MAPS.format(mapped)) == name
    both = MAPS.format(mapped) + MAPS.format("libc.so.6").replace("7f10", "7f20")
    assert allocator(both) == ("glibc" if name == "the system's" else name)


@pytest.mark.parametrize("found", [None, "libtcmalloc_minimal.so.9"])
def test_advice_is_for_glibc_only(monkeypatch, found):
    monkeypatch.setattr(ctypes.util, "find_library", lambda name: found)
    monkeypatch.setattr(heap, "allocator", lambda: "jemalloc")
    assert faster_allocator() == ""
    monkeypatch.setattr(heap, "allocator", lambda: "glibc")
    advice = faster_allocator()
    assert f"LD_PRELOAD={found or 'libtcmalloc_minimal.so.4'}" in advice
    assert ("install" in advice) == (found is None)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_advice_works():
    library = ctypes.util.find_library("tcmalloc_minimal")
    if library is None:
        pytest.skip("no tcmalloc here")
    script = "from cogvideox.core.heap import allocator; print(allocator())"
    environment = os.environ | {"LD_PRELOAD": library}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == "tcmalloc"
