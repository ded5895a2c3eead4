"""A process that loads one side of one case and runs it when told to: `python -m benchmarks.worker JSON`.

It reads a command a line on stdin and answers with a line of JSON on stdout: `warm`, `count` (the same,
with the operations of a run), `run`, `save PATH` (the last result), `exact PATH` (that of diffusers in fp32).
Between commands it sleeps.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from benchmarks.case import Side, cases_of
from cogvideox.core.device import DTYPES, peak_memory
from cogvideox.core.heap import one_heap


def resident() -> int:
    """Bytes of memory that this process has now."""
    try:
        pages = Path("/proc/self/statm").read_text(encoding="utf-8").split()[1]
    except OSError:
        return peak_memory()
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def forget_peak() -> None:
    """Begin anew to measure the most memory that this process had."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    except OSError:
        pass


def settle(side: Side) -> dict[str, int]:
    """Bytes of the weights, and of this process with them; the peak begins here.

    Weights are mapped from files: reading them all makes both sides hold all of theirs.
    """
    weights = [tensor for part in side.parts for tensor in part.state_dict().values()]
    for tensor in weights:
        tensor.sum()
    forget_peak()  # that of loading
    return {"weights": sum(tensor.nbytes for tensor in weights), "loaded": resident()}


def count(side: Side) -> dict[str, int]:
    """Operations of a run, additions and multiplications, by kind: gemm, convolution, attention."""

    def forward(q: Any, k: Any, v: Any, *_: Any, **__: Any) -> int:
        return int(sdpa_flop_count(q, k, v))

    def backward(gradient: Any, q: Any, k: Any, v: Any, *_: Any, **__: Any) -> int:
        return int(sdpa_backward_flop_count(gradient, q, k, v))

    kernels = {  # those of the CPU, which torch does not know
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: forward,
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: backward,
    }
    # Operations in C are not seen by the counter: the plain ones stand for them.
    modules = [module for name, module in sys.modules.items() if name.startswith("cogvideox.models")]
    ours = [module.KERNELS for module in modules if hasattr(module, "KERNELS")]
    loaded = [kernels_in_c.loaded for kernels_in_c in ours]
    try:
        for kernels_in_c in ours:
            kernels_in_c.loaded = None
        with FlopCounterMode(display=False, custom_mapping=kernels) as counter:
            side.run()
    finally:
        for kernels_in_c, library in zip(ours, loaded, strict=True):
            kernels_in_c.loaded = library
    forget_peak()
    kinds = dict.fromkeys(("gemm", "convolution", "attention"), 0)
    for operation, flops in counter.get_flop_counts().get("Global", {}).items():
        words = ("convolution", "attention")
        kinds[next((word for word in words if word in str(operation)), "gemm")] += flops
    return kinds


def main() -> None:
    one_heap()  # as the command does
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer

    def answer(**values: Any) -> None:
        print(json.dumps(values), file=answers, flush=True)

    job = json.loads(sys.argv[1])
    case = next(c for c in cases_of(job["suite"], job["quick"]) if c.name == job["name"])
    torch.set_grad_enabled(False)
    folder = Path(job["folder"])
    side = case.sides[job["side"]](folder, DTYPES[job["dtype"]])
    answer(**settle(side), amount=side.amount)
    result: Tensor | None = None
    for line in sys.stdin:
        command, _, path = line.strip().partition(" ")
        start = time.perf_counter()
        if command == "save":
            torch.save(result, path)
            answer()
        elif command == "exact":
            torch.save(case.sides["diffusers"](folder, torch.float32).run(), path)
            answer()
        elif command == "count":
            if side.warm:
                side.warm()
            flops = count(side)
            answer(seconds=time.perf_counter() - start, flops=flops)
        elif command == "warm":
            (side.warm or side.run)()
            answer(seconds=time.perf_counter() - start)
        else:
            result = None  # the last one's memory is free again
            start, cpu = time.perf_counter(), time.process_time()
            result = side.run()
            seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
            answer(seconds=seconds, cpu=cpu, peak=peak_memory(), numbers=side.numbers)


if __name__ == "__main__":
    main()
