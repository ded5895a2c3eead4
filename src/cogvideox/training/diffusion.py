"""Training of the transformer on packed latents: v-prediction with zero terminal SNR, a frozen text encoder.

A row mixes images and clips of several shapes (paper section 3.1). Every sample's loss is the mean over its
latent numbers, or with `Objective.per` the sum; a step's is the sum over all rows of all ranks by the sum of
their weights. Shape legend: C channels, T H W latent grid, L tokens, D text width, S segments.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cogvideox.core import rng
from cogvideox.core.errors import InputError
from cogvideox.core.pack import Segment
from cogvideox.data.plan import Position
from cogvideox.diffusion.inputs import Sample, build_pack, image_condition, pad_front, split_output
from cogvideox.diffusion.objective import v_loss
from cogvideox.diffusion.schedule import Schedule
from cogvideox.models.specs import ModelSpec
from cogvideox.models.text import TextEncoder
from cogvideox.models.transformer.model import Transformer
from cogvideox.training.budget import train_flops
from cogvideox.training.packs import VALIDATION, Item, PackedBatches, PackedRow, stage_of
from cogvideox.training.stream import StreamBatches
from cogvideox.training.task import Loss, Phase, Unreadable

BINS = range(0, 1000, 250)
"""First timesteps of the bins by which losses are told."""
VALIDATED = (100, 300, 500, 700, 900)
"""Timesteps of the validation's losses: those of the paper's table 9."""
FULL = 1000
"""Samples of a stream of which the share that is unreadable is told at least."""
VALIDATION_ROW = 8
"""Samples that are validated at a time."""


class DiffusionTask:
    """v-prediction of latents. Samples that cannot be read weigh nothing; too many of them end the run."""

    def __init__(
        self,
        model: Transformer,
        spec: ModelSpec,
        text: TextEncoder | None,
        batches: PackedBatches,
        schedule: Schedule,
        *,
        judge: Callable[[dict[str, Tensor], Path, int], None] = lambda *_: None,
    ) -> None:
        """`text` may be None where the batches' store holds all embeddings. `judge` gets averaged weights at
        every validation. InputError for an objective that generation with the model would not match.
        """
        self.model, self.spec, self.text, self._batches = model, spec, text, batches
        self.schedule, self._judge, self.objective = schedule, judge, batches.objective
        self.lost = Unreadable(len(batches.lengths))
        self._after: Position | None = None
        self._seen, self._counted = 0, -1  # samples of a stream since the start, up to which step
        self.objective.check(spec)
        if text is None and spec.unconditional == "empty":
            raise InputError("the unconditional mode 'empty' needs the text encoder in training")
        if text is None or spec.unconditional == "zeros":
            shape = spec.transformer.text_length, spec.transformer.text_dim
            self.unconditional_LD = torch.zeros(shape)
        else:
            self.unconditional_LD = text.encode([""])[0]

    def batches(self) -> PackedBatches:
        return self._batches

    @property
    def phases(self) -> tuple[Phase, ...]:
        return (Phase("model", self.model, matrix_blocks=matrix_blocks),)

    def ids(self, micro: PackedRow) -> list[str]:
        """Names of the samples of a row."""
        return [item.name for item in micro.items]

    def loss(self, phase: str, micro: PackedRow, step: int) -> Loss:
        items, self._after = micro.items, micro.after or self._after
        if self._after is not None and self._counted != step:
            self._seen, self._counted = self._seen + micro.samples, step
            self.lost.known = max(FULL, self._seen)
        self.lost.add({item.name: item.unreadable for item in items if item.unreadable})
        self.model.policy = micro.positions or self.spec.position_policy
        total, weight, losses_S, segments = self._losses(self.model, items, step)
        read = [not item.unreadable for item in items]
        metrics = {
            "samples": (float(sum(read)), 1.0),
            "tokens": (float(sum(segment.length for segment in segments)), 1.0),
            "capacity": (float(micro.capacity), 1.0),
            "flops": (train_flops(self.model.spec, segments), 1.0),
            "unreadable": (float(len(read) - sum(read)), float(len(read))),
            "imbalance": (micro.imbalance, 1.0),
        }
        for low in BINS:
            inside = [
                loss
                for loss, item in zip(losses_S.tolist(), items, strict=True)
                if not item.unreadable and low <= item.timestep < low + BINS.step
            ]
            metrics[f"loss_{low}"] = sum(inside), float(len(inside))
        return Loss(total, weight, metrics)

    def state(self) -> dict[str, Any]:
        """Where a stream stands; nothing where samples have an index."""
        return {} if self._after is None else {"stream": asdict(self._after)}

    def restore(self, step: int, state: Mapping[str, Any]) -> None:
        stage = stage_of(self._batches.stages, step - 1)
        self.model.policy = stage.positions or self.spec.position_policy
        if isinstance(self._batches, StreamBatches) and (found := state.get("stream")):
            self._after = Position(found["next"], tuple(found["waiting"]))
            self._batches.at = step, self._after

    def _losses(
        self, model: Transformer, items: Sequence[Item], step: int
    ) -> tuple[Tensor, float, Tensor, Sequence[Segment]]:
        """Sum of the weighted losses, sum of the weights, the loss (S,) of each, and the segments."""
        spec, patch_embed = model.spec, model.patch_embed.weight
        samples, targets = [], []
        for item in items:
            clean = pad_front(item.latents_CTHW.float(), spec.patch)
            noise = rng.normal(clean.shape, self._batches.seed, "noise", step, item.place)
            noisy = self._noised(clean, noise, item.timestep)
            front = _front(item, clean.shape[1])
            noisy[:, :front] = self._noised(clean[:, :front], noise[:, :front], item.prefix_timestep or None)
            condition = item.condition_CHW
            condition = None if condition is None else image_condition(condition, clean.shape[1])
            samples.append(Sample(noisy, self._text(item), item.timestep, condition, name=item.name))
            target = self.schedule.velocity(clean[None], noise[None], torch.tensor(item.timestep))[0]
            targets.append((target * self._roots(item, spec.patch))[:, front:].to(patch_embed.device))
        pack = build_pack(samples, spec, dtype=patch_embed.dtype, device=patch_embed.device)
        predictions = [
            (output * self._roots(item, spec.patch).to(output))[:, _front(item, output.shape[1]) :]
            for output, item in zip(split_output(model(pack), pack, spec), items, strict=True)
        ]
        weights = [float(not item.unreadable) for item in items]
        total, losses_S = v_loss(predictions, targets, weights, per=self.objective.per, normaliser=1.0)
        sizes = [target.numel() if self.objective.per == "number" else 1 for target in targets]
        weight = sum(w * size for w, size in zip(weights, sizes, strict=True))
        return total, weight, losses_S, pack.segments

    def _noised(self, clean: Tensor, noise: Tensor, timestep: int | None) -> Tensor:
        if timestep is None:
            return clean
        return self.schedule.add_noise(clean[None], noise[None], torch.tensor(timestep))[0]

    def _text(self, item: Item) -> Tensor:
        if item.drop_text:
            return self.unconditional_LD
        if item.text_LD is not None:
            return item.text_LD
        assert self.text is not None
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "the prompt has")  # the run has told how many are cut
            return self.text.encode([item.caption])[0]

    def _roots(self, item: Item, patch: tuple[int, int, int]) -> Tensor:
        """Square roots (T, H, W) of the weights of an item's latents, mean 1 where they are not given."""
        if item.subject_THW is None:
            return torch.ones(1)
        subject = pad_front(item.subject_THW[None].float(), patch)[0]
        weights = 1.0 + (self.objective.subject_weight - 1.0) * subject
        return (weights / weights[_front(item, len(weights)) :].mean()).sqrt()

    def evaluate(self, weights: Mapping[str, dict[str, Tensor]], folder: Path, step: int) -> dict[str, float]:
        """Losses of the held-out samples with averaged weights, then the judge."""
        model = Transformer(self.model.spec, self.model.policy).to(self.model.patch_embed.weight)
        model.load_state_dict(weights["model"])
        found = self.validated(model)
        self._judge(weights["model"], folder, step)
        return found

    @torch.no_grad()
    def validated(self, model: Transformer) -> dict[str, float]:
        """Losses of the held-out samples at fixed timesteps, `val_T`, and their mean."""
        found = {}
        for timestep in VALIDATED if self._batches.held else ():
            items = self._batches.fixed(timestep)
            items = sorted((i for i in items if not i.unreadable), key=lambda item: item.latents_CTHW.shape)
            losses = [
                self._losses(model, items[first : first + VALIDATION_ROW], VALIDATION)[2]
                for first in range(0, len(items), VALIDATION_ROW)
            ]
            found[f"val_{timestep}"] = torch.cat(losses).mean().item()
        if found:
            found["val"] = sum(found.values()) / len(found)
        return {name: round(value, 5) for name, value in found.items()}


def _front(item: Item, frames: int) -> int:
    """Latent frames that are given, padding in front included, of `frames` with padding."""
    return item.known + frames - item.latents_CTHW.shape[1] if item.known else 0


def matrix_blocks(name: str, parameter: Tensor) -> int:
    if parameter.ndim != 2 or not name.startswith("blocks") or "modulation" in name:
        return 0
    return 3 if "qkv" in name else 1
