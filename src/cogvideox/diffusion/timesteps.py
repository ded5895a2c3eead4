"""Which timesteps: those a sampler visits, and those a training step draws.

Training draws cut 0..total-1 into n equal intervals and draw inside each (the paper's *explicit uniform
sampling*), so that together they cover the range and the loss of a step depends less on luck. `stratified`
makes one interval per sample of the global step, whatever the number of ranks, and deals them anew each
step; `per_rank` is the paper's mode, one interval for each data-parallel rank; `iid` does without. All are
pure functions of their key, for example `(seed, "timesteps", step)`.

The draws are integers throughout: [0, n * total) is cut into n runs of `total` numbers, one number m is
drawn from a run, and t = m // n. Nothing is rounded: each sample's t is exactly uniform, also when n does
not divide `total`.
"""

from __future__ import annotations

import numpy as np

from cogvideox.core.errors import InputError, nearest
from cogvideox.core.rng import Key, generator

SPACINGS = ("trailing", "linspace", "leading")


def sampling_timesteps(steps: int, total: int = 1000, spacing: str = "trailing") -> tuple[int, ...]:
    """The timesteps of a sampler with `steps` steps, highest noise first.

    `trailing` starts at the last training timestep, where x_t is pure noise, and is what the released models
    use; `linspace` also ends at 0; `leading` ends at 0 but does not start at pure noise (Lin et al. 2024,
    table 2). Equal to `diffusers`, except that its `trailing` has an extra step at timestep -1 for some
    counts, such as 61.
    """
    if not 1 <= steps <= total:
        raise InputError(f"sampling takes 1 to {total} steps, not {steps}")
    if spacing == "trailing":
        points = np.arange(total, 0, -total / steps)[:steps].round() - 1
    elif spacing == "linspace":
        points = np.linspace(0, total - 1, steps).round()[::-1]
    elif spacing == "leading":
        points = np.arange(steps)[::-1] * (total // steps)
    else:
        raise InputError(f"unknown timestep spacing {spacing!r}{nearest(spacing, SPACINGS)}")
    return tuple(int(t) for t in points)


def stratified(n: int, *key: Key, total: int = 1000) -> list[int]:
    """Timesteps for the n samples of one global step: one from each of n equal intervals, in random order."""
    rng = generator(*key)
    m = rng.permutation(n) * total + rng.integers(total, size=n)
    return (m // n).tolist()


def per_rank(n: int, *key: Key, rank: int, ranks: int, total: int = 1000) -> list[int]:
    """Timesteps for the n samples of one rank, all from the interval that this rank keeps in every step."""
    m = rank * total + generator(*key, rank).integers(total, size=n)
    return (m // ranks).tolist()


def iid(n: int, *key: Key, total: int = 1000) -> list[int]:
    """Timesteps for n samples, independent and uniform."""
    return generator(*key).integers(total, size=n).tolist()
