"""Conversion between model folders, SAT checkpoints and adapters, in every direction that has a meaning."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from cogvideox.checkpoints import sat
from cogvideox.checkpoints.configs import read_spec, read_vae, write_vae
from cogvideox.checkpoints.folder import (
    Model,
    build_t5,
    load_model,
    load_text,
    read_tokenizer,
    save_model,
    write_json,
    write_text,
)
from cogvideox.checkpoints.hub import resolve
from cogvideox.checkpoints.keymaps import diffusers_vae, iter_theirs
from cogvideox.checkpoints.lora import DIFFUSERS_FILE, PEFT_FILE, load_lora, save_lora
from cogvideox.checkpoints.settings import read_json
from cogvideox.checkpoints.weights import DIFFUSERS_STEM, Weights, build, write_weights
from cogvideox.core.device import pick_dtype
from cogvideox.core.errors import CheckpointError, InputError, nearest
from cogvideox.core.files import atomic_path
from cogvideox.diffusion.schedule import make_schedule
from cogvideox.models.specs import SPECS, ModelSpec
from cogvideox.models.text import TextEncoder, fingerprint

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Parts:
    """What a SAT checkpoint may lack, and how to read it."""

    model: str | None = None
    """Name of the model, or a folder with its configuration, when its sizes do not tell."""
    t5: Path | None = None
    """Text encoder and tokenizer: a T5 or model folder. Replaces the one in the checkpoint."""
    vae: Path | None = None
    """VAE: a SAT file, a VAE folder or a model folder. Replaces the one in the checkpoint."""
    tokenizer: Path | None = None
    """Folder of the tokenizer, if it is not with the text encoder."""


def convert(
    source: str | Path,
    target: str | Path,
    *,
    to: str = "diffusers",
    parts: Parts | None = None,
    dtype: str | None = None,
    alpha: float | None = None,
    revision: str | None = None,
) -> str:
    """Convert a model, a VAE or an adapter to the layout `to` ("diffusers" or "sat"); returns a summary.

    Weights keep their precision, bit for bit, unless `dtype` is given. `target` must not exist; it appears
    whole or not at all. `alpha` is for adapters whose files do not say it.
    """
    if to not in ("diffusers", "sat"):
        raise InputError(f"unknown layout {to!r}{nearest(to, ['diffusers', 'sat'])}")
    target = Path(target)
    if target.exists() and (target.is_file() or any(target.iterdir())):
        raise InputError(f"{target} exists already; remove it or choose another name")
    target.absolute().parent.mkdir(parents=True, exist_ok=True)
    path = Path(source).expanduser()
    kind = None if dtype is None else pick_dtype(dtype, CPU)
    if _is_adapter(path):
        return _convert_lora(path, target, to, alpha)
    if (path / "config.json").is_file():
        return _convert_vae_folder(path, target, to, kind)
    if (path / "model_index.json").is_file() or not path.exists():
        model = load_model(resolve(source, revision), dtype="stored")
        return _write(model, target, to, kind)
    file = sat.find_states(path)
    if file is None:
        raise InputError(f"{path} holds neither a model folder nor a SAT checkpoint nor an adapter")
    state = sat.split(sat.read_file(file), str(file))
    if state.lora:
        return _convert_lora(file, target, to, alpha)
    if not state.transformer and not state.text:
        return _convert_vae_file(state, file, target, to, kind, parts or Parts())
    return _write(import_sat(path, file, state, parts or Parts()), target, to, kind)


def import_sat(path: Path, file: Path, state: sat.SatState, parts: Parts) -> Model:
    """A model from a SAT transformer checkpoint and what lies around it.

    Text encoder and VAE are taken from `parts`, else from the checkpoint, else from the folders beside it.
    Raises CheckpointError, naming the option, when one cannot be found.
    """
    spec = _named(parts.model) if parts.model else sat.recognise(state.transformer, str(file))
    vae_path = parts.vae or (None if state.vae else _beside(path, (sat.VAE_FILE, f"vae/{sat.VAE_FILE}")))
    t5 = parts.t5 or _beside(path, ("t5-v1_1-xxl", "t5", "text_encoder"))
    if vae_path is None and not state.vae:
        raise CheckpointError(f"{file} holds no VAE; give one with --vae ({sat.VAE_FILE} or a model folder)")
    transformer = sat.load_transformer(spec, state.transformer, str(file))
    if vae_path is None:
        vae = sat.load_vae(spec.vae, state.vae, str(file))
    elif vae_path.is_file():
        vae = sat.load_vae(spec.vae, sat.split(sat.read_file(vae_path), str(vae_path)).vae, str(vae_path))
    else:
        folder = vae_path / "vae" if (vae_path / "vae").is_dir() else vae_path
        vae = build(
            lambda: sat.VAE(spec.vae), diffusers_vae(spec.vae), Weights(folder), str(folder), None, CPU
        )
    return Model(
        spec=spec,
        transformer=transformer,
        vae=vae,
        text=_text(spec, state, t5, parts, str(file)),
        schedule=make_schedule(spec.snr_shift),
        source=str(path),
        fingerprint=fingerprint(transformer.state_dict()),
        record={"converted_from": str(path.name)},
    )


def _text(spec: ModelSpec, state: sat.SatState, t5: Path | None, parts: Parts, what: str) -> TextEncoder:
    encoder = t5 / "text_encoder" if t5 and (t5 / "text_encoder").is_dir() else t5
    words = parts.tokenizer or (t5 / "tokenizer" if t5 and (t5 / "tokenizer").is_dir() else t5)
    if words is None:
        raise CheckpointError(
            f"{what} holds no tokenizer; give one with --tokenizer or --t5 (or a model folder)"
        )
    if state.text and parts.t5 is None:
        config = sat.text_config(state.text, what)
        encoder_model = build_t5(config, state.text, what, None, CPU)
        return TextEncoder(read_tokenizer(words), encoder_model, spec.transformer.text_length)
    if encoder is None:
        raise CheckpointError(f"{what} holds no text encoder; give one with --t5 (a T5 or model folder)")
    return load_text(encoder, words, spec, None, CPU)


def _named(model: str) -> ModelSpec:
    if model in SPECS:
        return SPECS[model]
    if not Path(model).is_dir():
        raise InputError(f"unknown model {model!r}{nearest(model, SPECS)}")
    return read_spec(model)


def _beside(path: Path, names: tuple[str, ...]) -> Path | None:
    """The first of these that lies in a checkpoint's folder or in the one above it."""
    folder = path if path.is_dir() else path.parent
    candidates = [up / name for up in (folder, folder.parent) for name in names]
    return next((c for c in candidates if c.exists()), None)


def _is_adapter(path: Path) -> bool:
    if path.is_dir():
        return any((path / name).is_file() for name in (DIFFUSERS_FILE, PEFT_FILE))
    return path.suffix == ".safetensors" and path.is_file()


def _write(model: Model, target: Path, to: str, dtype: torch.dtype | None) -> str:
    if to == "diffusers":
        save_model(model, target, dtype=dtype)
        return f"{model.spec.name} -> model folder {target}"
    with atomic_path(target) as partial:
        sat.write_transformer(sat.transformer_state(model.transformer, dtype), partial / "transformer")
        sat.write_vae(sat.vae_state(model.vae, dtype), partial / "vae" / sat.VAE_FILE)
        write_text(model.text, partial / "t5-v1_1-xxl", partial / "t5-v1_1-xxl", dtype)
    return f"{model.spec.name} -> SAT checkpoint {target}"


def _convert_lora(path: Path, target: Path, to: str, alpha: float | None) -> str:
    if to != "diffusers":
        raise InputError("adapters are only written in the diffusers layout")
    lora = load_lora(path, alpha=alpha)
    save_lora(lora, target)
    return f"adapter of {len(lora.layers)} layers -> {target}"


def _convert_vae_folder(path: Path, target: Path, to: str, dtype: torch.dtype | None) -> str:
    config = read_json(path / "config.json")
    if config.get("_class_name") != "AutoencoderKLCogVideoX":
        raise InputError(
            f"{path} is one part of a model ({config.get('_class_name')}); give the whole folder"
        )
    spec = read_vae(config, str(path / "config.json"))
    vae = build(lambda: sat.VAE(spec), diffusers_vae(spec), Weights(path), str(path), None, CPU)
    return _write_vae(vae, target, to, dtype)


def _convert_vae_file(
    state: sat.SatState, file: Path, target: Path, to: str, dtype: torch.dtype | None, parts: Parts
) -> str:
    spec = _named(parts.model) if parts.model else SPECS["5b"]
    return _write_vae(sat.load_vae(spec.vae, state.vae, str(file)), target, to, dtype)


def _write_vae(vae: sat.VAE, target: Path, to: str, dtype: torch.dtype | None) -> str:
    with atomic_path(target) as partial:
        if to == "sat":
            sat.write_vae(sat.vae_state(vae, dtype), partial / sat.VAE_FILE)
        else:
            tensors = iter_theirs(diffusers_vae(vae.spec), vae.state_dict(), "vae")
            write_weights(tensors, partial, DIFFUSERS_STEM, dtype=dtype)
            write_json(partial / "config.json", write_vae(replace(vae.spec), 480, 720))
    return f"VAE -> {target}"
