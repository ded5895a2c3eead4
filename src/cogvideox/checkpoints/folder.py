"""Model folders: the layout of diffusers (one folder per part) plus an optional `cogvideox.json`."""

from __future__ import annotations

import hashlib
import json
import shutil
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase, T5Config, T5EncoderModel

from cogvideox.checkpoints.configs import (
    OWN_FILE,
    Compat,
    ImageScale,
    diffusers_policy,
    read_json,
    read_record,
    read_spec,
    with_conventions,
    write_own,
    write_scheduler,
    write_transformer,
    write_vae,
)
from cogvideox.checkpoints.hub import resolve
from cogvideox.checkpoints.keymaps import (
    diffusers_transformer,
    diffusers_vae,
    iter_theirs,
    same,
    without_fixed_positions,
)
from cogvideox.checkpoints.weights import (
    DIFFUSERS_STEM,
    TRANSFORMERS_STEM,
    Weights,
    build,
    read_state,
    write_weights,
)
from cogvideox.core.device import pick_device, pick_dtype
from cogvideox.core.errors import CheckpointError, InputError, Note
from cogvideox.core.files import atomic_path
from cogvideox.core.pages import FilePages
from cogvideox.diffusion.schedule import Schedule, make_schedule
from cogvideox.models.specs import ModelSpec, PositionPolicy, Unconditional
from cogvideox.models.text import TextEncoder, fingerprint
from cogvideox.models.transformer.model import Transformer
from cogvideox.models.vae.autoencoder import VAE

# The first release of diffusers that knows every setting that is written here.
DIFFUSERS_VERSION = "0.32.0"
_POSITIONS = "patch_embed.pos_embedding"
_TIED = "encoder.embed_tokens.weight"  # the same tensor as T5's shared.weight


@dataclass
class Model:
    """All parts of a model, ready for use."""

    spec: ModelSpec
    transformer: Transformer
    vae: VAE
    text: TextEncoder
    schedule: Schedule
    source: str
    """What it was loaded from: a folder or a hub id."""
    fingerprint: str
    """Hash of the weights (see `models.text.fingerprint`): tells models apart in the records of their
    results.
    """
    record: Mapping[str, Any] = field(default_factory=dict)
    """Free record kept in `cogvideox.json`: caption style, recipe, data and licences."""


def load_model(
    source: str | Path,
    *,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
    revision: str | None = None,
    compat: Compat | None = None,
    image_scale: ImageScale | None = None,
    unconditional: Unconditional | None = None,
    position_policy: PositionPolicy | None = None,
    text_ready: Callable[[TextEncoder], object] = lambda text: None,
) -> Model:
    """Load a model: "mini", a folder, a short name such as "5b", or a hub id (`revision` pins its version).

    Weights stay on the CPU, mapped from their files, unless `device` is given. `dtype` defaults to bf16 if
    the device (the best one present, if none is given) computes in it natively, else fp32; "stored" keeps the
    precision of the files. `compat="diffusers"` makes the model that diffusers would make of the folder;
    the other conventions are those of `configs.with_conventions`, None keeps the model's own. `text_ready` is
    called with the text encoder before the other parts are read, and may free it. Raises
    CheckpointError naming the key if anything in the folder is missing, unknown or of a wrong shape.
    """
    folder = resolve(source, revision)
    precision = None if dtype == "stored" else pick_dtype(dtype, pick_device(device))
    place = torch.device("cpu") if device is None else pick_device(device)
    if compat and (image_scale or unconditional or position_policy):
        raise InputError(f"compat={compat!r} decides all conventions; give it or single ones, not both")
    spec = with_conventions(read_spec(folder, compat), image_scale, unconditional, position_policy)
    parts = {name: Weights(folder / name) for name in ("transformer", "vae", "text_encoder")}
    hashed = _combine({name: _fingerprint(weights) for name, weights in parts.items()})
    text = load_text(folder / "text_encoder", folder / "tokenizer", spec, precision, place)
    text_ready(text)
    transformer = build(
        lambda: Transformer(spec.transformer, spec.position_policy),
        diffusers_transformer(spec.transformer),
        without_fixed_positions(spec.transformer, parts["transformer"], _POSITIONS, f"{folder}/transformer"),
        f"{folder}/transformer",
        precision,
        place,
    )
    vae = build(
        lambda: VAE(spec.vae), diffusers_vae(spec.vae), parts["vae"], f"{folder}/vae", precision, place
    )
    return Model(
        spec=spec,
        transformer=transformer,
        vae=vae,
        text=text,
        schedule=make_schedule(spec.snr_shift),
        source=str(source),
        fingerprint=hashed,
        record=read_record(folder),
    )


def load_text(
    encoder: Path, tokenizer: Path, spec: ModelSpec, dtype: torch.dtype | None, device: torch.device
) -> TextEncoder:
    """The text encoder from the folders of a T5 encoder and its tokenizer; a T5 decoder is skipped."""
    if not (encoder / "config.json").is_file():
        raise CheckpointError(f"not a complete model folder: {encoder / 'config.json'} is missing")
    try:
        config = T5Config.from_pretrained(encoder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{encoder}: the text encoder cannot be read: {_line(error)}") from None
    if config.d_model != spec.transformer.text_dim:
        raise CheckpointError(
            f"{encoder}: embeddings have {config.d_model} channels, "
            f"the transformer needs {spec.transformer.text_dim}"
        )
    model = build_t5(config, Weights(encoder), str(encoder), dtype, device)
    return TextEncoder(read_tokenizer(tokenizer), model, spec.transformer.text_length)


def read_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder."""
    if not (folder / "tokenizer_config.json").is_file():
        raise CheckpointError(f"no tokenizer: {folder / 'tokenizer_config.json'} is missing")
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder}: the tokenizer cannot be read: {_line(error)}") from None
    return tokenizer


def build_t5(
    config: T5Config,
    weights: Mapping[str, Tensor],
    what: str,
    dtype: torch.dtype | None,
    device: torch.device,
) -> T5EncoderModel:
    """A T5 encoder filled with weights under the names of `transformers`; a decoder is skipped."""
    kept = {k: weights[k] for k in weights if not k.startswith(("decoder.", "lm_head."))}
    if _TIED in kept:
        kept.setdefault("shared.weight", kept.pop(_TIED))
    with torch.device("meta"):
        model = T5EncoderModel(config)
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items() if name != _TIED}

    def convert(name: str, tensor: Tensor) -> Tensor:
        # In fp16 these layers overflow; T5 computes them in fp32 wherever their weights are.
        exact = dtype == torch.float16 and ".wo." in name
        return tensor.to(device=device, dtype=torch.float32 if exact else dtype)

    state = read_state(tuple(same(name, name) for name in shapes), kept, shapes, what, convert)
    model.load_state_dict(state | {_TIED: state["shared.weight"]}, assign=True)
    model.tie_weights()
    return model.requires_grad_(False).eval()


def save_model(model: Model, folder: str | Path, *, dtype: str | torch.dtype | None = None) -> None:
    """Write a model folder, atomically: a model that stood there is replaced once the new one is complete.

    `dtype` converts the weights; by default they are written as they are. `diffusers` loads the result,
    with the pipeline class for the model's task; two conventions are not in its layout and must be given
    to it in each call: the zero embedding of the unconditional branch and the text length. Warns when the
    image condition's scale or the position policy has no place there either. Raises CheckpointError for
    variants that diffusers would take for another model, and InputError rather than replace anything but a
    model.
    """
    folder = Path(folder)
    if folder.exists() and not (folder / "model_index.json").is_file() and any(folder.iterdir()):
        raise InputError(f"{folder} holds something other than a model; choose another folder")
    kind = None if dtype is None else pick_dtype(dtype, torch.device("cpu"))
    spec = model.spec
    if spec.image_conditioned and spec.vae.condition_scale not in (spec.vae.scale, 1 / spec.vae.scale):
        ours, theirs = f"{spec.vae.condition_scale:g}", f"1/{spec.vae.scale:g}"
        warnings.warn(
            f"diffusers will scale the image condition by {theirs}, not by {ours}", Note, stacklevel=2
        )
    policy = diffusers_policy(spec.transformer)
    if "rope" in spec.transformer.positions and spec.position_policy != policy:
        told = f"diffusers will {policy} positions at other sizes, not {spec.position_policy} them"
        warnings.warn(told, Note, stacklevel=2)
    configs = {
        "model_index.json": _model_index(spec, _tokenizer_class(model.text)),
        OWN_FILE: write_own(spec, model.record),
        "transformer/config.json": write_transformer(spec.transformer),
        "vae/config.json": write_vae(spec.vae, spec.height, spec.width),
        "scheduler/scheduler_config.json": write_scheduler(spec),
    }
    folder.absolute().parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(folder) as partial:
        for name, config in configs.items():
            write_json(partial / name, config)
        for name, table, module in (
            ("transformer", diffusers_transformer(spec.transformer), model.transformer),
            ("vae", diffusers_vae(spec.vae), model.vae),
        ):
            tensors = iter_theirs(table, module.state_dict(), name)
            write_weights(tensors, partial / name, DIFFUSERS_STEM, dtype=kind)
        write_text(model.text, partial / "text_encoder", partial / "tokenizer", kind)


def write_text(text: TextEncoder, encoder: Path, tokenizer: Path, dtype: torch.dtype | None) -> None:
    """Write a text encoder as `transformers` reads it: weights and configuration, and the tokenizer."""
    state = text.model.state_dict()
    state.pop(_TIED)
    write_weights(state.items(), encoder, TRANSFORMERS_STEM, dtype=dtype)
    config = text.model.config.to_dict()
    config["architectures"] = ["T5EncoderModel"]
    config["dtype"] = str(dtype or text.model.dtype).removeprefix("torch.")
    write_json(encoder / "config.json", config)
    text.tokenizer.save_pretrained(tokenizer)
    named = read_json(tokenizer / "tokenizer_config.json") | {"tokenizer_class": _tokenizer_class(text)}
    write_json(tokenizer / "tokenizer_config.json", named)
    vocabulary = Path(text.tokenizer.name_or_path) / "spiece.model"
    if vocabulary.is_file():  # older releases of transformers read nothing else
        shutil.copyfile(vocabulary, tokenizer / "spiece.model")


def _tokenizer_class(text: TextEncoder) -> str:
    """The class that reads the tokenizer, by the name that transformers 4 knows too."""
    name = type(text.tokenizer).__name__
    return "PreTrainedTokenizerFast" if name == "TokenizersBackend" else name


def write_json(path: Path, config: Mapping[str, Any]) -> None:
    """Write a configuration file, with the folder that it is in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _model_index(spec: ModelSpec, tokenizer: str) -> dict[str, Any]:
    task = "ImageToVideo" if spec.image_conditioned else ""
    return {
        "_class_name": f"CogVideoX{task}Pipeline",
        "_diffusers_version": DIFFUSERS_VERSION,
        "scheduler": ["diffusers", write_scheduler(spec)["_class_name"]],
        "text_encoder": ["transformers", "T5EncoderModel"],
        "tokenizer": ["transformers", tokenizer],
        "transformer": ["diffusers", "CogVideoXTransformer3DModel"],
        "vae": ["diffusers", "AutoencoderKLCogVideoX"],
    }


def _fingerprint(weights: Weights) -> str:
    """`fingerprint`; the pages around its samples, up to 2 MiB each, leave memory again."""
    result, pages = fingerprint(weights), FilePages()
    for tensor in weights.values():
        pages.release(tensor)
    return result


def _combine(parts: Mapping[str, str]) -> str:
    text = "|".join(f"{name}={value}" for name, value in sorted(parts.items()))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _line(error: Exception) -> str:
    """The first line of an error message."""
    return str(error).strip().splitlines()[0]


__all__ = ["Model", "load_model", "load_text", "read_spec", "save_model"]
