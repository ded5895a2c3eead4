"""Tiny random models for tests: everything a model folder holds, in well under a megabyte."""

from __future__ import annotations

import random
import warnings
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn
from transformers import T5Config, T5EncoderModel, T5Tokenizer

from cogvideox.checkpoints.folder import Model, save_model
from cogvideox.diffusion.schedule import make_schedule
from cogvideox.models.specs import ModelSpec, TransformerSpec, VAESpec
from cogvideox.models.text import TextEncoder, fingerprint
from cogvideox.models.transformer.model import Transformer
from cogvideox.models.vae.autoencoder import VAE

TEXT_DIM, TEXT_LENGTH = 16, 12
WORDS = "a the cat dog bird robot red blue green runs jumps sleeps flies over under in on moon sea and slowly"

VARIANTS: dict[str, dict[str, object]] = {
    "2b": {"positions": ("sincos",)},
    "5b": {},
    "5b-i2v": {"in_channels": 8, "positions": ("rope", "learned")},
    "1.5-5b": {"patch": (2, 2, 2)},
    "1.5-5b-i2v": {"patch": (2, 2, 2), "in_channels": 8, "ofs_dim": 12},
}
"""What makes a tiny transformer a version of each released model."""


def tiny_spec(like: str = "5b", **changes: object) -> ModelSpec:
    """A tiny spec with the traits of a released model; `changes` are fields of the `TransformerSpec`."""
    traits = {**VARIANTS[like], **changes}
    patch = traits.get("patch", (1, 2, 2))
    first = patch == (1, 2, 2)
    transformer = TransformerSpec(
        **{
            "layers": 2,
            "heads": 2,
            "head_dim": 16,
            "in_channels": 4,
            "out_channels": 4,
            "time_dim": 12,
            "text_dim": TEXT_DIM,
            "text_length": TEXT_LENGTH,
            "base_grid": (3, 2, 3),
            **traits,
        }
    )
    scale = 1.15258426 if like == "2b" else 0.7
    vae = VAESpec(channels=(8, 8, 16, 16), blocks=1, latent_channels=4, groups=4, scale=scale)
    return ModelSpec(
        name=f"tiny-{like}",
        transformer=transformer,
        vae=replace(vae, condition_scale=1.0 if transformer.ofs_dim else scale),
        snr_shift=3.0 if like == "2b" else 1.0,
        frames=9 if first else 17,
        height=32,
        width=48,
        trained_frames=(1, 17),
        trained_side=(32, 32),
        steps=4,
        position_policy="interpolate" if first else "extrapolate",
        dtype="float32",
    )


def randomise(module: nn.Module, seed: int) -> nn.Module:
    """Fill all that a module stores with seeded values that keep activations of order one.

    So attention has peaks, and every weight, norm and table shows in the output: none keeps its default.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in module.state_dict().items():
        noise = torch.randn(tensor.shape, generator=generator)
        if "table" in name or "pos_embedding" in name:
            tensor.copy_(0.5 * noise)
        elif tensor.ndim > 1:
            tensor.copy_(noise * tensor[0].numel() ** -0.5)
        elif "norm" in name and name.endswith("weight"):
            tensor.copy_(1.0 + 0.3 * noise)
        else:
            tensor.copy_(0.1 * noise)
    return module.requires_grad_(False).eval()


def tiny_tokenizer() -> T5Tokenizer:
    """A unigram tokenizer that knows a few words and the letters."""
    pieces = [f"▁{word}" for word in WORDS.split()]
    letters = [*"abcdefghijklmnopqrstuvwxyz.,"]
    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    vocab += [(piece, -1.0) for piece in pieces] + [(letter, -4.0) for letter in letters]
    return T5Tokenizer(vocab=vocab, extra_ids=0)


def tiny_text(seed: int = 0, length: int = TEXT_LENGTH, dim: int = TEXT_DIM) -> TextEncoder:
    """A text encoder with random weights."""
    tokenizer = tiny_tokenizer()
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=dim,
        d_kv=8,
        d_ff=32,
        num_layers=2,
        num_heads=2,
        feed_forward_proj="gated-gelu",
    )
    model = T5EncoderModel(config)
    randomise(model, seed)
    return TextEncoder(tokenizer, model, length)


def tiny_model(like: str | ModelSpec = "5b", seed: int = 0) -> Model:
    """A whole model with random weights, in memory."""
    spec = tiny_spec(like) if isinstance(like, str) else like
    transformer = Transformer(spec.transformer, spec.position_policy)
    randomise(transformer, seed)
    vae = VAE(spec.vae)
    randomise(vae, seed + 1)
    text = tiny_text(seed + 2, spec.transformer.text_length, spec.transformer.text_dim)
    return Model(
        spec=spec,
        transformer=transformer,
        vae=vae,
        text=text,
        schedule=make_schedule(spec.snr_shift),
        source="tests",
        fingerprint=fingerprint(transformer.state_dict()),
    )


def tiny_folder(path: Path, like: str | ModelSpec = "5b", seed: int = 0) -> Path:
    """A model folder with random weights at `path`."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "diffusers will scale the image condition")
        save_model(tiny_model(like, seed), path)
    return path


def prompt(words: int, seed: int = 0) -> str:
    """A prompt of that many known words."""
    return " ".join(random.Random(seed).choices(WORDS.split(), k=words))
