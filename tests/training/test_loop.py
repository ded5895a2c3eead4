"""The training loop: a stopped run goes on exactly, bad steps change nothing, rates follow the schedule."""

import itertools
import json

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

from cogvideox.core import rng
from cogvideox.core.errors import NonFiniteError
from cogvideox.training.loop import Rates, lr_scale, train
from cogvideox.training.optim import MasterOptimizer
from cogvideox.training.task import Loss, Phase


class Lines(Dataset):
    """Step -> points of a noisy plane, a pure function of the step."""

    def __init__(self, parts):
        self.parts = list(parts)

    def __len__(self):
        return 1000

    def __getitem__(self, step):
        x = rng.normal((16, 4), 0, "x", step)
        return [(part, part.sum(1, keepdim=True)) for part in x.split(self.parts)]


class Plane:
    """The smallest task: two linear layers, one of them a matrix for Muon."""

    def __init__(self, poison=(), stop_at=None, parts=(16,)):
        self.parts = parts
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 1))
        self.poison, self.stop_at = poison, stop_at

    @property
    def phases(self):
        return (Phase("model", self.model, matrix_blocks=lambda name, _: int(name == "0.weight")),)

    def batches(self):
        return Lines(self.parts)

    def loss(self, phase, micro, step):
        if step == self.stop_at:
            raise KeyboardInterrupt
        x, y = micro
        total = (self.model(x) - y).square().sum()
        return Loss(total * float("nan") if step in self.poison else total, float(len(x)), {})

    def evaluate(self, weights, folder, step):
        return {"judged": float(step)}


def run(task, folder, steps=40, **options):
    rates = {"model": Rates(matrix_lr=0.02, lr=0.01, warmup=2)}
    return train(task, folder, rates, steps=steps, workers=0, **options)["model"]


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


def test_a_step_in_parts_of_any_size_is_the_whole_step(tmp_path):
    """The loss is the sum over all samples by their number, not a mean of means."""
    whole, parts = run(Plane(), tmp_path / "1"), run(Plane(parts=(9, 2, 5)), tmp_path / "3")
    for name, weight in whole.ema_weights().items():
        torch.testing.assert_close(weight, parts.ema_weights()[name])
    lines = [json.loads((tmp_path / n / "log.jsonl").read_text()) for n in ("1", "3")]
    assert lines[0]["loss"] == pytest.approx(lines[1]["loss"], rel=1e-4)


class Duel:
    """Two modules trained in turn: one predicts 3, the other predicts the first's answer."""

    def __init__(self):
        torch.manual_seed(0)
        self.one, self.other, self.seen = nn.Linear(1, 1), nn.Linear(1, 1), []

    @property
    def phases(self):
        return Phase("one", self.one), Phase("other", self.other, begins=20)

    def batches(self):
        return [[torch.ones(2, 1)]] * 200

    def loss(self, phase, micro, step):
        self.seen.append((step, phase))
        taking = [p.requires_grad for module in (self.one, self.other) for p in module.parameters()]
        assert taking == [phase == "one"] * 2 + [phase == "other"] * 2
        answer = self.one(micro)
        error = answer - 3 if phase == "one" else self.other(micro) - answer
        return Loss(error.square().sum(), 2.0, {})

    def evaluate(self, weights, folder, step):
        assert set(weights) == {"one", "other"}
        return {}


def test_phases_take_turns_and_begin_when_they_are_due(tmp_path):
    duel, rates = Duel(), Rates(matrix_lr=0.0, lr=0.1, warmup=1)
    train(duel, tmp_path, {"one": rates, "other": rates}, steps=200, workers=0)
    assert duel.seen[:22] == [*((step, "one") for step in range(20)), (20, "one"), (20, "other")]
    assert duel.other(torch.ones(1, 1)).item() == pytest.approx(3, abs=0.1)
    last = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[-1])
    assert {"one_loss", "other_loss"} <= set(last)
