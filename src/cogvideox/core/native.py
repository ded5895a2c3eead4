"""C sources of this package -> loaded libraries, built on the machine that runs them.

A build takes about a second and is kept in the user's cache folder. Without a C compiler, or with
`COGVIDEOX_NATIVE=0` in the environment, there are no kernels, and callers go their plain way.
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

import torch
from torch import Tensor, nn

from cogvideox.core.device import cpu_flags
from cogvideox.core.errors import Note
from cogvideox.core.files import atomic_path

R = TypeVar("R")
AVX512 = frozenset({"avx512f", "avx512bw", "avx512dq", "avx512vl"})
"""What a CPU must have for vectors of 512 bits, by the names of Linux."""
AVX512_BF16 = AVX512 | {"avx512_bf16"}
"""And to multiply bf16 in them."""
HEADER = Path(__file__).with_suffix(".h")
FLAGS = ("-O3", "-march=native", "-shared", "-fPIC", "-fopenmp")


class Kernels:
    """The functions of one C file, for tensors of one precision on a CPU that has what they
    need. Built, with the flags `also`, and loaded when first asked for.
    """

    def __init__(
        self,
        source: Path,
        needs: frozenset[str] = AVX512_BF16,
        dtype: torch.dtype = torch.bfloat16,
        also: tuple[str, ...] = (),
    ) -> None:
        self.source, self.needs, self.dtype, self.flags = source, needs, dtype, (*FLAGS, *also)

    @functools.cached_property
    def loaded(self) -> ctypes.CDLL | None:
        """None where the CPU lacks what they need, nothing can be built, or the environment forbids it."""
        compiler = shutil.which(os.environ.get("CC", "cc"))
        allowed = os.environ.get("COGVIDEOX_NATIVE") != "0"
        if not allowed or compiler is None or not self.needs <= cpu_flags():
            return None
        code = self.source.read_bytes() + HEADER.read_bytes()
        stamp = hashlib.sha256(code + repr((self.flags, compiler, sorted(cpu_flags()))).encode()).hexdigest()
        built = cache_folder() / f"{self.source.parent.name}-{self.source.stem}-{stamp[:16]}.so"
        try:
            if not built.exists():
                built.parent.mkdir(parents=True, exist_ok=True)
                with atomic_path(built) as path:
                    command = [
                        compiler,
                        *self.flags,
                        f"-I{HEADER.parent}",
                        "-o",
                        str(path),
                        str(self.source),
                        "-lm",
                    ]
                    subprocess.run(command, check=True, capture_output=True)
            return ctypes.CDLL(str(built))
        except (OSError, subprocess.CalledProcessError) as error:
            reason = getattr(error, "stderr", None) or str(error)
            warnings.warn(
                f"{self.source} was not built, plain code does its work: {reason!r}", Note, stacklevel=2
            )
            return None

    def take(self, x: Tensor, gradients: bool = False) -> bool:
        """Whether a tensor is one for them: of their precision on a CPU, no gradients wanted unless they have
        them. None is under autocast, where weights have another precision than what they meet, nor in code
        that is being compiled.
        """
        here = x.dtype == self.dtype and x.device.type == "cpu" and not torch.is_autocast_enabled("cpu")
        free = here and not torch.compiler.is_compiling()
        return free and (gradients or not torch.is_grad_enabled()) and self.loaded is not None

    def call(self, name: str, *arguments: object) -> None:
        """Call a function that takes pointers (tensors, None), ints, doubles and ctypes values."""
        getattr(self.loaded, name)(*map(_converted, arguments))


def _converted(value: object) -> object:
    if value is None:
        return ctypes.c_void_p(0)
    if isinstance(value, Tensor):
        assert value.is_contiguous()
        return ctypes.c_void_p(value.data_ptr())
    if isinstance(value, float):
        return ctypes.c_double(value)
    return ctypes.c_int(value) if isinstance(value, int) else value


def kept(module: nn.Module, make: Callable[..., R], *parameters: Tensor) -> R:
    """`make(*parameters)`, made once for each state of the parameters and kept with their module; one per
    module.
    """
    # Versions do not count what is written through `.data` or by fused optimizers: bits do.
    stamp = [(p.data_ptr(), None if p.is_inference() else p._version, _bits(p)) for p in parameters]
    entry = module.__dict__.get("_kept")
    if entry is None or entry[0] != stamp:
        # Their memory is held too: no later tensor can stand at the same address and be taken for them.
        held = [p.detach() for p in parameters]
        entry = module.__dict__["_kept"] = stamp, held, make(*held)
    return entry[2]


def _bits(parameter: Tensor) -> int:
    """Sum of a parameter's bits as integers; for a small convolution 10 microseconds."""
    flat = parameter.detach().flatten()
    aligned = flat.nbytes % 8 == 0 and flat.storage_offset() * flat.element_size() % 8 == 0
    return int(flat.view(torch.int64 if aligned else torch.uint8).sum())


def cache_folder() -> Path:
    """Where builds are kept: `$XDG_CACHE_HOME/cogvideox`, by default `~/.cache/cogvideox`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cogvideox"
