"""From a recipe to a trained model."""

from __future__ import annotations

from pathlib import Path

from cogvideox.training.loop import train
from cogvideox.training.recipe import load_recipe
from cogvideox.training.vae import VAETask


def run_recipe(path: Path, folder: Path, workers: int) -> None:
    """Train what the recipe at `path` describes in `folder`; resumes from the folder's checkpoint."""
    recipe = load_recipe(path)
    task = VAETask(recipe.vae, recipe.stages, seed=recipe.seed, **recipe.loss.model_dump())
    steps = sum(stage.steps for stage in recipe.stages)
    train(task, folder, steps=steps, workers=workers, **recipe.optimizer.model_dump())
