"""Recipes: strict YAML files that say everything about a training run."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from cogvideox.core.errors import InputError
from cogvideox.models.specs import VAESpec
from cogvideox.training.vae import VAEStage


class Strict(BaseModel):
    """Unknown keys are errors, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class OptimizerConfig(Strict):
    """How weights are updated; see `training.loop.train`."""

    matrix_lr: float
    lr: float
    warmup: int = 50
    decay_from: float = 0.6
    weight_decay: float = 0.0
    clip: float = 1.0
    ema: float = 0.999


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
    stages: tuple[VAEStage, ...]
    optimizer: OptimizerConfig


Recipe = VAERecipe


def load_recipe(path: str | Path) -> Recipe:
    """Read and check a recipe. Raises InputError naming the file, the key and what is wrong with it."""
    try:
        data: Any = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        return TypeAdapter(Recipe).validate_python(data)
    except OSError as error:
        raise InputError(f"cannot read recipe {path}: {error.strerror}") from None
    except yaml.YAMLError as error:
        raise InputError(f"recipe {path} is not YAML: {' '.join(str(error).split())}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InputError(f"recipe {path}: {where}: {first['msg']}") from None
