"""What a recipe would do: its stages, and one step of the largest in a folder that is thrown away."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.table import Table
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from cogvideox.core.device import peak_memory
from cogvideox.core.pack import Segment
from cogvideox.core.shapes import plan_shape
from cogvideox.generation.generate import Place
from cogvideox.generation.plan import gib
from cogvideox.parallel.training import Scheme, connect, fit
from cogvideox.training import budget, judge, vae
from cogvideox.training.diffusion import matrix_blocks
from cogvideox.training.loop import Every
from cogvideox.training.metrics import Line, Writer
from cogvideox.training.recipe import (
    AnyRecipe,
    JudgeRecipe,
    LoraRecipe,
    Stage,
    StorybookData,
    TransformerRecipe,
    VAERecipe,
)
from cogvideox.training.run import run_recipe


@dataclass(frozen=True)
class StagePlan:
    """A stage at its largest."""

    name: str
    steps: int
    tokens: int
    """Of a step, text included; of a VAE or a judge, pixels."""
    flops: float
    """Of a step, forward and backward; 0: not known."""
    need: budget.Need
    """Of each process."""


def plan(recipe: AnyRecipe, dtype: torch.dtype = torch.bfloat16) -> list[StagePlan]:
    """Every stage of a run that computes in a precision."""
    if isinstance(recipe, VAERecipe):
        return list(_vae_stages(recipe, dtype))
    if isinstance(recipe, JudgeRecipe):
        return list(_judge_stages(recipe, dtype))
    return list(_diffusion_stages(recipe, dtype))


def _vae_stages(recipe: VAERecipe, dtype: torch.dtype) -> Iterator[StagePlan]:
    """The discriminator and the perceptual network, small beside the VAE, are left out."""
    with budget.META:
        model = vae.VAE(recipe.vae).to(dtype)
    blocks = None if recipe.optimizer.matrix_lr is None else vae.matrix_blocks
    for span, stage in zip(recipe.spans, recipe.stages, strict=True):
        parts = stage.sequence if stage.frames > 1 else 1  # pictures are not cut
        kept, flops = _vae_pass(model, stage.frames, stage.crop)
        at_once, clips = -(-stage.batch // stage.micro) * stage.crops, stage.batch * stage.crops
        need = budget.need(model, blocks, dtype=dtype, activations=kept * at_once // parts)
        pixels = clips * stage.frames * stage.crop**2
        yield StagePlan(span.name, stage.steps, pixels, 3.0 * flops * clips, need)


def _vae_pass(model: vae.VAE, frames: int, side: int) -> tuple[int, int]:
    """Bytes that a clip's way through a VAE on the meta device keeps for the backward, and its operations."""
    video = torch.empty(1, 3, frames, side, side, dtype=model.dtype, device=budget.META)
    with FlopCounterMode(display=False) as counter:
        kept = budget.kept(lambda: model.decode(model.posterior(video).mean), model)
    return kept, counter.get_total_flops()


def _judge_stages(recipe: JudgeRecipe, dtype: torch.dtype) -> Iterator[StagePlan]:
    spec = judge.judge_spec()
    with budget.META:
        model = judge.JudgeNet(spec)
    muon = recipe.optimizer.matrix_lr is not None
    # Each of its parts has an optimizer of its own, which knows it by shorter names.
    need = budget.need(
        model, lambda name, p: judge.matrix_blocks(name.partition(".")[2], p) if muon else 0, dtype=dtype
    )
    for span, stage in zip(recipe.spans, recipe.stages, strict=True):
        yield StagePlan(span.name, stage.steps, (stage.budget + stage.stills) * spec.side**2, 0.0, need)


def _diffusion_stages(recipe: TransformerRecipe, dtype: torch.dtype) -> Iterator[StagePlan]:
    spec, layout = recipe.model.transformer, recipe.parallel
    model = budget.on_meta(spec)
    blocks = None if recipe.optimizer.matrix_lr is None else matrix_blocks
    trained: nn.Module = model
    frozen: nn.Module | None = None
    if isinstance(recipe, LoraRecipe):
        trained, blocks, frozen = recipe.lora.numbers(model), None, model
    for stage in recipe.stages:
        row = _row(recipe, stage)
        tokens = sum(segment.length for segment in row)
        kept = budget.activations(
            spec,
            -(-tokens // stage.sequence),
            recompute=layout.recompute,
            dtype=dtype,
            shards=layout.shards,
        )
        need = budget.need(
            trained, blocks, dtype=dtype, activations=kept, shards=layout.shards, frozen=frozen
        )
        flops = stage.rows * budget.train_flops(spec, row)
        yield StagePlan(stage.name, stage.steps, stage.rows * tokens, flops, need)


def _row(recipe: TransformerRecipe, stage: Stage) -> list[Segment]:
    """The samples of a row of the largest shapes."""
    spec = recipe.model.transformer
    native = recipe.model.frames, recipe.model.height, recipe.model.width
    return budget.largest_row(spec, stage.capacity, *(stage.largest or native))


def table(recipe: AnyRecipe, dtype: torch.dtype = torch.bfloat16) -> Table:
    """The plan for people."""
    unit = "tokens" if isinstance(recipe, TransformerRecipe) else "pixels"
    memory = f"memory in {str(dtype).removeprefix('torch.')}"
    shown = Table("stage", "steps", f"{unit}/step", "work/step", "work", memory, box=None)
    for stage in plan(recipe, dtype):
        work = [_work(stage.flops), _work(stage.flops * stage.steps)]
        cells = f"{stage.steps:,}", f"{stage.tokens:,}", *work, gib(stage.need.total)
        shown.add_row(stage.name, *cells)
    return shown


def _work(flops: float) -> str:
    """Operations for people."""
    for prefix in ("", "k", "M", "G", "T", "P", "E"):
        if flops < 1000:
            return f"{flops:.3g} {prefix}FLOP" if flops else "?"
        flops /= 1000
    return f"{flops:,.3g} ZFLOP"


def needed(recipe: AnyRecipe, processes: int, dtype: torch.dtype = torch.bfloat16) -> int:
    """Bytes that each of so many processes needs, which may be fewer than the recipe is made for."""
    if isinstance(recipe, TransformerRecipe):
        shards = min(recipe.parallel.shards, processes)
        stages = [s.model_copy(update={"sequence": fit(s.sequence, processes)}) for s in recipe.stages]
        layout = recipe.parallel.model_copy(update={"shards": shards})
        recipe = recipe.model_copy(update={"parallel": layout, "stages": stages})
    if isinstance(recipe, VAERecipe):
        fewer = tuple(replace(s, sequence=fit(s.sequence, processes)) for s in recipe.stages)
        recipe = recipe.model_copy(update={"stages": fewer})
    return max(stage.need.total for stage in plan(recipe, dtype))


@dataclass(frozen=True)
class Rehearsed:
    """What one step and one validation took."""

    stage: str
    seconds: float
    """Of the step."""
    peak: int
    """Memory of this process where it computes, bytes."""


def rehearse(recipe: AnyRecipe, workers: int, place: Place) -> Rehearsed:
    """Go through the whole run with one step of its largest stage, one validation and a few clips, in a
    folder that is removed at the end.
    """
    lines: list[Line] = []

    class Listener(Writer):
        def write(self, line: Line) -> None:
            lines.append(line)

    ranks = connect(Scheme(), place.device.type)
    with tempfile.TemporaryDirectory(prefix="cogvideox-") as own:
        scratch = Path(ranks.lead(lambda: own))
        short = shortest(recipe, scratch / "encoded")
        run_recipe(short, scratch / "run", workers=workers, writers=[Listener()], place=place)
        seconds = ranks.lead(lambda: lines[-1]["seconds_per_step"])  # nothing goes before all have ended
    return Rehearsed(short.spans[0].name, seconds, peak_memory(place.device))


def shortest(recipe: AnyRecipe, scratch: Path) -> AnyRecipe:
    """The recipe with one step of the stage that needs most memory, on as few clips as there can be."""
    plans, every = plan(recipe), Every(log=1, evaluate=1)
    largest = max(range(len(plans)), key=lambda i: (plans[i].need.total, plans[i].tokens))
    if isinstance(recipe, VAERecipe):
        stage, judge = replace(recipe.stages[largest], steps=1), recipe.adversarial
        at_once = judge and replace(judge, begins=-1)  # in the VAE's loss from the first step on
        return recipe.model_copy(update={"stages": (stage,), "every": every, "adversarial": at_once})
    if not isinstance(recipe, TransformerRecipe):
        only = (replace(recipe.stages[0], steps=1, passes=1),)  # the eye's backward takes most
        return recipe.model_copy(update={"stages": only, "every": every})
    chosen = recipe.stages[largest].model_copy(update={"steps": 1})
    changes = {"stages": (chosen,), "every": every, "text_steps": min(1, recipe.text_steps)}
    if recipe.text is not None:
        changes["text"] = recipe.text.model_copy(update={"steps": 1})
    if isinstance(recipe.data, StorybookData):
        patch = recipe.model.transformer.patch
        parts = tuple(
            replace(p, clips=1 + chosen.capacity // plan_shape(patch, p.frames, p.height, p.width).tokens)
            for p in recipe.data.parts
        )  # enough to fill a row
        changes["data"] = recipe.data.model_copy(update={"parts": parts, "encoded": scratch})
    return recipe.model_copy(update=changes)
