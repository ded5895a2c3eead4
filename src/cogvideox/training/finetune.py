"""An adapter (LoRA) trained on a few clips: the base stays as it is, the result is a file of megabytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from cogvideox.checkpoints.folder import Model, load_model
from cogvideox.checkpoints.lora import Lora, apply, save_lora
from cogvideox.core.errors import InputError
from cogvideox.generation.pipeline import Pipeline
from cogvideox.training.diffusion import DiffusionTask
from cogvideox.training.folder import Run
from cogvideox.training.ingredients import Ingredients
from cogvideox.training.lora import Adapter, find_peft
from cogvideox.training.packs import PackedBatches
from cogvideox.training.recipe import LoraRecipe
from cogvideox.training.sheet import clips
from cogvideox.training.task import Phase

SHOWN = 2  # clips of a validation


class LoraTask(DiffusionTask):
    """v-prediction by a model of which the adapter alone is trained. Every validation makes the same clips
    with the adapter, merged as generation merges it, and the first one without it too.
    """

    def __init__(self, model: Model, adapter: Adapter, parts: Ingredients, batches: PackedBatches) -> None:
        super().__init__(model.transformer, model.spec, parts.needed_text, batches, model.schedule)
        self.base, self.adapter, self.store = model, adapter, parts.store
        self.place = parts.run.place

    @property
    def phases(self) -> tuple[Phase, ...]:
        return (Phase("lora", self.adapter.module, within=self.model),)

    def lora(self, weights: Mapping[str, Tensor]) -> Lora:
        """The adapter with these weights, and what it belongs to."""
        return self.adapter.lora(weights, base=self.base.spec.name, base_fingerprint=self.base.fingerprint)

    @torch.no_grad()
    def evaluate(self, weights: Mapping[str, dict[str, Tensor]], folder: Path, step: int) -> dict[str, float]:
        """Losses of held-out samples with the averaged adapter, `val_T`; then clips of their captions."""
        lora = self.lora(weights["lora"])
        with self.adapter.taken_out():
            if not (folder / "base").exists():
                self._show(folder / "base")
            applied = apply(self.base, [(lora, 1.0)])
            try:
                found = self.validated(self.base.transformer)
                self._show(folder / f"{step:06d}")
            finally:
                applied.undo()
        return found | {"moved": round(self.adapter.ratio(), 6)}

    def _show(self, folder: Path) -> None:
        chosen = self._batches.held[:SHOWN] or range(min(SHOWN, len(self.store.samples)))
        pipe = Pipeline(self.base, self.place)
        clips(pipe, self.store, chosen, folder, seed=self._batches.seed)


def run_lora(recipe: LoraRecipe, run: Run) -> Path:
    """Train an adapter and write it with the fingerprint of its base; returns `adapter` of the run's folder.

    InputError without PEFT and when the model has no such matrices, before anything is encoded; and when no
    clip can be used.
    """
    find_peft()
    recipe.lora.modules(recipe.model.transformer)
    parts = Ingredients(recipe, run)
    run.ranks.lead(parts.encode)
    if not parts.store.samples:
        raise InputError(f"no clip of {recipe.data} can be used; `cogvideox data check` says why")
    base = load_model(recipe.base, dtype=run.place.dtype, device=run.place.device)
    model = replace(base, vae=parts.vae, text=parts.text)
    adapter = Adapter(model.transformer, recipe.lora, recipe.seed)
    task = LoraTask(model, adapter, parts, parts.batches())
    run = replace(run, workers=parts.workers)
    weights = run.train(recipe, task, {"lora": recipe.optimizer}, parts.meter())["lora"].ema_weights()
    run.ranks.lead(lambda: save_lora(task.lora(weights), run.folder / "adapter"))
    return run.folder / "adapter"
