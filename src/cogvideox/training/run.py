"""From a recipe to a trained model on disk."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from cogvideox.checkpoints.configs import OWN_FILE, write_vae
from cogvideox.checkpoints.folder import Model, save_model, write_json
from cogvideox.checkpoints.keymaps import diffusers_vae, iter_theirs
from cogvideox.checkpoints.weights import DIFFUSERS_STEM, write_weights
from cogvideox.core.errors import InputError
from cogvideox.core.files import atomic_path, same_source
from cogvideox.core.launch import processes
from cogvideox.diffusion.schedule import make_schedule
from cogvideox.generation.generate import Place
from cogvideox.generation.pipeline import Pipeline
from cogvideox.models.specs import ModelSpec
from cogvideox.models.vae.autoencoder import VAE
from cogvideox.parallel.training import Scheme, connect
from cogvideox.training.diffusion import DiffusionTask
from cogvideox.training.finetune import run_lora
from cogvideox.training.folder import Run, begin
from cogvideox.training.footage import Recordings
from cogvideox.training.ingredients import Ingredients, assemble
from cogvideox.training.judge import SHIPPED, JudgeTask, judge_spec, read_judge, write_judge
from cogvideox.training.metrics import Writer
from cogvideox.training.perceptual import find_perceptual
from cogvideox.training.recipe import (
    AnyRecipe,
    DiffusionRecipe,
    JudgeRecipe,
    LoraRecipe,
    StorybookData,
    TransformerRecipe,
    VAERecipe,
)
from cogvideox.training.sheet import clips, contact_sheet
from cogvideox.training.vae import VAETask

VALIDATED = 4  # clips of a validation


def run_recipe(
    recipe: AnyRecipe,
    folder: Path,
    *,
    workers: int = 1,
    writers: Sequence[Writer] = (),
    place: Place | None = None,
) -> Path:
    """Train what the recipe describes in `folder`; resumes from the folder's checkpoint. `writers` are told
    of the run's numbers. `place`: by default the best device there is, and what it is fast in.

    A VAE ends up in `folder/vae`, a whole model in `folder/model`, an adapter in `folder/adapter`, as
    diffusers reads them, a judge in `folder/judge`; returns which. InputError for fp16, whose gradients would
    vanish, and for one numbered GPU for several processes.
    """
    place = place or Place.pick()
    if place.dtype == torch.float16:
        raise InputError("training computes in bf16 or fp32: gradients are too small for fp16")
    if place.device.index is not None and processes() > 1:
        raise InputError(f"torchrun gives each process a GPU: {place.device.type}, not {place.device}")
    run = Run(folder, place, workers, writers, connect(scheme(recipe), place.device.type))
    run.ranks.lead(lambda: begin(folder, recipe, sys.argv, place))
    if isinstance(recipe, VAERecipe):
        return run_vae(recipe, run)
    if isinstance(recipe, JudgeRecipe):
        return run_judge(recipe, run)
    if isinstance(recipe, LoraRecipe):
        return run_lora(recipe, run)
    return run_diffusion(recipe, run)


def scheme(recipe: AnyRecipe) -> Scheme:
    """How the recipe is trained by several processes."""
    if isinstance(recipe, VAERecipe):
        return Scheme(sequences=tuple(stage.sequence for stage in recipe.stages), clips=True)
    if not isinstance(recipe, TransformerRecipe):
        return Scheme()
    asked = recipe.parallel
    return Scheme(
        shards=asked.shards,
        sequences=tuple(stage.sequence for stage in recipe.stages),
        ulysses=asked.ulysses,
        recompute=asked.recompute,
        compile=asked.compile,
    )


def run_vae(recipe: VAERecipe, run: Run) -> Path:
    """Train a VAE and write it with the scale that gives its latents unit variance."""
    perceptual = find_perceptual(recipe.loss.perceptual).to(run.place.device)

    def claim() -> None:
        print(f"perceptual loss: {perceptual.name}", flush=True)
        if not same_source(run.folder / "perceptual.txt", perceptual.name):
            had = f"{run.folder} was begun with another perceptual loss than {perceptual.name}"
            raise InputError(f"{had}; take a new --output")

    run.ranks.lead(claim)
    task = VAETask(
        recipe.vae,
        recipe.stages,
        recipe.loss,
        perceptual,
        run.place,
        seed=recipe.seed,
        adversarial=recipe.adversarial,
        footage=None if recipe.data is None else Recordings(recipe.data.manifest, recipe.data.held),
        ranks=run.ranks,
    )
    run.ranks.lead(task.check)
    rates = {"vae": recipe.optimizer, "discriminator": recipe.discriminator}
    weights = run.train(recipe, task, rates)["vae"].ema_weights()
    run.ranks.lead(lambda: _write_vae(task, weights, perceptual.name, run.folder / "vae"))
    return run.folder / "vae"


def _write_vae(task: VAETask, weights: dict[str, Tensor], perceptual: str, folder: Path) -> None:
    scale = round(1.0 / task.latent_std(weights), 4)
    vae = VAE(replace(task.spec, scale=scale, condition_scale=scale))
    vae.load_state_dict(weights)
    with atomic_path(folder) as partial:
        tensors = iter_theirs(diffusers_vae(vae.spec), vae.state_dict(), "vae")
        write_weights(tensors, partial, DIFFUSERS_STEM, dtype=torch.bfloat16)
        write_json(partial / "config.json", write_vae(vae.spec, 128, 128))
        write_json(partial / OWN_FILE, {"record": {"perceptual": perceptual}})


def run_judge(recipe: JudgeRecipe, run: Run) -> Path:
    """Train a judge and write it with the shares of its right answers about true renders. InputError for
    several processes.
    """
    if processes() > 1:
        raise InputError("the judge is small: train it in one process")
    seen = run.folder / "seen"
    shutil.rmtree(seen, ignore_errors=True)  # of a run that was stopped, maybe with other code
    task = JudgeTask(judge_spec(), recipe.stages, run.place, seed=recipe.seed, folder=seen)
    if recipe.start is not None:
        begun, _ = read_judge(SHIPPED if recipe.start == "judge" else Path(recipe.start))
        task.model.load_state_dict(begun.state_dict())
    trained = run.train(recipe, task, dict.fromkeys(("eye", "time"), recipe.optimizer))
    task.load(task.model, {name: optimizer.ema_weights() for name, optimizer in trained.items()})
    run.ranks.lead(lambda: write_judge(task.model.eval(), run.folder / "judge", recipe.seed))
    shutil.rmtree(seen, ignore_errors=True)
    return run.folder / "judge"


def run_diffusion(recipe: DiffusionRecipe, run: Run) -> Path:
    """Encode what is missing, train the text encoder, then the transformer; write the whole model. On
    Storybook it is written at every validation too, for such a model is small and may train for ever.
    """
    parts, place = Ingredients(recipe, run), run.place
    run.ranks.lead(parts.encode)

    def write(weights: dict[str, Tensor], spec: ModelSpec) -> Model:
        model = assemble(spec, parts.vae, parts.text, weights, place)
        record = {"vae": parts.vae_record}
        save_model(replace(model, record=record), run.folder / "model", dtype=torch.bfloat16)
        return model

    transformer, batches = parts.transformer(), parts.batches()

    def judge(weights: dict[str, Tensor], where: Path, step: int) -> None:
        now = replace(parts.spec, position_policy=transformer.policy)  # that of the stage
        if isinstance(recipe.data, StorybookData):
            pipe = Pipeline(write(weights, now), place)
            contact_sheet(pipe, where / f"{step:06d}.png", seed=recipe.seed, prompts=10, steps=16)
        else:
            pipe = Pipeline(assemble(now, parts.vae, parts.text, weights, place), place)
            clips(pipe, parts.store, batches.held[:VALIDATED], where / f"{step:06d}", seed=recipe.seed)

    schedule = make_schedule(parts.spec.snr_shift)
    task = DiffusionTask(transformer, parts.spec, parts.needed_text, batches, schedule, judge=judge)
    run = replace(run, workers=parts.workers)
    weights = run.train(recipe, task, {"model": recipe.optimizer}, parts.meter())["model"].ema_weights()
    run.ranks.lead(lambda: write(weights, parts.spec))
    return run.folder / "model"
