"""Samplers: from noise to a clip, as a pure function from state and prediction to the next state.

    state = sampler.start(noise)
    while not sampler.done(state):
        v = network(state.x, sampler.timestep(state))
        state = sampler.step(state, v, noise=fresh_noise if sampler.draws(state) else None)

All three are one formula. With signal = sqrt(alpha_bar), sigma = sqrt(1 - alpha_bar), lambda = log(signal /
sigma), primes for the next, less noisy timestep, and h = lambda' - lambda:

    x' = keep x + pull D + noise eps        D = x_0 + extrapolate (x_0 - previous x_0)

    kind          keep                  pull                    noise                       extrapolate
    ddim          sigma'/sigma          signal' (1 - e^-h)      0                           0
    dpm++2m-ode   sigma'/sigma          signal' (1 - e^-h)      0                           h / (2 previous h)
    dpm++2m-sde   sigma'/sigma e^-h     signal' (1 - e^-2h)     sigma' sqrt(1 - e^-2h)      h / (2 previous h)

The ends need no special case. At zero terminal SNR lambda = -inf, so e^-h = 0 (the SDE forgets its initial
noise) and the second step is of first order, its previous h being infinite. At the clip itself lambda' =
inf, and the last step returns x_0. Sources: Song et al. 2021 (DDIM), Lu et al. 2022 (DPM-Solver++); the
released models' own sampler is dpm++2m-sde.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from cogvideox.core.errors import InputError, nearest
from cogvideox.diffusion.schedule import Schedule


class Kind(NamedTuple):
    """What tells the samplers apart."""

    second_order: bool
    """Extrapolates from the previous prediction."""
    stochastic: bool
    """Adds fresh noise at every step."""


KINDS = {
    "ddim": Kind(second_order=False, stochastic=False),
    "dpm++2m-ode": Kind(second_order=True, stochastic=False),
    "dpm++2m-sde": Kind(second_order=True, stochastic=True),
}


class Level(NamedTuple):
    """A noise level."""

    signal: float
    sigma: float
    log_snr: float
    """lambda: -inf at zero terminal SNR, inf at the clip itself."""


class Coefficients(NamedTuple):
    """The numbers of one step; see the formula at the top."""

    keep: float
    pull: float
    extrapolate: float
    noise: float


@dataclass(frozen=True, eq=False)
class SamplerState:
    """All that one step hands to the next."""

    x: Tensor
    """Noisy latents, float32, any shape."""
    index: int
    """Steps done, counted from the first entry of the sampler's timesteps."""
    previous_x0: Tensor | None = None
    """Clean latents as predicted by the last step, good for a preview; None before the first step."""


@dataclass(frozen=True)
class Sampler:
    """One way from noise to a clip: formula, noise schedule and timesteps. Holds no state."""

    kind: str
    """`ddim`, `dpm++2m-sde` or `dpm++2m-ode`."""
    schedule: Schedule
    timesteps: tuple[int, ...]
    """Decreasing, from `sampling_timesteps`; all of them, also when a run starts later (`start_index`)."""
    compat: Literal["diffusers"] | None = None
    """`diffusers`: go to t - total // steps instead of the next entry of `timesteps` (inexact where steps do
    not divide total), and draw as much noise as its SDE sampler, so that equal generators stay in step."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InputError(f"unknown sampler {self.kind!r}{nearest(self.kind, KINDS)}")

    def start(self, x: Tensor, index: int = 0) -> SamplerState:
        """State before the first step: noise, or latents noised to `timesteps[index]` (see `start_index`)."""
        return SamplerState(x.to(torch.promote_types(x.dtype, torch.float32)), index)

    def done(self, state: SamplerState) -> bool:
        """All steps are taken, `state.x` is the clip."""
        return state.index == len(self.timesteps)

    def timestep(self, state: SamplerState) -> int:
        """Noise level of `state.x`, the timestep that the network is asked at."""
        return self.timesteps[state.index]

    def draws(self, state: SamplerState) -> int:
        """How many noise tensors to draw for the next step, 0 or 1; of more, `step` takes the last.

        With compat="diffusers" the SDE draws for a first-order step first, and again if the step is of
        second order: 1 at the first step of a run and at the one that returns the clip, else 2.
        """
        if not KINDS[self.kind].stochastic:
            return 0
        last = self._next(state.index) is None
        if self.compat == "diffusers":
            return 1 if last or state.previous_x0 is None else 2
        return 0 if last else 1

    def step(self, state: SamplerState, prediction: Tensor, noise: Tensor | None = None) -> SamplerState:
        """The next state. `prediction` is v at `state.x`, guided; `noise` is standard normal, see `draws`."""
        c = self.coefficients(state.index)
        v = prediction.to(state.x.dtype)
        x0 = self.schedule.predict_x0(state.x, v, torch.tensor([self.timestep(state)]))
        target = x0
        if c.extrapolate and state.previous_x0 is not None:
            target = (1 + c.extrapolate) * x0 - c.extrapolate * state.previous_x0
        x = c.keep * state.x + c.pull * target
        if c.noise:
            if noise is None:
                raise InputError(f"{self.kind} needs noise at step {state.index}")
            x = x + c.noise * noise
        return SamplerState(x, state.index + 1, x0)

    def coefficients(self, index: int) -> Coefficients:
        """The numbers of step `index` when it has a predecessor, in float64."""
        kind = KINDS[self.kind]
        here, there = self._level(self.timesteps[index]), self._level(self._next(index))
        h = there.log_snr - here.log_snr
        extrapolate = 0.0
        if kind.second_order and index > 0 and math.isfinite(h):
            extrapolate = h / (here.log_snr - self._level(self.timesteps[index - 1]).log_snr) / 2
        keep = there.sigma / here.sigma
        if not kind.stochastic:
            return Coefficients(keep, -there.signal * math.expm1(-h), extrapolate, 0.0)
        fresh = -math.expm1(-2 * h)
        return Coefficients(
            keep * math.exp(-h), there.signal * fresh, extrapolate, there.sigma * math.sqrt(fresh)
        )

    def _next(self, index: int) -> int | None:
        """The timestep that step `index` leads to; None: the clip itself."""
        if self.compat == "diffusers":
            t = self.timesteps[index] - self.schedule.steps // len(self.timesteps)
            return t if t >= 0 else None
        return self.timesteps[index + 1] if index + 1 < len(self.timesteps) else None

    def _level(self, t: int | None) -> Level:
        alpha_bar = 1.0 if t is None else float(self.schedule.alpha_bar[t])
        signal, sigma = math.sqrt(alpha_bar), math.sqrt(1 - alpha_bar)
        if not signal or not sigma:
            return Level(signal, sigma, math.inf if signal else -math.inf)
        return Level(signal, sigma, math.log(signal / sigma))


def start_index(steps: int, strength: float) -> int:
    """Index of the first step when only the last `strength` of `steps` are run on a noised clip (SDEdit).

    Rounds down the number of steps run, as diffusers' video-to-video pipeline does. 1 runs all of them.
    """
    run = int(steps * strength)
    if run < 1 or strength > 1:
        raise InputError(f"strength must be in [{1 / steps:g}, 1] with {steps} steps, not {strength:g}")
    return steps - run
