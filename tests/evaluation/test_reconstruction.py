"""What a VAE loses: of a perfect one nothing, of others what is expected."""

import pytest
import torch

from cogvideox.core.errors import InputError
from cogvideox.evaluation.reconstruction import losses, reconstruct
from tests.tiny import tiny_model


def test_known_losses():
    source = torch.zeros(3, 3, 16, 16)
    source[1] = 0.5  # flickers by half the range
    same = losses(source, source)
    assert same["ssim"] == pytest.approx(1)
    assert same["flicker"] == same["source flicker"] == pytest.approx(127.5)
    assert same["residual flicker"] == 0
    off = losses(source + 0.1, source)
    assert off["psnr"] == pytest.approx(20, abs=1e-3)
    assert off["residual flicker"] == pytest.approx(0, abs=1e-3)
    frozen = losses(torch.zeros_like(source), source)
    assert (frozen["flicker"], frozen["residual flicker"]) == (0, pytest.approx(127.5))


def test_a_random_vae_loses_much():
    found = reconstruct(tiny_model("5b").vae, 1, 5, 32, 32)
    assert 0 < found["psnr"] < 20
    assert found["ssim"] < 0.5
    assert found["source flicker"] > 0


def test_shapes_that_a_vae_cannot_take_are_refused():
    with pytest.raises(InputError, match="4k"):
        reconstruct(tiny_model("5b").vae, 1, 6, 32, 32)
