"""Where the noise of a clip comes from. Shape legend: C channels, T H W latent grid; all noise is fp32 on
the CPU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from cogvideox.core import rng

Shape = tuple[int, int, int, int]


class Noise(Protocol):
    """A source of standard normal noise for one clip."""

    @property
    def exact_draws(self) -> bool:
        """The source is a stream from which must be drawn as diffusers draws, needed or not."""
        ...

    def posterior(self, shape: Shape) -> Tensor | None:
        """For a sample of the VAE's posterior, (C, T, H, W); None: its mode is to be taken."""
        ...

    def initial(self, shape: Shape, window: int) -> Tensor:
        """What a window starts from, (C, T, H, W)."""
        ...

    def step(self, shape: Shape, window: int, index: int, draws: int) -> Tensor:
        """For the sampler's step `index`, the last of `draws` draws, (C, T, H, W)."""
        ...


@dataclass(frozen=True)
class KeyedNoise:
    """Noise as a function of (seed, purpose, window, step): the same alone, in a batch and in any order."""

    seed: int
    exact_draws: bool = False

    def posterior(self, shape: Shape) -> Tensor | None:
        return None

    def initial(self, shape: Shape, window: int) -> Tensor:
        return rng.normal(shape, self.seed, "initial-noise", window)

    def step(self, shape: Shape, window: int, index: int, draws: int) -> Tensor:
        return rng.normal(shape, self.seed, "step-noise", window, index)


@dataclass(frozen=True)
class GeneratorNoise:
    """Noise from a torch generator, drawn in the order and layout (B, T, C, H, W) in which diffusers draws
    it."""

    generator: torch.Generator
    dtype: torch.dtype
    """Precision that diffusers would draw in: the model's. Other precisions give other numbers."""
    batch: int = 1
    """Clips that share the generator; every draw is made for all of them."""
    index: int = 0
    """Which of them this is."""
    exact_draws: bool = True

    @classmethod
    def batch_of(cls, generator: torch.Generator, dtype: torch.dtype, count: int) -> list[GeneratorNoise]:
        """One source for each of `count` clips of a batch, each with its own copy of the generator, so that
        they may run one after the other and still get the parts of common draws that are theirs.
        """
        return [cls(_copy(generator), dtype, count, index) for index in range(count)]

    def posterior(self, shape: Shape) -> Tensor | None:
        draws = [self._draw((1, *shape)) for _ in range(self.batch)]
        return draws[self.index][0]

    def initial(self, shape: Shape, window: int) -> Tensor:
        channels, frames, height, width = shape
        drawn = self._draw((self.batch, frames, channels, height, width))
        return drawn[self.index].transpose(0, 1)

    def step(self, shape: Shape, window: int, index: int, draws: int) -> Tensor:
        for _ in range(draws - 1):
            self.initial(shape, window)
        return self.initial(shape, window)

    def _draw(self, shape: tuple[int, ...]) -> Tensor:
        device = self.generator.device
        return torch.randn(shape, generator=self.generator, device=device, dtype=self.dtype).float().cpu()


def _copy(generator: torch.Generator) -> torch.Generator:
    copy = torch.Generator(generator.device)
    copy.set_state(generator.get_state())
    return copy
