"""Training of the VAE: a discriminator that joins, exact resumption, batches in parts, the report."""

import json
import math

import pytest
import torch

from cogvideox.core.errors import InputError
from cogvideox.data.metrics import flicker
from cogvideox.generation.generate import Place
from cogvideox.models.discriminator import DiscriminatorSpec
from cogvideox.models.specs import VAESpec
from cogvideox.training.footage import Storybook
from cogvideox.training.heldout import HeldOut
from cogvideox.training.loop import Every, Rates, Trainer, train
from cogvideox.training.perceptual import Gradients
from cogvideox.training.vae import Adversarial, VAELoss, VAEStage, VAETask, balanced

SPEC = VAESpec(channels=(8, 8, 8, 16), blocks=1, latent_channels=4, groups=4)
JUDGE = DiscriminatorSpec(channels=(8, 8, 8), groups=4)
STAGES = (
    VAEStage(steps=4, batch=2, frames=1, crop=16, sizes=(32,)),
    VAEStage(steps=1000, batch=2, frames=5, crop=16, sizes=(32,)),
)
RATES = {
    "vae": Rates(matrix_lr=0.01, lr=2e-3, warmup=2),
    "discriminator": Rates(matrix_lr=None, lr=1e-3, warmup=2),
}
HALF, FULL = Place.pick("cpu", "bf16"), Place.pick("cpu", "fp32")


def task(begins=None, stages=STAGES, place=HALF, ramp=2, **loss):
    adversarial = None if begins is None else Adversarial(begins=begins, ramp=ramp, model=JUDGE)
    losses = VAELoss(kl_weight=1e-4, **loss)
    made = VAETask(SPEC, stages, losses, Gradients(), place, seed=0, adversarial=adversarial)
    made.held_out = HeldOut(Storybook(0), count=2, frames=5, side=32)
    return made


def turn(made, phase):
    """Let one phase take gradients, as the loop does."""
    for each in made.phases:
        each.module.requires_grad_(each.name == phase)
        each.module.zero_grad()


def test_the_balanced_loss_has_the_gradient_of_its_formula():
    weight = torch.rand(4, 3, dtype=torch.float64, requires_grad=True)
    first = torch.rand(5, 4, dtype=torch.float64, requires_grad=True)
    made = torch.tanh(first @ weight)
    one, other = (made - 0.3).abs().mean(), 7 * made.square().sum()
    grads = [torch.autograd.grad(loss, [weight, first], retain_graph=True) for loss in (one, other)]
    balance = grads[0][0].norm() / (grads[1][0].norm() + 1e-4)
    loss, found = balanced(one, other, made, weight, 0.5, lambda x: x)
    assert found == pytest.approx(balance.item())
    assert loss.item() == pytest.approx((one + 0.5 * balance * other).item())
    loss.backward()
    for parameter, g, h in zip((weight, first), *grads, strict=True):
        torch.testing.assert_close(parameter.grad, g + 0.5 * balance * h)


def test_a_discriminator_without_gradient_is_harmless():
    weight = torch.ones(3, requires_grad=True)
    made = weight * 2
    loss, balance = balanced(made.square().sum() * 1e6, made.sum() * 0, made, weight, 1.0, lambda x: x)
    assert balance == 1e4  # the clamp
    loss.backward()
    torch.testing.assert_close(weight.grad, 8e6 * torch.ones(3))


def test_the_adversarial_gradient_reaches_the_whole_vae():
    """From the step after the discriminator began, as strong as the ramp says, at the same step and noise."""
    grown = {}
    for begins in (None, 5, 4, 3):  # strengths at step 5: none, 0, 0.25, 0.5
        made = task(begins, place=FULL)
        turn(made, "vae")
        made.loss("vae", made.batches()[5][0], 5).total.backward()
        grown[begins] = {name: p.grad for name, p in made.vae.named_parameters()}
        assert begins is None or not any(p.grad is not None for p in made.discriminator.parameters())
    assert all(torch.equal(grown[None][name], grown[5][name]) for name in grown[5])
    last = "decoder.conv_out.weight"
    for begins, strength in ((4, 0.25), (3, 0.5)):
        added = (grown[begins][last] - grown[None][last]).norm()
        assert added.item() == pytest.approx(strength * grown[None][last].norm().item(), rel=0.02)
    assert not torch.equal(grown[3]["encoder.conv_in.weight"], grown[None]["encoder.conv_in.weight"])


def test_the_discriminator_learns_real_from_made_and_leaves_the_vae_alone():
    made = task(begins=0, place=FULL)
    optimizer = torch.optim.AdamW(made.discriminator.parameters(), lr=3e-3)
    micro, losses = made.batches()[5][0], []
    for step in range(40):
        turn(made, "discriminator")
        loss = made.loss("discriminator", micro, step)
        loss.total.backward()
        assert not any(p.grad is not None for p in made.vae.parameters())
        optimizer.step()
        losses.append(loss.total.item() / loss.weight)
    assert losses[0] == pytest.approx(1, abs=0.2)
    assert losses[-1] < 0.5
    assert loss.metrics["real"][0] > 0 > loss.metrics["fake"][0]


class StoppedError(Exception):
    pass


def run(made, folder, steps, stop=None):
    if stop is not None:
        plain = made.loss

        def loss(phase, micro, step):
            if (phase, step) == stop:
                raise StoppedError
            return plain(phase, micro, step)

        made.loss = loss
    return train(made, folder, RATES, steps=steps, workers=0, every=Every(save_seconds=0))


@pytest.mark.parametrize("stop", [("vae", 8), ("discriminator", 8), ("discriminator", 6)])
def test_a_killed_run_goes_on_bit_for_bit(tmp_path, stop):
    """Pictures, clips, the switch at step 6; killed in either phase."""
    whole = run(task(begins=6), tmp_path / "whole", 12)
    with pytest.raises(StoppedError):
        run(task(begins=6), tmp_path / "parts", 12, stop)
    parts = run(task(begins=6), tmp_path / "parts", 12)
    for phase in ("vae", "discriminator"):
        state, other = (run[phase].state_dict()["tensors"] for run in (whole, parts))
        assert any("ema" in name for name in state)
        assert state.keys() == other.keys()
        assert all(torch.equal(state[name], other[name]) for name in state)


def test_through_the_switch_numbers_stay_finite_and_quality_stays(tmp_path):
    """A batch of one clip, the same at every step: nothing but the discriminator changes what is learned."""
    begins, steps, seen = 50, 80, []
    made = task(begins, stages=(VAEStage(steps=1, batch=1, frames=5, crop=32, sizes=(32,)),), ramp=20)
    assert (
        made.discriminator.logits.weight.dtype == torch.float32 != made.discriminator.levels[0].weight.dtype
    )
    plain, batch = made.loss, made.batches()[0]
    made.batches = lambda: [batch] * steps

    def loss(phase, micro, step):
        found = plain(phase, micro, step)
        seen.append((phase, step, found.total.item(), {n: x for n, (x, _) in found.metrics.items()}))
        return found

    made.loss = loss
    train(made, tmp_path, RATES, steps=steps, workers=0)
    assert all(math.isfinite(x) for _, _, total, means in seen for x in (total, *means.values()))
    assert {step for phase, step, *_ in seen if phase == "discriminator"} == set(range(begins, steps))
    assert {step for _, step, _, m in seen if "adversarial" in m} == set(range(begins + 1, steps))
    psnr = [means["psnr"] for phase, *_, means in seen if phase == "vae"]
    before, after = (sum(psnr[end - 10 : end]) / 10 for end in (begins, steps))
    assert after >= before - 0.3
    line = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert line["skipped"] == 0
    assert {"eval_psnr", "ssim", "residual_flicker", "discriminator_loss"} <= set(line)


def test_a_step_in_micro_batches_is_the_whole_step():
    grown = []
    for micro in (1, 2):
        stages = (VAEStage(steps=1, batch=3, frames=5, crop=16, sizes=(32,), micro=micro),)
        made = task(stages=stages, place=FULL, perceptual_frames=2)
        turn(made, "vae")
        losses = [made.loss("vae", part, 0) for part in made.batches()[0]]
        assert len(losses) == micro
        assert sum(loss.weight for loss in losses) == 3
        sum(loss.total for loss in losses).backward()
        grown.append([p.grad for p in made.vae.parameters()])
    for one, other in zip(*grown, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("wrong", [{"frames": 8}, {"crop": 20}, {"crop": 64, "sizes": (32,)}, {"micro": 3}])
def test_shapes_that_cannot_be_trained_are_refused(wrong):
    with pytest.raises(InputError, match=str(next(iter(wrong.values())))):
        VAEStage(**{"steps": 1, "batch": 2, "frames": 5, "crop": 32} | wrong)


def test_clips_are_drawn_at_each_frame_rate():
    stage = VAEStage(steps=8, batch=1, frames=5, crop=32, sizes=(32,), fps=(8, 16))
    slow, fast = (VAEStage(**{**vars(stage), "fps": (fps,)}) for fps in (8, 16))
    both = [task(stages=(s,)).batches()[0][0].video_BTHWC for s in (stage, slow, fast)]
    assert any(both[0].shape == other.shape for other in both[1:])
    assert flicker(both[1][0].float() / 255) > flicker(both[2][0].float() / 255)


class Mirror:
    """A VAE that keeps everything, or only the first frame."""

    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self, frozen):
        self.frozen = frozen

    def encode(self, video):
        return video

    def decode(self, video):
        return video[:, :, :1].expand_as(video) if self.frozen else video


def test_the_report_knows_the_sources_flicker_from_the_models(tmp_path):
    held_out = HeldOut(Storybook(0), count=3, frames=9, side=32)
    perfect = held_out.report(Mirror(frozen=False), tmp_path / "a.png")
    assert perfect["eval_psnr"] == 100
    assert (perfect["ssim"], perfect["excess"], perfect["residual_flicker"]) == (1, 1, 0)
    frozen = held_out.report(Mirror(frozen=True), tmp_path / "b.png")
    assert frozen["flicker"] == frozen["excess"] == 0  # looks calm ...
    assert frozen["residual_flicker"] == pytest.approx(frozen["source_flicker"])  # ... and is not
    assert frozen["source_flicker"] == perfect["source_flicker"] > 0
    assert frozen["moving"] < frozen["still"]
    assert (tmp_path / "b.png").stat().st_size > 0


def test_a_poisoned_step_leaves_both_networks_and_names_its_clips(tmp_path):
    made = task(begins=0, place=FULL)
    trainer = Trainer(made, tmp_path, RATES, steps=8)
    micros = made.batches()[0]
    next(made.vae.parameters()).register_hook(lambda gradient: gradient * torch.inf)
    before = json.dumps(trainer.state(), default=torch.Tensor.tolist)
    trainer.advance(micros)
    state = trainer.state()
    assert trainer.skipped == 1
    record = json.loads((tmp_path / "bad" / "00000001.json").read_text())
    assert record["samples"] == [list(micro.names) for micro in micros]
    for phase in ("vae", "discriminator"):
        assert json.dumps(state[phase], default=torch.Tensor.tolist) == json.dumps(json.loads(before)[phase])
