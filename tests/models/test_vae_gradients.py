"""The VAE's kernels in training against the plain layers, forward and backward; skipped where they cannot
run.
"""

import pytest
import torch
from torch import Tensor

from cogvideox.models.specs import VAESpec
from cogvideox.models.vae import gradients, kernels
from cogvideox.models.vae.autoencoder import VAE
from cogvideox.models.vae.layers import Carry, CausalConv3d, GroupNorm, SpatialNorm, norm_silu_conv
from tests.models.oracle import relative_error
from tests.tiny import randomise

pytestmark = pytest.mark.skipif(
    kernels.KERNELS.loaded is None, reason="no AVX-512 with bf16, or no C compiler"
)
BF16 = torch.bfloat16


@pytest.fixture(params=["kernels", "PyTorch's convolution"])
def engine(request, monkeypatch):
    """The ways to convolve; the last is for CPUs with matrix units and small frames."""
    monkeypatch.setattr(gradients, "SMALL", 0)
    monkeypatch.setattr(gradients, "matrix_units", lambda: request.param != "kernels")


def plain(monkeypatch):
    monkeypatch.setattr(gradients, "suit", lambda x: False)


def two_chunks(modulated, channels, latents, frames, lead, size, scale, dtype) -> dict[str, Tensor]:
    """Results and gradients of two chunks of a batch of two, the second behind what the first left."""
    norm = SpatialNorm(channels[0], 16, 8) if modulated else GroupNorm(channels[0], 8)
    conv = CausalConv3d(*channels)
    for seed, module in enumerate((norm, conv)):
        randomise(module, seed).requires_grad_().to(BF16).to(dtype)
    generator, (h, w) = torch.Generator().manual_seed(0), size

    def noise(*shape):
        return torch.randn(*shape, generator=generator).to(BF16).to(dtype).requires_grad_()

    pixels = frames, h * scale, w * scale
    x, residual = noise(2, channels[0], *pixels), noise(2, channels[1], *pixels)
    z = noise(2, 16, latents, h, w) if modulated else None
    ways = [noise(2, channels[1], *pixels).detach() for _ in range(2)]
    carry = Carry(None, lead)
    first = norm_silu_conv(x * 1, z, carry, norm, conv, residual * 1)
    second = norm_silu_conv(x * 0.5, z, Carry(carry.cache, False), norm, conv)
    sum((made * way).sum() for made, way in zip((first, second), ways, strict=True)).backward()
    leaves = {"x": x, "residual": residual} | ({} if z is None else {"z": z})
    leaves |= dict(norm.named_parameters()) | {f"conv.{n}": p for n, p in conv.named_parameters()}
    return {"first": first, "second": second} | {name: leaf.grad for name, leaf in leaves.items()}


@pytest.mark.parametrize("modulated", [True, False])
@pytest.mark.parametrize("channels", [(64, 32), (32, 3), (32, 96)])
@pytest.mark.parametrize(
    ("latents", "frames", "lead", "size", "scale"),
    [
        (3, 9, True, (6, 5), 2),  # a leading frame and pairs
        (3, 3, True, (3, 5), 1),  # odd height and width
        (1, 1, True, (3, 2), 8),  # an image, and one behind it
        (2, 8, False, (5, 13), 1),
        (1, 3, False, (1, 1), 1),  # a pair and a half
    ],
)
def test_gradients_are_those_of_plain_layers(
    engine, monkeypatch, modulated, channels, latents, frames, lead, size, scale
):
    shape = modulated, channels, latents, frames, lead, size, scale
    fast = two_chunks(*shape, BF16)
    plain(monkeypatch)
    rounded, exact = two_chunks(*shape, BF16), two_chunks(*shape, torch.float32)
    assert exact.keys() == fast.keys()
    for name, true in exact.items():
        assert relative_error(fast[name], true) < 2 * relative_error(rounded[name], true) + 0.002, name


@pytest.mark.parametrize("frames", [1, 9, 17])
def test_vae_learns_the_same_through_them(monkeypatch, frames):
    """All gradients of a VAE, over one chunk and over two."""
    vae = randomise(VAE(VAESpec(channels=(32, 32, 64, 64), blocks=1, groups=8)), 3).to(BF16).requires_grad_()
    video = torch.randn(1, 3, frames, 32, 48, generator=torch.Generator().manual_seed(1)).to(BF16)

    def learn(dtype=BF16):
        vae.to(dtype).zero_grad()
        made = vae.decode(vae.posterior(video.to(dtype)).mean)
        (made.float() - video).square().mean().backward()
        return {name: p.grad.clone() for name, p in vae.named_parameters()}

    fast, again = learn(), learn()
    plain(monkeypatch)
    slow, exact = learn(), learn(torch.float32)
    errors = [[relative_error(found[name], true) for name, true in exact.items()] for found in (fast, slow)]
    assert all(torch.equal(fast[name], again[name]) for name in exact)  # bit for bit, whoever is first
    assert max(errors[0]) < 2 * max(errors[1])
    assert sum(errors[0]) < 1.2 * sum(errors[1])


def test_other_tensors_go_the_plain_way():
    x = torch.zeros(1, 32, 1, 8, 8)
    assert not gradients.suit(x)  # fp32
    assert not gradients.suit(x[:, :24].to(BF16))
    assert gradients.suit(x.to(BF16))
    with torch.no_grad():
        assert not gradients.suit(x.to(BF16))
