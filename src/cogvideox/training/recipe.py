"""Recipes: strict YAML files that describe a training run."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterable, Sequence
from difflib import SequenceMatcher
from itertools import accumulate
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Tag,
    TypeAdapter,
    ValidationError,
    model_validator,
    with_config,
)

from cogvideox.checkpoints.folder import read_spec
from cogvideox.checkpoints.hub import resolve
from cogvideox.core.errors import InputError, nearest
from cogvideox.data.mixture import Choice
from cogvideox.data.storybook.rows import Part
from cogvideox.models.discriminator import DiscriminatorSpec
from cogvideox.models.specs import SPECS, ModelSpec, PositionPolicy, TransformerSpec, VAESpec
from cogvideox.training.changes import set_value
from cogvideox.training.lessons import JudgeStage
from cogvideox.training.loop import Every, Rates, Span
from cogvideox.training.lora import LoraSpec
from cogvideox.training.packs import DiffusionStage, Objective, Share
from cogvideox.training.text import TextSpec
from cogvideox.training.vae import Adversarial, VAELoss, VAEStage

_STRICT = ConfigDict(extra="forbid", frozen=True)
_PLAIN = (
    *(VAESpec, VAEStage, VAELoss, Adversarial, DiscriminatorSpec),
    *(TransformerSpec, ModelSpec, Part, Objective, JudgeStage, LoraSpec, Rates, Every),
)
for _kind in _PLAIN:
    with_config(_STRICT)(_kind)


class Strict(BaseModel):
    """Unknown keys are errors, values do not change."""

    model_config = _STRICT


class RecordedData(Strict):
    """Clips and pictures to train a VAE on; captions are not looked at."""

    manifest: Path
    """Parquet or JSONL, a row a clip; or a folder of clips that `cogvideox data check` knows."""
    held: NonNegativeInt = 16
    """Sources that are kept for validation, at most one in ten."""


class VAERecipe(Strict):
    """Training of a VAE."""

    task: Literal["vae"]
    seed: int
    vae: VAESpec
    loss: VAELoss
    adversarial: Adversarial | None = None
    """The discriminator, which joins after some steps; none without."""
    data: RecordedData | None = None
    """None: Storybook."""
    stages: Annotated[tuple[VAEStage, ...], Field(min_length=1)]
    optimizer: Rates
    discriminator: Rates = Rates(matrix_lr=None, lr=2e-4)
    """How the discriminator is updated."""
    every: Every = Every()

    @property
    def spans(self) -> list[Span]:
        """The stages, as the loop knows them."""
        ends = accumulate((stage.steps for stage in self.stages), initial=0)
        names = ("images" if stage.frames == 1 else f"{stage.frames} frames" for stage in self.stages)
        each = zip(names, ends, self.stages, strict=False)
        return [Span(name, at, sequence=stage.sequence) for name, at, stage in each]


class JudgeRecipe(Strict):
    """Training of the judge of Storybook videos."""

    task: Literal["judge"]
    seed: int
    start: str | None = None
    """A judge to begin with: its folder, or "judge", the shipped one."""
    stages: tuple[JudgeStage, ...]
    optimizer: Rates
    every: Every = Every()

    @model_validator(mode="after")
    def _stills_then_clips(self) -> Self:
        kinds = [bool(stage.frames) for stage in self.stages]
        if not any(kinds) or kinds != sorted(kinds) or (all(kinds) and self.start is None):
            raise ValueError("stages: a judge needs stills first, then clips; without stills a `start`")
        return self

    @property
    def spans(self) -> list[Span]:
        """The stages, as the loop knows them."""
        ends = accumulate((stage.steps for stage in self.stages), initial=0)
        names = (f"up to {max(stage.frames)} frames" if stage.frames else "stills" for stage in self.stages)
        return [Span(name, at) for name, at in zip(names, ends, strict=False)]


class NewText(TextSpec):
    """A text encoder that is trained first and then frozen, as T5 is in the paper."""

    steps: PositiveInt
    """In which it learns to tell captions of different clips apart."""


class StorybookData(Strict):
    """Clips of the synthetic world, in parts of one shape."""

    encoded: Path
    """Folder of the encoded clips; what is missing in it is made."""
    parts: Annotated[tuple[Part, ...], Field(min_length=1)]
    held: NonNegativeInt = 16
    """Clips that are kept for validation, at most one in ten."""


class ManifestData(Strict):
    """Clips and images of a manifest."""

    manifest: Path | None = None
    """Parquet or JSONL, a row a clip; or a folder of clips with captions, in any layout that `cogvideox data
    check` knows.
    """
    stream: Path | None = None
    """JSONL too long to be planned: its rows are read in their order, again and again, and encoded as they
    come. Who writes it shuffles it, and mixes images and clips: the shares of `mix` mean nothing here. It
    must stay as it is while a run goes on. The first `held` rows that can be used are kept for validation,
    and no other row of their sources is trained on.
    """
    kept: bool = False
    """Encode all clips into the run's folder first, for sets that fit there; else as they are needed."""
    encoded: Path | None = None
    """What `cogvideox train encode` made of a manifest."""
    held: NonNegativeInt = 64
    """Sources that are kept for validation, at most one in ten."""

    @model_validator(mode="after")
    def _one_of_them(self) -> ManifestData:
        if (self.manifest, self.stream, self.encoded).count(None) != 2:
            raise InputError("data needs a `manifest`, a `stream` or an `encoded` folder, one of them")
        return self


KINDS = {"image": (1, 1), "clip": (2, sys.maxsize)}
"""Names for all samples of some numbers of frames."""


class Stage(Strict):
    """A part of a run with one mix of data and shapes (paper section 3.2)."""

    name: str
    steps: PositiveInt
    mix: Annotated[dict[str, PositiveFloat], Field(min_length=1)]
    """"image", "clip" or a label of rows (of Storybook, the name of a part) -> share of the samples."""
    rate: PositiveFloat = 1.0
    """What the optimizer's rates are multiplied with."""
    anew: bool = False
    """Their warm-up and decay begin anew."""
    capacity: PositiveInt
    """Tokens of a packed row, text included."""
    rows: PositiveInt = 1
    """Rows of a step, of all processes together."""
    largest: tuple[PositiveInt, PositiveInt, PositiveInt] | None = None
    """Frames, height and width in pixels of the largest clips. Clips keep their aspect ratio: none has a
    longer short side, more pixels or more frames.
    """
    at_least: dict[str, float] = Field(default_factory=dict)
    """Score of the manifest -> its lowest value; pictures need none of motion."""
    best: dict[str, Share] = Field(default_factory=dict)
    """Score of the manifest -> the share of the clips that is used, best first."""
    positions: PositionPolicy | None = None
    """Position policy of the stage; None: the model's."""
    sequence: PositiveInt = 1
    """Processes that share a row."""

    @property
    def loaded(self) -> DiffusionStage:
        """What the loader makes of it."""
        choices = (
            Choice(
                share=share,
                label=None if name in KINDS else name,
                frames=KINDS.get(name),
                largest=self.largest,
                least=self.at_least,
                best=self.best,
            )
            for name, share in self.mix.items()
        )
        return DiffusionStage(
            steps=self.steps,
            capacity=self.capacity,
            rows=self.rows,
            data=tuple(choices),
            positions=self.positions,
            sequence=self.sequence,
        )


class Parallel(Strict):
    """What the run is planned for. It may run on any other number of processes."""

    ranks: PositiveInt = 1
    shards: PositiveInt = 1
    """Processes that share one copy of the weights, of their average and of the optimizer's state."""
    recompute: bool = False
    """Activation checkpointing: blocks run again in the backward instead of keeping what it needs."""
    ulysses: bool = False
    """Processes that share a row exchange heads for tokens, where their number divides the heads."""
    compile: bool = False
    """Blocks are compiled; this pays where rows have few shapes."""


def _named(value: Any) -> Any:
    """A model's name or folder stands for its spec; of a released one nothing is read."""
    if not isinstance(value, str):
        return value
    return SPECS[value] if value in SPECS else read_spec(resolve(value))


_TAGS = ("storybook", "packed")


def _data_kind(value: Any) -> str:
    told = isinstance(value, StorybookData) or (isinstance(value, dict) and "parts" in value)
    return _TAGS[0] if told else _TAGS[1]


class TransformerRecipe(Strict):
    """Training on latents of a trained VAE."""

    seed: int
    model: Annotated[ModelSpec, BeforeValidator(_named)]
    """Sizes and conventions, or a model that has them ("mini", a released one, a folder, a hub id). Its `vae`
    is replaced by that of the VAE's folder.
    """
    vae: str
    """Folder of a VAE, or of a whole model that has one, or the id of one on the hub."""
    start: str | None = None
    """A model ("mini", a folder, a hub id) whose transformer the run goes on from, with its text encoder."""
    text: NewText | None = None
    """Sizes of a new text encoder; None: that of `start`, or of the model that the VAE is from."""
    text_steps: NonNegativeInt = 0
    """In which the text encoder of `start` goes on learning to tell captions apart, before it is frozen."""
    data: Annotated[
        Annotated[StorybookData, Tag(_TAGS[0])] | Annotated[ManifestData, Tag(_TAGS[1])],
        Discriminator(_data_kind),
    ]
    objective: Objective = Objective()
    stages: Annotated[tuple[Stage, ...], Field(min_length=1)]
    optimizer: Rates
    parallel: Parallel = Parallel()
    every: Every = Every()

    @property
    def spans(self) -> list[Span]:
        """The stages, as the loop knows them."""
        ends = accumulate((stage.steps for stage in self.stages), initial=0)
        return [
            Span(s.name, at, s.rate, s.anew, s.sequence) for s, at in zip(self.stages, ends, strict=False)
        ]

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        self.objective.check(self.model)
        _unique("stages", [stage.name for stage in self.stages])
        if isinstance(self, LoraRecipe) and self.parallel.shards > 1:
            raise InputError("parallel.shards: the base of an adapter is whole in every process")
        if isinstance(self.data, ManifestData) and self.data.stream is not None:
            for stage in self.stages:
                if stage.largest is None or stage.best or not stage.mix.keys() <= KINDS.keys():
                    told = "of a stream, a stage has `largest`, no `best` and no labels in `mix`"
                    raise InputError(f"stage {stage.name}: {told}")
            if self.text is not None or isinstance(self, LoraRecipe):
                raise InputError("a new text encoder and an adapter are trained on a `manifest`, no `stream`")
            if self.data.kept:
                raise InputError("a `stream` is never `kept`: its rows are encoded as they come")
        learns = self.start and isinstance(self.data, StorybookData) and not isinstance(self, LoraRecipe)
        if self.text_steps and not learns:
            raise InputError("text_steps: the text encoder of a `start` goes on learning, on Storybook alone")
        if isinstance(self.data, StorybookData):
            _unique("parts", names := [part.name for part in self.data.parts])
            for name in (name for stage in self.stages for name in stage.mix if name not in KINDS):
                if name not in names:
                    raise InputError(f"a stage mixes an unknown part {name!r}{nearest(name, names)}")
        return self


class DiffusionRecipe(TransformerRecipe):
    """Training of a transformer; first of its text encoder, if it has none or `text_steps` ask for it."""

    task: Literal["diffusion"]


class LoraRecipe(TransformerRecipe):
    """Training of an adapter of a whole model, whose other parts stay as they are."""

    task: Literal["lora"]
    base: str
    """The model: "mini", a released one, a folder or a hub id. It is the recipe's `model`, `vae` and `start`.
    """
    lora: LoraSpec = LoraSpec()

    @model_validator(mode="before")
    @classmethod
    def _of_the_base(cls, data: Any) -> Any:
        if not isinstance(data, dict) or not isinstance(base := data.get("base"), str):
            return data
        return {"model": base, "vae": base, "start": base} | data


def _unique(what: str, names: Sequence[str]) -> None:
    if double := next((name for name in names if names.count(name) > 1), None):
        raise InputError(f"two {what} are called {double}")


AnyRecipe = VAERecipe | DiffusionRecipe | LoraRecipe | JudgeRecipe
_ADAPTER: TypeAdapter[AnyRecipe] = TypeAdapter(Annotated[AnyRecipe, Field(discriminator="task")])
_KINDS = (
    *(VAERecipe, JudgeRecipe, DiffusionRecipe, LoraRecipe, NewText),
    *(StorybookData, ManifestData, Stage, Parallel),
)


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
        set_value(data, change)
    try:
        return _ADAPTER.validate_python(data)
    except ValidationError as error:
        raise InputError(f"recipe {path}: {_told(error, data)}") from None


def _told(error: ValidationError, data: Any) -> str:
    """The first thing that is wrong, in words; an unknown key with the nearest known one."""
    first = error.errors()[0]
    where = [part for part in first["loc"][1:] if part not in _TAGS]  # the first names the task
    path = ".".join(map(str, where))
    if first["type"] not in ("extra_forbidden", "unexpected_keyword_argument"):
        message = first["msg"].removeprefix("Value error, ")
        return f"{path}: {message}" if path else message
    node = data
    for part in where[:-1]:
        node = node[part]
    key = str(where[-1])
    kinds: list[list[str]] = [[*kind.model_fields] for kind in _KINDS]
    kinds += [[field.name for field in dataclasses.fields(kind)] for kind in _PLAIN]

    def likely(names: Iterable[str]) -> tuple[int, float]:
        """A section is of the kind that knows its other keys, else this one."""
        return len({*names} & {*node}), max(SequenceMatcher(None, key, name).ratio() for name in names)

    return f"{path}: unknown key{nearest(key, max(kinds, key=likely))}"
