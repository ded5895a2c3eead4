"""Training in several processes: the losses, gradients and weights of one, whatever the shares of work."""

import functools
import json
import math
import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from cogvideox.core.errors import InputError, PeerError
from cogvideox.parallel.training import ALONE, Ranks, Scheme, connect, fit
from cogvideox.parallel.watchdog import Watchdog
from cogvideox.parallel.weights import assign, local
from cogvideox.training.checkpoint import Checkpoints
from cogvideox.training.interrupt import Stopped
from cogvideox.training.loop import Every, Rates, Span, Trainer, train
from cogvideox.training.task import Loss, Unreadable
from tests.parallel.processes import PATIENCE, relative_error, together
from tests.parallel.trained import CLIP, DROPPED, IMAGE, LONG, Packs

RATES = {"model": Rates(matrix_lr=0.01, lr=0.003, warmup=2, ema=0.5)}


SCHEMES = {
    "replicas": Scheme(),
    "sharded": Scheme(shards=12),
    "pairs": Scheme(shards=2),  # copies of the model, each in two shards, if there are four processes
    "recompute": Scheme(shards=12, recompute=True),
    "sequence": Scheme(sequences=(2, 3)),
    "sequence+pairs": Scheme(sequences=(2,), shards=2, recompute=True),
    "ulysses": Scheme(sequences=(2,), ulysses=True),
    "ulysses+sharded": Scheme(sequences=(2,), ulysses=True, shards=4, recompute=True),
}


def ranks(scheme: str) -> Ranks:
    here = Ranks.of(SCHEMES[scheme], PATIENCE)
    here.share(max(here.team.meshes, default=1))
    return here


# ------------------------------------------------------------------------------- the gradients of one process


def gradients(task: Packs, here: Ranks) -> tuple[float, float, list[torch.Tensor]]:
    """Total loss, weight and gradients of step 0; the latter for the first process."""
    weights = here.place(task.model)
    parameters, total, weight = list(task.model.parameters()), 0.0, 0.0
    for micro, counts in here.even(task.batches()[0]):
        loss = task.loss("model", micro, 0)
        (loss.total * (counts / here.shares)).backward()
        total, weight = total + counts * loss.total.item(), weight + counts * loss.weight
    owners = assign([p.numel() for p in parameters], weights.group.size if weights.group else 1)
    mine = [torch.zeros_like(local(p)) if p.grad is None else local(p.grad) for p in parameters]
    with torch.no_grad():
        everyones = weights.to_first(parameters, owners, weights.collect(mine, parameters, owners))
    total, weight = (x / here.shares for x in here.sum([total, weight]))
    return total, weight, everyones


def compare(scheme: str, micros: tuple, heads: int) -> None:
    expected = gradients(Packs(lambda step: micros, heads=heads), Ranks())
    here = ranks(scheme)
    task = Packs(lambda step: micros, here, heads=heads, sequence=lambda step: here.shares)
    found = gradients(task, here)
    assert found[:2] == pytest.approx(expected[:2], rel=1e-6)
    floor = 1e-3 * torch.stack([g.norm() for g in expected[2]]).norm()
    assert dist.get_rank() or len(found[2]) == len(expected[2])
    for one, other in zip(found[2], expected[2], strict=False):
        assert (one - other).norm() / other.norm().clamp(min=floor) < 1e-5


UNEQUAL = ((CLIP, LONG), (IMAGE,), (DROPPED, IMAGE, IMAGE), (LONG,), (CLIP,))


@pytest.mark.parametrize(
    ("size", "scheme", "micros", "heads"),
    [
        (2, "replicas", UNEQUAL, 2),
        (3, "replicas", UNEQUAL[:2], 2),  # the third has none
        (3, "sharded", UNEQUAL[:2], 2),
        (4, "pairs", UNEQUAL, 2),
        (2, "recompute", UNEQUAL, 2),
        (2, "sequence", UNEQUAL[:3], 3),
        (3, "sequence", UNEQUAL[:2], 2),
        (2, "ulysses", UNEQUAL[:2], 2),
        (4, "sequence+pairs", UNEQUAL[:3], 3),
        (4, "ulysses+sharded", UNEQUAL[:1], 2),
    ],
)
def test_losses_and_gradients_are_those_of_one_process(size, scheme, micros, heads):
    together(size, compare, scheme, micros, heads)


def hold() -> None:
    """Weights, masters and the rest are divided among the processes, evenly but for the size of a tensor."""
    task, here = Packs(lambda step: UNEQUAL), ranks("sharded")
    sizes = [p.numel() for p in task.model.parameters()]
    optimizer = RATES["model"].optimizer(task.phases[0], here)
    held = sum(local(p).numel() for p in task.model.parameters())
    assert held < 1.05 * sum(sizes) / 4
    owned = sum(part.numel() for parts in optimizer.masters.values() for part in parts)
    assert owned < sum(sizes) / 4 + max(sizes)
    assert here.sum([held, owned]) == [sum(sizes)] * 2
    assert sum(tensor.numel() for tensor in optimizer.state_dict()["tensors"].values()) <= 4 * owned


def test_each_process_holds_its_part_only():
    together(4, hold)


# ---------------------------------------------------------------------------------------- the steps of one


def the_first_works(folder: str, scheme: str) -> None:
    """Work of the first process only: sums of gradients have the bits that one process has."""
    micros = (CLIP, IMAGE)
    here = ranks(scheme)
    task = Packs(lambda step: [micros], here)
    optimizer = train(task, Path(folder) / "all", RATES, steps=4, workers=0, ranks=here)["model"]
    found = optimizer.ema_weights()
    model = {name: weight.detach().clone() for name, weight in task.model.state_dict().items()}
    alone = Packs(lambda step: [micros])
    where = Path(folder) / f"alone-{dist.get_rank()}"
    expected = train(alone, where, RATES, steps=4, workers=0)["model"].ema_weights()
    assert here.first == bool(found)
    for name, weight in found.items():
        assert torch.equal(weight, expected[name]), name
    for name, weight in model.items():
        whole = weight.full_tensor() if hasattr(weight, "full_tensor") else weight
        assert torch.equal(whole, alone.model.state_dict()[name]), name
    if here.first:
        ours, theirs = (
            [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
            for path in (Path(folder) / "all", where)
        )
        for line in (*ours, *theirs):
            for name in ("seconds_per_step", "samples_per_second"):
                del line[name]
        assert ours == theirs


@pytest.mark.parametrize(("size", "scheme"), [(3, "replicas"), (3, "sharded"), (4, "pairs")])
def test_owners_step_as_one_process_does(size, scheme, tmp_path):
    together(size, the_first_works, str(tmp_path), scheme)


def long_run(folder: str, scheme: str) -> None:
    """Packs of other shapes in every rank and step; half of the texts are dropped; some ranks have none."""

    def micros(step: int):
        draw = random.Random(step)
        kinds = [draw.choice([CLIP, IMAGE]) if draw.random() < 0.5 else DROPPED for _ in range(4)]
        return [tuple(kinds[i] for i in range(draw.randint(1, 3))) for _ in range(draw.randint(1, 4))]

    began = time.monotonic()
    here = ranks(scheme)
    most = max(here.team.meshes, default=1)
    stages = Span("wide", 0, sequence=most), Span("narrow", 30)
    task = Packs(micros, here, sequence=lambda step: most if step < 30 else 1)
    options = {"stages": stages, "every": Every(evaluate=20), "workers": 0, "ranks": here}
    train(task, Path(folder), RATES, steps=50, **options)
    assert time.monotonic() - began < 30
    if here.first:
        assert json.loads((Path(folder) / "metrics.jsonl").read_text().splitlines()[-1])["judged"] == 50


@pytest.mark.parametrize(("size", "scheme"), [(4, "replicas"), (3, "sharded"), (4, "sequence+pairs")])
def test_unequal_work_never_hangs(size, scheme, tmp_path):
    together(size, long_run, str(tmp_path), scheme)


def break_off(folder: str, silently: bool) -> None:
    def at(step: int) -> None:
        if step == 2 and dist.get_rank() == 1:
            if silently:
                os._exit(0)
            raise ZeroDivisionError("rank 1 broke in step 3")

    here = ranks("replicas")
    task = Packs(lambda step: [(CLIP,)] * 3, here, fail=at)
    try:
        train(task, Path(folder), RATES, steps=5, workers=0, ranks=here)
    except PeerError as error:
        assert f"rank {dist.get_rank()}, step 3: another process" in str(error)  # noqa: PT017
        if silently:
            os._exit(0)
        time.sleep(2)  # so that the one that broke is seen first
        raise
    raise AssertionError("went on alone")


def test_one_that_raises_ends_all_with_its_traceback(tmp_path):
    began = time.monotonic()
    with pytest.raises(Exception, match=r"in at\n(.*\n)+.*rank 1 broke in step 3"):
        together(3, break_off, str(tmp_path), False)
    assert time.monotonic() - began < 30


def test_those_who_lose_another_know_where_they_are(tmp_path):
    together(3, break_off, str(tmp_path), True)


def one_is_in_trouble(folder: str) -> None:
    """Of two processes; what is lost, sick or asked to end in one of them is known to both."""
    here = ranks("replicas")

    class Lossy(Packs):
        lost = Unreadable(known=200)  # three are too many, of which each knows two

        def loss(self, phase, micro, step):
            self.lost.add({f"{step} of rank {here.rank}": "damaged"})
            return super().loss(phase, micro, step)

    task, two = Lossy(lambda step: [(CLIP,)] * 2, here), Every(log=2)
    with pytest.raises(InputError, match=r"4 of 200 samples cannot be read"):
        train(task, Path(folder) / "lost", RATES, steps=9, every=two, workers=0, ranks=here)

    class Sick(Packs):
        def loss(self, phase, micro, step):
            found = super().loss(phase, micro, step)
            sick = math.nan if (step, here.rank) == (2, 1) else 1.0
            return Loss(found.total * sick, found.weight, found.metrics)

    task = Sick(lambda step: [(CLIP,)] * 2, here)
    trainer = Trainer(task, Path(folder), RATES, steps=9, ranks=here)
    for step in range(4):
        before = [p.detach().clone() for p in task.model.parameters()]
        trainer.advance(task.batches()[step])
        same = [torch.equal(old, new) for old, new in zip(before, task.model.parameters(), strict=True)]
        assert all(same) if step == 2 else not all(same)
    assert trainer.skipped == 1
    if here.first:
        assert len(json.loads((Path(folder) / "bad/00000003.json").read_text())) == 2

    def ask(step: int) -> None:
        if (step, here.rank) == (2, 1):
            os.kill(os.getpid(), signal.SIGTERM)

    task = Packs(lambda step: [(CLIP,)] * 2, here, fail=ask)
    with pytest.raises(Stopped, match="after step 3 of 9"):
        train(task, Path(folder) / "asked", RATES, steps=9, workers=0, ranks=here)
    assert Checkpoints(Path(folder) / "asked/checkpoints").steps() == [3]


def test_what_happens_to_one_is_known_to_all(tmp_path):
    together(2, one_is_in_trouble, str(tmp_path))


# ------------------------------------------------------------------------------------------- going on again


def some_steps(folder: str, scheme: str, end: int) -> None:
    """Eight steps, of which each is saved; or all die when step `end` is done."""

    def kill_at(step: int) -> None:
        if step == end:
            os.kill(os.getpid(), signal.SIGKILL)

    here = ranks(scheme)
    task = Packs(lambda step: UNEQUAL, here, fail=kill_at)
    train(task, Path(folder), RATES, steps=8, every=Every(save_seconds=0), workers=0, ranks=here)


def last(folder: Path) -> dict[str, torch.Tensor]:
    files = (folder / "checkpoints" / "step-00000008").glob("*.safetensors")
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


@pytest.mark.parametrize(("size", "scheme"), [(2, "replicas"), (2, "sharded")])
def test_a_killed_run_goes_on_bit_for_bit(size, scheme, tmp_path):
    together(size, some_steps, str(tmp_path / "whole"), scheme, -1)
    with pytest.raises(Exception, match=r"SIGKILL|does not answer"):
        together(size, some_steps, str(tmp_path / "halves"), scheme, 4)
    together(size, some_steps, str(tmp_path / "halves"), scheme, -1)
    whole, halves = last(tmp_path / "whole"), last(tmp_path / "halves")
    assert whole.keys() == halves.keys()
    assert {name.rsplit(".")[-1] for name in whole} == {
        "master",
        "ema",
        "momentum_buffer",
        "exp_avg",
        "exp_avg_sq",
    }
    for name, tensor in whole.items():
        assert torch.equal(tensor, halves[name]), name


def test_the_number_of_processes_may_change(tmp_path):
    """Sums differ in the last bits, and Muon makes more of it, most in bf16."""
    together(1, some_steps, str(tmp_path / "one"), "replicas", -1)
    for size, scheme, end in ((2, "sharded", 3), (1, "replicas", 5), (3, "replicas", -1)):
        if end < 0:
            together(size, some_steps, str(tmp_path / "many"), scheme, end)
        else:
            with pytest.raises(Exception, match=r"SIGKILL|does not answer"):
                together(size, some_steps, str(tmp_path / "many"), scheme, end)
    one, many = last(tmp_path / "one"), last(tmp_path / "many")
    assert one.keys() == many.keys()
    for name in (name for name in one if name.endswith(("master", "ema"))):
        assert relative_error(many[name], one[name]) < 1e-3, name


# ------------------------------------------------------------------------------------------- in one process


def test_compiled_blocks_give_the_same(monkeypatch):
    """Traced as for a compiler; the code that torch generates is torch's affair."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    expected = gradients(Packs(lambda step: UNEQUAL[1:3]), ALONE)
    found = gradients(Packs(lambda step: UNEQUAL[1:3]), connect(Scheme(compile=True, recompute=True)))
    assert found[:2] == pytest.approx(expected[:2], rel=1e-6)
    for one, other in zip(found[2], expected[2], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    stats = torch._dynamo.utils.counters["stats"]
    assert stats["unique_graphs"] >= 2


def test_the_watchdog_tells_who_stands_where(tmp_path):
    with (tmp_path / "said").open("w+") as stream:
        with Watchdog(1, 4, 0.05, stream).at("step 17"):
            time.sleep(0.2)
        with Watchdog(2, 4, 5.0, stream).at("step 18"):
            pass
        stream.seek(0)
        said = stream.read()
    assert "rank 1 of 4 has been at step 17 for 0 s" in said
    assert "test_the_watchdog_tells" in said
    assert "step 18" not in said


def test_owners_have_equal_loads():
    sizes = [7, 1, 1, 9, 3, 3, 8, 2]
    owners = assign(sizes, 3)
    loads = [
        sum(size for size, owner in zip(sizes, owners, strict=True) if owner == rank) for rank in range(3)
    ]
    assert max(loads) - min(loads) <= 2
    assert assign([5, 1], 1) == [0, 0]


def test_numbers_that_do_not_divide_the_processes_become_those_that_do():
    assert [fit(8, size) for size in (1, 4, 6, 7, 16)] == [1, 4, 2, 1, 8]


def test_what_has_no_blocks_is_not_changed_in_silence():
    assert connect(Scheme()) == ALONE
    with pytest.raises(InputError, match="Linear has no blocks"):
        connect(Scheme(recompute=True)).place(torch.nn.Linear(1, 1))


def refuse() -> None:
    with pytest.raises(InputError, match="only a transformer's tokens can be shared, not a Linear's"):
        ranks("sequence").place(torch.nn.Linear(1, 1))
    with pytest.raises(InputError, match="ulysses cannot divide 3 heads among 2 processes"):
        ranks("ulysses").place(Packs(lambda step: UNEQUAL, heads=3).model)


def test_what_cannot_be_shared_is_refused():
    together(2, refuse)
