"""The settings that diffusers' configuration files may hold, and their checked reading."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from cogvideox.core.errors import CheckpointError, nearest

Config = dict[str, Any]

# Defaults of diffusers for values that are read into the spec ...
TRANSFORMER: Config = {
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
VAE: Config = {
    "block_out_channels": [128, 256, 256, 512],
    "latent_channels": 16,
    "layers_per_block": 3,
    "norm_num_groups": 32,
    "scaling_factor": 1.15258426,
    "invert_scale_latents": False,
}
SCHEDULER: Config = {"snr_shift_scale": 3.0}
# ... the only values that are computed here for the others (the released models') ...
TRANSFORMER_FIXED: Config = {
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
VAE_FIXED: Config = {
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
SCHEDULER_ABSENT: Config = {
    "clip_sample": True,
    "prediction_type": "epsilon",
    "rescale_betas_zero_snr": False,
}
SCHEDULER_FIXED: Config = {
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
TRANSFORMER_INERT = {"dropout", "patch_bias"}
VAE_INERT = {
    "down_block_types",
    "up_block_types",
    "force_upcast",
    "sample_height",
    "sample_width",
    "sample_size",
    "mid_block_add_attention",
}
SCHEDULER_INERT = {
    "set_alpha_to_one",
    "steps_offset",
    "clip_sample_range",
    "sample_max_value",
    "timestep_spacing",
}


def read_json(path: Path) -> Config:
    """A JSON object from a file; CheckpointError if there is none."""
    try:
        return parse_json(path.read_bytes(), str(path))
    except FileNotFoundError:
        raise CheckpointError(f"not a complete model folder: {path} is missing") from None


def parse_json(text: str | bytes, what: str) -> Config:
    """A JSON object; CheckpointError, naming `what` holds it, if it is none."""
    try:
        value = json.loads(text)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{what} is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{what} does not hold a JSON object")
    return value


def check(config: Config, known: Config, fixed: Config, inert: set[str], where: str) -> Config:
    """`config` completed by `known`'s defaults, once everything in it is understood."""
    for key, value in config.items():
        if key.startswith("_") or key in known or key in inert:
            continue
        if key not in fixed:
            raise CheckpointError(f"{where}: unknown setting {key!r}{nearest(key, [*known, *fixed])}")
        if value != fixed[key]:
            raise CheckpointError(f"{where}: {key} = {value!r} is not supported, only {fixed[key]!r}")
    for key, default in known.items():
        kind = int | None if default is None else list[int] if isinstance(default, list) else type(default)
        typed(config.get(key, default), kind, f"{where}: {key}")
    return known | config


def typed(value: Any, kind: Any, what: str) -> Any:
    """A JSON value as `kind`, its numbers positive; CheckpointError, beginning with `what`, if it is not."""
    try:
        result = TypeAdapter(kind).validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        raise CheckpointError(f"{what} = {value!r}: {error.errors()[0]['msg'].lower()}") from None
    for number in result if isinstance(result, (list, tuple)) else [result]:
        if isinstance(number, (int, float)) and not isinstance(number, bool) and not 0 < number < math.inf:
            raise CheckpointError(f"{what} = {value!r}: must be positive and finite")
    return result
