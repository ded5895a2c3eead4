"""Pages of mapped files: memory that the system can take back at any time; how to give it back early."""

from __future__ import annotations

import ctypes
import mmap
from bisect import bisect_right
from pathlib import Path

from torch import Tensor


class FilePages:
    """The address ranges that map files at the moment it is made (Linux; elsewhere it knows of none)."""

    def __init__(self) -> None:
        try:
            lines = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
        except OSError:
            lines = []
        ranges = []
        for line in lines:  # begin-end permissions offset device inode path
            span, _, _, _, inode, *_ = line.split(maxsplit=5)
            if inode != "0":
                begin, end = span.split("-")
                ranges.append((int(begin, 16), int(end, 16)))
        self._ranges = sorted(ranges)

    def hold(self, tensor: Tensor) -> bool:
        """Whether all of a tensor is pages of one file."""
        if tensor.device.type != "cpu":
            return False
        begin = tensor.data_ptr()
        index = bisect_right(self._ranges, (begin, 1 << 64)) - 1
        return index >= 0 and begin + tensor.nbytes <= self._ranges[index][1]

    def release(self, tensor: Tensor) -> None:
        """Let a tensor's pages leave this process; who reads it again gets them from the file.

        Nothing may have been written into it: that would be lost. Other memory than a file's stays as it is.
        """
        if not self.hold(tensor):
            return
        begin = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE  # whole pages only: others have
        end = (tensor.data_ptr() + tensor.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE  # neighbours' numbers
        if begin < end:
            ctypes.CDLL(None).madvise(
                ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), mmap.MADV_DONTNEED
            )
