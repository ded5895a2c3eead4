"""Checkpoints of SwissArmyTransformer (SAT), the framework that the released models were trained in.

A transformer checkpoint is `{latest -> 1 or 1000}/mp_rank_00_model_states.pt`, a pickled dictionary whose
tensors stand under `module`; fine-tuned ones also hold the text encoder and the VAE. The VAE alone is
`3d-vae.pt`. Only tensors are ever unpickled (`weights_only=True`); every key is either imported or dropped
by a rule.
"""

from __future__ import annotations

import math
import pickle
import re
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import T5Config

from cogvideox.checkpoints.keymaps import (
    iter_theirs,
    sat_transformer,
    sat_vae,
    without_fixed_positions,
)
from cogvideox.checkpoints.weights import build
from cogvideox.core.errors import CheckpointError
from cogvideox.models.specs import SPECS, ModelSpec, VAESpec
from cogvideox.models.transformer.model import Transformer
from cogvideox.models.vae.autoencoder import VAE

STATES = "mp_rank_00_model_states.pt"
VAE_FILE = "3d-vae.pt"
TRANSFORMER_PREFIX = "model.diffusion_model."
TEXT_PREFIX = "conditioner.embedders.0.transformer."
VAE_PREFIX = "first_stage_model."
POSITIONS = "mixins.pos_embed.pos_embedding"
# Buffers, and embeddings of SAT's base class that CogVideoX never uses.
DROPPED = re.compile(r"mixins\.pos_embed\.freqs_(sin|cos)|transformer\.(word|position)_embeddings\.weight")
PREFIXES = (TRANSFORMER_PREFIX, TEXT_PREFIX, VAE_PREFIX)
BARE_PREFIXES = ("encoder.", "decoder.", "loss")  # of a VAE's own file
LORA_KEY = re.compile(r"transformer\.layers\.(\d+)\.attention\.(query_key_value|dense)\.matrix_([AB])\.(\d)")


@dataclass(frozen=True)
class SatState:
    """The tensors of a SAT checkpoint by part, prefixes removed. Parts that it does not hold are empty."""

    transformer: Mapping[str, Tensor]
    text: Mapping[str, Tensor]
    vae: Mapping[str, Tensor]
    lora: Mapping[str, Tensor]
    """Adapter matrices; the transformer's own weights are then left out, they are those of the base."""


def find_states(path: Path) -> Path | None:
    """The checkpoint file that a path means: itself, or the latest one of a folder; None if there is none."""
    if path.is_file():
        return path
    if any(path.glob("**/mp_rank_01_model_states.pt")):
        raise CheckpointError(f"{path}: checkpoints of several model-parallel ranks are not supported")
    folders = [path, path / "transformer"]
    for folder in folders:
        if (folder / "latest").is_file():
            file = folder / (folder / "latest").read_text(encoding="utf-8").strip() / STATES
            if not file.is_file():
                raise CheckpointError(f"{folder / 'latest'} names {file}, which does not exist")
            return file
    found = [folder / name / STATES for folder in folders for name in (".", "1", "1000")]
    return next((file for file in found if file.is_file()), None)


def read_file(path: Path) -> dict[str, Tensor]:
    """All tensors of a pickled checkpoint, mapped from the file. Anything but plain data in it is refused."""
    # Random states, which training checkpoints hold, are numpy arrays: data, like tensors.
    arrays = np.empty(0, np.uint32).__reduce__()[0]
    safe: list[Any] = [np.ndarray, np.dtype, type(np.dtype(np.uint32))]
    safe += [(arrays, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")]
    try:
        with torch.serialization.safe_globals(safe):
            mapped = zipfile.is_zipfile(path)
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        why = f"refused: it holds more than data ({found[1]})" if found else "is damaged or not a checkpoint"
        raise CheckpointError(f"{path} {why}; nothing in it was run") from None
    except Exception as error:  # whatever the bytes of another kind of file make the unpickler do
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise CheckpointError(f"{path} is damaged or not a checkpoint: {reason}") from None
    for key in ("model", "module", "state_dict"):
        if isinstance(content, dict) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} holds no dictionary of tensors")
    for key, value in content.items():
        if not isinstance(value, Tensor):
            raise CheckpointError(f"{path}: {key!r} is no tensor but {type(value).__name__}")
    return dict(content)


def split(state: Mapping[str, Tensor], what: str) -> SatState:
    """Sort the keys of a checkpoint by part. CheckpointError names the first key that belongs to none."""
    parts: dict[str, dict[str, Tensor]] = {"transformer": {}, "text": {}, "vae": {}, "lora": {}}
    bare = not any(key.startswith(PREFIXES) for key in state)
    for key, tensor in state.items():
        if key.startswith(TRANSFORMER_PREFIX):
            name = key.removeprefix(TRANSFORMER_PREFIX)
            if LORA_KEY.fullmatch(name):
                parts["lora"][name] = tensor
            elif not DROPPED.fullmatch(name):
                parts["transformer"][name] = tensor
        elif key.startswith(TEXT_PREFIX):
            parts["text"][key.removeprefix(TEXT_PREFIX)] = tensor
        elif key.startswith(BARE_PREFIXES if bare else VAE_PREFIX):
            name = key.removeprefix(VAE_PREFIX)
            if not re.match(r"loss(\.|$)", name):
                parts["vae"][name] = tensor
        else:
            known = ", ".join((*BARE_PREFIXES, *PREFIXES) if bare else PREFIXES)
            raise CheckpointError(f"{what}: unknown key {key!r}, it starts with none of {known}")
    if parts["lora"]:
        for name in parts["transformer"]:
            if _pattern(name.replace(".original.", ".")) not in _patterns():
                raise CheckpointError(f"{what}: {name!r} is part of neither an adapter nor its base")
        parts["transformer"] = {}
    return SatState(**parts)


def _pattern(key: str) -> str:
    return re.sub(r"\d+", "#", key)


@cache
def _patterns() -> set[str]:
    """All keys of the released transformers, their numbers replaced."""
    tables = [sat_transformer(spec.transformer) for spec in SPECS.values()]
    return {_pattern(key) for table in tables for rule in table for key, _ in rule.theirs} | {POSITIONS}


def recognise(transformer: Mapping[str, Tensor], what: str) -> ModelSpec:
    """The released model with the sizes of these weights; CheckpointError if there is none."""
    layers = {int(m[1]) for key in transformer if (m := re.match(r"transformer\.layers\.(\d+)\.", key))}
    patch = transformer.get("mixins.patch_embed.proj.weight")
    if patch is None or not layers:
        raise CheckpointError(f"{what} is no CogVideoX transformer: it has no layers or no patch embedding")
    for spec in SPECS.values():
        ours = spec.transformer
        kernel = (ours.width, ours.in_channels, *ours.patch[1:])
        rows = (ours.width, ours.in_channels * math.prod(ours.patch))
        if len(layers) == ours.layers and tuple(patch.shape) == (kernel if ours.patch[0] == 1 else rows):
            return spec
    raise CheckpointError(
        f"{what}: no released model has {len(layers)} layers and a patch embedding {tuple(patch.shape)}; "
        "name the model, or a folder with its configuration"
    )


def load_transformer(
    spec: ModelSpec, state: Mapping[str, Tensor], what: str, dtype: torch.dtype | None = None
) -> Transformer:
    """A transformer with SAT weights. A stored table of fixed positions must equal the computed one."""
    return build(
        lambda: Transformer(spec.transformer, spec.position_policy),
        sat_transformer(spec.transformer),
        without_fixed_positions(spec.transformer, state, POSITIONS, what),
        what,
        dtype,
        torch.device("cpu"),
    )


def load_vae(spec: VAESpec, state: Mapping[str, Tensor], what: str, dtype: torch.dtype | None = None) -> VAE:
    """A VAE with SAT weights."""
    return build(lambda: VAE(spec), sat_vae(spec), state, what, dtype, torch.device("cpu"))


def text_config(state: Mapping[str, Tensor], what: str) -> T5Config:
    """Configuration of a T5 v1.1 encoder, read off the shapes of its weights."""
    block = "encoder.block.0.layer."
    try:
        shared = state["shared.weight"]
        query = state[f"{block}0.SelfAttention.q.weight"]
        buckets, heads = state[f"{block}0.SelfAttention.relative_attention_bias.weight"].shape
        up = state[f"{block}1.DenseReluDense.wi_0.weight"]
    except KeyError as error:
        raise CheckpointError(f"{what}: the text encoder has no {error.args[0]!r}") from None
    layers = {int(m[1]) for key in state if (m := re.match(r"encoder\.block\.(\d+)\.", key))}
    return T5Config(
        vocab_size=shared.shape[0],
        d_model=shared.shape[1],
        d_kv=query.shape[0] // heads,
        d_ff=up.shape[0],
        num_layers=len(layers),
        num_heads=heads,
        relative_attention_num_buckets=buckets,
        feed_forward_proj="gated-gelu",
    )


def transformer_state(model: Transformer, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """Our transformer under SAT's keys, prefix included."""
    pairs = iter_theirs(sat_transformer(model.spec), model.state_dict(), "transformer")
    return {f"{TRANSFORMER_PREFIX}{key}": tensor for key, tensor in _stored(pairs, dtype)}


def vae_state(model: VAE, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """Our VAE under SAT's keys, without a prefix, as in `3d-vae.pt`."""
    return dict(_stored(iter_theirs(sat_vae(model.spec), model.state_dict(), "vae"), dtype))


def _stored(pairs: Iterator[tuple[str, Tensor]], dtype: torch.dtype | None) -> Iterator[tuple[str, Tensor]]:
    """Tensors as `torch.save` should see them: it writes the whole memory behind a view."""
    for key, tensor in pairs:
        value = tensor.detach().to(device="cpu", dtype=dtype or tensor.dtype)
        yield key, value.clone() if value.untyped_storage().nbytes() > value.nbytes else value


def write_transformer(state: Mapping[str, Any], folder: Path) -> None:
    """Write a transformer checkpoint with SAT's layout of files."""
    (folder / "1").mkdir(parents=True)
    torch.save({"module": dict(state)}, folder / "1" / STATES)
    (folder / "latest").write_text("1", encoding="utf-8")


def write_vae(state: Mapping[str, Any], file: Path) -> None:
    """Write a VAE checkpoint as SAT does."""
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": dict(state)}, file)
