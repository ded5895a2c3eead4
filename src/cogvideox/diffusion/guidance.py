"""Classifier-free guidance: how far a prediction is pushed away from the unconditional one, at each step.

The released code offers *dynamic* guidance, a cosine over the sampling steps. It puts the timestep (0..999)
where the number of the step belongs, so that the cosine runs through over a million periods and the scale
jumps about between 1 and 1 + base. Its authors call this a coincidence that they kept for its look. Hence
both, under names that tell them apart: `official` is the released formula, `smooth` the one with the number
of the step.
"""

from __future__ import annotations

import math

from torch import Tensor

from cogvideox.core.errors import InputError, nearest

MODES = ("constant", "official", "smooth", "off")


def combine(uncond: Tensor, cond: Tensor, scale: float) -> Tensor:
    """uncond + scale (cond - uncond), on v; the same as on x_0 or on the noise, which are linear in v."""
    return uncond + scale * (cond - uncond)


def guidance_scale(mode: str, base: float, *, step: int, steps: int, timestep: int) -> float:
    """The scale at one step.

    `step` counts from 0 among the `steps` that are run, `timestep` is the noise level, 0..999.

    `constant`: base. `official`: 1 + base (1 - cos(pi u^5)) / 2 with u = (steps - timestep) / steps.
    `smooth`: the same with u = (steps - step) / steps, falling from 1 + base to almost 1. `off`: 1, where
    `combine` returns cond and the unconditional branch need not be computed.
    """
    if mode == "constant":
        return base
    if mode == "off":
        return 1.0
    if mode not in MODES:
        raise InputError(f"unknown guidance mode {mode!r}{nearest(mode, MODES)}")
    position = timestep if mode == "official" else step
    u = (steps - position) / steps
    return 1 + base * ((1 - math.cos(math.pi * u**5)) / 2)
