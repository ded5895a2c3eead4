"""The sampling loop, and the share of it that is not spent inside the transformer."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.case import PROMPT, Build, Case, Side
from cogvideox import load
from cogvideox.checkpoints.hub import MINI
from cogvideox.core import rng
from cogvideox.core.shapes import latent_frames
from cogvideox.diffusion.samplers import Sampler
from cogvideox.diffusion.timesteps import sampling_timesteps
from cogvideox.generation.noise import KeyedNoise
from cogvideox.generation.sample import Conditions, sample

GUIDANCE = 5.0


class Inside:
    """Seconds spent inside a module's forward."""

    def __init__(self, module: nn.Module) -> None:
        self.seconds = self._began = 0.0
        module.register_forward_pre_hook(self._enter)
        module.register_forward_hook(self._leave)

    def _enter(self, *_: Any) -> None:
        self._began = time.perf_counter()

    def _leave(self, *_: Any) -> None:
        self.seconds += time.perf_counter() - self._began


def noise(frames: int, size: int, dtype: torch.dtype) -> Tensor:
    """What sampling starts from, (C, T, H, W) fp32, already rounded to `dtype`: the same on both sides."""
    return rng.normal((16, latent_frames(frames), size // 8, size // 8), 0, "start").to(dtype).float()


def their_pipe(folder: Path, dtype: torch.dtype) -> Any:
    """The folder in diffusers, with DDIM."""
    from diffusers import CogVideoXDDIMScheduler, CogVideoXPipeline

    pipe = CogVideoXPipeline.from_pretrained(folder, torch_dtype=dtype)
    pipe.scheduler = CogVideoXDDIMScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def embeddings(pipe: Any) -> dict[str, Tensor]:
    """What diffusers must be told about mini: its text length, and zeros as the unconditional text."""
    cond, _ = pipe.encode_prompt(PROMPT, do_classifier_free_guidance=False, max_sequence_length=32)
    return {"prompt_embeds": cond, "negative_prompt_embeds": torch.zeros_like(cond)}


def ours(frames: int, size: int, steps: int) -> Build:
    def make(folder: Path, dtype: torch.dtype) -> Side:
        pipe = load(folder, dtype=dtype, device="cpu")
        cond_LC = pipe.text_encoder.encode([PROMPT])[0]
        conditions = Conditions(cond_LC, torch.zeros_like(cond_LC), GUIDANCE)
        sampler = Sampler("ddim", pipe.schedule, sampling_timesteps(steps))
        start = sampler.start(noise(frames, size, torch.bfloat16))
        inside, numbers = Inside(pipe.transformer), dict[str, float]()

        def run() -> Tensor:
            inside.seconds, began = 0.0, time.perf_counter()
            *_, last = sample(pipe.transformer, sampler, start, conditions, KeyedNoise(0))
            numbers["outside the transformer"] = 1 - inside.seconds / (time.perf_counter() - began)
            return last.x

        return Side(run, (pipe.transformer,), amount=(steps, "steps"), numbers=numbers)

    return make


def theirs(frames: int, size: int, steps: int) -> Build:
    def make(folder: Path, dtype: torch.dtype) -> Side:
        pipe = their_pipe(folder, dtype)
        start_BTCHW = noise(frames, size, torch.bfloat16).transpose(0, 1)[None].to(dtype)
        given = embeddings(pipe)
        inside, numbers = Inside(pipe.transformer), dict[str, float]()

        def run() -> Tensor:
            inside.seconds, began = 0.0, time.perf_counter()
            made = pipe(
                **given,
                height=size,
                width=size,
                num_frames=frames,
                num_inference_steps=steps,
                guidance_scale=GUIDANCE,
                latents=start_BTCHW,
                output_type="latent",
            )
            numbers["outside the transformer"] = 1 - inside.seconds / (time.perf_counter() - began)
            latents_CTHW: Tensor = made.frames[0].transpose(0, 1)
            return latents_CTHW

        return Side(run, (pipe.transformer,), amount=(steps, "steps"), numbers=numbers)

    return make


def cases(quick: bool) -> tuple[Case, ...]:
    frames, size, steps = (9, 64, 2) if quick else (49, 128, 10)
    sides = {"ours": ours(frames, size, steps), "diffusers": theirs(frames, size, steps)}
    title = f"mini sampling, {frames}x{size}x{size}, DDIM, {steps} steps, guided"
    return (Case("sampler", title, sides, MINI),)
