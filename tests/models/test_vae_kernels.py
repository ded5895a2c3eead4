"""The VAE's kernels against the plain layers, on every shape they distinguish; skipped where they cannot
run.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cogvideox.core.shapes import DECODE_CHUNK, parity_plan
from cogvideox.models.specs import VAESpec
from cogvideox.models.vae import kernels
from cogvideox.models.vae.autoencoder import VAE
from cogvideox.models.vae.layers import (
    Carry,
    CausalConv3d,
    GroupNorm,
    ResBlock,
    SpatialNorm,
    Upsample,
    norm_silu_conv,
)
from tests.models.oracle import relative_error, vae_pair
from tests.tiny import randomise

pytestmark = pytest.mark.skipif(
    kernels.KERNELS.loaded is None, reason="no AVX-512 with bf16, or no C compiler"
)
SPEC = VAESpec(channels=(32, 64, 64, 128), blocks=1, groups=8)
BF16 = torch.bfloat16


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(BF16)


def tiny_vae() -> VAE:
    return randomise(VAE(SPEC), 3).to(BF16)


def plain(monkeypatch):
    monkeypatch.setattr(kernels, "suit", lambda x: False)


@pytest.fixture(params=["packed once", "packed each time", "PyTorch's convolution"])
def engine(request, monkeypatch):
    """The ways to convolve; the last is for CPUs with matrix units, and right on any."""
    monkeypatch.setattr(kernels, "KEPT", 0 if request.param == "packed each time" else kernels.KEPT)
    monkeypatch.setattr(kernels, "matrix_units", lambda: request.param == "PyTorch's convolution")


@torch.no_grad()
@pytest.mark.parametrize("channels", [(64, 32), (32, 3), (32, 96)])
@pytest.mark.parametrize(
    ("latents", "frames", "lead", "size", "scale"),
    [
        (3, 9, True, (6, 5), 2),  # a leading frame and pairs
        (3, 3, True, (3, 5), 1),  # odd height and width
        (1, 1, True, (3, 2), 8),  # an image
        (2, 8, False, (5, 13), 1),
        (1, 3, False, (1, 1), 1),  # a pair and a half
        (2, 4, False, (9, 15), 2),  # several blocks of tiles
    ],
)
def test_norm_silu_conv_equals_plain(engine, monkeypatch, channels, latents, frames, lead, size, scale):
    """Two chunks of a batch of two: the second starts from what the first left."""
    norm, conv = SpatialNorm(channels[0], 16, 8), CausalConv3d(*channels)
    randomise(norm, 1)
    randomise(conv, 2)
    norm, conv = norm.to(BF16), conv.to(BF16)
    h, w = size
    x, z = noise(2, channels[0], frames, h * scale, w * scale), noise(2, 16, latents, h, w)
    residual = noise(2, channels[1], frames, h * scale, w * scale)

    def run():
        carry = Carry(None, lead)
        first = norm_silu_conv(x, z, carry, norm, conv, residual)
        tail = Carry(carry.cache, False, reuse=True)
        second = norm_silu_conv(x * 0.5, z, tail, norm, conv)
        third = norm_silu_conv(x[:, :, :1], z[:, :, :1], Carry(tail.cache, False), norm, conv)
        return first, second, third

    assert kernels.suit(x)
    fast = run()
    plain(monkeypatch)
    for ours, expected in zip(fast, run(), strict=True):
        assert relative_error(ours, expected) < 0.01


@torch.no_grad()
def test_group_norm_without_modulation(engine, monkeypatch):
    norm, conv = GroupNorm(64, 8).to(BF16), CausalConv3d(64, 64).to(BF16)
    x = noise(1, 64, 4, 6, 8) * 3 + 1

    def run():
        return norm_silu_conv(x, None, Carry(None, False), norm, conv)

    fast = run()
    plain(monkeypatch)
    assert relative_error(fast, run()) < 0.008


@torch.no_grad()
@pytest.mark.parametrize("time", [False, True])
@pytest.mark.parametrize("lead", [False, True])
def test_upsampling_equals_plain(monkeypatch, time, lead):
    layer, carry = Upsample(64, time).to(BF16), Carry(None, lead)
    x = noise(2, 64, 3, 5, 14)
    fast = layer(x, None, carry)
    plain(monkeypatch)
    assert relative_error(fast, layer(x, None, carry)) < 0.005


@torch.no_grad()
@pytest.mark.parametrize("outputs", [32, 64, 128])
def test_projection_in_place_equals_plain(outputs):
    conv, x = torch.nn.Conv3d(160, outputs, 1).to(BF16), noise(2, 160, 5, 3, 7)
    expected = conv(x)
    x = x.contiguous(memory_format=torch.channels_last_3d)
    projected = kernels.project(x, conv)
    assert projected.data_ptr() == x.data_ptr()
    assert relative_error(projected, expected) < 0.003


@torch.no_grad()
@pytest.mark.parametrize(("before", "after"), [(64, 32), (32, 32), (32, 64)])
def test_blocks_equal_plain(engine, monkeypatch, before, after):
    """Two chunks; what a block is given is spent."""
    block, z = ResBlock(before, after, 8, 16), noise(1, 16, 2, 3, 5)
    randomise(block, 1)
    block = block.to(BF16)

    def run():
        carry = Carry(None, True)
        first = block(noise(1, before, 5, 6, 10), z, carry)
        return first, block(noise(1, before, 4, 6, 10, seed=1), z, Carry(carry.cache, False, last=True))

    fast = run()
    plain(monkeypatch)
    for ours, expected in zip(fast, run(), strict=True):
        assert relative_error(ours, expected) < 0.01


@settings(max_examples=25, deadline=None)
@given(scale=st.floats(0.01, 300), shift=st.floats(-200, 200))
@torch.no_grad()
def test_silu_and_norm_hold_at_any_scale(scale, shift):
    """The bf16 activation that is convolved elsewhere, against fp32."""
    x = (noise(1, 4, 6, 8, 32).float() * scale + shift).to(BF16)
    norm = torch.nn.GroupNorm(8, 32)
    norm.weight.copy_(torch.linspace(-30, 30, 32))
    norms, out = kernels._fold(x, None, norm), torch.empty_like(x[0])
    frames = kernels.frame_list(list(zip(x[0], norms[0], strict=True)))
    kernels.KERNELS.call("norm_silu", frames, 4, 6, 8, 32, kernels.cell_grid(None, 6), out)
    expected = torch.nn.functional.silu(norm(x[0].permute(3, 0, 1, 2)[None].float()))[0].permute(1, 2, 3, 0)
    spread = x.float().std() / (x.float().std() + x.float().abs().mean())  # what cancels in x - mean
    assert relative_error(out.float(), expected) < 0.004 + 1e-5 / spread**2


@torch.no_grad()
@pytest.mark.parametrize("count", [1, 3, 7])
def test_error_against_fp32_is_bounded(count):
    """Against diffusers' errors, with random weights that bf16 holds exactly: a hard case for the encoder,
    whose plain layers round no more often. Trained weights are in tests/generation/test_mini.py.
    """
    ratios = []
    for seed in range(3):
        ours, reference = vae_pair(SPEC, seed)
        for module in (ours, reference):
            for p in module.parameters():
                p.copy_(p.to(BF16))
        z, video = noise(1, 16, count, 6, 6, seed=seed), noise(1, 3, 4 * count - 3, 48, 48, seed=seed)
        exact = reference.decode(z.float()).sample, reference.encode(video.float()).latent_dist.mean
        ours, reference = ours.to(BF16), reference.to(BF16)
        decoded = ours.decode(z.float() * ours.spec.scale, parity_plan(count, DECODE_CHUNK))
        mine = decoded, ours.posterior(video).mean
        theirs = reference.decode(z).sample, reference.encode(video).latent_dist.mean
        ratios.append(
            [
                relative_error(m.float(), e) / relative_error(t.float(), e)
                for m, t, e in zip(mine, theirs, exact, strict=True)
            ]
        )
    decoding, encoding = torch.tensor(ratios).mean(0)
    assert decoding < 1.1
    assert encoding < 1.15


@torch.no_grad()
@pytest.mark.parametrize(("outputs", "channels"), [(32, 32), (3, 64), (96, 32)])
def test_factors_make_up_for_each_other_s_rounding(outputs, channels):
    """The plain way to pack: transform, round in turn, sort. A number on a tie may be rounded otherwise."""
    weight = noise(outputs, channels, 3, 3, 3)
    packed = kernels.pack_causal(weight, torch.empty(64 * channels * (outputs + -outputs % 32), dtype=BF16))
    one = torch.tensor([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])  # G of F(2, 3)
    turn, feedback = kernels.TURN, kernels._feedback()
    factors = torch.einsum("ai,bj,ck,oxijk->abcxo", one[turn], one, one, weight.float()).flatten(0, 2)
    rounded, errors = torch.empty_like(factors), torch.zeros_like(factors)
    for p in range(64):
        rounded[p] = (factors[p] - torch.einsum("q,qxo->xo", feedback[p, :p], errors[:p])).to(BF16).float()
        errors[p] = rounded[p] - factors[p]
    sorted_PCO = rounded.unflatten(0, (4, 16))[turn].flatten(0, 1).unflatten(1, (-1, 16, 2)).transpose(2, 3)
    expected = kernels._pack(sorted_PCO.reshape(64, channels, outputs).to(BF16)).flatten()
    assert (packed != expected).float().mean() < 0.01
    assert relative_error(packed.float(), expected.float()) < 4e-4


@torch.no_grad()
def test_changed_weights_are_packed_anew():
    conv, norm = CausalConv3d(32, 32).to(BF16), GroupNorm(32, 8).to(BF16)
    x = noise(1, 32, 2, 4, 4)

    def run():
        return norm_silu_conv(x, None, Carry(None, False), norm, conv)

    before = run()
    conv.weight.mul_(2)
    conv.bias.mul_(2)
    assert relative_error(run(), 2 * before) < 0.005


def test_training_goes_the_plain_way():
    assert not kernels.suit(noise(1, 32, 1, 2, 2))
    with torch.no_grad():
        assert kernels.suit(noise(1, 32, 1, 2, 2))
        assert not kernels.suit(noise(1, 16, 1, 2, 2))
        assert not kernels.suit(torch.zeros(1, 32, 1, 2, 2))


@pytest.mark.parametrize("switch", ["gradients", "kernels"])
def test_a_cache_is_good_for_whoever_goes_on(monkeypatch, switch):
    """Chunks of one clip may be decoded with and without gradients, by kernels and by plain layers."""
    vae = tiny_vae()
    z, cut = noise(2, 16, 5, 3, 2), 3
    with torch.no_grad():
        expected = vae.decode(z).float()
        z = vae.unscaled(z)
    for first in (True, False):

        def chunk(part, cache, fast):
            if switch == "gradients":
                with torch.set_grad_enabled(not fast):
                    return vae.decode_chunk(part, cache)
            with torch.no_grad(), monkeypatch.context() as patch:
                if not fast:
                    plain(patch)
                return vae.decode_chunk(part, cache)

        head, cache = chunk(z[:, :, :cut], None, first)
        tail, _ = chunk(z[:, :, cut:], cache, not first)
        found = torch.cat([head, tail], 2).float()
        assert relative_error(found, expected) < 0.02


@torch.no_grad()
def test_weights_that_no_version_counts_are_seen():
    vae = tiny_vae()
    z = noise(1, 16, 2, 3, 2)
    vae.decode(z)
    for parameter in vae.parameters():
        parameter.data.mul_(0.5)
    fresh = tiny_vae()
    fresh.load_state_dict(vae.state_dict())
    assert torch.equal(vae.decode(z), fresh.decode(z))


@torch.no_grad()
def test_autocast_goes_the_plain_way():
    """Activations are bf16 there, weights are not."""
    vae = tiny_vae().float()
    z = noise(1, 16, 2, 3, 2).float()
    with torch.autocast("cpu", BF16):
        found = vae.decode(z)
    assert relative_error(found.float(), vae.decode(z)) < 0.02
