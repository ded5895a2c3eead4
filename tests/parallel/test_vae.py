"""The VAE on several processes: in time bit for bit that of one, in space up to rounding."""

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from cogvideox.core.shapes import ChunkPlan, decode_plan, encode_plan
from cogvideox.models.specs import VAESpec
from cogvideox.models.vae import layers
from cogvideox.models.vae.autoencoder import VAE, Posterior
from cogvideox.parallel.mesh import World
from cogvideox.parallel.vae import decode_stream, encode_stream
from tests.parallel.processes import relative_error, together, world
from tests.tiny import randomise

SMALL = VAESpec(channels=(8, 8, 16, 16), blocks=1, latent_channels=4, groups=4)
WIDE = VAESpec(channels=(32, 32, 64, 64), blocks=1, latent_channels=4, groups=8)
"""With enough channels for the kernels."""


def vae(spec: VAESpec = SMALL, dtype: torch.dtype = torch.float32) -> VAE:
    return randomise(VAE(spec), 3).to(dtype)


def noise(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def decoded(model: VAE, latents: Tensor, here: World, plan: ChunkPlan | None = None) -> Tensor:
    return torch.cat(list(decode_stream(model, latents, here, plan)), dim=2)


def encoded(model: VAE, video: Tensor, here: World) -> Tensor:
    plan = encode_plan(video.shape[2])
    posterior = Posterior.join(encode_stream(model, video.split(plan.sizes, dim=2), here, plan))
    return torch.cat([posterior.mean, posterior.logvar])


@torch.no_grad()
def in_time(dtype: torch.dtype) -> None:
    here, model = world("time"), vae(WIDE, dtype)
    for count in (1, 3, 6, 11):  # 1, 1, 3 and 5 chunks
        z = noise(1, 4, count, 3, 2)
        assert torch.equal(decoded(model, z, here), model.decode(z))
        video = noise(1, 3, 4 * count - 3, 24, 16).clamp(-1, 1)
        posterior = model.posterior(video)
        assert torch.equal(encoded(model, video, here), torch.cat([posterior.mean, posterior.logvar]))
    z, plan = noise(1, 4, 4, 3, 2), ChunkPlan((1, 2, 1), lead=False)
    assert torch.equal(decoded(model, z, here, plan), model.decode(z, plan))
    clips = noise(2, 4, 6, 3, 2)
    assert torch.equal(decoded(model, clips, here), model.decode(clips))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", [2, 3])
def test_in_time_no_bit_differs(size, dtype):
    """In bf16 the kernels run, where the CPU has what they need."""
    together(size, in_time, dtype)


def in_space() -> None:
    here, model, size = world("space"), vae(), dist.get_world_size()
    for count, rows in ((1, size), (6, 7), (3, 5)):
        z = noise(1, 4, count, rows, 2)
        video = noise(1, 3, 4 * count - 3, 8 * rows, 16).clamp(-1, 1)
        with torch.no_grad():
            assert relative_error(decoded(model, z, here), model.decode(z)) < 1e-5
            posterior = model.posterior(video)
            whole = torch.cat([posterior.mean, posterior.logvar])
            assert relative_error(encoded(model, video, here), whole) < 1e-5
    model.requires_grad_(True)
    z, rows = noise(1, 4, 3, 5, 2).requires_grad_(True), slice(dist.get_rank(), None, size)
    grown = []
    for output in (model.decode(z), decoded(model, z, here)):
        model.zero_grad()
        z.grad = None
        if not grown:
            output.square().sum().backward()
        else:  # each process takes the loss of some rows
            output[..., rows, :].square().sum().backward()
        grown.append([z.grad, *(p.grad.clone() for p in model.decoder.parameters())])
    for ours, expected in zip(*reversed(grown), strict=True):
        dist.all_reduce(ours)
        assert (ours - expected).norm() < 1e-5 * max(expected.norm(), 1e-3 * grown[0][0].norm())


@pytest.mark.parametrize("size", [2, 3, 4])
def test_in_space_the_numbers_and_gradients_are_those_of_one(size):
    together(size, in_space)


@torch.no_grad()
def in_half_precision() -> None:
    """As far from fp32 as one process's plain layers; the kernels, which see whole frames, do not run."""
    here, exact, model = world("space"), vae(WIDE), vae(WIDE, torch.bfloat16)
    z = noise(1, 4, 6, 7, 2)
    expected = exact.decode(z)
    layers.kernels.suit = lambda x: False
    plain = relative_error(model.decode(z), expected)

    def never(x: Tensor) -> bool:
        raise AssertionError("kernels would see the borders of pieces as those of frames")

    layers.kernels.suit = layers.gradients.suit = never
    assert relative_error(decoded(model, z, here), expected) < 1.1 * plain


def test_in_space_half_precision_is_as_good_as_plain_layers():
    together(2, in_half_precision)


@torch.no_grad()
def held() -> None:
    """The largest tensor that a convolution writes, and all that is carried to the next chunk."""
    model, z = vae(), noise(1, 4, 6, 8, 8)
    written: list[int] = []
    for module in model.decoder.modules():
        module.register_forward_hook(lambda _, __, out: written.append(out.numel()))
    model.decode(z)
    whole = max(written)
    written.clear()
    for _ in decode_stream(model, z, world("space")):
        pass
    assert max(written) == whole / dist.get_world_size()


@pytest.mark.parametrize("size", [2, 4])
def test_in_space_each_process_holds_its_part_only(size):
    together(size, held)


def test_no_gradients_flow_through_time():
    with pytest.raises(Exception, match="no gradients flow through time"):
        together(2, time_with_gradients)


def time_with_gradients() -> None:
    decoded(vae(), noise(1, 4, 6, 3, 5), world("time"), decode_plan(6))
