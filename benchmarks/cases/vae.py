"""Encoding and decoding, whole clips; inputs are keyed noise."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from benchmarks.case import CPU, Build, Case, Side
from cogvideox.checkpoints.configs import read_vae
from cogvideox.checkpoints.hub import MINI
from cogvideox.checkpoints.keymaps import diffusers_vae
from cogvideox.checkpoints.settings import read_json
from cogvideox.checkpoints.weights import Weights, build
from cogvideox.core import rng
from cogvideox.core.shapes import latent_frames, pixel_frames
from cogvideox.models.specs import VAESpec
from cogvideox.models.vae.autoencoder import VAE

REAL, TINY = VAESpec(), VAESpec(channels=(16, 16, 32, 32), blocks=1, groups=8)
Shape = tuple[int, int, int]


def load(folder: Path, dtype: torch.dtype) -> VAE:
    """Our VAE of a folder, as a model folder's is loaded."""
    spec = read_vae(read_json(folder / "config.json"))
    return build(lambda: VAE(spec), diffusers_vae(spec), Weights(folder), str(folder), dtype, CPU)


def our_decoder(shape: Shape) -> Build:
    def make(folder: Path, dtype: torch.dtype) -> Side:
        vae, z = load(folder, dtype), rng.normal((1, 16, *shape), 0, "latents").to(dtype)
        return Side(lambda: vae.decode(z), (vae,), amount=(pixel_frames(shape[0]), "frames"))

    return make


def their_decoder(shape: Shape) -> Build:
    def make(folder: Path, dtype: torch.dtype) -> Side:
        from diffusers import AutoencoderKLCogVideoX

        vae = AutoencoderKLCogVideoX.from_pretrained(folder, torch_dtype=dtype)
        z = rng.normal((1, 16, *shape), 0, "latents").to(dtype)
        return Side(
            lambda: vae.decode(z / vae.config.scaling_factor).sample,
            (vae,),
            amount=(pixel_frames(shape[0]), "frames"),
        )

    return make


def _video(shape: Shape, dtype: torch.dtype) -> Tensor:
    return rng.normal((1, 3, *shape), 0, "video").mul_(0.5).clamp_(-1, 1).to(dtype)


def our_encoder(shape: Shape) -> Build:
    def make(folder: Path, dtype: torch.dtype) -> Side:
        vae, video = load(folder, dtype), _video(shape, dtype)
        return Side(lambda: vae.posterior(video).mean, (vae,), amount=(shape[0], "frames"))

    return make


def their_encoder(shape: Shape) -> Build:
    def make(folder: Path, dtype: torch.dtype) -> Side:
        from diffusers import AutoencoderKLCogVideoX

        vae = AutoencoderKLCogVideoX.from_pretrained(folder, torch_dtype=dtype)
        video = _video(shape, dtype)
        return Side(lambda: vae.encode(video).latent_dist.mode(), (vae,), amount=(shape[0], "frames"))

    return make


def decoding(name: str, model: VAESpec | Path, frames: int, height: int, width: int) -> Case:
    shape = (latent_frames(frames), height // 8, width // 8)
    sides = {"ours": our_decoder(shape), "diffusers": their_decoder(shape)}
    return Case("vae", f"{name} vae decode {frames}x{height}x{width}", sides, model)


def encoding(name: str, model: VAESpec | Path, frames: int, height: int, width: int) -> Case:
    shape = (frames, height, width)
    sides = {"ours": our_encoder(shape), "diffusers": their_encoder(shape)}
    return Case("vae", f"{name} vae encode {frames}x{height}x{width}", sides, model)


def cases(quick: bool) -> tuple[Case, ...]:
    if quick:
        return decoding("tiny", TINY, 9, 32, 32), encoding("tiny", TINY, 9, 32, 32)
    real, mini = ("released", REAL), ("mini", MINI / "vae")
    return (
        decoding(*real, 9, 128, 128),
        decoding(*real, 9, 160, 240),
        decoding(*real, 9, 240, 360),
        decoding(*real, 1, 128, 128),
        decoding(*real, 33, 64, 64),
        encoding(*real, 9, 160, 240),
        encoding(*real, 1, 128, 128),
        encoding(*real, 33, 64, 64),
        decoding(*mini, 17, 128, 128),
        decoding(*mini, 49, 128, 128),
        encoding(*mini, 17, 128, 128),
        encoding(*mini, 49, 128, 128),
    )
