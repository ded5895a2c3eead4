"""The training loop: a stopped run goes on exactly, bad steps change nothing, rates follow the schedule."""

import itertools
import json

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

from cogvideox.core import rng
from cogvideox.core.errors import NonFiniteError
from cogvideox.training.loop import lr_scale, train
from cogvideox.training.optim import MasterOptimizer


class Lines(Dataset):
    """Step -> points of a noisy plane, a pure function of the step."""

    def __len__(self):
        return 1000

    def __getitem__(self, step):
        x = rng.normal((16, 4), 0, "x", step)
        return x, x.sum(1, keepdim=True)


class Plane:
    """The smallest task: two linear layers, one of them a matrix for Muon."""

    def __init__(self, poison=(), stop_at=None):
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 1))
        self.poison, self.stop_at = poison, stop_at

    def batches(self):
        return Lines()

    def matrix_blocks(self, name, parameter):
        return int(name == "0.weight")

    def loss(self, batch, step):
        if step == self.stop_at:
            raise KeyboardInterrupt
        x, y = batch
        loss = (self.model(x) - y).square().mean()
        return (loss * float("nan") if step in self.poison else loss), {}

    def evaluate(self, weights, folder, step):
        return {"judged": float(step)}


def run(task, folder, steps=40, **options):
    return train(task, folder, steps=steps, matrix_lr=0.02, lr=0.01, warmup=2, workers=0, **options)


def test_a_stopped_run_goes_on_as_if_nothing_had_happened(tmp_path):
    whole = run(Plane(), tmp_path / "whole", save_seconds=0)
    with pytest.raises(KeyboardInterrupt):
        run(Plane(stop_at=23), tmp_path / "halves", save_seconds=0)
    halves = run(Plane(), tmp_path / "halves", save_seconds=0)
    for name, weight in whole.ema_weights().items():
        assert torch.equal(weight, halves.ema_weights()[name])
    assert not list((tmp_path / "halves").glob("*partial*"))


def test_the_loss_falls_and_the_log_says_so(tmp_path):
    run(Plane(), tmp_path, steps=300)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert lines[-1]["loss"] < 0.05 * lines[0]["loss"]
    assert [line["step"] for line in lines] == [50, 100, 150, 200, 250, 300]
    assert lines[-1]["judged"] == 300


def test_a_step_that_is_not_finite_changes_nothing_and_is_counted(tmp_path):
    assert run(Plane(poison=(5, 6)), tmp_path).skipped == 2
    model = nn.Linear(2, 2)
    optimizer = MasterOptimizer(model, lambda name, parameter: 0, matrix_lr=0.1, lr=0.1)
    before = model.weight.detach().clone()
    (model(torch.ones(1, 2)).sum() * float("inf")).backward()
    optimizer.step(1.0, 0)
    assert torch.equal(model.weight, before)


def test_ten_bad_steps_in_a_row_stop_the_run(tmp_path):
    with pytest.raises(NonFiniteError, match="step 13"):
        run(Plane(poison=range(3, 20)), tmp_path)


def test_rates_warm_up_hold_and_decay():
    rates = [lr_scale(step, 100, 10, 0.5) for step in range(101)]
    assert rates[0] == 0.1
    assert rates[9:51] == [1.0] * 42
    assert rates[75] == pytest.approx(0.5)
    assert rates[100] == pytest.approx(0.0)
    assert all(a >= b for a, b in itertools.pairwise(rates[50:]))
