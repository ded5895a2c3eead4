"""`python -m benchmarks.machine [SECONDS]`: this machine, and the speeds that nothing on it can exceed."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cogvideox.core.device import describe, memory
from cogvideox.core.heap import allocator, one_heap

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")
FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_int8")


def facts() -> dict[str, Any]:
    """What a number depends on, beside the code."""
    return {
        "cpu": describe(CPU),
        "flags": _flags(),
        "threads": torch.get_num_threads(),
        "memory": memory(CPU).total,
        "load": os.getloadavg()[0],
        "allocator": allocator(),
        "preload": os.environ.get("LD_PRELOAD", ""),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": _commit(),
        "date": time.strftime("%Y-%m-%d %H:%M"),
    }


def _flags() -> list[str]:
    """Those of the CPU's vector units that matter here."""
    try:
        known = set(Path("/proc/cpuinfo").read_text(encoding="utf-8").split())
    except OSError:
        return []
    return [flag for flag in FLAGS if flag in known]


def _commit() -> str:
    """The commit that is measured, with "+" when files differ from it; empty outside a repository."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
        return done.stdout.strip()

    return git("rev-parse", "--short", "HEAD") + "+" * bool(git("status", "--porcelain", "src", "benchmarks"))


@torch.no_grad()
def peaks(seconds: float) -> dict[str, float]:
    """Operations per second of each kind of work and bytes per second of a copy, by "kind dtype": the best
    run in some seconds of each, so that other work on the machine counts as little as possible.
    """

    def best(work: Callable[[], Tensor], amount: float) -> float:
        """Amount per second of the fastest of at least three runs."""
        work()
        times: list[float] = []
        while len(times) < 3 or sum(times) < seconds:
            start = time.perf_counter()
            work()
            times.append(time.perf_counter() - start)
        return amount / min(times)

    found: dict[str, float] = {}
    for dtype, name in ((torch.bfloat16, "bfloat16"), (torch.float32, "float32")):
        a = torch.ones(2048, 2048, dtype=dtype)
        found[f"gemm {name}"] = best(partial(torch.mm, a, a), 2 * 2048**3)
        for channels, t, side in ((64, 8, 64), (256, 4, 32)):
            x = torch.ones(1, channels, t, side, side, dtype=dtype)
            x = x.contiguous(memory_format=torch.channels_last_3d)
            kernel = torch.ones(channels, channels, 3, 3, 3, dtype=dtype)
            kernel = kernel.contiguous(memory_format=torch.channels_last_3d)
            work = 2 * 27 * channels**2 * t * side**2
            speed = best(partial(F.conv3d, x, kernel, padding=1), work)
            found[f"convolution {name}"] = max(speed, found.get(f"convolution {name}", 0.0))
        q = torch.ones(2, 8, 2048, 64, dtype=dtype)
        attend = partial(F.scaled_dot_product_attention, q, q, q)
        found[f"attention {name}"] = best(attend, 4 * 2 * 8 * 2048**2 * 64)
    source = torch.ones(2**26)
    target = torch.empty_like(source)
    found["copy"] = best(lambda: target.copy_(source), 2 * source.nbytes)
    return found


if __name__ == "__main__":
    one_heap()
    print(json.dumps(facts() | {"peaks": peaks(float(sys.argv[1]) if sys.argv[1:] else 2.0)}))
