"""The training loop: a stopped run goes on exactly, bad steps change nothing, rates follow the schedule."""

import contextlib
import itertools
import json
import os
import signal
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

from cogvideox.core import rng
from cogvideox.core.errors import NonFiniteError
from cogvideox.training.checkpoint import Checkpoints
from cogvideox.training.interrupt import ASKED, Stopped
from cogvideox.training.loop import Every, Rates, Span, Trainer, _stream, train
from cogvideox.training.optim import MasterOptimizer, lr_scale
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

    def __init__(self, poison=(), parts=(16,), at=((), None), sick=False):
        self.parts = parts
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 1))
        self.poison, self.at, self.judged, self.sick = poison, at, [], sick

    @property
    def phases(self):
        return (Phase("model", self.model, matrix_blocks=lambda name, _: int(name == "0.weight")),)

    def batches(self):
        return Lines(self.parts)

    def loss(self, phase, micro, step):
        if step in self.at[0]:
            self.at[1]()
        x, y = micro
        total = (self.model(x) - y).square().sum()
        return Loss(total * float("nan") if step in self.poison else total, float(len(x)), {})

    def ids(self, micro):
        return [f"x{len(micro[0])}"]

    def evaluate(self, weights, folder, step):
        if self.sick:
            raise MemoryError
        self.judged.append(step)
        return {"judged": float(step)}


OFTEN = Every(log=10, evaluate=20, save_seconds=0)
RATES = {"model": Rates(matrix_lr=0.02, lr=0.01, warmup=2)}


def run(task, folder, steps=40, **options):
    return train(task, folder, RATES, steps=steps, workers=0, **options)["model"]


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def same(one, other):
    """Whether two states are equal in every bit."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


@contextlib.contextmanager
def dying(monkeypatch, task, at):
    """The loss of that class of tasks raises in a step, which ends all that is done here."""
    original = task.loss

    def loss(self, phase, micro, step):
        if step == at:
            raise KeyboardInterrupt
        return original(self, phase, micro, step)

    with monkeypatch.context() as patch:
        patch.setattr(task, "loss", loss)
        with pytest.raises(KeyboardInterrupt):
            yield


def die():
    raise KeyboardInterrupt


def test_a_run_that_died_goes_on_as_if_nothing_had_happened(tmp_path):
    """Weights, moments, average and log, with Muon and AdamW."""
    whole = run(Plane(), tmp_path / "whole", every=OFTEN)
    with pytest.raises(KeyboardInterrupt):
        run(Plane(at=([23], die)), tmp_path / "halves", every=OFTEN)
    with (tmp_path / "halves" / "metrics.jsonl").open("a") as log:
        log.write('{"step": 30, "loss": 7}\n{"step": 4')  # of steps that no checkpoint knows of
    task = Plane()
    halves = run(task, tmp_path / "halves", every=OFTEN)
    assert same(whole.state_dict(), halves.state_dict())
    assert same(whole.ema_weights(), halves.ema_weights())
    assert task.judged == [40]
    assert [line["step"] for line in lines(tmp_path / "halves")] == [10, 20, 30, 40]
    assert lines(tmp_path / "halves")[-1]["loss"] == lines(tmp_path / "whole")[-1]["loss"]


def test_a_death_costs_no_more_than_the_interval_and_checkpoints_are_few(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(Plane(at=([23], die)), tmp_path, every=OFTEN)
    assert Checkpoints(tmp_path / "checkpoints").steps() == [21, 22, 23]
    with pytest.raises(KeyboardInterrupt):
        run(Plane(at=([30], die)), tmp_path, every=Every(log=10, evaluate=20, save_seconds=1000, keep=1))
    assert Checkpoints(tmp_path / "checkpoints").steps() == [21, 22, 23]


def test_updates_below_the_precision_of_the_weights_add_up():
    """In bf16 the number below 1 is 0.996; a step is a fortieth of what lies between."""
    module = torch.nn.Linear(4, 4, bias=False).bfloat16()
    torch.nn.init.ones_(module.weight)
    optimizer = MasterOptimizer(module, lambda *_: 0, matrix_lr=None, lr=1e-4)
    for step in range(100):
        module.weight.grad = torch.ones_like(module.weight)
        optimizer.update(1.0, optimizer.collect())
        assert (module.weight == 1).all() == (step < 19)
    torch.testing.assert_close(module.weight.float(), torch.full((4, 4), 0.99), rtol=0, atol=0.002)


def test_half_a_checkpoint_is_none(tmp_path):
    run(Plane(), tmp_path, steps=20)
    left = tmp_path / "checkpoints" / ".step-00000030.partial"
    left.mkdir()
    (left / "half.safetensors").write_bytes(b"half")
    assert Checkpoints(tmp_path / "checkpoints").load()[0] == 20
    run(Plane(), tmp_path, steps=30)
    assert not left.exists()


def test_what_dies_while_it_is_judged_is_judged_again(tmp_path):
    with pytest.raises(MemoryError):
        run(Plane(sick=True), tmp_path, steps=20)
    task = Plane()
    run(task, tmp_path, steps=20)
    assert task.judged == [20]
    assert lines(tmp_path)[-1]["judged"] == 20
    run(task, tmp_path, steps=20)
    assert task.judged == [20]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_who_is_asked_to_stop_finishes_the_step_and_saves(tmp_path, number):
    before = signal.getsignal(number)
    with pytest.raises(Stopped, match="after step 8 of 40"):
        run(Plane(at=([7], lambda: os.kill(os.getpid(), number))), tmp_path)
    assert Checkpoints(tmp_path / "checkpoints").steps() == [8]
    assert signal.getsignal(number) is before
    assert same(run(Plane(), tmp_path).state_dict(), run(Plane(), tmp_path / "whole").state_dict())


def test_who_is_asked_twice_stops_at_once(tmp_path):
    def impatient():
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run(Plane(at=([7], impatient)), tmp_path)


class Deaf(Dataset):
    """Whether the process that prepares data ignores the signals."""

    def __len__(self):
        return 1

    def __getitem__(self, step):
        return [signal.getsignal(number) == signal.SIG_IGN for number in ASKED]


def test_who_prepares_data_leaves_signals_to_the_loop():
    assert next(_stream(Deaf(), 0, 1, workers=1)) == [True, True]


def test_the_loss_falls_and_the_log_says_so(tmp_path):
    run(Plane(), tmp_path, steps=300)
    log = lines(tmp_path)
    assert log[-1]["loss"] < 0.05 * log[0]["loss"]
    assert [line["step"] for line in log] == [50, 100, 150, 200, 250, 300]
    assert log[-1]["judged"] == 300


def test_a_step_that_is_not_finite_changes_nothing_and_is_recorded(tmp_path):
    trainer = Trainer(Plane(poison=(0,), parts=(9, 7)), tmp_path, RATES, steps=40)
    before = json.dumps(trainer.state()["model"], default=torch.Tensor.tolist)
    trainer.advance(Lines((9, 7))[0])
    assert json.dumps(trainer.state()["model"], default=torch.Tensor.tolist) == before
    assert (trainer.step, trainer.skipped, trainer.bad) == (1, 1, 1)
    record = json.loads((tmp_path / "bad" / "00000001.json").read_text())
    assert record["samples"] == [["x9"], ["x7"]]
    assert record["phases"]["model"]["losses"] == ["nan", "nan"]
    run(Plane(poison=(5, 6)), tmp_path / "run")
    assert lines(tmp_path / "run")[-1]["skipped"] == 2


def test_a_gradient_that_is_not_finite_is_found_where_the_loss_is(tmp_path):
    trainer = Trainer(task := Plane(), tmp_path, RATES, steps=40)
    task.model[0].weight.register_hook(lambda gradient: gradient * float("inf"))
    before = json.dumps(trainer.state()["model"], default=torch.Tensor.tolist)
    trainer.advance(Lines((16,))[0])
    assert json.dumps(trainer.state()["model"], default=torch.Tensor.tolist) == before
    assert trainer.skipped == 1
    record = json.loads((tmp_path / "bad" / "00000001.json").read_text())["phases"]["model"]
    assert record["norm"] in ("inf", "nan")
    assert float(record["losses"][0]) > 0


def test_a_loss_that_is_not_finite_is_found_where_the_gradient_is(tmp_path):
    trainer = Trainer(task := Plane(), tmp_path, RATES, steps=40)
    task.loss = lambda *micro: Loss(Plane.loss(task, *micro).total + float("inf"), 16.0, {})
    trainer.advance(Lines((16,))[0])
    record = json.loads((tmp_path / "bad" / "00000001.json").read_text())["phases"]["model"]
    assert record["losses"] == ["inf"]
    assert float(record["norm"]) < 1e6


def test_ten_bad_steps_in_a_row_stop_the_run(tmp_path):
    with pytest.raises(NonFiniteError, match="step 13"):
        run(Plane(poison=range(3, 20)), tmp_path)
    run(Plane(poison=[*range(3, 12), *range(13, 22)]), tmp_path / "apart")


def test_bad_steps_are_counted_across_a_stop(tmp_path):
    bad = range(3, 20)
    with pytest.raises(KeyboardInterrupt):
        run(Plane(poison=bad, at=([10], die)), tmp_path, every=OFTEN)
    with pytest.raises(NonFiniteError, match="step 13"):
        run(Plane(poison=bad), tmp_path, every=OFTEN)


STAGES = (Span("small", 0), Span("large", 25, rate=0.5), Span("best", 30, rate=0.1, anew=True))


def test_a_stage_ends_with_a_validation(tmp_path):
    run(Plane(), tmp_path, stages=STAGES)
    judged = [(line["step"], line["stage"]) for line in lines(tmp_path) if "judged" in line]
    assert judged == [(25, "small"), (30, "large"), (40, "best")]


def test_a_stage_begins_with_a_checkpoint_and_an_event(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(Plane(at=([25], die)), tmp_path, stages=STAGES)
    assert Checkpoints(tmp_path / "checkpoints").load()[1]["run"]["stage"] == "large"
    run(Plane(), tmp_path, stages=STAGES)
    events = [(line["step"], line["begins"]) for line in lines(tmp_path) if "begins" in line]
    assert events == [(0, "small"), (25, "large"), (30, "best")]
    assert lines(tmp_path)[-1]["stage"] == "best"
    assert Checkpoints(tmp_path / "checkpoints").steps() == [25, 30, 40]


def test_stages_change_the_rates(tmp_path):
    trainer = Trainer(Plane(), tmp_path, RATES, steps=40, stages=STAGES)
    scales = [trainer._scale("model", step) for step in range(40)]
    assert scales[:3] == [0.5, 1.0, 1.0]
    assert scales[24] == pytest.approx(lr_scale(24, 30, 2, 0.6))
    assert scales[25] == pytest.approx(0.5 * lr_scale(25, 30, 2, 0.6))
    assert scales[30:33] == [0.05, 0.1, 0.1]
    assert scales[39] == pytest.approx(0.1 * lr_scale(9, 10, 2, 0.6))


def test_a_phase_that_joins_late_warms_up_there(tmp_path):
    class Late(Plane):
        @property
        def phases(self):
            return (replace(super().phases[0], begins=20),)

    trainer = Trainer(Late(), tmp_path, RATES, steps=40)
    assert [trainer._scale("model", step) for step in (20, 21, 22)] == [0.5, 1.0, 1.0]
    assert trainer._scale("model", 39) == pytest.approx(lr_scale(19, 20, 2, 0.6))


def test_a_phase_that_leaves_early_decays_till_there_and_stays_as_it_is(tmp_path):
    class Early(Plane):
        @property
        def phases(self):
            model = super().phases[0]
            return replace(model, ends=20), Phase("last", self.last, begins=20)

        def loss(self, phase, micro, step):
            assert (phase == "model") == (step < 20)
            if phase == "model":
                return super().loss(phase, micro, step)
            return Loss(self.last(micro[0]).square().sum(), 1.0, {})

    task = Early()
    task.last = nn.Linear(4, 1)
    rates = RATES | {"last": RATES["model"]}
    scale = Trainer(task, tmp_path / "unused", rates, steps=40)._scale
    assert scale("model", 19) == pytest.approx(lr_scale(19, 20, 2, 0.6))
    optimizers = train(task, tmp_path, rates, steps=40, workers=0, every=OFTEN)
    assert [optimizers[name].updates for name in ("model", "last")] == [20, 20]
    kept, average = dict(task.model.named_parameters()), optimizers["model"].ema_weights()
    assert all(torch.equal(kept[name], average[name]) for name in kept)
    stopped, again = Early(), Early()
    stopped.last = again.last = nn.Linear(4, 1)
    stopped.at = ((10,), die)
    with pytest.raises(KeyboardInterrupt):
        train(stopped, tmp_path / "again", rates, steps=40, workers=0, every=OFTEN)
    resumed = train(again, tmp_path / "again", rates, steps=40, workers=0, every=OFTEN)
    assert all(torch.equal(resumed["model"].ema_weights()[name], average[name]) for name in kept)
    assert "last_loss" in lines(tmp_path)[-1]


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
    one, three = (lines(tmp_path / name)[0]["loss"] for name in ("1", "3"))
    assert one == pytest.approx(three, rel=1e-4)


class Duel:
    """Two modules trained in turn: one predicts 3, the other predicts the first's answer."""

    def __init__(self, poison=-1):
        torch.manual_seed(0)
        self.one, self.other, self.seen, self.poison = nn.Linear(1, 1), nn.Linear(1, 1), [], poison

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
        bad = float("nan") if (phase, step) == ("other", self.poison) else 1.0
        return Loss(error.square().sum() * bad, 2.0, {})

    def evaluate(self, weights, folder, step):
        assert set(weights) == {"one", "other"}
        return {}


def test_phases_take_turns_and_begin_when_they_are_due(tmp_path):
    duel, rates = Duel(), Rates(matrix_lr=0.0, lr=0.1, warmup=1)
    train(duel, tmp_path, {"one": rates, "other": rates}, steps=200, workers=0)
    assert duel.seen[:22] == [*((step, "one") for step in range(20)), (20, "one"), (20, "other")]
    assert duel.other(torch.ones(1, 1)).item() == pytest.approx(3, abs=0.1)
    assert {"one_loss", "other_loss"} <= set(lines(tmp_path)[-1])


def test_a_step_is_skipped_by_all_phases_or_by_none(tmp_path):
    rates = Rates(matrix_lr=0.0, lr=0.1, warmup=1)
    trainer = Trainer(duel := Duel(poison=20), tmp_path, {"one": rates, "other": rates}, steps=200)
    trainer.step = 20
    before = duel.one.weight.clone(), duel.other.weight.clone()
    trainer.advance([torch.ones(2, 1)])
    assert torch.equal(duel.one.weight, before[0])
    assert torch.equal(duel.other.weight, before[1])
    trainer.advance([torch.ones(2, 1)])
    assert not torch.equal(duel.one.weight, before[0])
    assert not torch.equal(duel.other.weight, before[1])


def test_no_rate_is_no_update():
    model = nn.Linear(2, 2)
    optimizer = MasterOptimizer(model, lambda name, _: int(name == "weight"), matrix_lr=0.1, lr=0.1)
    before = model.weight.detach().clone(), model.bias.detach().clone()
    for scale in (0.0, 1.0):
        model(torch.ones(1, 2)).sum().backward()
        optimizer.update(scale, optimizer.collect())
        assert torch.equal(model.weight, before[0]) == (scale == 0)
        assert torch.equal(model.bias, before[1]) == (scale == 0)


def test_adamw_can_update_all_and_lets_matrices_alone_decay():
    model = nn.Linear(2, 2)
    optimizer = MasterOptimizer(model, lambda *_: 1, matrix_lr=None, lr=0.1, weight_decay=0.5)
    before = model.weight.detach().clone(), model.bias.detach().clone()
    (model(torch.ones(1, 2)).sum() * 0).backward()
    optimizer.update(1.0, optimizer.collect())
    torch.testing.assert_close(model.weight, before[0] * 0.95)
    assert torch.equal(model.bias, before[1])
