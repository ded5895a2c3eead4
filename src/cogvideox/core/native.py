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
from pathlib import Path

from cogvideox.core.device import cpu_flags
from cogvideox.core.files import atomic_path

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


def cache_folder() -> Path:
    """Where builds are kept: `$XDG_CACHE_HOME/cogvideox`, by default `~/.cache/cogvideox`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cogvideox"
