"""LoRA adapters: small low-rank updates of a model's matrices, in files of diffusers, PEFT or SAT.

    W' = W + sum over adapters of weight * (alpha / rank) * up @ down

An adapter is kept under diffusers' module names, the names of almost all adapters there are; where our
modules are fused (q, k and v; the modulations) the key map says which rows an update belongs to.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from cogvideox.checkpoints import hub, sat
from cogvideox.checkpoints.folder import Model
from cogvideox.checkpoints.keymaps import Rule, diffusers_transformer
from cogvideox.checkpoints.settings import parse_json, read_json, typed
from cogvideox.checkpoints.weights import Weights
from cogvideox.core.errors import CheckpointError, InputError, Note, nearest
from cogvideox.core.files import atomic_path
from cogvideox.models.specs import SPECS, TransformerSpec
from cogvideox.models.text import fingerprint
from cogvideox.models.transformer.model import Transformer

DIFFUSERS_FILE = "pytorch_lora_weights.safetensors"
PEFT_FILE = "adapter_model.safetensors"
PEFT_CONFIG = "adapter_config.json"
DIFFUSERS_METADATA = "lora_adapter_metadata"
OWN_METADATA = "cogvideox"
KEY = re.compile(
    r"(?:base_model\.model\.)?(?:transformer\.)?(?P<module>.+?)\."
    r"(?:lora_(?P<new>[AB])(?:\.[\w-]+)?\.weight|lora\.(?P<old>down|up)\.weight|(?P<alpha>alpha))"
)
SAT_MODULES = {
    ("query_key_value", "0"): "to_q",
    ("query_key_value", "1"): "to_k",
    ("query_key_value", "2"): "to_v",
    ("dense", "0"): "to_out.0",
}


@dataclass(frozen=True, eq=False)
class LoraLayer:
    """The update of one matrix: (alpha / rank) * up @ down."""

    down: Tensor
    """(rank, inputs)"""
    up: Tensor
    """(outputs, rank)"""
    alpha: float

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    def delta(self) -> Tensor:
        """The update itself, (outputs, inputs) in fp32."""
        return (self.up.flatten(1).float() @ self.down.flatten(1).float()) * (self.alpha / self.rank)


@dataclass(frozen=True, eq=False)
class Lora:
    """An adapter."""

    layers: Mapping[str, LoraLayer]
    """By diffusers' module names, such as `transformer_blocks.0.attn1.to_q`."""
    source: str = ""
    base: str | None = None
    """Name of the model that it was trained on, if the file says so."""
    base_fingerprint: str | None = None
    record: Mapping[str, Any] = field(default_factory=dict)
    """Free record: recipe, data and licences."""

    @property
    def fingerprint(self) -> str:
        """Hash of its weights."""
        tensors = {
            f"{n}.{side}": getattr(layer, side) for n, layer in self.layers.items() for side in ("down", "up")
        }
        return fingerprint(tensors)


def load_lora(source: str | Path, *, alpha: float | None = None, revision: str | None = None) -> Lora:
    """Read an adapter: a file or folder of diffusers or PEFT, a SAT checkpoint, or a hub id.

    alpha comes from the file (`.alpha` keys, metadata, `adapter_config.json`) unless it is given here;
    files that say nothing get alpha = rank, as in diffusers, with a warning (SAT trains with alpha 1 and
    does not store it: checkpoints in its own format get 1, but files exported from them need `alpha=1`).
    Raises CheckpointError for any key that is not part of an adapter, and when there is none; InputError
    when there is no such file.
    """
    path = Path(source).expanduser()
    if not path.exists():
        if str(source).count("/") != 1 or path.suffix in hub.FILE_SUFFIXES:
            raise InputError(f"no such adapter file or folder: {source}")
        path = hub.fetch(str(source), ["*.safetensors", PEFT_CONFIG], revision)
    if path.is_dir():
        path = _adapter_file(path)
    if path.suffix != ".safetensors":
        return _read_sat(path, alpha)
    weights = Weights(path)
    own = parse_json(weights.metadata.get(OWN_METADATA, "{}"), f"{path}: metadata {OWN_METADATA!r}")
    config = _peft_config(path, weights.metadata)
    matrices, alphas = _matrices(weights, str(path))
    layers, silent = {}, False
    for name, (down, up) in matrices.items():
        stored = alphas.get(name, _configured_alpha(config, name, down.shape[0]))
        silent |= alpha is None and stored is None
        scale = alpha if alpha is not None else down.shape[0] if stored is None else stored
        layers[name] = LoraLayer(down, up, float(scale))
    if silent:
        warnings.warn(
            f"{path} does not say its alpha; taking alpha = rank, as diffusers does", Note, stacklevel=2
        )
    return Lora(
        layers=layers,
        source=str(source),
        base=own.get("base") or _released(config.get("base_model_name_or_path")),
        base_fingerprint=own.get("base_fingerprint"),
        record=own.get("record", {}),
    )


def _adapter_file(folder: Path) -> Path:
    for name in (DIFFUSERS_FILE, PEFT_FILE):
        if (folder / name).is_file():
            return folder / name
    files = sorted(folder.glob("*.safetensors"))
    if len(files) == 1:
        return files[0]
    found = sat.find_states(folder)
    if found is None:
        raise CheckpointError(
            f"no adapter in {folder}: neither {DIFFUSERS_FILE} nor {PEFT_FILE} nor {sat.STATES}"
        )
    return found


def _peft_config(path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    """The PEFT configuration of an adapter, from its metadata or from the file beside it."""
    if DIFFUSERS_METADATA in metadata:
        packed = parse_json(metadata[DIFFUSERS_METADATA], f"{path}: metadata {DIFFUSERS_METADATA!r}")
        config = {key.removeprefix("transformer."): value for key, value in packed.items()}
    elif (path.parent / PEFT_CONFIG).is_file():
        config = read_json(path.parent / PEFT_CONFIG)
    else:
        config = {}
    for setting in ("use_dora", "lora_bias"):
        if config.get(setting):
            raise CheckpointError(f"{path}: adapters with {setting} are not supported")
    for setting, kind in (("lora_alpha", float), ("alpha_pattern", dict[str, float])):
        if config.get(setting) is not None:
            typed(config[setting], kind, f"{path}: {setting}")
    return config


def _configured_alpha(config: Mapping[str, Any], name: str, rank: int) -> float | None:
    """alpha of one module as PEFT's settings give it: the first pattern that its name ends with."""
    patterns = (config.get("alpha_pattern") or {}).items()
    found = (value for pattern, value in patterns if re.match(rf"(.*\.)?({pattern})$", name))
    alpha = next(found, config.get("lora_alpha"))
    if alpha is not None and config.get("use_rslora"):
        return float(alpha * rank**0.5)  # rank-stabilised: the scale is alpha / sqrt(rank)
    return alpha


def _matrices(
    weights: Mapping[str, Tensor], what: str
) -> tuple[dict[str, tuple[Tensor, Tensor]], dict[str, float]]:
    """Sort the keys of an adapter file: (down, up) and alpha by module."""
    sides: dict[str, dict[str, Tensor]] = {}
    alphas: dict[str, float] = {}
    for key, tensor in weights.items():
        match = KEY.fullmatch(key)
        if match is None:
            raise CheckpointError(f"{what}: {key!r} is not part of an adapter of the transformer")
        if match["alpha"]:
            if tensor.numel() != 1:
                raise CheckpointError(f"{what}: {key!r} is no number but has shape {tuple(tensor.shape)}")
            alphas[match["module"]] = float(tensor)
        else:
            side = "down" if "A" == match["new"] or match["old"] == "down" else "up"
            sides.setdefault(match["module"], {})[side] = tensor
    if not sides:
        raise CheckpointError(f"{what} holds no adapter weights")
    return {name: _pair(name, pair, what) for name, pair in sides.items()}, alphas


def _pair(name: str, pair: Mapping[str, Tensor], what: str) -> tuple[Tensor, Tensor]:
    for side in ("down", "up"):
        if side not in pair:
            raise CheckpointError(f"{what}: {name!r} has no {side} matrix")
        if pair[side].ndim < 2:
            raise CheckpointError(f"{what}: {name!r} has no {side} matrix but {tuple(pair[side].shape)}")
    down, up = pair["down"], pair["up"]
    if down.shape[0] != up.shape[1]:
        raise CheckpointError(
            f"{what}: {name!r} has rank {down.shape[0]} in one matrix and {up.shape[1]} in the other"
        )
    return down, up


def _read_sat(path: Path, alpha: float | None) -> Lora:
    state = sat.split(sat.read_file(path), str(path)).lora
    sides: dict[str, dict[str, Tensor]] = {}
    for key, tensor in state.items():
        match = sat.LORA_KEY.fullmatch(key)
        assert match is not None
        layer, module, matrix, index = match.groups()
        if (module, index) not in SAT_MODULES:
            raise CheckpointError(f"{path}: unknown adapter key {key!r}")
        name = f"transformer_blocks.{layer}.attn1.{SAT_MODULES[module, index]}"
        sides.setdefault(name, {})["down" if matrix == "A" else "up"] = tensor
    if not sides:
        raise CheckpointError(f"{path} holds no adapter weights")
    pairs = {name: _pair(name, pair, str(path)) for name, pair in sides.items()}
    scale = 1.0 if alpha is None else alpha
    return Lora({name: LoraLayer(down, up, scale) for name, (down, up) in pairs.items()}, source=str(path))


def _released(base: object) -> str | None:
    """The short name of a released model that a repository or folder name means."""
    last = str(base or "").rstrip("/").rsplit("/", 1)[-1].lower()
    return next((n for n, s in SPECS.items() if s.hub and s.hub.rsplit("/", 1)[-1].lower() == last), None)


def places(spec: TransformerSpec) -> dict[str, tuple[Rule, tuple[int, ...]]]:
    """Every matrix that an adapter may change: diffusers' module name -> our tensor and the blocks of it."""
    return {
        key.removesuffix(".weight"): (rule, blocks)
        for rule in diffusers_transformer(spec)
        for key, blocks in rule.theirs
        if key.endswith(".weight") and "norm" not in key.split(".")[-2]
    }


def from_modules(
    spec: TransformerSpec,
    layers: Mapping[str, tuple[Tensor, Tensor]],
    alpha: float,
    **about: Any,
) -> Lora:
    """An adapter from (down, up) pairs of *our* modules, such as `blocks.0.attention.qkv`; `about` as in
    `Lora`.

    A pair of a fused module becomes one pair for each of its parts, with the same `down`.
    """
    ours: dict[str, list[tuple[str, Rule, tuple[int, ...]]]] = {}
    for name, (rule, blocks) in places(spec).items():
        ours.setdefault(rule.ours.removesuffix(".weight"), []).append((name, rule, blocks))
    theirs = {}
    for module, (down, up) in layers.items():
        if module not in ours:
            raise CheckpointError(f"no adapter can be kept for {module!r}{nearest(module, ours)}")
        for name, rule, blocks in ours[module]:
            pieces = up.chunk(rule.blocks)
            theirs[name] = LoraLayer(down, torch.cat([pieces[b] for b in blocks]), alpha)
    return Lora(theirs, **about)


class Applied:
    """Adapters merged into a model. `undo` restores the original bits; undo nested ones in reverse order."""

    def __init__(self, transformer: Transformer, originals: dict[str, Tensor]) -> None:
        self._transformer = transformer
        self._originals = originals
        parameters = dict(transformer.named_parameters())
        self._merged = {name: _checksum(parameters[name]) for name in originals}

    @torch.no_grad()
    def undo(self) -> None:
        """Put the original matrices back; a second call does nothing.

        Raises InputError, and changes nothing, if the matrices are not those that were merged any more.
        """
        parameters = dict(self._transformer.named_parameters())
        for name, original in self._originals.items():
            if parameters[name].dtype != original.dtype:
                raise InputError(
                    f"cannot undo adapters: the model's dtype changed from {original.dtype} since"
                )
            if _checksum(parameters[name]) != self._merged[name]:
                raise InputError("cannot undo adapters: others were merged since; undo those first")
        for name, original in self._originals.items():
            parameters[name].data = original.to(parameters[name].device)
        self._originals = {}


def _checksum(matrix: Tensor) -> int:
    """Sum of the bits of a matrix as integers: exact, so the same on every device."""
    return int(matrix.detach().view({2: torch.int16, 4: torch.int32}[matrix.element_size()]).sum())


@torch.no_grad()
def apply(model: Model, adapters: Sequence[tuple[Lora, float]], *, allow_partial: bool = False) -> Applied:
    """Merge adapters with their weights into a model: summed in fp32, rounded once to the model's precision.

    All or nothing: raises CheckpointError, naming both sides, if an adapter is for another base, names a
    matrix that the model does not have, or one of another shape. With `allow_partial` such matrices are left
    out with a warning, if any others are left. Costs the memory of the changed matrices until undone.
    """
    known = places(model.spec.transformer)
    parameters = dict(model.transformer.named_parameters())
    changes: dict[str, list[tuple[LoraLayer, float, Rule, tuple[int, ...]]]] = {}
    for lora, weight in adapters:
        for name, layer in _fitting(lora, model, known, parameters, allow_partial).items():
            rule, blocks = known[name]
            changes.setdefault(rule.ours, []).append((layer, weight, rule, blocks))
    originals = {}
    for name, parts in changes.items():
        parameter = parameters[name]
        merged = parameter.detach().to(torch.float32, copy=True)
        for layer, weight, rule, blocks in parts:
            delta = (layer.delta() * weight).to(merged.device)
            rows = merged.chunk(rule.blocks)
            for block, piece in zip(blocks, delta.chunk(len(blocks)), strict=True):
                rows[block].add_(piece)
        originals[name] = parameter.data.cpu()
        parameter.data = merged.to(parameter.dtype)
    return Applied(model.transformer, originals)


def _fitting(
    lora: Lora,
    model: Model,
    known: Mapping[str, tuple[Rule, tuple[int, ...]]],
    parameters: Mapping[str, Tensor],
    allow_partial: bool,
) -> dict[str, LoraLayer]:
    """The layers of the adapter that fit the model. CheckpointError if these are not all (none, with
    `allow_partial`), or it is of another base.
    """
    adapter = f"the adapter {lora.source or '(unnamed)'}" + (
        f", made for {lora.base!r}," if lora.base else ""
    )
    target = f"the model {model.spec.name!r} ({model.source})"
    if not lora.layers:
        raise CheckpointError(f"{adapter} has no layers, nothing of it would change {target}")
    if lora.base is not None and lora.base != model.spec.name:
        raise CheckpointError(f"{adapter} does not belong to {target}")
    if lora.base_fingerprint not in (None, model.fingerprint):
        raise CheckpointError(
            f"{adapter} was trained on weights {lora.base_fingerprint}, {target} has {model.fingerprint}"
        )
    need = {}
    for name in set(lora.layers) & set(known):
        rule, blocks = known[name]
        rows, columns = parameters[rule.ours].shape
        need[name] = rows // rule.blocks * len(blocks), columns
    have = {name: (layer.up.shape[0], layer.down[0].numel()) for name, layer in lora.layers.items()}
    fitting = {name: layer for name, layer in lora.layers.items() if have[name] == need.get(name)}
    left = sorted(set(lora.layers) - set(fitting))
    if left:
        told = f"{len(fitting)} of its {len(lora.layers)} layers fit; {left[0]!r} "
        if left[0] in need:
            told += f"is {have[left[0]]}, the model's is {need[left[0]]}"
        else:
            told += f"has no place there{nearest(left[0], list(known))}"
        if not (fitting and allow_partial):
            hint = " (--allow-partial merges those that do)" if fitting else ""
            raise CheckpointError(f"{adapter} does not fit {target}: {told}{hint}")
        # Past the decorator of `apply`.
        warnings.warn(f"of {adapter} only a part is merged into {target}: {told}", Note, stacklevel=4)
    return fitting


def save_lora(lora: Lora, path: str | Path) -> None:
    """Write an adapter for diffusers, PEFT and this program: `path` is a folder or a `.safetensors` file."""
    path = Path(path)
    layers = lora.layers
    if not layers:
        raise CheckpointError("an adapter without layers cannot be saved")
    first = next(iter(layers.values()))
    config = {
        "r": first.rank,
        "lora_alpha": first.alpha,
        "target_modules": sorted(layers),
        "rank_pattern": {name: x.rank for name, x in layers.items() if x.rank != first.rank},
        "alpha_pattern": {name: x.alpha for name, x in layers.items() if x.alpha != first.alpha},
    }
    own = {"base": lora.base, "base_fingerprint": lora.base_fingerprint, "record": dict(lora.record)}
    metadata = {
        "format": "pt",
        DIFFUSERS_METADATA: json.dumps({f"transformer.{key}": value for key, value in config.items()}),
        OWN_METADATA: json.dumps(own),
    }
    tensors = {}
    for name, layer in layers.items():
        tensors[f"transformer.{name}.lora_A.weight"] = layer.down.detach().cpu().contiguous()
        tensors[f"transformer.{name}.lora_B.weight"] = layer.up.detach().cpu().contiguous()
    tensors = {key: value.clone() for key, value in tensors.items()}  # fused modules share their `down`
    file = path if path.suffix == ".safetensors" else path / DIFFUSERS_FILE
    file.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(file) as partial:
        save_file(tensors, partial, metadata=metadata)
