"""Likeness of videos: known values, and a plain loop."""

import math

import pytest
import torch

from cogvideox.data.metrics import feature_distance, psnr, ssim


def clip(seed, frames=3, size=(24, 20)):
    return torch.rand(frames, 3, *size, generator=torch.Generator().manual_seed(seed))


def test_psnr_of_known_errors():
    a = clip(0)
    assert psnr(a, a + 0.1) == pytest.approx(20, abs=1e-4)
    assert psnr(a, a) == math.inf


def test_ssim_is_its_formula():
    """One window on an 11x11 picture, by float64 sums over pixels."""
    a, b = clip(0, 1, (11, 11)).double(), clip(1, 1, (11, 11)).double()
    weight = torch.tensor(
        [[math.exp(-((y - 5) ** 2 + (x - 5) ** 2) / 4.5) for x in range(11)] for y in range(11)]
    )
    weight = weight.double() / weight.double().sum()
    found = []
    for p, q in zip(a[0], b[0], strict=True):
        mp, mq = (weight * p).sum(), (weight * q).sum()
        vp, vq = (weight * (p - mp) ** 2).sum(), (weight * (q - mq) ** 2).sum()
        cov = (weight * (p - mp) * (q - mq)).sum()
        found.append((2 * mp * mq + 1e-4) * (2 * cov + 9e-4) / ((mp**2 + mq**2 + 1e-4) * (vp + vq + 9e-4)))
    assert ssim(a, b) == pytest.approx(float(torch.stack(found).mean()), abs=1e-6)
    assert ssim(a, a) == pytest.approx(1)


def test_features_see_structure_and_motion_but_not_brightness():
    a = clip(0)
    assert feature_distance(a, a) == 0
    assert feature_distance(a, a + 0.3) < 1e-3
    assert feature_distance(a, clip(1)) == pytest.approx(1, abs=0.15)
    still = a[:1].expand_as(a)
    assert 0.2 < feature_distance(a, still) < 1
    assert feature_distance(a[:1], clip(1)[:1]) > 0.5  # a picture has no motion
