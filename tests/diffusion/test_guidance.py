"""Guidance scales against golden numbers."""

import math

import pytest
import torch

from cogvideox.core.errors import InputError
from cogvideox.diffusion.guidance import MODES, combine, guidance_scale
from cogvideox.diffusion.timesteps import sampling_timesteps

TIMESTEPS = sampling_timesteps(50)


def scales(mode, base=6.0):
    return [guidance_scale(mode, base, step=i, steps=50, timestep=t) for i, t in enumerate(TIMESTEPS)]


def test_official_golden_numbers():
    official = scales("official")
    first = [2.29, 2.54, 6.97, 6.42, 2.79, 4.27, 1.04, 4.17, 1.62, 6.98]
    assert official[:10] == pytest.approx(first, abs=0.005)
    assert official[-6:] == pytest.approx([7.00, 6.86, 1.06, 1.00, 1.00, 1.12], abs=0.005)
    assert sum(official) / 50 == pytest.approx(3.82, abs=0.005)


def test_official_is_the_expression_of_diffusers():
    for t, scale in zip(TIMESTEPS, scales("official"), strict=True):
        assert scale == 1 + 6.0 * ((1 - math.cos(math.pi * ((50 - t) / 50) ** 5.0)) / 2)


def test_smooth_falls_from_one_plus_base_to_one():
    smooth = scales("smooth")
    assert smooth[0] == 7
    assert smooth == sorted(smooth, reverse=True)
    assert smooth[-1] == pytest.approx(1)
    assert sum(smooth) / 50 == pytest.approx(1.94, abs=0.005)


def test_constant_and_off():
    assert scales("constant") == [6.0] * 50
    assert scales("off") == [1.0] * 50


@pytest.mark.parametrize(("mode", "hint"), [("ofical", "'official'"), ("none", ", ".join(sorted(MODES)))])
def test_unknown_mode_names_the_nearest(mode, hint):
    with pytest.raises(InputError, match=hint):
        guidance_scale(mode, 6.0, step=0, steps=50, timestep=999)


def test_combine():
    uncond, cond = torch.randn(2, 3, 4).unbind()
    assert torch.equal(combine(uncond, cond, 0.0), uncond)
    torch.testing.assert_close(combine(uncond, cond, 1.0), cond)
    torch.testing.assert_close(combine(uncond, cond, 6.0), 6 * cond - 5 * uncond)
