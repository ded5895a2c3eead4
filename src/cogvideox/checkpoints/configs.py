"""Model specs <-> the configuration files of a model folder.

`config.json` files have the layout of diffusers. Every value in them is either read into the spec, or must
have the one value that this code computes, or has no influence on the result; any other key is refused by
name. `cogvideox.json` adds what that layout has no place for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

from cogvideox.checkpoints.settings import (
    SCHEDULER,
    SCHEDULER_ABSENT,
    SCHEDULER_FIXED,
    SCHEDULER_INERT,
    TRANSFORMER,
    TRANSFORMER_FIXED,
    TRANSFORMER_INERT,
    VAE,
    VAE_FIXED,
    VAE_INERT,
    Config,
    check,
    read_json,
    typed,
)
from cogvideox.core.errors import CheckpointError, InputError, nearest
from cogvideox.models.specs import (
    SPECS,
    ModelSpec,
    PositionPolicy,
    Positions,
    TransformerSpec,
    Unconditional,
    VAESpec,
)

Compat = Literal["diffusers"]
ImageScale = Literal["sat", "diffusers", "trainers"]
OWN_FILE = "cogvideox.json"

SCHEDULERS = {"ddim": "CogVideoXDDIMScheduler", "dpm++2m-sde": "CogVideoXDPMScheduler"}


def with_conventions(
    spec: ModelSpec,
    image_scale: ImageScale | None = None,
    unconditional: Unconditional | None = None,
    position_policy: PositionPolicy | None = None,
) -> ModelSpec:
    """`spec` with those conventions that are given. Public implementations disagree about them (reference:
    numerics 2.9): the scale of the image condition, the text of the unconditional branch, and positions at
    other sizes. InputError for unknown names.
    """
    for name, value, kind in (
        ("image_scale", image_scale, ImageScale),
        ("unconditional", unconditional, Unconditional),
        ("position_policy", position_policy, PositionPolicy),
    ):
        if value is not None and value not in get_args(kind):
            raise InputError(f"unknown {name} {value!r}{nearest(str(value), get_args(kind))}")
    if image_scale is not None:
        scale = {"sat": 1.0, "diffusers": 1.0 / spec.vae.scale, "trainers": spec.vae.scale}[image_scale]
        spec = replace(spec, vae=replace(spec.vae, condition_scale=scale))
    return replace(
        spec,
        unconditional=unconditional or spec.unconditional,
        position_policy=position_policy or spec.position_policy,
    )


def diffusers_policy(spec: TransformerSpec) -> PositionPolicy:
    """What diffusers does with positions at other sizes, which it has no setting for."""
    return "interpolate" if spec.patch[0] == 1 else "extrapolate"


def read_transformer(config: Config, where: str = "transformer/config.json") -> TransformerSpec:
    """Spec of a `CogVideoXTransformer3DModel` configuration."""
    c = check(config, TRANSFORMER, TRANSFORMER_FIXED, TRANSFORMER_INERT, where)
    patch_t = c["patch_size_t"] or 1
    positions: tuple[Positions, ...] = ("rope",) if c["use_rotary_positional_embeddings"] else ("sincos",)
    if c["use_learned_positional_embeddings"]:
        if positions != ("rope",):
            raise CheckpointError(f"{where}: learned positions are only supported together with rotary ones")
        positions = ("rope", "learned")
    latents = (c["sample_frames"] - 1) // 4 + 1
    for key in ("sample_height", "sample_width"):
        if c[key] < c["patch_size"]:
            raise CheckpointError(f"{where}: {key} = {c[key]} is less than one patch of {c['patch_size']}")
    if c["attention_head_dim"] % 16:
        raise CheckpointError(
            f"{where}: attention_head_dim = {c['attention_head_dim']} is not a multiple of 16"
        )
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
    """Inverse of `read_transformer`. CheckpointError names what would be lost: the layout of diffusers has no
    place for the variants of ablations, and must not claim to be a model that it is not.
    """
    patch_t, patch, _ = spec.patch
    t, h, w = spec.base_grid
    config = {
        "_class_name": "CogVideoXTransformer3DModel",
        **TRANSFORMER_FIXED,
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
    back = replace(read_transformer(config, "the model"), out_norm_eps=spec.out_norm_eps)
    for name, value in asdict(spec).items():
        if getattr(back, name) != value:
            raise CheckpointError(f"the diffusers layout has no place for {name} = {value!r}")
    return config


def read_vae(config: Config, where: str = "vae/config.json") -> VAESpec:
    """Spec of an `AutoencoderKLCogVideoX` configuration.

    `invert_scale_latents` (set in the 1.5 models) makes the image condition's scale 1, as their authors'
    own sampler has it; `with_conventions` lists the others.
    """
    c = check(config, VAE, VAE_FIXED, VAE_INERT, where)
    widths, groups = c["block_out_channels"], c["norm_num_groups"]
    if len(widths) != 4 or any(width % groups for width in widths):
        raise CheckpointError(f"{where}: block_out_channels = {widths} must be 4 multiples of {groups}")
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
        **VAE_FIXED,
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
        **SCHEDULER_FIXED,
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
        position_policy=diffusers_policy(transformer),
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
    kinds = {name: get_type_hints(ModelSpec)[name] for name in _OWN_FIELDS}
    kinds |= {"out_norm_eps": float, "condition_scale": float}
    values = {}
    for name, value in typed(own.get("spec", {}), dict[str, Any], f"{where}: spec").items():
        if name not in kinds:
            raise CheckpointError(f"{where}: unknown setting {name!r}{nearest(name, kinds)}")
        choices = [c for c in get_args(kinds[name]) if isinstance(c, str)]
        if choices and value not in choices:
            raise CheckpointError(f"{where}: {name} = {value!r}{nearest(str(value), choices)}")
        values[name] = typed(value, kinds[name], f"{where}: {name}")
    eps = values.pop("out_norm_eps", spec.transformer.out_norm_eps)
    scale = values.pop("condition_scale", spec.vae.condition_scale)
    transformer, vae = replace(spec.transformer, out_norm_eps=eps), replace(spec.vae, condition_scale=scale)
    return replace(spec, transformer=transformer, vae=vae, **values)


def _as_diffusers(spec: ModelSpec, transformer: TransformerSpec) -> ModelSpec:
    """`spec` as diffusers computes it: what `config.json` says, and the one convention that it knows."""
    scaled_alike = spec.vae.condition_scale == spec.vae.scale
    return with_conventions(
        replace(spec, transformer=transformer),
        image_scale="trainers" if scaled_alike else "diffusers",
        unconditional="empty",
        position_policy=diffusers_policy(transformer),
    )


def read_spec(folder: str | Path, compat: Compat | None = None) -> ModelSpec:
    """Spec of a model folder, from its configuration files alone.

    Without `cogvideox.json` the released models are recognised by their sizes; any other model gets
    defaults derived from its base size. `compat="diffusers"` reads what diffusers would compute from the
    same folder. Raises CheckpointError naming the setting that is missing, unknown or not supported.
    """
    folder = Path(folder)
    transformer = read_transformer(read_json(folder / "transformer" / "config.json"))
    vae = read_vae(read_json(folder / "vae" / "config.json"))
    scheduler = check(
        SCHEDULER_ABSENT | read_json(folder / "scheduler" / "scheduler_config.json"),
        SCHEDULER,
        SCHEDULER_FIXED,
        SCHEDULER_INERT,
        "scheduler/scheduler_config.json",
    )
    known = _recognise(transformer, vae, scheduler["snr_shift_scale"])
    if (folder / OWN_FILE).exists():
        spec = _custom(folder.name, transformer, vae, scheduler)
        spec = _read_own(read_json(folder / OWN_FILE), spec, str(folder / OWN_FILE))
    elif known is not None:
        spec = replace(known, vae=replace(vae, condition_scale=known.vae.condition_scale))
    else:
        spec = _custom(folder.name, transformer, vae, scheduler)
    return _as_diffusers(spec, transformer) if compat else spec


def read_record(folder: str | Path) -> Config:
    """The free record of a model folder's `cogvideox.json`; empty if there is none."""
    path = Path(folder) / OWN_FILE
    return dict(read_json(path).get("record", {})) if path.exists() else {}
