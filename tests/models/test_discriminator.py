"""The discriminator: pictures and clips, causal, bounded, and it sees flicker."""

import pytest
import torch
from torch import nn

from cogvideox.models.discriminator import LIMIT, Discriminator, DiscriminatorSpec
from cogvideox.models.vae.layers import Carry
from tests.tiny import randomise

SPEC = DiscriminatorSpec(channels=(8, 16, 16), groups=4)


@pytest.fixture(scope="module")
def judge():
    return randomise(Discriminator(SPEC), 0)


def whole(judge, video):
    return judge(video, Carry(None, lead=True, last=True))


def clip(frames, seed=0, batch=1):
    return torch.randn(batch, 3, frames, 32, 48, generator=torch.Generator().manual_seed(seed)).clamp(-1, 1)


@pytest.mark.parametrize(("frames", "patches"), [(1, 1), (5, 2), (9, 3), (17, 5)])
def test_patches_are_as_many_as_latents(judge, frames, patches):
    assert whole(judge, clip(frames)).shape == (1, 1, patches, 4, 6)


def test_the_first_frame_stands_alone_and_time_runs_forward():
    """Nothing is seen before it happens. (Norms, which pool over the clip, are left out.)"""
    video, level = clip(9), randomise(Discriminator(SPEC), 0).levels[0]
    changed = video.clone()
    changed[:, :, 5:] += 1
    first, whole, other = (level(x, Carry(None, True)) for x in (video[:, :, :1], video, changed))
    torch.testing.assert_close(first, whole[:, :, :1])
    assert torch.equal(other[:, :, :3], whole[:, :, :3])  # frames up to 4
    assert not torch.equal(other[:, :, 3], whole[:, :, 3])


def test_a_clip_is_judged_by_itself(judge):
    assert not [m for m in judge.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    both = whole(judge, clip(5, batch=2))
    torch.testing.assert_close(both[:1], whole(judge, clip(5, batch=2)[:1]))


def test_logits_are_bounded_and_never_without_a_gradient():
    judge = randomise(Discriminator(SPEC), 0)
    judge.logits.bias += 3 * LIMIT  # much too sure
    video = clip(5).requires_grad_(True)
    logits = whole(judge, video)
    logits.mean().backward()
    assert 0.99 * LIMIT < logits.min() <= logits.max() <= LIMIT
    assert video.grad.abs().max() > 0


def test_in_bf16_logits_are_fp32():
    judge = randomise(Discriminator(SPEC), 0).bfloat16()
    judge.logits.float()
    exact = randomise(Discriminator(SPEC), 0)
    logits = whole(judge, clip(5).bfloat16())
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, whole(exact, clip(5)), rtol=0.1, atol=0.1)


def test_flicker_is_seen():
    """A grey that goes up and down with every frame: what averages of pairs of frames would never show."""
    judge = randomise(Discriminator(SPEC), 0)
    still = torch.zeros(1, 3, 17, 32, 32)
    flickering = still + 0.5 * torch.tensor([1.0, -1.0]).repeat(9)[:17].view(1, 1, -1, 1, 1)
    assert (whole(judge, flickering) - whole(judge, still))[:, :, 2:].abs().mean() > 0.05
