"""`python -m tools.measure_parallel`: memory of each of several processes that share one clip.

Prints by how much the peak of the largest process rises while it samples one step or decodes, measured in
fresh processes that talk through gloo, beside what the planner expects.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import torch
from torch.multiprocessing import SimpleQueue, get_context, start_processes

from cogvideox.core.device import DTYPES, peak_memory
from cogvideox.core.heap import one_heap
from cogvideox.core.pack import Pack, Segment
from cogvideox.core.shapes import pixel_frames
from cogvideox.generation.memory import decoding, exchanged, sampling
from cogvideox.models.transformer.model import Transformer
from cogvideox.models.vae.autoencoder import VAE
from cogvideox.parallel.mesh import World, connect, join
from cogvideox.parallel.sequence import gather_video, share, share_attention
from cogvideox.parallel.vae import decode_stream
from tools.fit_memory import Case, make, resident

SAMPLE = Case("sample", (13, 30, 46), 12)
PLAIN = Case("sample", (13, 30, 46), 12, dtype="float32")
DECODE = Case("decode", (5, 60, 90), dtype="float32")
CASES = (
    *((SAMPLE, way, size) for way, size in (("", 1), ("cfg", 2), ("sequence", 2), ("sequence", 4))),
    *((SAMPLE, way, size) for way, size in (("ulysses", 2), ("ulysses", 4), ("cfg+sequence", 4))),
    *((PLAIN, way, size) for way, size in (("", 1), ("sequence", 2), ("sequence", 4), ("ulysses", 4))),
    *((DECODE, way, size) for way, size in (("", 1), ("time", 2), ("space", 2), ("space", 4))),
)


@torch.no_grad()
def rise(case: Case, world: World | None) -> int:
    """Bytes by which the peak of this process rises while the stage runs."""
    dtype, (t, h, w) = DTYPES[case.dtype], case.latents
    if case.stage == "sample":
        model = make(lambda: Transformer(case.transformer), dtype)
        assert isinstance(model, Transformer)
        segment = Segment(226, (t, h // 2, w // 2))
        text, patches = (
            torch.ones(2 * 226, 64, dtype=dtype),
            torch.ones(2 * segment.video_length, 64, dtype=dtype),
        )
        pack = Pack((segment,) * 2, text, patches, torch.tensor([5, 5]))
        before = resident()
        if world is None:
            model(pack)
        else:
            share_attention(model)
            mine = share(pack, world.mesh(guided=True))
            gather_video(model(mine), mine)
        return peak_memory() - before
    vae, latents = make(lambda: VAE(case.vae), dtype), torch.ones(1, 16, *case.latents)
    assert isinstance(vae, VAE)
    before = resident()
    for _ in vae.decode_stream(latents) if world is None else decode_stream(vae, latents, world):
        pass
    return peak_memory() - before


def expected(case: Case, world: World | None) -> int:
    """What the planner says."""
    (t, h, w), dtype = case.latents, DTYPES[case.dtype]
    if case.stage == "decode":
        rows = h if world is None or world.slabs == 1 else -(-h // world.slabs) + 1
        whole = rows == h
        return decoding(case.vae, pixel_frames(t), 8 * rows, 8 * w, dtype, native=whole).bytes()
    tokens, spec = 226 + t * h * w // 4, case.transformer
    if world is None:
        return sampling(spec, tokens, 2, dtype).bytes()
    mesh = world.mesh(guided=True)
    own, branches = -(-tokens // mesh.sequence.size), 2 // mesh.branches
    shared = mesh.sequence.size > 1
    more = exchanged(spec, tokens, own, mesh.ulysses, dtype) if shared else 0
    return sampling(spec, own, branches, dtype, native=not shared).bytes() + more


def work(rank: int, size: int, port: int, case: Case, way: str, results: SimpleQueue) -> None:
    one_heap()
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size)}
    if size > 1:
        join()
    world = connect(way or None)
    results.put((rise(case, world), expected(case, world)))


def measured() -> Iterator[tuple[Case, str, int, int, int]]:
    for case, way, size in CASES:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        results = get_context("spawn").SimpleQueue()
        start_processes(work, (size, port, case, way, results), nprocs=size)
        largest, plan = max(results.get() for _ in range(size))
        yield case, way, size, largest, plan


def main() -> None:
    """Measure all cases."""
    print("stage    precision  processes  way           measured  expected")
    for case, way, size, largest, plan in measured():
        print(
            f"{case.stage:8} {case.dtype:9} {size:10}  {way:12} {largest / 1e6:6.0f} MB {plan / 1e6:6.0f} MB",
            flush=True,
        )


if __name__ == "__main__":
    main()
