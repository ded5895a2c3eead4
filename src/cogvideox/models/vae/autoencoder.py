"""The 3D causal VAE (paper section 2.1): 8x8x4 compression, 16 latent channels, folds over chunks of time.

Shape legend: B batch, C channels, T frames or latent frames, H W height and width (pixels or latents).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cogvideox.core.shapes import FRAMES_PER_LATENT, ChunkPlan, decode_plan, encode_plan
from cogvideox.models.specs import VAESpec
from cogvideox.models.vae.layers import (
    Cache,
    Carry,
    CausalConv3d,
    Downsample,
    ResBlock,
    Upsample,
    make_norm,
    norm_silu_conv,
)

TIME_LEVELS = 2  # resamplings that also halve or double time: 4 frames per latent


class Level(nn.Module):
    """Residual blocks at one resolution, then the way to the next."""

    def __init__(self, blocks: Iterable[ResBlock], resample: nn.Module | None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.resample = resample


def _layers(levels: nn.ModuleList) -> Iterator[nn.Module]:
    """The layers of all levels, to be run one by one: what enters a level must not stay in memory until the
    level is through.
    """
    for level in levels:
        assert isinstance(level, Level)
        yield from level.blocks
        if level.resample is not None:
            yield level.resample


class Encoder(nn.Module):
    """One chunk of video -> moments (mean and log variance) of its latents."""

    def __init__(self, spec: VAESpec) -> None:
        super().__init__()
        widths, last = (spec.channels[0], *spec.channels), len(spec.channels) - 1
        self.conv_in = CausalConv3d(3, widths[0])
        self.levels = nn.ModuleList(
            Level(
                (
                    ResBlock(widths[i] if b == 0 else width, width, spec.groups, None)
                    for b in range(spec.blocks)
                ),
                Downsample(width, time=i < TIME_LEVELS) if i < last else None,
            )
            for i, width in enumerate(spec.channels)
        )
        self.middle = nn.ModuleList(ResBlock(widths[-1], widths[-1], spec.groups, None) for _ in range(2))
        self.norm_out = make_norm(widths[-1], spec.groups, None)
        self.conv_out = CausalConv3d(widths[-1], 2 * spec.latent_channels)

    def forward(self, x_BCTHW: Tensor, carry: Carry) -> Tensor:
        h = self.conv_in(x_BCTHW, carry)
        for layer in (*_layers(self.levels), *self.middle):
            h = layer(h, None, carry)
        return norm_silu_conv(h, None, carry, self.norm_out, self.conv_out)


class Decoder(nn.Module):
    """One chunk of latents -> video."""

    def __init__(self, spec: VAESpec) -> None:
        super().__init__()
        channels, zc = spec.channels[::-1], spec.latent_channels
        widths, last = (channels[0], *channels), len(channels) - 1
        self.conv_in = CausalConv3d(zc, widths[0])
        self.middle = nn.ModuleList(ResBlock(widths[0], widths[0], spec.groups, zc) for _ in range(2))
        self.levels = nn.ModuleList(
            Level(
                (
                    ResBlock(widths[i] if b == 0 else width, width, spec.groups, zc)
                    for b in range(spec.blocks + 1)
                ),
                Upsample(width, time=i < TIME_LEVELS) if i < last else None,
            )
            for i, width in enumerate(channels)
        )
        self.norm_out = make_norm(widths[-1], spec.groups, zc)
        self.conv_out = CausalConv3d(widths[-1], 3)

    def forward(self, z_BCTHW: Tensor, carry: Carry) -> Tensor:
        h = self.conv_in(z_BCTHW, carry)
        for layer in (*self.middle, *_layers(self.levels)):
            h = layer(h, z_BCTHW, carry)
        return norm_silu_conv(h, z_BCTHW, carry, self.norm_out, self.conv_out)


@dataclass(frozen=True)
class Posterior:
    """A diagonal Gaussian over latents, unscaled. `mean` and `logvar` are (B, C, T, H, W)."""

    mean: Tensor
    logvar: Tensor

    @classmethod
    def of(cls, moments_BCTHW: Tensor) -> Posterior:
        mean, logvar = moments_BCTHW.chunk(2, dim=1)
        return cls(mean, logvar.clamp(-30.0, 20.0))

    @classmethod
    def join(cls, parts: Iterable[Posterior]) -> Posterior:
        """The posterior of a clip from those of its chunks."""
        parts = list(parts)
        return cls(torch.cat([p.mean for p in parts], 2), torch.cat([p.logvar for p in parts], 2))

    def sample(self, noise: Tensor) -> Tensor:
        """A latent drawn with the given standard normal `noise` of the mean's shape."""
        return self.mean + torch.exp(0.5 * self.logvar) * noise

    def kl(self) -> Tensor:
        """Divergence from the standard normal in nats per latent number, an fp32 scalar."""
        mean, logvar = self.mean.float(), self.logvar.float()
        return 0.5 * (mean.square() + logvar.exp() - 1.0 - logvar).mean()


class VAE(nn.Module):
    """Encoder and decoder as folds: `chunk, cache -> chunk, cache`. The cache is a value.

    Videos are (B, 3, T, H, W) in [-1, 1], latents (B, C, T/4, H/8, W/8) in the transformer's scale.
    """

    def __init__(self, spec: VAESpec) -> None:
        super().__init__()
        self.spec = spec
        self.encoder = Encoder(spec)
        self.decoder = Decoder(spec)

    def encode_chunk(
        self,
        video_BCTHW: Tensor,
        cache: Cache | None = None,
        *,
        lead: bool = True,
        reuse: bool = False,
        last: bool = False,
    ) -> tuple[Tensor, Cache]:
        """One chunk of frames -> (moments, cache for the next chunk). `cache` None starts a clip; its
        `last` chunk leaves an empty cache.

        With `reuse` the new cache takes the memory of `cache`, which is then spent.

        Raises ValueError unless the frames make whole latents: 4k+1 of them if the first stands alone,
        else 4k.
        """
        carry = Carry(cache, lead, reuse=reuse, last=last)
        if video_BCTHW.shape[2] % FRAMES_PER_LATENT != carry.lead:
            legal = "4k+1" if carry.lead else "4k"
            raise ValueError(f"a chunk of {video_BCTHW.shape[2]} frames where only {legal} can be encoded")
        return self.encoder(_channels_last(video_BCTHW), carry), carry.cache

    def decode_chunk(
        self,
        latents_BCTHW: Tensor,
        cache: Cache | None = None,
        *,
        lead: bool = True,
        reuse: bool = False,
        last: bool = False,
    ) -> tuple[Tensor, Cache]:
        """One chunk of *unscaled* latents -> (frames, cache for the next). `cache`, `reuse` and `last` as in
        `encode_chunk`.
        """
        carry = Carry(cache, lead, reuse=reuse, last=last)
        return self.decoder(_channels_last(latents_BCTHW), carry), carry.cache

    def encode_stream(self, chunks: Iterable[Tensor], plan: ChunkPlan) -> Iterator[Posterior]:
        """Chunks of frames, cut as the plan says -> their posteriors, one by one."""
        cache: Cache | None = None
        for count, chunk in enumerate(chunks, 1):
            last = count == len(plan.sizes)
            moments, cache = self.encode_chunk(
                chunk.to(self.dtype), cache, lead=plan.lead, reuse=_no_grad(), last=last
            )
            yield Posterior.of(moments)

    def decode_stream(self, latents_BCTHW: Tensor, plan: ChunkPlan | None = None) -> Iterator[Tensor]:
        """Latents -> frames chunk by chunk, (B, 3, t, H, W) near [-1, 1]. Memory does not grow with the
        duration.
        """
        plan = plan or decode_plan(latents_BCTHW.shape[2])
        _check(latents_BCTHW, self.spec.latent_channels, plan)
        cache: Cache | None = None
        for count, chunk in enumerate(latents_BCTHW.split(plan.sizes, dim=2), 1):
            z, last = self.unscaled(chunk), count == len(plan.sizes)
            frames, cache = self.decode_chunk(z, cache, lead=plan.lead, reuse=_no_grad(), last=last)
            yield frames

    def unscaled(self, latents: Tensor) -> Tensor:
        """Latents in the transformer's scale -> what the decoder takes."""
        return (latents / self.spec.scale).to(self.dtype)  # divided first: one rounding

    def posterior(self, video_BCTHW: Tensor, plan: ChunkPlan | None = None) -> Posterior:
        """Unscaled posterior of a whole clip; `plan` defaults to `encode_plan`."""
        plan = plan or encode_plan(video_BCTHW.shape[2])
        _check(video_BCTHW, 3, plan)
        return Posterior.join(self.encode_stream(video_BCTHW.split(plan.sizes, dim=2), plan))

    def encode(
        self,
        video_BCTHW: Tensor,
        plan: ChunkPlan | None = None,
        *,
        noise: Tensor | None = None,
        condition: bool = False,
    ) -> Tensor:
        """Latents of a clip in the transformer's scale: the posterior's mode, or a sample when `noise` is
        given.

        `condition=True` applies the scale of the image condition of image-to-video models instead
        (`VAESpec.condition_scale`). Raises ValueError when the frames do not fit the plan or the size is not
        8n.
        """
        return self.latents(self.posterior(video_BCTHW, plan), noise, condition=condition)

    def latents(self, posterior: Posterior, noise: Tensor | None, *, condition: bool = False) -> Tensor:
        """What `encode` makes of a clip's posterior."""
        z = posterior.mean if noise is None else posterior.sample(noise.to(posterior.mean))
        return z * (self.spec.condition_scale if condition else self.spec.scale)

    def decode(self, latents_BCTHW: Tensor, plan: ChunkPlan | None = None) -> Tensor:
        """Latents in the transformer's scale -> clip (B, 3, 4(T-1)+1, 8H, 8W) near [-1, 1]."""
        return torch.cat(list(self.decode_stream(latents_BCTHW, plan)), dim=2)

    @property
    def dtype(self) -> torch.dtype:
        return self.decoder.conv_in.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.decoder.conv_in.weight.device


def _no_grad() -> bool:
    """A stream owns its cache; only a backward pass may still want the old values."""
    return not torch.is_grad_enabled()


def _channels_last(x_BCTHW: Tensor) -> Tensor:
    return x_BCTHW.contiguous(memory_format=torch.channels_last_3d)


def _check(x_BCTHW: Tensor, channels: int, plan: ChunkPlan) -> None:
    if x_BCTHW.ndim != 5 or x_BCTHW.shape[1] != channels:
        raise ValueError(f"expected a tensor (B, {channels}, T, H, W), not {tuple(x_BCTHW.shape)}")
    if x_BCTHW.shape[2] != plan.length:
        raise ValueError(f"the chunk plan is for {plan.length} frames, the clip has {x_BCTHW.shape[2]}")
    if channels == 3 and (x_BCTHW.shape[3] % 8 or x_BCTHW.shape[4] % 8):
        raise ValueError(
            f"height and width must be multiples of 8, not {x_BCTHW.shape[3]}x{x_BCTHW.shape[4]}"
        )
