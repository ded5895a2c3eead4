"""The C allocator of a program; imports nothing heavy, for it is called first."""

from __future__ import annotations

import ctypes

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
