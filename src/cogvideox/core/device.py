"""Devices, precisions and memory: the only file that may say "cuda"."""

from __future__ import annotations

import functools
import os
import platform
import resource
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from cogvideox.core.cgroup import group_limits
from cogvideox.core.errors import InputError, nearest
from cogvideox.core.launch import processes_here

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
_SHORT = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}


def pick_device(name: str | torch.device | None = None) -> torch.device:
    """The named device, or the best one there is: CUDA, Apple's MPS, else the CPU."""
    if name is None:
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"unknown device {name!r}{nearest(str(name), ['cpu', 'cuda', 'mps'])}") from None
    present = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not present.get(device.type, False):
        raise InputError(f"device {name!r} is not present here; available: {pick_device()}")
    return device


def claim(index: int) -> None:
    """Make the CUDA device of that index the one that this process means, if there are any."""
    if torch.cuda.is_available():  # not run here: no GPU at hand
        torch.cuda.set_device(index)


def native_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies bf16 in hardware."""
    if device.type == "cuda":  # not run here: no GPU at hand
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        flags = cpu_flags()
        return bool(flags & {"avx512_bf16", "amx_bf16", "bf16"})
    return False


def pick_dtype(name: str | torch.dtype | None, device: torch.device) -> torch.dtype:
    """The named precision, or bf16 where the device has it natively, else fp32."""
    if isinstance(name, torch.dtype):
        return name
    if name is None:
        return torch.bfloat16 if native_bfloat16(device) else torch.float32
    full = _SHORT.get(name, name)
    if full not in DTYPES:
        raise InputError(f"unknown dtype {name!r}{nearest(name, [*DTYPES, *_SHORT])}")
    return DTYPES[full]


@functools.cache
def cpu_flags() -> frozenset[str]:
    """What the CPU can do, as its system names it; empty where the system does not say."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return frozenset({"bf16"} if platform.machine() == "arm64" and sys.platform == "darwin" else ())
    for line in text.splitlines():
        if line.startswith(("flags", "Features")):
            return frozenset(line.split(":", 1)[1].split())
    return frozenset()


def matrix_units() -> bool:
    """Whether the CPU multiplies bf16 matrices in units of their own (AMX)."""
    return "amx_bf16" in cpu_flags()


@dataclass(frozen=True)
class Memory:
    """Bytes of a device's memory."""

    total: int
    free: int


def memory(device: torch.device) -> Memory:
    """Total memory and what can still be had; on CPUs, what the system can give without swapping and the
    limits of control groups (containers, batch systems) allow, in equal parts for the processes that torchrun
    started on this machine.
    """
    if device.type == "cuda":  # not run here: no GPU at hand
        free, total = torch.cuda.mem_get_info(device)
        return Memory(total, free)
    system = _system_memory()
    total, free = system.total, system.free
    for limit, used in group_limits():
        total, free = min(total, limit), min(free, max(0, limit - used))
    return Memory(total, free // processes_here())


def _system_memory() -> Memory:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        fields = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if line}
        return Memory(fields["MemTotal"], fields["MemAvailable"])
    except (OSError, KeyError):
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return Memory(total, total // 2)


def peak_memory(device: torch.device | None = None) -> int:
    """Peak memory of this process so far, bytes: on a GPU what torch had there, else what is resident."""
    if device is not None and device.type == "cuda":  # not run here: no GPU at hand
        return torch.cuda.max_memory_reserved(device)
    try:  # getrusage would also count what the parent had before it started this program
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def describe(device: torch.device) -> str:
    """Name of the hardware behind a device."""
    if device.type == "cuda":  # not run here: no GPU at hand
        return torch.cuda.get_device_name(device)
    if device.type == "cpu":
        try:
            for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
                if line.startswith("model name"):
                    return f"{line.split(':', 1)[1].strip()}, {torch.get_num_threads()} threads"
        except OSError:
            pass
        return f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"
    return device.type


# How torch says so on Linux and Windows hosts and on accelerators: not always by the type of the error.
_NO_MEMORY = ("can't allocate memory", "not enough memory", "out of memory")


def out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that a device (or the host) ran out of memory."""
    if isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _NO_MEMORY)
