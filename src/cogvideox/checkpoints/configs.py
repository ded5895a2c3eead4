"""Model specs <-> the configuration files of a model folder.

`config.json` files have the layout of diffusers. Every value in them is either read into the spec, or must
have the one value that this code computes, or has no influence on the result; any other key is refused by
name. `cogvideox.json` adds what that layout has no place for.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

from cogvideox.core.errors import CheckpointError, nearest
from cogvideox.models.specs import SPECS, ModelSpec, Positions, TransformerSpec, VAESpec

Config = dict[str, Any]
OWN_FILE = "cogvideox.json"

# Defaults of diffusers for values that are read into the spec ...
_TRANSFORMER: Config = {
    "num_attention_heads": 30,
    "attention_head_dim": 64,
    "in_channels": 16,
    "out_channels": 16,
    "time_embed_dim": 512,
    "ofs_embed_dim": None,
    "text_embed_dim": 4096,
    "num_layers": 30,
    "sample_width": 90,
    "sample_height": 60,
    "sample_frames": 49,
    "patch_size": 2,
    "patch_size_t": None,
    "max_text_seq_length": 226,
    "spatial_interpolation_scale": 1.875,
    "use_rotary_positional_embeddings": False,
    "use_learned_positional_embeddings": False,
}
_VAE: Config = {
    "block_out_channels": [128, 256, 256, 512],
    "latent_channels": 16,
    "layers_per_block": 3,
    "norm_num_groups": 32,
    "scaling_factor": 1.15258426,
    "invert_scale_latents": False,
}
_SCHEDULER: Config = {"snr_shift_scale": 3.0}
# ... the only values that are computed here for the others (the released models') ...
_TRANSFORMER_FIXED: Config = {
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "attention_bias": True,
    "activation_fn": "gelu-approximate",
    "timestep_activation_fn": "silu",
    "norm_elementwise_affine": True,
    "norm_eps": 1e-5,
    "temporal_interpolation_scale": 1.0,
    "temporal_compression_ratio": 4,
}
_VAE_FIXED: Config = {
    "in_channels": 3,
    "out_channels": 3,
    "act_fn": "silu",
    "norm_eps": 1e-6,
    "temporal_compression_ratio": 4,
    "shift_factor": None,
    "latents_mean": None,
    "latents_std": None,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}
# What an absent value means to diffusers, where that is not what is computed here.
_SCHEDULER_ABSENT: Config = {
    "clip_sample": True,
    "prediction_type": "epsilon",
    "rescale_betas_zero_snr": False,
}
_SCHEDULER_FIXED: Config = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "trained_betas": None,
    "clip_sample": False,
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
}
# ... and those without influence on what the model computes.
_TRANSFORMER_INERT = {"dropout", "patch_bias"}
_VAE_INERT = {
    "down_block_types",
    "up_block_types",
    "force_upcast",
    "sample_height",
    "sample_width",
    "sample_size",
    "mid_block_add_attention",
}
_SCHEDULER_INERT = {
    "set_alpha_to_one",
    "steps_offset",
    "clip_sample_range",
    "sample_max_value",
    "timestep_spacing",
}

SCHEDULERS = {"ddim": "CogVideoXDDIMScheduler", "dpm++2m-sde": "CogVideoXDPMScheduler"}


def image_scales(scale: float) -> dict[str, float]:
    """The scales that public implementations give the image condition of 1.5-5B-I2V (reference: numerics
    2.9).
    """
    return {"sat": 1.0, "diffusers": 1.0 / scale, "trainers": scale}


def read_json(path: Path) -> Config:
    """A JSON object from a file; CheckpointError if there is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"not a complete model folder: {path} is missing") from None
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} does not hold a JSON object")
    return value


def _check(config: Config, known: Config, fixed: Config, inert: set[str], where: str) -> Config:
    """`config` completed by `known`'s defaults, once everything in it is understood."""
    for key, value in config.items():
        if key.startswith("_") or key in known or key in inert:
            continue
        if key not in fixed:
            raise CheckpointError(f"{where}: unknown setting {key!r}{nearest(key, [*known, *fixed])}")
        if value != fixed[key]:
            raise CheckpointError(f"{where}: {key} = {value!r} is not supported, only {fixed[key]!r}")
    return known | config


def read_transformer(config: Config, where: str = "transformer/config.json") -> TransformerSpec:
    """Spec of a `CogVideoXTransformer3DModel` configuration."""
    c = _check(config, _TRANSFORMER, _TRANSFORMER_FIXED, _TRANSFORMER_INERT, where)
    patch_t = c["patch_size_t"] or 1
    positions: tuple[Positions, ...] = ("rope",) if c["use_rotary_positional_embeddings"] else ("sincos",)
    if c["use_learned_positional_embeddings"]:
        if positions != ("rope",):
            raise CheckpointError(f"{where}: learned positions are only supported together with rotary ones")
        positions = ("rope", "learned")
    latents = (c["sample_frames"] - 1) // 4 + 1
    return TransformerSpec(
        layers=c["num_layers"],
        heads=c["num_attention_heads"],
        head_dim=c["attention_head_dim"],
        in_channels=c["in_channels"],
        out_channels=c["out_channels"],
        patch=(patch_t, c["patch_size"], c["patch_size"]),
        time_dim=c["time_embed_dim"],
        ofs_dim=c["ofs_embed_dim"],
        text_dim=c["text_embed_dim"],
        text_length=c["max_text_seq_length"],
        positions=positions,
        base_grid=(
            -(-latents // patch_t),
            c["sample_height"] // c["patch_size"],
            c["sample_width"] // c["patch_size"],
        ),
        spatial_scale=c["spatial_interpolation_scale"],
    )


def write_transformer(spec: TransformerSpec) -> Config:
    """Inverse of `read_transformer`."""
    patch_t, patch, patch_w = spec.patch
    if patch != patch_w:
        raise CheckpointError(f"the diffusers layout has no place for the patch {spec.patch}")
    t, h, w = spec.base_grid
    return {
        "_class_name": "CogVideoXTransformer3DModel",
        **_TRANSFORMER_FIXED,
        "num_attention_heads": spec.heads,
        "attention_head_dim": spec.head_dim,
        "in_channels": spec.in_channels,
        "out_channels": spec.out_channels,
        "time_embed_dim": spec.time_dim,
        "ofs_embed_dim": spec.ofs_dim,
        "text_embed_dim": spec.text_dim,
        "num_layers": spec.layers,
        "sample_width": w * patch,
        "sample_height": h * patch,
        "sample_frames": 4 * patch_t * (t - 1) + 1,
        "patch_size": patch,
        "patch_size_t": patch_t if patch_t > 1 else None,
        "patch_bias": patch_t == 1,
        "max_text_seq_length": spec.text_length,
        "spatial_interpolation_scale": spec.spatial_scale,
        "use_rotary_positional_embeddings": "rope" in spec.positions,
        "use_learned_positional_embeddings": "learned" in spec.positions,
        "dropout": 0.0,
    }


def read_vae(config: Config, where: str = "vae/config.json") -> VAESpec:
    """Spec of an `AutoencoderKLCogVideoX` configuration.

    `invert_scale_latents` (set in the 1.5 models) makes the image condition's scale 1, as their authors'
    own sampler has it; `image_scales` lists the others.
    """
    c = _check(config, _VAE, _VAE_FIXED, _VAE_INERT, where)
    return VAESpec(
        channels=tuple(c["block_out_channels"]),
        blocks=c["layers_per_block"],
        latent_channels=c["latent_channels"],
        groups=c["norm_num_groups"],
        scale=c["scaling_factor"],
        condition_scale=1.0 if c["invert_scale_latents"] else c["scaling_factor"],
    )


def write_vae(spec: VAESpec, height: int, width: int) -> Config:
    """Inverse of `read_vae`; diffusers knows two scales of the image condition, the nearer in meaning is
    written.
    """
    levels = len(spec.channels)
    return {
        "_class_name": "AutoencoderKLCogVideoX",
        **_VAE_FIXED,
        "block_out_channels": list(spec.channels),
        "down_block_types": ["CogVideoXDownBlock3D"] * levels,
        "up_block_types": ["CogVideoXUpBlock3D"] * levels,
        "latent_channels": spec.latent_channels,
        "layers_per_block": spec.blocks,
        "norm_num_groups": spec.groups,
        "scaling_factor": spec.scale,
        "invert_scale_latents": spec.condition_scale != spec.scale,
        "sample_height": height,
        "sample_width": width,
    }


def write_scheduler(spec: ModelSpec) -> Config:
    """Configuration of the diffusers scheduler that matches the model's sampler best."""
    return {
        "_class_name": SCHEDULERS.get(spec.sampler, SCHEDULERS["dpm++2m-sde"]),
        **_SCHEDULER_FIXED,
        "snr_shift_scale": spec.snr_shift,
        "set_alpha_to_one": True,
        "steps_offset": 0,
        "timestep_spacing": "trailing",
    }


def _recognise(transformer: TransformerSpec, vae: VAESpec, snr_shift: float) -> ModelSpec | None:
    """The released model with these sizes, if any. Hub folders differ in what the 1.5 models call their
    base size.
    """
    for spec in SPECS.values():
        ours = spec.transformer
        alike = replace(transformer, out_norm_eps=ours.out_norm_eps)
        if ours.patch[0] > 1:
            alike = replace(alike, base_grid=ours.base_grid, text_length=ours.text_length)
        if (alike, vae.scale, vae.channels, snr_shift) == (
            ours,
            spec.vae.scale,
            spec.vae.channels,
            spec.snr_shift,
        ):
            return spec
    return None


def _custom(name: str, transformer: TransformerSpec, vae: VAESpec, scheduler: Config) -> ModelSpec:
    """Defaults for a model that is none of the released ones and has no `cogvideox.json`."""
    patch_t, patch_h, patch_w = transformer.patch
    t, h, w = transformer.base_grid
    frames, height, width = 4 * patch_t * (t - 1) + 1, 8 * patch_h * h, 8 * patch_w * w
    side = min(height, width)
    samplers = {name: sampler for sampler, name in SCHEDULERS.items()}
    return ModelSpec(
        name=name,
        transformer=transformer,
        vae=vae,
        snr_shift=scheduler["snr_shift_scale"],
        frames=frames,
        height=height,
        width=width,
        fps=8 if patch_t == 1 else 16,
        trained_frames=(min(9, frames), frames),
        trained_side=(side, side),
        sampler=samplers.get(scheduler.get("_class_name", ""), "dpm++2m-sde"),
        position_policy="interpolate" if patch_t == 1 else "extrapolate",
        licence="unknown",
    )


# What `cogvideox.json` holds under "spec": the fields that the diffusers layout has no place for.
_OWN_FIELDS = [f.name for f in fields(ModelSpec) if f.name not in ("transformer", "vae", "snr_shift")]


def write_own(spec: ModelSpec, record: Mapping[str, Any]) -> Config:
    """Content of `cogvideox.json`; `record` is kept as it is (caption style, recipe, data and licences)."""
    values = asdict(spec)
    return {
        "format": 1,
        "spec": {name: values[name] for name in _OWN_FIELDS}
        | {"out_norm_eps": spec.transformer.out_norm_eps, "condition_scale": spec.vae.condition_scale},
        "record": dict(record),
    }


def _read_own(own: Config, spec: ModelSpec, where: str) -> ModelSpec:
    """`spec` with the values of a `cogvideox.json`."""
    if unknown := sorted(set(own) - {"format", "spec", "record"}):
        raise CheckpointError(f"{where}: unknown key {unknown[0]!r}")
    if own.get("format") != 1:
        raise CheckpointError(
            f"{where}: format {own.get('format')!r} is newer than this program, which knows 1"
        )
    values = dict(own.get("spec", {}))
    transformer, vae = spec.transformer, spec.vae
    if "out_norm_eps" in values:
        transformer = replace(transformer, out_norm_eps=values.pop("out_norm_eps"))
    if "condition_scale" in values:
        vae = replace(vae, condition_scale=values.pop("condition_scale"))
    hints = get_type_hints(ModelSpec)
    for name, value in values.items():
        if name not in _OWN_FIELDS:
            raise CheckpointError(f"{where}: unknown setting {name!r}{nearest(name, _OWN_FIELDS)}")
        choices = [c for c in get_args(hints[name]) if isinstance(c, str)]
        if choices and value not in choices:
            raise CheckpointError(f"{where}: {name} = {value!r}{nearest(str(value), choices)}")
        values[name] = tuple(value) if isinstance(value, list) else value
    return replace(spec, transformer=transformer, vae=vae, **values)


def read_spec(folder: str | Path) -> ModelSpec:
    """Spec of a model folder, from its configuration files alone.

    Without `cogvideox.json` the released models are recognised by their sizes; any other model gets
    defaults derived from its base size. Raises CheckpointError naming the setting that is missing, unknown
    or not supported.
    """
    folder = Path(folder)
    transformer = read_transformer(read_json(folder / "transformer" / "config.json"))
    vae = read_vae(read_json(folder / "vae" / "config.json"))
    scheduler = _check(
        _SCHEDULER_ABSENT | read_json(folder / "scheduler" / "scheduler_config.json"),
        _SCHEDULER,
        _SCHEDULER_FIXED,
        _SCHEDULER_INERT,
        "scheduler/scheduler_config.json",
    )
    shift = scheduler["snr_shift_scale"]
    if (folder / OWN_FILE).exists():
        spec = _custom(folder.name, transformer, vae, scheduler)
        return _read_own(read_json(folder / OWN_FILE), spec, str(folder / OWN_FILE))
    known = _recognise(transformer, vae, shift)
    if known is None:
        return _custom(folder.name, transformer, vae, scheduler)
    return replace(known, vae=replace(vae, condition_scale=known.vae.condition_scale))


def read_record(folder: str | Path) -> Config:
    """The free record of a model folder's `cogvideox.json`; empty if there is none."""
    path = Path(folder) / OWN_FILE
    return dict(read_json(path).get("record", {})) if path.exists() else {}
