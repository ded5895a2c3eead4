"""Training on slices of time: losses and gradients are those of one process, and memory is shared."""

from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from cogvideox.core.errors import InputError
from cogvideox.core.shapes import whole_plan
from cogvideox.generation.generate import Place
from cogvideox.models.discriminator import Discriminator, DiscriminatorSpec
from cogvideox.models.vae import layers
from cogvideox.models.vae.autoencoder import VAE
from cogvideox.parallel.groups import Group
from cogvideox.parallel.mesh import Mesh
from cogvideox.parallel.temporal import Clip, Slices, Whole, slices
from cogvideox.parallel.training import ALONE, Ranks, Team
from cogvideox.training.perceptual import Gradients
from cogvideox.training.vae import Adversarial, Micro, VAELoss, VAEStage, VAETask
from tests.parallel.processes import together, world
from tests.parallel.test_vae import SMALL, WIDE, noise, vae
from tests.tiny import randomise

JUDGE = DiscriminatorSpec(channels=(8, 8, 16), groups=4)


class OneChunk(Whole):
    """One process whose norms pool over the whole clip."""

    def posterior(self, model, video):
        return model.posterior(video, whole_plan(video.shape[2]))

    def decode(self, model, latents):
        return model.decode(latents, whole_plan(latents.shape[2]))


def loss(clip: Clip, model: VAE, judge: nn.Module, video: Tensor, drawn: Tensor) -> Tensor:
    """This process's part of what training sums up."""
    here = clip.cut(video)
    posterior = clip.posterior(model, here)
    made = clip.decode(model, posterior.sample(clip.cut(drawn)) * model.spec.scale)
    logits = judge(made, clip.carry())
    return (
        (made - here).abs().mean() * clip.share(made.shape[2])
        + 0.1 * posterior.kl() * clip.share(posterior.mean.shape[2])
        + 0.1 * logits.square().mean() * clip.share(logits.shape[2])
    )


def gradients(modules: list[nn.Module]) -> list[Tensor]:
    found = [p.grad.clone() for module in modules for p in module.parameters()]
    for module in modules:
        module.zero_grad()
    return found


def same(ours: list[Tensor], expected: list[Tensor]) -> None:
    """All of the ranks' gradients together against those of one process, each and as a whole."""
    for mine in ours:
        dist.all_reduce(mine)
    mine, theirs = (torch.cat([g.flatten() for g in all_]) for all_ in (ours, expected))
    assert (mine - theirs).norm() < 1e-5 * theirs.norm()
    for mine, want in zip(ours, expected, strict=True):
        assert (mine - want).norm() < 1e-4 * max(float(want.norm()), 1e-3 * float(theirs.norm()))


def as_one(latents: tuple[int, ...], pooled: bool) -> None:
    group, model = world().everyone, vae().requires_grad_(True)
    judge = randomise(Discriminator(JUDGE), 5).requires_grad_(True)
    count = sum(latents)
    video, drawn = noise(2, 3, 4 * count - 3, 16, 24).clamp(-1, 1), noise(2, 4, count, 2, 3, seed=2)
    want = loss(OneChunk() if pooled else Whole(), model, judge, video, drawn)
    want.backward()
    expected = gradients([model, judge])
    mine = loss(Slices(group, latents, pooled), model, judge, video, drawn)
    mine.backward()
    same(gradients([model, judge]), expected)
    whole = mine.detach()
    dist.all_reduce(whole)
    torch.testing.assert_close(whole, want.detach(), rtol=1e-5, atol=0)
    by_differences(Slices(group, latents, pooled=True))


def by_differences(clip: Slices) -> None:
    """Slopes along a direction of the whole clip against central differences: of two convolutions in fp64,
    then with the norm between them, which computes in fp32.
    """
    video = noise(1, 4, 4 * sum(clip.latents) - 3, 6, 6).double()
    way = noise(*video.shape, seed=9).double()
    one, two = (randomise(layers.CausalConv3d(4, 4), seed).double() for seed in (1, 2))
    norm = randomise(nn.GroupNorm(2, 4), 3).double()
    for normed, width, error in ((False, 1e-4, 1e-6), (True, 1e-2, 1e-2)):

        def total(moved: float, normed: bool = normed) -> tuple[Tensor, Tensor]:
            x, carry = (video + moved * way).requires_grad_(True), clip.carry()
            h = one(clip.cut(x), carry).tanh()
            h = carry.group_norm(h, norm) if normed else h
            return two(h, carry).sin().sum(), x

        part, x = total(0.0)
        part.backward()
        slope = (x.grad * way).sum()
        with torch.no_grad():
            ends = torch.stack([total(moved)[0] for moved in (width, -width)])
        for number in (slope, ends):
            dist.all_reduce(number)
        assert float(slope) == pytest.approx(float(ends[0] - ends[1]) / (2 * width), rel=error)


@pytest.mark.parametrize(
    ("latents", "pooled"),
    [
        *(((2, 3), True), ((3, 2), False), ((5, 2), False), ((4, 2), False)),
        *(((2, 5, 3), True), ((2, 2, 3, 2), True), ((3, 2, 2, 2), False)),
    ],
)
def test_losses_and_gradients_are_those_of_one_process(latents, pooled):
    together(len(latents), as_one, latents, pooled)


def task(group: Group | None) -> VAETask:
    made = VAETask(
        SMALL,
        (VAEStage(steps=1, batch=2, frames=17, crop=16),),
        VAELoss(kl_weight=1e-3, perceptual_frames=3),
        Gradients(),
        Place.pick("cpu", "fp32"),
        seed=0,
        adversarial=Adversarial(begins=0, ramp=1, model=JUDGE),
        ranks=ALONE if group is None else Ranks(everyone=group, team=Team({2: Mesh(group, group)}, 2)),
    )
    randomise(made.vae, 3)
    randomise(made.discriminator, 4)
    return made


def trained(frames: int) -> None:
    """Both phases of the task, the balance between losses included, on any rank as on one."""
    group, video = world().everyone, (noise(2, frames, 16, 16, 3).clamp(-1, 1) * 127 + 128).to(torch.uint8)
    for phase in ("vae", "discriminator"):
        found, losses = [], []
        for here in (None, group):
            model = task(here)
            for each in model.phases:
                each.module.requires_grad_(each.name == phase)
            losses.append(model.loss(phase, Micro(video, 0), step=7))
            losses[-1].total.backward()
            found.append(gradients([each.module for each in model.phases if each.name == phase]))
        alone, mine = losses
        if phase == "vae":
            assert mine.metrics["balance"][0] / mine.weight == pytest.approx(
                alone.metrics["balance"][0] / alone.weight, rel=1e-4
            )
        sums = torch.tensor([float(mine.total.detach()), mine.weight, *(m[0] for m in mine.metrics.values())])
        dist.all_reduce(sums)
        assert sums[0] == pytest.approx(float(alone.total), rel=1e-5)
        assert sums[1] == pytest.approx(2)
        for name, value in zip(mine.metrics, sums[2:], strict=True):
            if name not in ("psnr", "std", "samples"):  # not means of what is here, or counted by all
                assert value == pytest.approx(alone.metrics[name][0], rel=1e-4, abs=1e-6), name
        same(found[1], found[0])


@pytest.mark.parametrize("frames", [1, 17], ids=["a picture is not cut", "a clip is"])
def test_the_task_trains_alike_on_slices(frames):
    together(2, trained, frames)


def saved(clip: Clip, model: VAE, video: Tensor) -> int:
    """Bytes that a forward pass keeps for the backward pass, each piece of memory once, weights left out."""
    known = {p.data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def keep(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        posterior = clip.posterior(model, clip.cut(video))
        made = clip.decode(model, posterior.mean)
    assert made.requires_grad
    return sum(kept.values())


def memory(pooled: bool) -> None:
    group, model, video = world().everyone, vae().requires_grad_(True), noise(1, 3, 33, 32, 32)
    whole = saved(OneChunk() if pooled else Whole(), model, video)
    shared = saved(slices(group, 33, pooled=pooled), model, video)
    assert shared < 1.35 * whole / group.size, (shared, whole)


@pytest.mark.parametrize("pooled", [True, False])
@pytest.mark.parametrize("size", [2, 4])
def test_a_process_keeps_its_part_of_the_activations(size, pooled):
    together(size, memory, pooled)


@torch.no_grad()
def in_half_precision() -> None:
    def never(x: Tensor) -> bool:
        raise AssertionError("kernels would take a slice for a clip")

    layers.kernels.suit = layers.gradients.suit = never
    model, video = vae(WIDE, torch.bfloat16), noise(1, 3, 17, 16, 16).bfloat16()
    clip = slices(world().everyone, 17)
    assert clip.decode(model, clip.posterior(model, clip.cut(video)).mean).isfinite().all()


def test_kernels_leave_slices_alone():
    together(2, in_half_precision)


def test_clips_too_short_for_the_processes_are_refused():
    group = Group(None, 0, 3)
    assert slices(group, 33).latents == (5, 2, 2)
    assert slices(group, 29).latents == (4, 2, 2)
    assert slices(group, 21, pooled=True).latents == (2, 2, 2)
    assert slices(group, 1) == Whole(3)
    assert slices(replace(group, size=1), 17) == Whole(1)
    for pooled, most in ((False, 2), (True, 2)):
        with pytest.raises(InputError, match=f"17 frames can be cut along time for {most} processes, not 3"):
            slices(group, 17, pooled=pooled)
