"""Training of the transformer on packed latents: v-prediction, explicit uniform timesteps, a frozen text
encoder.

A step's pack mixes images and clips of several shapes (paper section 3.1); its timesteps are stratified over
all of its segments (section 3.3). Shape legend: C channels, T H W latent grid, L tokens, S segments.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from cogvideox.core import rng
from cogvideox.diffusion.inputs import Sample, build_pack, pad_front, split_output
from cogvideox.diffusion.objective import v_loss
from cogvideox.diffusion.schedule import Schedule
from cogvideox.diffusion.timesteps import stratified
from cogvideox.models.text import TextEncoder
from cogvideox.models.transformer.model import Transformer
from cogvideox.training.budget import train_flops
from cogvideox.training.latents import CAPTIONS, Bucket, LatentStore
from cogvideox.training.task import Loss, Phase


@dataclass(frozen=True, kw_only=True)
class DiffusionStage:
    """A part of the run with one mix of shapes."""

    steps: int
    mix: dict[str, int]
    """Bucket name -> samples per step."""


@dataclass(frozen=True)
class Item:
    """One training sample as the data process delivers it."""

    latents_CTHW: Tensor
    caption: str
    name: str
    known: int
    """Latent frames in front that the model gets clean: 0, 1 (a given first frame) or more (continuation)."""
    subject_THW: Tensor
    """Bool: where a character is."""


class DiffusionBatches(Dataset[Any]):
    """Step -> items of the step's pack, grouped by shape; a pure function of (seed, step)."""

    def __init__(
        self,
        stages: tuple[DiffusionStage, ...],
        buckets: tuple[Bucket, ...],
        folder: Path,
        *,
        seed: int,
        known: float,
        dense: float,
    ) -> None:
        self.stages, self.seed, self.known, self.dense = stages, seed, known, dense
        self.stores = {bucket.name: LatentStore(bucket, folder, seed) for bucket in buckets}

    def __len__(self) -> int:
        return sum(stage.steps for stage in self.stages)

    def _mix(self, step: int) -> dict[str, int]:
        for stage in self.stages:
            if step < stage.steps:
                return stage.mix
            step -= stage.steps
        raise IndexError(step)

    def __getitem__(self, step: int) -> list[list[Item]]:
        draw, items = rng.generator(self.seed, "diffusion-batch", step), []
        for name, count in self._mix(step).items():
            store = self.stores[name]
            for index in draw.integers(len(store), size=count):
                latents, captions = store.latents(int(index)), store.captions(int(index))
                caption = captions[int(draw.integers(CAPTIONS)) + CAPTIONS * (draw.random() < self.dense)]
                length, skip, known = latents.shape[1], 0, 0
                if length > 1 and draw.random() < self.known:
                    known = 1
                    if draw.random() < 0.3:
                        # Generation continues from the middle of a clip, where a latent holds four frames.
                        skip = int(draw.integers(length - 1))
                        known = int(draw.integers(1, length - skip))
                subject = store.subject(int(index))[skip:]
                items.append(Item(latents[:, skip:], caption, f"{name}/{index}", known, subject))
        return [sorted(items, key=lambda item: item.latents_CTHW.shape)]  # equal shapes run as one batch


class DiffusionTask:
    """v-prediction of latents; with probability `drop_text` the text is zeros, the unconditional branch.

    Errors where a character is count `subject_weight` times those elsewhere, for characters are what prompts
    are about. The weights of a sample have mean 1.
    """

    def __init__(
        self,
        model: Transformer,
        text: TextEncoder,
        batches: DiffusionBatches,
        schedule: Schedule,
        *,
        seed: int,
        drop_text: float,
        subject_weight: float,
        judge: Callable[[dict[str, Tensor], Path, int], None],
    ) -> None:
        self.model, self.text, self._batches, self.schedule = model, text, batches, schedule
        self.seed, self.drop_text, self.subject_weight, self._judge = seed, drop_text, subject_weight, judge

    def batches(self) -> DiffusionBatches:
        return self._batches

    @property
    def phases(self) -> tuple[Phase, ...]:
        return (Phase("model", self.model, matrix_blocks=matrix_blocks),)

    def ids(self, micro: list[Item]) -> list[str]:
        return [item.name for item in micro]

    def loss(self, phase: str, micro: list[Item], step: int) -> Loss:
        batch, (spec, dtype) = micro, (self.model.spec, self.model.patch_embed.weight.dtype)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "the prompt has")  # the run has told how many are cut
            text_SLC = self.text.encode([item.caption for item in batch])
        draw = rng.generator(self.seed, "drop-text", step)
        keep = torch.from_numpy(draw.random(len(batch)) >= self.drop_text).to(text_SLC.dtype)
        text_SLC = text_SLC * keep[:, None, None]
        timesteps = stratified(len(batch), self.seed, "timesteps", step)
        samples, targets = [], []
        for j, (item, timestep) in enumerate(zip(batch, timesteps, strict=True)):
            clean = pad_front(item.latents_CTHW.float(), spec.patch)
            noise = rng.normal(clean.shape, self.seed, "noise", step, j)
            t = torch.tensor(timestep)
            noisy = self.schedule.add_noise(clean[None], noise[None], t[None])[0]
            noisy[:, : item.known] = clean[:, : item.known]
            samples.append(Sample(noisy, text_SLC[j], timestep, name=item.name))
            targets.append(self.schedule.velocity(clean[None], noise[None], t[None])[0][:, item.known :])
        pack = build_pack(samples, spec, dtype=dtype)
        outputs = split_output(self.model(pack), pack, spec)
        roots = [self._roots(item, spec.patch) for item in batch]
        predictions = [
            output[:, item.known :] * r for output, item, r in zip(outputs, batch, roots, strict=True)
        ]
        targets = [target * root for target, root in zip(targets, roots, strict=True)]
        total, losses_S = v_loss(predictions, targets, [1.0] * len(batch), normaliser=1.0)
        metrics = {
            "samples": (float(len(batch)), 1.0),
            "tokens": (float(sum(segment.length for segment in pack.segments)), 1.0),
            "flops": (train_flops(spec, pack.segments), 1.0),
        }
        for low in range(0, 1000, 250):
            inside = [x for x, t in zip(losses_S.tolist(), timesteps, strict=True) if low <= t < low + 250]
            metrics[f"loss_{low}"] = sum(inside), float(len(inside))
        return Loss(total, float(len(batch)), metrics)

    def _roots(self, item: Item, patch: tuple[int, int, int]) -> Tensor:
        """Square roots (T, H, W) of the weights of an item's latents that are not known."""
        subject = pad_front(item.subject_THW[None].float(), patch)[0, item.known :]
        weights = 1.0 + (self.subject_weight - 1.0) * subject
        return (weights / weights.mean()).sqrt()

    def evaluate(self, weights: Mapping[str, dict[str, Tensor]], folder: Path, step: int) -> dict[str, float]:
        self._judge(weights["model"], folder, step)
        return {}


def matrix_blocks(name: str, parameter: Tensor) -> int:
    if parameter.ndim != 2 or not name.startswith("blocks") or "modulation" in name:
        return 0
    return 3 if "qkv" in name else 1
