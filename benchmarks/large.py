"""Models of released sizes on a machine without their weights: memory and time with random numbers.

`python -m benchmarks.large folder DIR` writes a model folder of 2B's size, in bf16. Its text encoder is a
stand-in: two layers at T5-XXL's width behind mini's tokenizer.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn
from transformers import T5Config, T5EncoderModel

from cogvideox.checkpoints.folder import Model, read_tokenizer, save_model
from cogvideox.checkpoints.hub import MINI
from cogvideox.diffusion.schedule import make_schedule
from cogvideox.models.specs import SPECS
from cogvideox.models.text import TextEncoder
from cogvideox.models.transformer.model import Transformer
from cogvideox.models.vae.autoencoder import VAE

M = TypeVar("M", bound=nn.Module)


def random_module(make: Callable[[], M], seed: int = 0) -> M:
    """A module with weights that keep activations of order one, in bf16."""
    with torch.device("meta"):
        module = make().to(torch.bfloat16)
    module.to_empty(device="cpu").requires_grad_(False).eval()
    generator = torch.Generator().manual_seed(seed)
    for name, weight in module.named_parameters():
        if weight.ndim > 1:
            weight.normal_(0.0, weight[0].numel() ** -0.5, generator=generator)
        else:
            weight.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
    return module


def random_model() -> Model:
    """All parts of a 2B-size model; 3.9 GB."""
    tokenizer = read_tokenizer(MINI / "tokenizer")
    config = T5Config(
        vocab_size=len(tokenizer), d_model=4096, d_ff=1024, num_layers=2, num_heads=64,
        feed_forward_proj="gated-gelu",
    )  # fmt: skip
    spec = replace(SPECS["2b"], name="2b-random", dtype="bfloat16", hub=None)
    return Model(
        spec=spec,
        transformer=random_module(lambda: Transformer(spec.transformer, spec.position_policy)),
        vae=random_module(lambda: VAE(spec.vae)),
        text=TextEncoder(tokenizer, random_module(lambda: T5EncoderModel(config)), 226),
        schedule=make_schedule(spec.snr_shift),
        source="random",
        fingerprint="",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    folder = commands.add_parser("folder")
    folder.add_argument("path", type=Path)
    options = parser.parse_args()
    if options.command == "folder":
        save_model(random_model(), options.path)


if __name__ == "__main__":
    main()
