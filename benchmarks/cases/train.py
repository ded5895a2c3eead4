"""Training of mini. Diffusers has no counterpart: compare with another commit (`--against COMMIT`)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.case import Build, Case, Side
from cogvideox import load
from cogvideox.checkpoints.folder import read_spec
from cogvideox.checkpoints.hub import MINI
from cogvideox.core import heap, rng
from cogvideox.core.shapes import latent_frames
from cogvideox.generation.generate import Place
from cogvideox.models.transformer.blocks import attention
from cogvideox.training.diffusion import DiffusionTask
from cogvideox.training.loop import Rates
from cogvideox.training.packs import Item, Objective, PackedBatches, PackedRow
from cogvideox.training.perceptual import Gradients
from cogvideox.training.vae import Micro, VAELoss, VAEStage, VAETask

MIX = ((1, 64, 64, 2), (17, 64, 64, 2), (17, 64, 112, 1), (17, 112, 64, 1), (49, 64, 64, 1))
LARGE = ((1, 128, 128, 8), (17, 128, 128, 4))
"""(frames, height, width, samples): with MIX the last stage of recipes/mini/transformer.yaml."""


def _items(mix: tuple[tuple[int, int, int, int], ...]) -> list[Item]:
    """A step's samples, equal shapes side by side."""
    items: list[Item] = []
    for frames, height, width, count in mix:
        shape = (16, latent_frames(frames), height // 8, width // 8)
        for index in range(count):
            latents = rng.normal(shape, 0, "item", *shape, index).bfloat16()
            items.append(
                Item(
                    name=f"{shape}/{index}",
                    latents_CTHW=latents,
                    caption=f"a red car, number {index}",
                    place=len(items),
                    timestep=50 * len(items),
                    subject_THW=latents[0] > 1,
                )
            )
    return sorted(items, key=lambda item: item.latents_CTHW.shape)


def step(mix: tuple[tuple[int, int, int, int], ...]) -> Build:
    """Loss, gradients and update of one step; captions are cached, as they are in a run."""

    def make(folder: Path, dtype: torch.dtype) -> Side:
        getattr(heap, "keep_freed_memory", int)()  # as the command does, since there is such a thing
        pipe = load(folder, dtype=dtype, device="cpu")
        model, row = pipe.transformer.requires_grad_(True), PackedRow(_items(mix), 3072, 0.0)
        known = {"objective": Objective(subject_weight=6.0), "seed": 0, "lengths": [0]}
        given = cast(PackedBatches, SimpleNamespace(**known))
        task = DiffusionTask(model, pipe.spec, pipe.text_encoder, given, pipe.schedule)
        optimizer = Rates(matrix_lr=0.02, lr=1.5e-3, ema=0.998).optimizer(task.phases[0])

        def run() -> None:
            with torch.enable_grad():
                loss = task.loss("model", row, 0)
                loss.total.backward()
            optimizer.update(1e-6, optimizer.collect(loss.weight))

        tokens = task.loss("model", row, 0).metrics["tokens"][0]
        return Side(run, (model,), amount=(tokens, "tokens"))

    return make


def vae_step(clips: int, frames: int, side: int) -> Build:
    """Loss, gradients and update of one step of the VAE, its perceptual loss a cheap one."""

    def make(folder: Path, dtype: torch.dtype) -> Side:
        getattr(heap, "keep_freed_memory", int)()
        spec = read_spec(folder).vae
        stage = VAEStage(steps=1, batch=clips, frames=frames, crop=side)
        place = Place.pick("cpu", dtype)
        task = VAETask(spec, (stage,), VAELoss(kl_weight=1e-5), Gradients(), place, seed=0)
        optimizer = Rates(matrix_lr=0.02, lr=2e-3, ema=0.998).optimizer(task.phases[0])
        noise = rng.normal((clips, frames, side, side, 3), 0, "video")
        micro = Micro((noise * 60 + 128).clamp(0, 255).to(torch.uint8), 0)

        def run() -> None:
            with torch.enable_grad():
                loss = task.loss("vae", micro, 0)
                loss.total.backward()
            optimizer.update(1e-6, optimizer.collect(loss.weight))

        return Side(run, (task.vae,), amount=(clips * frames * side**2 / 1e6, "megapixels"))

    return make


def attend(function: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Build:
    """Attention forward and backward."""

    def make(folder: Path, dtype: torch.dtype) -> Side:
        q, k, v = (rng.normal((48, 4, 128, 64), 0, name).to(dtype).requires_grad_() for name in "qkv")
        gradient = torch.ones(48, 4, 128, 64, dtype=dtype)

        def run() -> None:
            with torch.enable_grad():
                function(q, k, v).backward(gradient)

        return Side(run)

    return make


def cases(quick: bool) -> tuple[Case, ...]:
    def case(name: str, build: Build) -> Case:
        return Case("train", name, {"ours": build}, MINI, exact=False)

    if quick:
        return (case("mini training step, 2 images of 64x64", step(MIX[:1])),)
    fused: Any = F.scaled_dot_product_attention
    return (
        case("mini training step, a pack of 19 samples of 7 shapes", step(MIX + LARGE)),
        case("mini VAE training step, 3 clips of 9x64x64", vae_step(3, 9, 64)),
        case("mini VAE training step, 16 images of 64x64", vae_step(16, 1, 64)),
        case("attention in training, 48x4x128x64, fused", attend(fused)),
        case("attention in training, 48x4x128x64, plain", attend(attention)),
    )
