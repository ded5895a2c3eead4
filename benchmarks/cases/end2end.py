"""From a prompt to uint8 frames with the shipped model, the text encoder included."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.case import PROMPT, Build, Case, Side
from benchmarks.cases.sampler import GUIDANCE, embeddings, noise, their_pipe
from cogvideox import load
from cogvideox.checkpoints.hub import MINI
from cogvideox.models.text import EmbeddingCache


def ours(frames: int, size: int, steps: int, **more: Any) -> Build:
    """`more` are further settings of the request."""

    def make(folder: Path, dtype: torch.dtype) -> Side:
        pipe = load(folder, dtype=dtype, device="cpu")
        pipe.text_encoder.cache = EmbeddingCache(0)  # every run encodes its prompt
        start_BCTHW = noise(frames, size, torch.bfloat16)[None]

        def run() -> Tensor:
            video = pipe(
                PROMPT,
                frames=frames,
                height=size,
                width=size,
                steps=steps,
                guidance=GUIDANCE,
                sampler="ddim",
                latents=start_BCTHW,
                **more,
            )
            return torch.from_numpy(video.frames)

        parts = (pipe.text_encoder.model, pipe.transformer, pipe.vae)
        return Side(run, parts, amount=(frames, "frames"))

    return make


def theirs(frames: int, size: int, steps: int) -> Build:
    def make(folder: Path, dtype: torch.dtype) -> Side:
        pipe = their_pipe(folder, dtype)
        start_BTCHW = noise(frames, size, torch.bfloat16).transpose(0, 1)[None].to(dtype)

        def run() -> Tensor:
            made = pipe(
                **embeddings(pipe),
                height=size,
                width=size,
                num_frames=frames,
                num_inference_steps=steps,
                guidance_scale=GUIDANCE,
                latents=start_BTCHW,
                output_type="np",
            )
            return torch.from_numpy((made.frames[0] * 255).round().astype("uint8"))

        parts = (pipe.text_encoder, pipe.transformer, pipe.vae)
        return Side(run, parts, amount=(frames, "frames"))

    return make


def cases(quick: bool) -> tuple[Case, ...]:
    frames, size, steps = (9, 64, 2) if quick else (49, 128, 25)
    reference = theirs(frames, size, steps)
    what = f"mini from prompt to {frames}x{size}x{size}, DDIM, {steps} steps, guided"
    return (Case("end2end", what, {"ours": ours(frames, size, steps), "diffusers": reference}, MINI),)
