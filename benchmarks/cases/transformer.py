"""The transformer, from latents to its prediction: building the pack or cutting the patches counts too."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.case import CPU, Build, Case, Side
from cogvideox.checkpoints.configs import read_transformer
from cogvideox.checkpoints.hub import MINI
from cogvideox.checkpoints.keymaps import diffusers_transformer
from cogvideox.checkpoints.settings import read_json
from cogvideox.checkpoints.weights import Weights, build
from cogvideox.core import rng
from cogvideox.diffusion.inputs import Sample, build_pack, split_output
from cogvideox.models.specs import SPECS, TransformerSpec
from cogvideox.models.transformer.model import Transformer

Grid = tuple[int, int, int]
TINY = TransformerSpec(layers=1, heads=2, text_dim=64, text_length=8, base_grid=(2, 4, 4))
TIMESTEP = 500


def _inputs(spec: TransformerSpec, grid: Grid, branches: int) -> tuple[Tensor, Tensor]:
    """Latents (C, T, H, W), which the branches of guidance share, and their texts (B, L, C)."""
    t, h, w = (n * p for n, p in zip(grid, spec.patch, strict=True))
    latents_CTHW = rng.normal((spec.in_channels, t, h, w), 0, "latents")
    return latents_CTHW, rng.normal((branches, spec.text_length, spec.text_dim), 0, "text")


def _spec(folder: Path) -> TransformerSpec:
    return read_transformer(read_json(folder / "config.json"))


def ours(grid: Grid, branches: int) -> Build:
    def make(folder: Path, dtype: torch.dtype) -> Side:
        spec = _spec(folder)
        x_CTHW, text_BLC = _inputs(spec, grid, branches)
        model = build(
            lambda: Transformer(spec, "interpolate"),
            diffusers_transformer(spec),
            Weights(folder),
            str(folder),
            dtype,
            CPU,
        )

        def run() -> Tensor:
            pack = build_pack([Sample(x_CTHW, text_LC, TIMESTEP) for text_LC in text_BLC], spec, dtype=dtype)
            return torch.stack(split_output(model(pack), pack, spec))

        return Side(run, (model,))

    return make


def theirs(grid: Grid, branches: int) -> Build:
    def make(folder: Path, dtype: torch.dtype) -> Side:
        from diffusers import CogVideoXTransformer3DModel
        from diffusers.models.embeddings import get_3d_rotary_pos_embed
        from diffusers.pipelines.cogvideo.pipeline_cogvideox import get_resize_crop_region_for_grid

        spec = _spec(folder)
        x_CTHW, text_BLC = _inputs(spec, grid, branches)
        x_BTCHW = x_CTHW.transpose(0, 1).expand(branches, -1, -1, -1, -1).to(dtype)
        text_BLC = text_BLC.to(dtype)
        model = CogVideoXTransformer3DModel.from_pretrained(folder, torch_dtype=dtype)
        rope = None
        if "rope" in spec.positions:  # once for all steps, as its pipeline does
            crop = get_resize_crop_region_for_grid(grid[1:], spec.base_grid[2], spec.base_grid[1])
            rope = get_3d_rotary_pos_embed(spec.head_dim, crop, grid[1:], grid[0])

        def run() -> Tensor:
            timestep = torch.full((branches,), TIMESTEP)
            found: Tensor = model(x_BTCHW, text_BLC, timestep, image_rotary_emb=rope).sample
            return found.transpose(1, 2)

        return Side(run, (model,))

    return make


def forward(
    name: str,
    model: TransformerSpec | Path,
    grid: Grid,
    *,
    layers: int,
    branches: int = 1,
    exact: bool = True,
) -> Case:
    """`layers` of the model's; the time of all of them is what the case's is scaled to."""
    sides = {"ours": ours(grid, branches), "diffusers": theirs(grid, branches)}
    spec = _spec(model) if isinstance(model, Path) else model
    tokens = spec.text_length + grid[0] * grid[1] * grid[2]
    some = f"{layers} of {spec.layers} layers" if layers < spec.layers else f"{layers} layers"
    pair = ", guided" * (branches == 2)
    run = model if isinstance(model, Path) else replace(model, layers=layers)
    title = f"{name} transformer, {tokens} tokens, {some}{pair}"
    return Case("transformer", title, sides, run, scale=spec.layers / layers, exact=exact)


def cases(quick: bool) -> tuple[Case, ...]:
    if quick:
        return (forward("tiny", TINY, (2, 4, 4), layers=1, branches=2),)
    small, large = SPECS["2b"].transformer, SPECS["5b"].transformer
    return (
        forward("2b", small, (3, 24, 24), layers=1),
        forward("2b", small, (3, 24, 24), layers=6),
        forward("2b", small, (5, 30, 45), layers=2),
        forward("2b", small, (13, 30, 45), layers=1, exact=False),
        forward("5b", large, (3, 24, 24), layers=1),
        forward("5b", large, (3, 24, 24), layers=4),
        forward("5b", large, (5, 30, 45), layers=1),
        forward("5b", large, (13, 30, 45), layers=1, exact=False),
        forward("mini", MINI / "transformer", (13, 8, 8), layers=6, branches=2),
    )
