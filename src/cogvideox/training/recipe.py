"""Recipes: strict YAML files that describe a training run."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    PositiveFloat,
    PositiveInt,
    Tag,
    TypeAdapter,
    ValidationError,
    model_validator,
    with_config,
)

from cogvideox.core.errors import InputError, nearest
from cogvideox.models.specs import SPECS, ModelSpec, PositionPolicy, TransformerSpec, VAESpec
from cogvideox.training.latents import Bucket
from cogvideox.training.loop import Every, Rates, Span
from cogvideox.training.text import TextSpec
from cogvideox.training.vae import VAEStage

_STRICT = ConfigDict(extra="forbid", frozen=True)
_PLAIN = (VAESpec, VAEStage, TransformerSpec, ModelSpec, Bucket, Rates, Every)
for _kind in _PLAIN:
    with_config(_STRICT)(_kind)

Share = Annotated[float, Field(ge=0.0, le=1.0)]


class Strict(BaseModel):
    """Unknown keys are errors, values do not change."""

    model_config = _STRICT


class VAELoss(Strict):
    """Weights of the VAE's loss terms beside L1."""

    kl_weight: float
    gradient_weight: float


class VAERecipe(Strict):
    """Training of a VAE."""

    task: Literal["vae"]
    seed: int
    vae: VAESpec
    loss: VAELoss
    stages: Annotated[tuple[VAEStage, ...], Field(min_length=1)]
    optimizer: Rates
    every: Every = Every()

    @property
    AnyRecipe = VAERecipe | DiffusionRecipe
_ADAPTER: TypeAdapter[AnyRecipe] = TypeAdapter(Annotated[AnyRecipe, Field(discriminator="task")])
_KINDS = (VAERecipe, VAELoss, DiffusionRecipe, NewText, StorybookData, ManifestData, Objective, Stage, Parallel)


def load_recipe(path: str | Path, changes: Sequence[str] = ()) -> AnyRecipe:
    """Read and check a recipe, with `changes` such as "optimizer.lr=1e-4" or "stages.0.steps=10".

    Raises InputError naming the file, the key and what is wrong with it.
    """
    try:
        data: Any = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read recipe {path}: {error.strerror}") from None
    except yaml.YAMLError as error:
        raise InputError(f"recipe {path} is not YAML: {' '.join(str(error).split())}") from None
    for change in changes:
        _change(data, change)
    try:
        return _ADAPTER.validate_python(data)
    except ValidationError as error:
        raise InputError(f"recipe {path}: {_told(error, data)}") from None


def _change(data: Any, change: str) -> None:
    """Set one value in place."""
    where, equals, value = change.partition("=")
    *parents, last = where.split(".")
    if not equals or not last:
        raise InputError(f"--set {change}: not KEY=VALUE, such as optimizer.lr=1e-4")
    node = data
    for part in parents:
        if isinstance(node, dict):
            node = node.setdefault(part, {})
        else:
            node = node[_place(node, part, change)]
    try:
        parsed = yaml.safe_load(value)
    except yaml.YAMLError:
        raise InputError(f"--set {change}: {value!r} is not a YAML value") from None
    node[last if isinstance(node, dict) else _place(node, last, change)] = parsed


def _place(node: Any, part: str, change: str) -> int:
    if isinstance(node, list) and part.isdecimal() and int(part) < len(node):
        return int(part)
    have = f"a list of {len(node)}" if isinstance(node, list) else repr(node)
    raise InputError(f"--set {change}: there is no {part!r} in {have}")


def _told(error: ValidationError, data: Any) -> str:
    """The first thing that is wrong, in words; an unknown key with the nearest known one."""
    first = error.errors()[0]
    where = [part for part in first["loc"][1:] if part not in _TAGS]  # the first names the task
    path = ".".join(map(str, where))
    if first["type"] not in ("extra_forbidden", "unexpected_keyword_argument"):
        return f"{path}: {first['msg']}" if path else first["msg"]
    node = data
    for part in where[:-1]:
        node = node[part]
    kinds = [[*kind.model_fields] for kind in _KINDS]
    kinds += [[field.name for field in dataclasses.fields(kind)] for kind in _PLAIN]
    known = max(kinds, key=lambda names: len({*names} & {*node}))
    return f"{path}: unknown key{nearest(str(where[-1]), (name for name in known if name not in node))}"
