"""Latents to frames, chunk by chunk. Shape legend: C channels, T H W latent grid."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
from torch import Tensor

from cogvideox.checkpoints.configs import Compat
from cogvideox.core.device import out_of_memory
from cogvideox.core.errors import NonFiniteError
from cogvideox.core.overlap import overlap
from cogvideox.core.shapes import DECODE_CHUNK, ChunkPlan, decode_plan, parity_plan
from cogvideox.data.video import Frames
from cogvideox.generation.media import to_frames
from cogvideox.generation.watch import Advance, Watch
from cogvideox.models.vae.autoencoder import VAE
from cogvideox.parallel.mesh import World
from cogvideox.parallel.vae import decode_stream

R = TypeVar("R")


def decode_chunks(
    vae: VAE,
    latents_CTHW: Tensor,
    plan: ChunkPlan | None = None,
    advance: Advance = lambda: None,
    world: World | None = None,
) -> Iterator[Frames]:
    """uint8 frames (t, H, W, 3) of one chunk after the other. Memory does not grow with the clip.

    The processes of a `world` share the work, and all of them get all frames.

    Raises NonFiniteError, naming the frames, before a chunk that is not finite is given out.
    """
    latents = latents_CTHW[None].to(vae.device)
    chunks = vae.decode_stream(latents, plan) if world is None else decode_stream(vae, latents, world, plan)
    done = 0
    while True:
        # Not around the `yield`: the consumer's code is no business of ours.
        with torch.no_grad():
            chunk = next(chunks, None)
        if chunk is None:
            return
        last = done + chunk.shape[2] - 1
        if not torch.isfinite(chunk).all():
            raise NonFiniteError(f"decoding: frames {done} to {last} are not finite")
        done = last + 1
        advance()
        yield to_frames(chunk)


def decode(
    vae: VAE,
    latents_CTHW: Tensor,
    consume: Callable[[Iterator[Frames]], R],
    watch: Watch,
    compat: Compat | None = None,
    world: World | None = None,
) -> R:
    """`consume(chunks of frames)`, once more with half the memory when it runs out. A chunk is consumed, in a
    thread of its own, while the next one is decoded.

    With compat="diffusers" an even number of latent frames becomes 4 frames each, the first included. The
    second time one latent frame is decoded at a time. Its frames differ a little, for the decoder's norms
    pool over a chunk; a note says so. In a `world` there is no second time: one of several cannot turn back.
    """
    length = latents_CTHW.shape[1]
    plan = parity_plan(length, DECODE_CHUNK) if compat else decode_plan(length)
    plans = [plan] if world else [plan, ChunkPlan((1,) * length, plan.lead)]
    for attempt, plan in enumerate(plans):
        try:
            with watch.stage("decode", len(plan.sizes)) as advance:
                return overlap(consume, decode_chunks(vae, latents_CTHW, plan, advance, world))
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error) or attempt == len(plans) - 1:
                raise
        gc.collect()
        watch.note("out of memory while decoding: again, one latent frame at a time (frames differ a little)")
    raise AssertionError("unreachable")
