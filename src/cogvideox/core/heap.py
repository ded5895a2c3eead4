"""The C allocator of a program; imports nothing heavy, for it is called first."""

from __future__ import annotations

import ctypes
import ctypes.util
from pathlib import Path

ALLOCATORS = ("tcmalloc", "jemalloc", "mimalloc")

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8


def one_heap() -> None:
    """Let all threads share one heap where the C library is glibc; for programs, not for their libraries.

    With a heap per thread, decoding keeps up to a fifth more memory, depending on which thread came first.
    """
    _mallopt(M_ARENA_MAX, 1)


def keep_freed_memory() -> None:
    """Let glibc keep what is freed instead of giving it back to the system, but for blocks above 32 MiB.

    For programs that free and take the same memory in every step: each page that comes back is cleared first.
    """
    _mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
    _mallopt(M_MMAP_THRESHOLD, 32 * 2**20)


def _mallopt(option: int, value: int) -> None:
    try:
        ctypes.CDLL(None).mallopt(option, value)
    except (AttributeError, OSError, TypeError):
        pass  # another C library, another allocator


def allocator(maps: str | None = None) -> str:
    """The library behind malloc in this process, by what is mapped (of Linux; `maps` for tests)."""
    if maps is None:
        try:
            maps = Path("/proc/self/maps").read_text(encoding="utf-8")
        except OSError:
            return "the system's"
    files = {Path(line.split(maxsplit=5)[5]).name for line in maps.splitlines() if "/" in line}
    known = (name for name in ALLOCATORS if any(name in file for file in files))
    return next(known, "glibc" if "libc.so.6" in files else "the system's")


def faster_allocator() -> str:
    """One line on what to do for a faster one; empty where there is nothing to do.

    glibc returns large blocks to the system and gets them back zeroed, page by page.
    """
    if allocator() != "glibc":
        return ""
    found = ctypes.util.find_library("tcmalloc_minimal")
    install = "" if found else "install libtcmalloc-minimal4 or gperftools, then "
    return f"{install}set LD_PRELOAD={found or 'libtcmalloc_minimal.so.4'} for tcmalloc"
