"""Key maps between our modules, diffusers folders and SAT checkpoints: tables, used both ways.

A `Rule` says which tensors of the other layout make up one of ours. `to_ours` and `from_ours` run any
table; both refuse anything that is not covered exactly, so a key can neither be lost nor invented.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from cogvideox.core.errors import CheckpointError, nearest
from cogvideox.models.specs import TransformerSpec, VAESpec
from cogvideox.models.transformer.positions import coordinates, sincos_table


@dataclass(frozen=True)
class Rule:
    """One tensor of ours and the tensors of the other layout that it consists of."""

    ours: str
    theirs: tuple[tuple[str, tuple[int, ...]], ...]
    """(key, blocks): our tensor is cut along its first axis into equal blocks; each key holds some."""
    blocks: int = 1
    shape: tuple[int, ...] | None = None
    """Shape of the tensor in the other layout where it differs from ours (same numbers, same order)."""


Table = tuple[Rule, ...]


def same(ours: str, theirs: str, shape: tuple[int, ...] | None = None) -> Rule:
    """One tensor under two names."""
    return Rule(ours, ((theirs, (0,)),), shape=shape)


def both(ours: str, theirs: str) -> tuple[Rule, Rule]:
    """Weight and bias of a layer under two names."""
    return same(f"{ours}.weight", f"{theirs}.weight"), same(f"{ours}.bias", f"{theirs}.bias")


def _blocks(ours: str, theirs: Mapping[str, tuple[int, ...]], blocks: int) -> tuple[Rule, Rule]:
    weight, bias = (
        Rule(f"{ours}.{leaf}", tuple((f"{key}.{leaf}", index) for key, index in theirs.items()), blocks)
        for leaf in ("weight", "bias")
    )
    return weight, bias


def _patch_shape(spec: TransformerSpec) -> tuple[int, ...] | None:
    """The 1.0 models store the patch embedding as a Conv2d kernel."""
    return (spec.width, spec.in_channels, *spec.patch[1:]) if spec.patch[0] == 1 else None


def _positions(spec: TransformerSpec, theirs: str) -> Table:
    if "learned" not in spec.positions:
        return ()
    rows = spec.text_length + math.prod(spec.base_grid)
    return (same("positions.learned.table", theirs, (1, rows, spec.width)),)


def _require_released(spec: TransformerSpec) -> None:
    if spec.modality != "expert" or spec.attention != "full":
        raise CheckpointError(
            "other layouts have no place for the variant "
            f"modality={spec.modality!r}, attention={spec.attention!r}"
        )


def diffusers_transformer(spec: TransformerSpec) -> Table:
    """Our transformer <-> `CogVideoXTransformer3DModel`."""
    _require_released(spec)
    rules: list[Rule] = [
        same("patch_embed.weight", "patch_embed.proj.weight", _patch_shape(spec)),
        same("patch_embed.bias", "patch_embed.proj.bias"),
        *both("text_embed", "patch_embed.text_proj"),
        *both("time_embed.up", "time_embedding.linear_1"),
        *both("time_embed.down", "time_embedding.linear_2"),
        *_positions(spec, "patch_embed.pos_embedding"),
        *both("output.norm_joint", "norm_final"),
        *both("output.norm", "norm_out.norm"),
        *both("output.modulation", "norm_out.linear"),
        *both("output.linear", "proj_out"),
    ]
    if spec.ofs_dim:
        rules += both("ofs_embed.up", "ofs_embedding.linear_1") + both(
            "ofs_embed.down", "ofs_embedding.linear_2"
        )
    for i in range(spec.layers):
        ours, theirs = f"blocks.{i}", f"transformer_blocks.{i}"
        norms = {f"{theirs}.norm1.linear": (0, 1, 2, 6, 7, 8), f"{theirs}.norm2.linear": (3, 4, 5, 9, 10, 11)}
        attention = f"{theirs}.attn1"
        qkv = {f"{attention}.to_q": (0,), f"{attention}.to_k": (1,), f"{attention}.to_v": (2,)}
        rules += (
            *_blocks(f"{ours}.modulation.linear", norms, 12),
            *both(f"{ours}.norm1", f"{theirs}.norm1.norm"),
            *both(f"{ours}.norm2", f"{theirs}.norm2.norm"),
            *_blocks(f"{ours}.attention.qkv", qkv, 3),
            *both(f"{ours}.attention.norm_q", f"{attention}.norm_q"),
            *both(f"{ours}.attention.norm_k", f"{attention}.norm_k"),
            *both(f"{ours}.attention.out", f"{attention}.to_out.0"),
            *both(f"{ours}.mlp.up", f"{theirs}.ff.net.0.proj"),
            *both(f"{ours}.mlp.down", f"{theirs}.ff.net.2"),
        )
    return tuple(rules)


def sat_transformer(spec: TransformerSpec) -> Table:
    """Our transformer <-> SAT, without the prefix `model.diffusion_model.`."""
    _require_released(spec)
    rules: list[Rule] = [
        same("patch_embed.weight", "mixins.patch_embed.proj.weight", _patch_shape(spec)),
        same("patch_embed.bias", "mixins.patch_embed.proj.bias"),
        *both("text_embed", "mixins.patch_embed.text_proj"),
        *both("time_embed.up", "time_embed.0"),
        *both("time_embed.down", "time_embed.2"),
        *_positions(spec, "mixins.pos_embed.pos_embedding"),
        *both("output.norm_joint", "transformer.final_layernorm"),
        *both("output.norm", "mixins.final_layer.norm_final"),
        *both("output.modulation", "mixins.final_layer.adaLN_modulation.1"),
        *both("output.linear", "mixins.final_layer.linear"),
    ]
    if spec.ofs_dim:
        rules += both("ofs_embed.up", "ofs_embed.0") + both("ofs_embed.down", "ofs_embed.2")
    for i in range(spec.layers):
        ours, theirs, mixin = f"blocks.{i}", f"transformer.layers.{i}", "mixins.adaln_layer"
        rules += (
            *both(f"{ours}.modulation.linear", f"{mixin}.adaLN_modulations.{i}.1"),
            *both(f"{ours}.norm1", f"{theirs}.input_layernorm"),
            *both(f"{ours}.norm2", f"{theirs}.post_attention_layernorm"),
            *both(f"{ours}.attention.qkv", f"{theirs}.attention.query_key_value"),
            *both(f"{ours}.attention.norm_q", f"{mixin}.query_layernorm_list.{i}"),
            *both(f"{ours}.attention.norm_k", f"{mixin}.key_layernorm_list.{i}"),
            *both(f"{ours}.attention.out", f"{theirs}.attention.dense"),
            *both(f"{ours}.mlp.up", f"{theirs}.mlp.dense_h_to_4h"),
            *both(f"{ours}.mlp.down", f"{theirs}.mlp.dense_4h_to_h"),
        )
    return tuple(rules)


@dataclass(frozen=True)
class _VAENames:
    """How a layout names the places of the VAE."""

    block: Callable[[str, int, int], str]
    """(part, level, block) -> residual block; level -1 is the middle."""
    resample: Callable[[str, int], str]
    shortcut: str


def _vae(spec: VAESpec, names: _VAENames) -> Table:
    rules: list[Rule] = []

    def norm(ours: str, theirs: str, part: str) -> None:
        if part == "encoder":
            rules.extend(both(ours, theirs))
        else:
            rules.extend(both(f"{ours}.norm", f"{theirs}.norm_layer"))
            rules.extend(both(f"{ours}.scale", f"{theirs}.conv_y.conv"))
            rules.extend(both(f"{ours}.shift", f"{theirs}.conv_b.conv"))

    def block(ours: str, theirs: str, part: str, shortcut: bool) -> None:
        for n in (1, 2):
            norm(f"{ours}.norm{n}", f"{theirs}.norm{n}", part)
            rules.extend(both(f"{ours}.conv{n}", f"{theirs}.conv{n}.conv"))
        if shortcut:
            rules.extend(both(f"{ours}.shortcut", f"{theirs}.{names.shortcut}"))

    for part, blocks in (("encoder", spec.blocks), ("decoder", spec.blocks + 1)):
        channels = spec.channels if part == "encoder" else spec.channels[::-1]
        rules.extend(both(f"{part}.conv_in", f"{part}.conv_in.conv"))
        rules.extend(both(f"{part}.conv_out", f"{part}.conv_out.conv"))
        norm(f"{part}.norm_out", f"{part}.norm_out", part)
        for b in range(2):
            block(f"{part}.middle.{b}", names.block(part, -1, b), part, False)
        for level, width in enumerate(channels):
            before = channels[max(level - 1, 0)]
            for b in range(blocks):
                changes = b == 0 and width != before
                block(f"{part}.levels.{level}.blocks.{b}", names.block(part, level, b), part, changes)
            if level < len(channels) - 1:
                rules.extend(both(f"{part}.levels.{level}.resample.conv", names.resample(part, level)))
    return tuple(rules)


def diffusers_vae(spec: VAESpec) -> Table:
    """Our VAE <-> `AutoencoderKLCogVideoX`."""

    def block(part: str, level: int, b: int) -> str:
        if level < 0:
            return f"{part}.mid_block.resnets.{b}"
        return f"{part}.{'down' if part == 'encoder' else 'up'}_blocks.{level}.resnets.{b}"

    def resample(part: str, level: int) -> str:
        way = "down" if part == "encoder" else "up"
        return f"{part}.{way}_blocks.{level}.{way}samplers.0.conv"

    return _vae(spec, _VAENames(block, resample, "conv_shortcut"))


def sat_vae(spec: VAESpec) -> Table:
    """Our VAE <-> SAT's `3d-vae.pt`. SAT counts the decoder's levels from the full resolution."""
    last = len(spec.channels) - 1

    def block(part: str, level: int, b: int) -> str:
        if level < 0:
            return f"{part}.mid.block_{b + 1}"
        return (
            f"encoder.down.{level}.block.{b}" if part == "encoder" else f"decoder.up.{last - level}.block.{b}"
        )

    def resample(part: str, level: int) -> str:
        return (
            f"encoder.down.{level}.downsample.conv"
            if part == "encoder"
            else f"decoder.up.{last - level}.upsample.conv"
        )

    return _vae(spec, _VAENames(block, resample, "nin_shortcut"))


def without_fixed_positions(
    spec: TransformerSpec, weights: Mapping[str, Tensor], key: str, what: str
) -> Mapping[str, Tensor]:
    """`weights` without a stored table of sin-cos positions under `key`, once it equals the computed one.

    Some files of 2B hold it, others do not; here it is never a weight.
    """
    if "sincos" not in spec.positions or key not in weights:
        return weights
    stored = weights[key]
    video = sincos_table(
        coordinates(spec.base_grid, "extrapolate", spec.base_grid), spec.width, spec.spatial_scale
    )
    table = torch.cat([torch.zeros(spec.text_length, spec.width), video]).unsqueeze(0)
    if stored.shape != table.shape:
        raise CheckpointError(
            f"{what}: {key!r} has shape {tuple(stored.shape)}, the model needs {tuple(table.shape)}"
        )
    error = (stored.float() - table).abs().max().item()
    if not error <= max(2 * torch.finfo(stored.dtype).eps, 1e-5):
        raise CheckpointError(f"{what}: {key!r} differs by {error:.2g} from the model's fixed positions")
    return {name: weights[name] for name in weights if name != key}


def check_keys(expected: Iterable[str], found: Iterable[str], what: str) -> None:
    """Raise CheckpointError naming the keys unless both are the same set."""
    expected, found = set(expected), set(found)
    if missing := sorted(expected - found):
        raise CheckpointError(f"{what}: {len(missing)} keys missing, such as {missing[0]!r}")
    if unknown := sorted(found - expected):
        hint = nearest(unknown[0], expected) if len(expected) < 5000 else ""
        raise CheckpointError(f"{what}: {len(unknown)} unknown keys, such as {unknown[0]!r}{hint}")


def iter_ours(
    table: Table, theirs: Mapping[str, Tensor], shapes: Mapping[str, torch.Size], what: str
) -> Iterator[tuple[str, Tensor]]:
    """Their tensors -> ours, one at a time. `shapes` are those of our model.

    A renamed tensor is the same memory, not a copy. Raises CheckpointError when a key is missing or unknown
    (before the first tensor) or a shape differs.
    """
    check_keys((key for rule in table for key, _ in rule.theirs), theirs, what)
    check_keys(shapes, (rule.ours for rule in table), f"{what} (key map)")
    for rule in table:
        shape = shapes[rule.ours]
        pieces: list[Tensor | None] = [None] * rule.blocks
        for key, blocks in rule.theirs:
            tensor = theirs[key]
            expected = rule.shape or (shape[0] // rule.blocks * len(blocks), *shape[1:])
            if tuple(tensor.shape) != tuple(expected):
                raise CheckpointError(
                    f"{what}: {key!r} has shape {tuple(tensor.shape)}, the model needs {tuple(expected)}"
                )
            for block, piece in zip(blocks, tensor.chunk(len(blocks)), strict=True):
                pieces[block] = piece
        found = [piece for piece in pieces if piece is not None]
        yield rule.ours, found[0].reshape(shape) if rule.blocks == 1 else torch.cat(found)


def iter_theirs(table: Table, ours: Mapping[str, Tensor], what: str) -> Iterator[tuple[str, Tensor]]:
    """Our tensors -> theirs, one at a time; exact inverse of `iter_ours`."""
    check_keys((rule.ours for rule in table), ours, what)
    for rule in table:
        pieces = ours[rule.ours].chunk(rule.blocks)
        for key, blocks in rule.theirs:
            value = pieces[blocks[0]] if len(blocks) == 1 else torch.cat([pieces[b] for b in blocks])
            yield key, value.reshape(rule.shape) if rule.shape else value.contiguous()


def to_ours(
    table: Table, theirs: Mapping[str, Tensor], shapes: Mapping[str, torch.Size], what: str
) -> dict[str, Tensor]:
    """All of `iter_ours`."""
    return dict(iter_ours(table, theirs, shapes, what))


def from_ours(table: Table, ours: Mapping[str, Tensor], what: str) -> dict[str, Tensor]:
    """All of `iter_theirs`."""
    return dict(iter_theirs(table, ours, what))
