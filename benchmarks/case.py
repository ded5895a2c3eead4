"""What a case of the benchmark is, and the random models that both sides load.

A suite is a module of `benchmarks.cases` with a function `cases(quick)`; a new case is a new entry there.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cogvideox.checkpoints.configs import write_transformer, write_vae
from cogvideox.checkpoints.keymaps import Table, diffusers_transformer, diffusers_vae, iter_theirs, same
from cogvideox.checkpoints.weights import DIFFUSERS_STEM, TRANSFORMERS_STEM, write_weights
from cogvideox.core import rng
from cogvideox.models.specs import TransformerSpec, VAESpec
from cogvideox.models.transformer.model import Transformer
from cogvideox.models.vae.autoencoder import VAE

SUITES = ("vae", "transformer", "sampler", "text", "end2end", "train", "packing", "data", "growth")
PROMPT = "a speedboat glides right on the blue ocean"
CPU = torch.device("cpu")


@dataclass
class Side:
    """One side of a case, loaded and ready."""

    run: Callable[[], Tensor | None]
    """What is measured. The result is compared with that of diffusers in fp32."""
    parts: tuple[nn.Module, ...] = ()
    """Models whose weights count as loaded."""
    warm: Callable[[], object] | None = None
    """What goes before the first run; default: `run`."""
    amount: tuple[float, str] | None = None
    """What one run makes, and its unit."""
    numbers: dict[str, float] = field(default_factory=dict)
    """Other measurements of the last run, which `run` fills in."""


Build = Callable[[Path, torch.dtype], Side]


@dataclass(frozen=True)
class T5Layers:
    """Some layers of T5-XXL, the text encoder of the released models."""

    layers: int


Random = VAESpec | TransformerSpec | T5Layers


@dataclass(frozen=True)
class Case:
    """One line of the benchmark."""

    suite: str
    name: str
    """With all conditions that are not those of the whole run (precision, threads, allocator)."""
    sides: Mapping[str, Build]
    """"ours" and, where there is a counterpart, "diffusers"."""
    model: Random | Path
    """Sizes of a model that gets random weights, or a folder."""
    scale: float = 1.0
    """Layers of the whole model for each that is run."""
    exact: bool = True
    """Whether diffusers runs in fp32 too, for the error; not where it takes minutes."""
    once: bool = False
    """A single run in a fresh process, as for memory."""


def cases_of(suite: str, quick: bool) -> tuple[Case, ...]:
    """The cases of a suite; with `quick` one or two of tiny shapes."""
    found: tuple[Case, ...] = importlib.import_module(f"benchmarks.cases.{suite}").cases(quick)
    return found


def write_random(model: Random, folder: Path) -> None:
    """Write a model with keyed random weights in bf16, as diffusers or transformers reads it."""
    stem = DIFFUSERS_STEM
    with torch.device("meta"):
        if isinstance(model, VAESpec):
            shapes = VAE(model).state_dict()
            table, config = diffusers_vae(model), write_vae(model, 480, 720)
        elif isinstance(model, TransformerSpec):
            shapes = Transformer(model).state_dict()
            table, config = diffusers_transformer(model), write_transformer(model)
        else:
            shapes, table, config = _t5(model.layers)
            stem = TRANSFORMERS_STEM
    weights = {name: _random(name, tensor.shape).to(torch.bfloat16) for name, tensor in shapes.items()}
    write_weights(iter_theirs(table, weights, str(folder)), folder, stem)
    (folder / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")


def _t5(layers: int) -> tuple[dict[str, Tensor], Table, dict[str, Any]]:
    """Shapes, key map and configuration; the vocabulary is small, for a prompt reads few of its rows."""
    from transformers import T5Config, T5EncoderModel

    config = T5Config(
        vocab_size=1024,
        d_model=4096,
        d_kv=64,
        d_ff=10240,
        num_heads=64,
        num_layers=layers,
        feed_forward_proj="gated-gelu",
    )
    shapes = T5EncoderModel(config).state_dict()
    shapes.pop("encoder.embed_tokens.weight")  # the same tensor as shared.weight
    return shapes, tuple(same(name, name) for name in shapes), config.to_dict()


def _random(name: str, shape: torch.Size) -> Tensor:
    """Values that keep activations of order one."""
    noise = rng.normal(shape, 0, name)
    if len(shape) > 1:
        return noise * shape[1:].numel() ** -0.5
    return 1 + 0.3 * noise if "norm" in name and name.endswith("weight") else 0.1 * noise
