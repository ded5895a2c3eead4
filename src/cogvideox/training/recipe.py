"""Recipes: strict YAML files that describe a training run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveInt,
    TypeAdapter,
    ValidationError,
    model_validator,
    with_config,
)

from cogvideox.core.errors import InputError, nearest
from cogvideox.models.specs import ModelSpec, TransformerSpec, VAESpec
from cogvideox.training.diffusion import DiffusionStage
from cogvideox.training.judge import JudgeStage
from cogvideox.training.latents import Bucket
from cogvideox.training.loop import Rates
from cogvideox.training.text import TextSpec
from cogvideox.training.vae import VAEStage

_STRICT = ConfigDict(extra="forbid", frozen=True)
for _kind in (VAESpec, VAEStage, TransformerSpec, ModelSpec, DiffusionStage, Bucket, JudgeStage, Rates):
    with_config(_STRICT)(_kind)


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
    stages: tuple[VAEStage, ...]
    optimizer: Rates


class DiffusionRecipe(Strict):
    """Training of a transformer with its text encoder, on latents of a trained VAE."""

    task: Literal["diffusion"]
    seed: int
    vae: Path
    """Folder of the VAE (config.json and weights)."""
    latents: Path
    """Folder of the encoded clips; made when missing."""
    start: str | None = None
    """A model ("mini", a folder, a hub id) whose transformer the run goes on from, with its text encoder."""
    model: ModelSpec
    """Its `vae` is replaced by that of the VAE's folder."""
    text: TextSpec
    text_steps: PositiveInt
    """Steps in which the text encoder learns to tell captions of different clips apart; then it is frozen."""
    buckets: tuple[Bucket, ...]
    drop_text: float
    """Probability that a sample is trained without text, for classifier-free guidance."""
    known: float
    """Probability that a clip comes with its first frame or frames given, for images and continuation."""
    dense: float = 0.5
    """Share of dense captions; the others are short."""
    subject_weight: float = 1.0
    """How many times errors where a character is count."""
    stages: tuple[DiffusionStage, ...]
    optimizer: Rates

    @model_validator(mode="after")
    def _mixes_name_buckets(self) -> DiffusionRecipe:
        names = [bucket.name for bucket in self.buckets]
        for name in names:
            if names.count(name) > 1:
                raise InputError(f"two buckets are called {name}")
        for name in (name for stage in self.stages for name in stage.mix if name not in names):
            raise InputError(f"a stage mixes an unknown bucket {name!r}{nearest(name, names)}")
        return self


class JudgeRecipe(Strict):
    """Training of the judge of Storybook videos."""

    task: Literal["judge"]
    seed: int
    stages: tuple[JudgeStage, ...]
    optimizer: Rates


AnyRecipe = VAERecipe | DiffusionRecipe | JudgeRecipe
Recipe = Annotated[AnyRecipe, Field(discriminator="task")]


def load_recipe(path: str | Path) -> AnyRecipe:
    """Read and check a recipe. Raises InputError naming the file, the key and what is wrong with it."""
    try:
        data: Any = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        return TypeAdapter[AnyRecipe](Recipe).validate_python(data)
    except OSError as error:
        raise InputError(f"cannot read recipe {path}: {error.strerror}") from None
    except yaml.YAMLError as error:
        raise InputError(f"recipe {path} is not YAML: {' '.join(str(error).split())}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InputError(f"recipe {path}: {where}: {first['msg']}") from None
