"""The noise schedule: how much of a clip is left at each training timestep.

    x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) noise           what the network sees
    v_t = sqrt(alpha_bar_t) noise - sqrt(1 - alpha_bar_t) x_0           what it predicts

Both are one rotation of (x_0, noise), so its inverse gives x_0 and the noise back without a division, also
where alpha_bar = 0 (zero terminal SNR: there x_t is pure noise and v = -x_0). Sources: Salimans & Ho 2022,
appendix D (v); Lin et al. 2024, algorithm 1 (zero terminal SNR); Esser et al. 2024 (SNR shift); the numbers
are those of the released models.

Shape legend: S segments (samples); `t_S` integer timesteps, best on the CPU where the table is; latents have
any shape that starts with S, or any shape at all when S = 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Schedule:
    """A table of noise levels and the four linear maps between clip, noise, noisy clip and velocity.

    Roots are taken in float64 on the CPU and rounded once to the latents' precision, or to float32 if that is
    higher (half precision latents are promoted): an accelerator never sees float64.
    """

    alpha_bar: Tensor
    """(steps,) float64 on the CPU: the clip's share in the variance of x_t, falling from near 1 to 0."""

    @property
    def steps(self) -> int:
        """Number of training timesteps."""
        return len(self.alpha_bar)

    def add_noise(self, x0: Tensor, noise: Tensor, t_S: Tensor) -> Tensor:
        """x_t from the clean latents and standard normal noise of the same shape."""
        signal, sigma = self._roots(t_S, x0)
        return signal * x0 + sigma * noise

    def velocity(self, x0: Tensor, noise: Tensor, t_S: Tensor) -> Tensor:
        """v_t, the network's target."""
        signal, sigma = self._roots(t_S, x0)
        return signal * noise - sigma * x0

    def predict_x0(self, x_t: Tensor, v: Tensor, t_S: Tensor) -> Tensor:
        """Clean latents that x_t and v stand for."""
        signal, sigma = self._roots(t_S, x_t)
        return signal * x_t - sigma * v

    def predict_noise(self, x_t: Tensor, v: Tensor, t_S: Tensor) -> Tensor:
        """Noise that x_t and v stand for."""
        signal, sigma = self._roots(t_S, x_t)
        return sigma * x_t + signal * v

    def _roots(self, t_S: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """sqrt(alpha_bar_t) and sqrt(1 - alpha_bar_t), shaped (S, 1, ...) to broadcast over `like`."""
        alpha_bar = self.alpha_bar[t_S.cpu()].reshape(-1, *(1,) * (like.ndim - 1))
        dtype = torch.promote_types(like.dtype, torch.float32)
        signal, sigma = alpha_bar.sqrt().to(dtype), (1 - alpha_bar).sqrt().to(dtype)
        return signal.to(like.device), sigma.to(like.device)


def make_schedule(
    snr_shift: float = 1.0,
    steps: int = 1000,
    beta_start: float = 0.00085,
    beta_end: float = 0.012,
    zero_terminal_snr: bool = True,
) -> Schedule:
    """The released models' schedule: scaled-linear betas, then the SNR shift, then zero terminal SNR.

    `snr_shift` divides alpha_bar / (1 - alpha_bar) at every timestep: 3 for 2B, 1 for all others. The rescale
    keeps the first entry, makes the last exactly 0, and comes before any choice of sampling steps.
    """
    beta = torch.linspace(beta_start**0.5, beta_end**0.5, steps, dtype=torch.float64) ** 2
    alpha_bar = torch.cumprod(1 - beta, dim=0)
    alpha_bar = alpha_bar / (snr_shift + (1 - snr_shift) * alpha_bar)
    if zero_terminal_snr:
        root = alpha_bar.sqrt()
        alpha_bar = ((root - root[-1]) * (root[0] / (root[0] - root[-1]))) ** 2
    return Schedule(alpha_bar)
