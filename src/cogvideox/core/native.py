"""C sources of this package -> loaded libraries, built on the machine that runs them.

A build takes about a second and is kept in the user's cache folder. Without a C compiler, or with
`COGVIDEOX_NATIVE=0` in the environment, there is no library, and callers go their plain way.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from torch import Tensor, nn

from cogvideox.core.device import cpu_flags
from cogvideox.core.files import atomic_path

R = TypeVar("R")
AVX512_BF16 = frozenset({"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_bf16"})
"""What a CPU must have to multiply bf16 in 512-bit vectors, by the names of Linux."""
FLAGS = ("-O3", "-march=native", "-shared", "-fPIC", "-fopenmp")


@functools.cache
def library(source: Path, needs: frozenset[str]) -> ctypes.CDLL | None:
    """The library built from `source`; None where the CPU lacks one of `needs` or nothing can be built."""
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if os.environ.get("COGVIDEOX_NATIVE") == "0" or compiler is None or not needs <= cpu_flags():
        return None
    stamp = hashlib.sha256(source.read_bytes() + repr((FLAGS, compiler, sorted(cpu_flags()))).encode())
    built = cache_folder() / f"{source.stem}-{stamp.hexdigest()[:16]}.so"
    try:
        if not built.exists():
            built.parent.mkdir(parents=True, exist_ok=True)
            with atomic_path(built) as path:
                subprocess.run([compiler, *FLAGS, "-o", path, source, "-lm"], check=True, capture_output=True)
        return ctypes.CDLL(str(built))
    except (OSError, subprocess.CalledProcessError) as error:
        reason = getattr(error, "stderr", None) or str(error)
        warnings.warn(f"{source.name} was not built, plain code does its work: {reason!r}", stacklevel=2)
        return None


def call(found: ctypes.CDLL, name: str, *arguments: object) -> None:
    """Call a function that takes pointers (tensors, None), ints, doubles and ctypes values."""

    def convert(value: object) -> object:
        if value is None:
            return ctypes.c_void_p(0)
        if isinstance(value, Tensor):
            assert value.is_contiguous()
            return ctypes.c_void_p(value.data_ptr())
        if isinstance(value, float):
            return ctypes.c_double(value)
        return ctypes.c_int(value) if isinstance(value, int) else value

    getattr(found, name)(*map(convert, arguments))


def kept(module: nn.Module, make: Callable[..., R], *parameters: Tensor) -> R:
    """`make(*parameters)`, made once for each state of the parameters and kept with their module."""
    stamp = [(make, p.data_ptr(), p._version) for p in parameters]
    if module.__dict__.get("_stamp") != stamp:
        module.__dict__["_kept"], module.__dict__["_stamp"] = make(*parameters), stamp
    return module.__dict__["_kept"]


def cache_folder() -> Path:
    """Where builds are kept: `$XDG_CACHE_HOME/cogvideox`, by default `~/.cache/cogvideox`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cogvideox"
