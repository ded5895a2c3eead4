"""Training of the VAE on rendered clips: L1 + gradient + KL, images first, then short clips, then longer
ones.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from cogvideox.core import rng
from cogvideox.data.storybook import World
from cogvideox.data.video import Frames
from cogvideox.generation.media import to_signed
from cogvideox.models.specs import VAESpec
from cogvideox.models.vae.autoencoder import VAE
from cogvideox.training.task import Loss, Phase


@dataclass(frozen=True, kw_only=True)
class VAEStage:
    """A part of the run with one clip shape."""

    steps: int
    batch: int
    """Clips per step."""
    frames: int
    """4k+1; 1 for images."""
    crop: int
    """Side in pixels of the square that is cut from each clip."""
    sizes: tuple[int, ...] = (128,)
    """Sides in pixels at which clips are rendered, one drawn per batch; at least `crop`."""
    crops: int = 1
    """Crops that are cut from each clip."""
    candidates: int = 1
    """Places that are drawn for each crop; the one with the most motion is cut, for that is what is hard."""


class VAEBatches(Dataset[Any]):
    """Step -> one micro-batch of uint8 clips (batch * crops, T, crop, crop, 3); a function of its key."""

    def __init__(self, stages: tuple[VAEStage, ...], seed: int, split: str = "train") -> None:
        self.stages, self.seed, self.split = stages, seed, split
        self.world: World | None = None

    def __len__(self) -> int:
        return sum(stage.steps for stage in self.stages)

    def stage(self, step: int) -> VAEStage:
        for stage in self.stages:
            if step < stage.steps:
                return stage
            step -= stage.steps
        raise IndexError(step)

    def __getitem__(self, step: int) -> list[Tensor]:
        if self.world is None:
            self.world = World(seed=self.seed, split=self.split)
        stage, draw = self.stage(step), rng.generator(self.seed, "vae-batch", step)
        side = int(draw.choice(stage.sizes))
        clips = []
        for index in draw.integers(2**31, size=stage.batch):
            # Long enough for the latest start, so that the action never ends before the clip.
            clip = self.world.clip(int(index), duration=1.0 + stage.frames / 8)
            start = float(draw.uniform(0.0, 1.0))
            video = clip.render(frames=stage.frames, fps=8, height=side, width=side, start=start)
            for places in draw.integers(side - stage.crop + 1, size=(stage.crops, stage.candidates, 2)):
                cut = [video[:, y : y + stage.crop, x : x + stage.crop] for y, x in places]
                clips.append(max(cut, key=motion))
        return [torch.from_numpy(np.stack(clips))]


def motion(video_THWC: Frames) -> float:
    """Mean absolute change between neighbouring frames; 0 for an image."""
    return float(np.abs(np.diff(video_THWC.astype(np.int16), axis=0)).mean()) if len(video_THWC) > 1 else 0.0


def to_model(video_BTHWC: Tensor) -> Tensor:
    """uint8 (B, T, H, W, 3) -> bf16 (B, 3, T, H, W) in [-1, 1], as generation encodes its inputs."""
    return torch.cat([to_signed(clip.numpy()) for clip in video_BTHWC]).bfloat16()


def changing(video_BCTHW: Tensor) -> Tensor:
    """Pixels (B, T, H, W) of which a colour differs by over 5 % of its range from a neighbouring frame's."""
    change = video_BCTHW.float().diff(dim=2).abs().amax(dim=1) > 0.1
    edge = torch.zeros_like(change[:, :1])
    return torch.cat([change, edge], dim=1) | torch.cat([edge, change], dim=1)


def psnr(error: Tensor) -> Tensor:
    """dB of mean squared errors of values in [0, 1]."""
    return -10 * error.clamp(min=1e-10).log10()


def gradient_l1(error: Tensor) -> Tensor:
    """Mean absolute spatial difference of the error: punishes blur, which plain L1 forgives."""
    return error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()


class VAETask:
    """L1 + `gradient_weight` * gradient L1 + `kl_weight` * KL (nats per latent number)."""

    def __init__(
        self,
        spec: VAESpec,
        stages: tuple[VAEStage, ...],
        *,
        seed: int,
        kl_weight: float,
        gradient_weight: float,
    ) -> None:
        torch.manual_seed(
            seed
        )  # only initial weights are drawn from the global generator, here and at no other time
        self.model = VAE(spec)
        for name, parameter in self.model.named_parameters():
            if "conv2.weight" in name:
                torch.nn.init.zeros_(parameter)  # every residual block starts as the identity
        self.model.to(torch.bfloat16)
        for module in self.model.modules():
            if isinstance(module, torch.nn.Conv3d):
                module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last_3d)
            elif isinstance(module, torch.nn.Conv2d):
                module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last)
        self.spec, self.stages, self.seed = spec, stages, seed
        self.kl_weight, self.gradient_weight = kl_weight, gradient_weight
        self._held_out: list[Tensor] = []

    def batches(self) -> VAEBatches:
        return VAEBatches(self.stages, self.seed)

    @property
    def phases(self) -> tuple[Phase, ...]:
        return (Phase("model", self.model, matrix_blocks=matrix_blocks),)

    def loss(self, phase: str, micro: Tensor, step: int) -> Loss:
        video, clips = to_model(micro), float(len(micro))
        posterior = self.model.posterior(video)
        noise = rng.normal(posterior.mean.shape, self.seed, "posterior", step).to(posterior.mean)
        reconstruction = self.model.decode(posterior.sample(noise) * self.spec.scale)
        error = (reconstruction - video).float()
        l1, gradient = error.abs().mean(), gradient_l1(error)
        kl = posterior.kl()
        loss = l1 + self.gradient_weight * gradient + self.kl_weight * kl
        psnr = -10 * math.log10(max(1e-9, error.detach().square().mean().item() / 4))
        spread = posterior.mean.detach().float().std().item()
        means = {"l1": l1.item(), "kl": kl.item(), "psnr": psnr, "std": spread}
        return Loss(loss * clips, clips, {name: (mean * clips, clips) for name, mean in means.items()})

    def held_out(self, count: int = 16, frames: int = 17, side: int = 128) -> list[Tensor]:
        """Fixed clips of the held-out split, uint8 (1, T, H, W, 3)."""
        if not self._held_out:
            world = World(seed=self.seed, split="heldout")
            for index in range(count):
                video = world.clip(index, duration=frames / 8).render(
                    frames=frames, fps=8, height=side, width=side
                )
                self._held_out.append(torch.from_numpy(video[None]))
        return self._held_out

    @torch.no_grad()
    def latent_std(self, weights: dict[str, Tensor]) -> float:
        """Standard deviation of unscaled latents over the held-out clips."""
        model = self._with(weights)
        means = [model.posterior(to_model(clip)).mean.float() for clip in self.held_out()]
        return torch.cat(means).std().item()

    def _with(self, weights: dict[str, Tensor]) -> VAE:
        model = VAE(self.spec).to(torch.bfloat16)
        model.load_state_dict(weights)
        return model

    @torch.no_grad()
    def evaluate(self, weights: Mapping[str, dict[str, Tensor]], folder: Path, step: int) -> dict[str, float]:
        """PSNR in dB on held-out clips at 128x128, mean over frames and clips; leaves a picture.

        `still` and `moving` are the PSNRs of all pixels without and with a change to a neighbouring frame.
        """
        model = self._with(weights["model"])
        scores: list[float] = []
        still: list[Tensor] = []
        moving: list[Tensor] = []
        rows: list[Tensor] = []
        for clip in self.held_out():
            video = to_model(clip)
            decoded = model.decode(model.encode(video)).float().clamp(-1, 1)
            error = (decoded - video.float()).square().mean(dim=1) / 4
            scores.append(psnr(error.mean(dim=(0, 2, 3))).mean().item())
            moves = changing(video)
            still.append(error[~moves])
            moving.append(error[moves])
            if len(rows) < 8:
                both = torch.cat([video.float(), decoded], dim=3)[0, :, ::5]
                rows.append(((both + 1) * 127.5).round().byte().permute(2, 1, 3, 0).flatten(1, 2))
        sheet = torch.cat([torch.cat(rows[i : i + 2], 1) for i in range(0, len(rows), 2)])
        Image.fromarray(sheet.numpy()).save(folder / f"{step:06d}.png")
        parts = {
            name: psnr(torch.cat(errors).mean()).item()
            for name, errors in (("still", still), ("moving", moving))
        }
        return {
            name: round(value, 3)
            for name, value in ({"eval_psnr": sum(scores) / len(scores)} | parts).items()
        }


def matrix_blocks(name: str, parameter: Tensor) -> int:
    ends = ("encoder.conv_in", "encoder.conv_out", "decoder.conv_in", "decoder.conv_out")
    return int(parameter.ndim >= 4 and not name.startswith(ends))
