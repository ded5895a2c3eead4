"""The loss of a pack."""

import pytest
import torch

from cogvideox.diffusion.objective import v_loss
from cogvideox.diffusion.schedule import make_schedule

SHAPES = ((1, 4, 6, 2), (3, 2, 2, 2), (5, 4, 4, 2))
WEIGHTS = (1.0, 0.5, 2.0)


def tensors(seed):
    rng = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=rng) for shape in SHAPES]


def test_a_perfect_model_has_no_loss():
    loss, losses = v_loss(tensors(0), tensors(0), WEIGHTS)
    assert loss == 0
    assert losses.tolist() == [0, 0, 0]


def test_equals_the_x0_loss_over_one_minus_alpha_bar():
    schedule = make_schedule()
    clips, noises, predictions, t = tensors(0), tensors(1), tensors(2), torch.tensor([7, 500, 999])
    args = list(zip(clips, noises, t.split(1), strict=True))
    targets = [schedule.velocity(x0, noise, s) for x0, noise, s in args]
    _, losses = v_loss(predictions, targets, WEIGHTS)
    for (x0, noise, s), v, loss in zip(args, predictions, losses, strict=True):
        x0_hat = schedule.predict_x0(schedule.add_noise(x0, noise, s).double(), v, s)
        expected = (x0_hat - x0).square().mean() / (1 - schedule.alpha_bar[s])
        assert loss.item() == pytest.approx(expected.item(), rel=1e-4)


def test_per_sample_and_per_number_means():
    predictions, targets = tensors(0), tensors(1)
    loss, losses = v_loss(predictions, targets, WEIGHTS)
    means = [(p - v).square().mean().item() for p, v in zip(predictions, targets, strict=True)]
    assert losses.tolist() == pytest.approx(means)
    assert loss.item() == pytest.approx(sum(w * m for w, m in zip(WEIGHTS, means, strict=True)) / 3.5)
    per_number, _ = v_loss(predictions, targets, (1.0, 1.0, 1.0), per="number")
    squares = torch.cat([(p - v).square().flatten() for p, v in zip(predictions, targets, strict=True)])
    assert per_number.item() == pytest.approx(squares.mean().item())


@pytest.mark.parametrize("per", ["sample", "number"])
def test_packs_add_up_to_the_global_step(per):
    predictions, targets = [p.requires_grad_() for p in tensors(0)], tensors(1)
    whole, _ = v_loss(predictions, targets, WEIGHTS, per=per)
    sizes = [v.numel() if per == "number" else 1 for v in targets]
    total = sum(w * n for w, n in zip(WEIGHTS, sizes, strict=True))
    parts = [
        v_loss(predictions[cut], targets[cut], WEIGHTS[cut], per=per, normaliser=total)[0]
        for cut in (slice(0, 1), slice(1, 3))
    ]
    torch.testing.assert_close(sum(parts), whole)
    grads = torch.autograd.grad(whole, predictions)
    for grad, expected in zip(torch.autograd.grad(sum(parts), predictions), grads, strict=True):
        torch.testing.assert_close(grad, expected)


def test_half_precision_predictions_are_compared_in_float32():
    predictions, targets = [p.bfloat16() for p in tensors(0)], tensors(1)
    loss, _ = v_loss(predictions, targets, WEIGHTS)
    expected, _ = v_loss([p.float() for p in predictions], targets, WEIGHTS)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, expected)
