"""Training of the VAE on clips (paper section 2.1): L1, a perceptual loss and KL; then a 3D
discriminator as well.

Stages go from pictures to short clips to long ones; clips may lie on several processes, cut along time.

Shape legend: B clips, C channels, T frames or latents, H W height and width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from cogvideox.core import rng
from cogvideox.core.errors import InputError
from cogvideox.core.shapes import FRAMES_PER_LATENT, latent_frames
from cogvideox.data.video import Frames
from cogvideox.generation.generate import Place
from cogvideox.generation.media import to_signed
from cogvideox.models.discriminator import Discriminator, DiscriminatorSpec
from cogvideox.models.specs import VAESpec
from cogvideox.models.vae.autoencoder import VAE, Posterior
from cogvideox.parallel.temporal import Clip, Whole, pieces, slices
from cogvideox.parallel.training import ALONE, Ranks, fit
from cogvideox.training.footage import Footage, Storybook
from cogvideox.training.heldout import HeldOut
from cogvideox.training.perceptual import Choice, Perceptual
from cogvideox.training.task import Loss, Phase, Unreadable

FLOOR, CEILING = 1e-4, 1e4
"""Of the discriminator's gradient norm, added to it, and of the balance: it stays finite."""


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
    """Short sides in pixels of the clips, one drawn per step; at least `crop`."""
    fps: tuple[int, ...] = (8,)
    """Frames a second, drawn per clip: the paper's first stage has 8 and 16."""
    crops: int = 1
    """Crops that are cut from each clip."""
    candidates: int = 1
    """Places that are drawn for each crop; the one with the most motion is cut, for that is what is hard."""
    micro: int = 1
    """Micro-batches that the clips of a step are dealt to: they need less memory, and go to as many
    processes, or groups of them.
    """
    sequence: int = 1
    """Processes that share each clip, cut along time, if so many divide those that there are."""

    def __post_init__(self) -> None:
        if self.frames % FRAMES_PER_LATENT != 1:
            raise InputError(f"clips have 4k+1 frames, not {self.frames}")
        if self.crop % 8 or not 16 <= self.crop <= min(self.sizes):
            raise InputError(f"crop {self.crop} is not a multiple of 8 from 16 to the smallest of `sizes`")
        if self.sequence < 1:
            raise InputError(f"sequence must be at least 1, not {self.sequence}")
        if not 1 <= self.micro <= self.batch:
            raise InputError(f"micro {self.micro} is not from 1 to the step's {self.batch} clips")


@dataclass(frozen=True, kw_only=True)
class VAELoss:
    """The loss from the first step on: L1 + perceptual + KL."""

    kl_weight: float
    """Of the divergence in nats per latent number."""
    perceptual: Choice = "auto"
    """What compares pictures; "auto": the best that is on disk."""
    perceptual_weight: float = 0.5
    perceptual_frames: int = 4
    """Frames of each clip that are compared so, drawn for each step; of a shorter clip all."""


@dataclass(frozen=True, kw_only=True)
class Adversarial:
    """The discriminator and its part of the loss."""

    begins: int
    """The first step in which the discriminator learns."""
    ramp: int = 500
    """Steps from then on in which its part of the VAE's loss grows from nothing to `weight`."""
    weight: float = 0.5
    """Of its gradient at the decoder's last layer, in units of that of L1 + perceptual."""
    model: DiscriminatorSpec = field(default_factory=DiscriminatorSpec)

    def strength(self, step: int) -> float:
        """The weight at a step."""
        return self.weight * min(1.0, max(0.0, (step - self.begins) / self.ramp))


@dataclass(frozen=True)
class Micro:
    """Clips of a step, all of one shape."""

    video_BTHWC: Tensor
    """uint8."""
    first: int
    """Number of the first of them among all clips of the step: what they are called in keys."""
    names: tuple[str, ...] = ()
    """What each of them shows, for records."""
    unreadable: Mapping[str, str] = field(default_factory=dict)
    """Name -> why, of clips that others stand for."""


class VAEBatches(Dataset[Any]):
    """Step -> its micro-batches that are this rank's, a function of its key; those that share clips have the
    same.
    """

    def __init__(
        self, stages: tuple[VAEStage, ...], footage: Footage, seed: int, rank: int = 0, ranks: int = 1
    ) -> None:
        self.stages, self.footage, self.seed, self.rank, self.ranks = stages, footage, seed, rank, ranks

    def __len__(self) -> int:
        return sum(stage.steps for stage in self.stages)

    def stage(self, step: int) -> VAEStage:
        for stage in self.stages:
            if step < stage.steps:
                return stage
            step -= stage.steps
        raise IndexError(step)

    def __getitem__(self, step: int) -> list[Micro]:
        stage = self.stage(step)
        side = int(rng.generator(self.seed, "vae-side", step).choice(stage.sizes))
        each = fit(stage.sequence, self.ranks)
        parts = np.array_split(np.arange(stage.batch), stage.micro)
        mine = parts[self.rank // each :: self.ranks // each]
        return [self._micro(step, stage, side, part.tolist()) for part in mine]

    def _micro(self, step: int, stage: VAEStage, side: int, numbers: list[int]) -> Micro:
        clips, names, unreadable = [], [], dict[str, str]()
        for number in numbers:
            draw = rng.generator(self.seed, "vae-clip", step, number)
            found = self.footage.cut(draw, stage.frames, int(draw.choice(stage.fps)), side)
            room = np.subtract(found.video_THWC.shape[1:3], stage.crop) + 1
            for places in draw.integers(room, size=(stage.crops, stage.candidates, 2)):
                cut = [found.video_THWC[:, y : y + stage.crop, x : x + stage.crop] for y, x in places]
                clips.append(torch.from_numpy(max(cut, key=motion)))
                names.append(found.name)
            unreadable |= found.unreadable
        return Micro(torch.stack(clips), numbers[0] * stage.crops, tuple(names), unreadable)


def motion(video_THWC: Frames) -> float:
    """Mean absolute change between neighbouring frames; 0 for an image."""
    return float(np.abs(np.diff(video_THWC.astype(np.int16), axis=0)).mean()) if len(video_THWC) > 1 else 0.0


def signed(video_BTHWC: Tensor) -> Tensor:
    """uint8 (B, T, H, W, 3) -> fp32 (B, 3, T, H, W) in [-1, 1], as generation encodes its inputs."""
    return torch.cat([to_signed(clip.numpy()) for clip in video_BTHWC])


def balanced(
    fidelity: Tensor,
    against: Tensor,
    made: Tensor,
    last: Tensor,
    strength: float,
    total: Callable[[Tensor], Tensor],
) -> tuple[Tensor, float]:
    """`fidelity` + strength * balance * `against`, differentiable, and the balance: the ratio of the norms of
    their gradients at the weights `last` (Esser et al. 2021), in fp32 and at most `CEILING`.

    Both losses are differentiated once, down to `made`, the clip that they judge: the way from there on is
    common. `total` sums gradients over the processes that work on the clip.
    """
    pulls = [torch.autograd.grad(loss, made)[0] for loss in (fidelity, against)]
    norms = [
        total(torch.autograd.grad(made, last, pull, retain_graph=True)[0].float()).norm() for pull in pulls
    ]
    balance = (norms[0] / (norms[1] + FLOOR)).clamp(max=CEILING)
    pull = pulls[0].float() + strength * balance * pulls[1].float()
    value = (fidelity + strength * balance * against).detach()
    through = (made.float() * pull).sum()
    return value + (through - through.detach()), float(balance)


class VAETask:
    """Phases `vae` and, where asked for, `discriminator`, which judges what the other makes."""

    def __init__(
        self,
        spec: VAESpec,
        stages: tuple[VAEStage, ...],
        loss: VAELoss,
        perceptual: Perceptual,
        place: Place,
        *,
        seed: int,
        adversarial: Adversarial | None = None,
        footage: Footage | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        """`footage`: by default Storybook."""
        # Only initial weights are drawn from the global generator, here and at no other time.
        torch.manual_seed(seed)
        self.vae = VAE(spec)
        for name, parameter in self.vae.named_parameters():
            if "conv2.weight" in name:
                nn.init.zeros_(parameter)  # every residual block starts as the identity
        _prepare(self.vae, place)
        self.discriminator: Discriminator | None = None
        if adversarial is not None:
            self.discriminator = Discriminator(adversarial.model)
            _prepare(self.discriminator, place)
            self.discriminator.logits.float()
        self.spec, self.stages, self.place, self.seed, self.ranks = spec, stages, place, seed, ranks
        self.weights, self.perceptual, self.adversarial = loss, perceptual, adversarial
        self.footage = footage or Storybook(seed)
        self.held_out = HeldOut(self.footage, side=min(stages[-1].sizes) // 8 * 8)
        self.lost = Unreadable(self.footage.known)

    def check(self) -> None:
        """InputError when a stage could not draw or cut its clips, or none is kept for validation."""
        for stage in self.stages:
            pieces(stage.frames, fit(stage.sequence, self.ranks.size))
            for fps, side in product(stage.fps, stage.sizes):
                self.footage.check(stage.frames, fps, side)
        self.held_out.clips()

    def batches(self) -> VAEBatches:
        return VAEBatches(self.stages, self.footage, self.seed, self.ranks.rank, self.ranks.size)

    @property
    def phases(self) -> tuple[Phase, ...]:
        vae = Phase("vae", self.vae, matrix_blocks=matrix_blocks)
        if self.discriminator is None or self.adversarial is None:
            return (vae,)
        return vae, Phase("discriminator", self.discriminator, begins=self.adversarial.begins)

    def ids(self, micro: Micro) -> list[str]:
        return list(micro.names)

    def loss(self, phase: str, micro: Micro, step: int) -> Loss:
        self.lost.add(micro.unreadable)
        frames, team = micro.video_BTHWC.shape[1], self.ranks.partners
        clip = Whole() if team is None else slices(team, frames)
        video = signed(clip.cut(micro.video_BTHWC, axis=1)).to(self.vae.device, self.vae.dtype)
        if phase == "vae":
            return self._vae_loss(clip, video, micro, step)
        with torch.no_grad():
            made = self._made(clip, video, micro, step)[1]
        assert self.discriminator is not None
        real, fake = self.discriminator(torch.cat([video, made]), clip.carry()).chunk(2)
        here = clip.share(real.shape[2])
        hinge = 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())
        return _loss(hinge * here, len(video), here, {"real": real.mean(), "fake": fake.mean()})

    def _made(self, clip: Clip, video: Tensor, micro: Micro, step: int) -> tuple[Posterior, Tensor]:
        """The posterior of what is here of clips, and what the decoder makes of a sample of it."""
        posterior = clip.posterior(self.vae, video)
        batch, frames = micro.video_BTHWC.shape[:2]
        shape = (posterior.mean.shape[1], latent_frames(frames), *posterior.mean.shape[3:])
        noise = torch.stack(
            [rng.normal(shape, self.seed, "posterior", step, micro.first + index) for index in range(batch)]
        )
        latents = posterior.sample(clip.cut(noise).to(posterior.mean))
        return posterior, clip.decode(self.vae, latents * self.spec.scale)

    def _vae_loss(self, clip: Clip, video: Tensor, micro: Micro, step: int) -> Loss:
        posterior, made = self._made(clip, video, micro, step)
        here, error = clip.share(video.shape[2]), (made - video).float()
        l1, looks = error.abs().mean() * here, self._looks(clip, made, video, micro, step)
        kl = posterior.kl() * clip.share(posterior.mean.shape[2])
        loss, means = l1 + self.weights.perceptual_weight * looks, {}
        if self.adversarial is not None and (strength := self.adversarial.strength(step)):
            assert self.discriminator is not None
            logits = self.discriminator(made, clip.carry())
            against = -logits.mean() * clip.share(logits.shape[2])
            last = self.vae.decoder.conv_out.weight
            loss, balance = balanced(loss, against, made, last, strength, clip.sum)
            means = {"adversarial": against / here, "balance": torch.tensor(balance)}
        means |= {"l1": l1 / here, "perceptual": looks / here, "kl": kl / here}
        means |= {
            "psnr": -10 * (error.square().mean() / 4).clamp_min(1e-10).log10(),
            "std": posterior.mean.float().std(),
        }
        found = _loss(loss + self.weights.kl_weight * kl, len(video), here, means)
        return replace(found, metrics={**found.metrics, "samples": (float(len(video)), 1.0)})

    def _looks(self, clip: Clip, made: Tensor, video: Tensor, micro: Micro, step: int) -> Tensor:
        """Perceptual distance of drawn frames: the sum of those that are here over the number of all."""
        batch, frames = micro.video_BTHWC.shape[:2]
        count, chosen = min(frames, self.weights.perceptual_frames), []
        for index in range(batch):
            draw = rng.generator(self.seed, "perceptual", step, micro.first + index)
            places = map(clip.own, draw.choice(frames, count, replace=False).tolist())
            chosen += [(index, place) for place in places if place is not None]
        if not chosen:
            return made.sum() * 0
        pairs = (torch.stack([x[b, :, t] for b, t in chosen]).float() for x in (made, video))
        return self.perceptual(*pairs).sum() / (batch * count * clip.copies)

    @torch.no_grad()
    def latent_std(self, weights: dict[str, Tensor]) -> float:
        """Standard deviation of unscaled latents over the held-out clips."""
        model = self._with(weights)
        clips = (video.to(model.device, model.dtype) for video in self.held_out.clips())
        means = [model.posterior(video).mean.float() for video in clips]
        return torch.cat(means).std().item()

    def evaluate(self, weights: Mapping[str, dict[str, Tensor]], folder: Path, step: int) -> dict[str, float]:
        """How held-out clips come back, see `HeldOut.report`; leaves a contact sheet."""
        return self.held_out.report(self._with(weights["vae"]), folder / f"{step:06d}.png")

    def _with(self, weights: dict[str, Tensor]) -> VAE:
        model = VAE(self.spec).to(self.place.device, self.place.dtype)
        model.load_state_dict(weights)
        return model


def _loss(mean: Tensor, clips: int, here: float, means: Mapping[str, Tensor]) -> Loss:
    """Of clips of which `here` is the part that is here; `mean` is that part's share of their mean loss."""
    weight = clips * here
    metrics = {name: (x.item() * weight, weight) for name, x in means.items()}
    return Loss(mean * clips, weight, metrics)


def _prepare(model: nn.Module, place: Place) -> None:
    """Device and precision, and the layout in which convolutions are fast."""
    model.to(place.device, place.dtype)
    for module in model.modules():
        if isinstance(module, nn.Conv3d):
            module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last_3d)
        elif isinstance(module, nn.Conv2d):
            module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last)


def matrix_blocks(name: str, parameter: Tensor) -> int:
    ends = ("encoder.conv_in", "encoder.conv_out", "decoder.conv_in", "decoder.conv_out")
    return int(parameter.ndim >= 4 and not name.startswith(ends))
