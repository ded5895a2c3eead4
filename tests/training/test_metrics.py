"""Numbers of a run: means, rates, and what is told to whom."""

import io
import json
import sys
from types import SimpleNamespace

import pytest
from rich.console import Console

from cogvideox.core.errors import InputError
from cogvideox.training import metrics
from cogvideox.training.live import View
from cogvideox.training.metrics import Journal, Meter, TensorBoard, WandB


@pytest.fixture
def clock(monkeypatch):
    now = SimpleNamespace(time=100.0)
    monkeypatch.setattr(metrics.time, "monotonic", lambda: now.time)
    return now


def test_means_are_over_weights_and_rates_over_time(clock):
    meter = Meter(peak=1000.0)
    meter.add({"loss": (6.0, 3.0), "tokens": (80.0, 1.0), "capacity": (100.0, 1.0), "samples": (4.0, 1.0)})
    meter.add({"loss": (1.0, 1.0), "tokens": (90.0, 1.0), "capacity": (100.0, 1.0), "flops": (500.0, 1.0)})
    meter.add({"empty": (0.0, 0.0)})
    meter.steps = 2
    clock.time += 4
    assert meter.read() == {
        "loss": 7 / 4,
        "samples": 2.0,
        "samples_per_second": 1.0,
        "tokens": 85.0,
        "tokens_per_second": 42.5,
        "fill": 0.85,
        "mfu": 0.125,
        "seconds_per_step": 2.0,
    }
    meter.clear()
    clock.time += 1
    assert meter.read() == {"seconds_per_step": 1.0}


def test_the_journal_forgets_what_is_done_again(tmp_path):
    def write(*lines):
        for line in lines:
            journal.write(line)

    journal = Journal()
    journal.open(tmp_path, 0, 9)
    write(
        {"step": 0, "begins": "small"}, {"step": 2}, {"step": 4}, {"step": 4, "begins": "small"}, {"step": 6}
    )
    journal = Journal()
    journal.open(tmp_path, 4, 9)
    kept = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert kept == [{"step": 0, "begins": "small"}, {"step": 2}, {"step": 4}]
    assert journal.last == 4


LINE = {
    "step": 3,
    "stage": "large",
    "loss": 0.25,
    "loss_250": 0.5,
    "fill": 0.987,
    "tokens_per_second": 12345.0,
    "samples_per_second": 6.5,
    "mfu": 0.125,
}


def shown(terminal, width=200):
    out = io.StringIO()
    view = View(Console(file=out, force_terminal=terminal, width=width, soft_wrap=True, highlight=False))
    view.open(None, 1, 9)
    view.write({"step": 2, "begins": "large"})
    view.write(LINE)
    view.tick(4, {"loss": 0.125})
    view.close()
    return out.getvalue()


def test_who_has_no_terminal_gets_plain_lines():
    text = shown(False)
    assert text.splitlines()[:2] == ["going on after step 1 of 9", "stage large begins after step 2"]
    last = text.splitlines()[2]
    assert last.startswith("step 3/9  ")
    for part in (
        "loss 0.25",
        "loss_250 0.5",
        "pack fill 98.7%",
        "tokens/s 12,345",
        "samples/s 6.5",
        "MFU 12.5%",
        "left",
    ):
        assert part in last
    assert "\x1b" not in text


def test_a_terminal_gets_a_table_that_moves():
    text = shown(True)
    assert "\x1b" in text
    for part in ("step 4/9", "0.125", "pack fill"):
        assert part in text


def test_time_left_is_at_the_pace_of_this_start(monkeypatch):
    view = View(Console(file=io.StringIO()))
    view.open(None, 100, 300)
    monkeypatch.setattr("cogvideox.training.live.time.monotonic", lambda: view.began + 50)
    assert view._left(140) == "3 min"  # 160 steps of 1.25 seconds
    assert view._left(100) == "?"


def test_weights_and_biases_goes_on_with_its_run(monkeypatch, tmp_path):
    told = []

    def init(**options):
        told.append(options)
        return SimpleNamespace(
            id="abc", log=lambda *a, **k: told.append((a, k)), finish=lambda: told.append("end")
        )

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    for _ in range(2):
        writer = WandB("films")
        writer.open(tmp_path, 0, 9)
        writer.write(LINE)
        writer.close()
    assert [options["id"] for options in told[::3]] == [None, "abc"]
    assert told[0] == {"project": "films", "dir": str(tmp_path), "id": None, "resume": "allow"}
    (numbers,), options = told[1]
    assert (numbers["loss"], options, "stage" in numbers) == (0.25, {"step": 3}, False)


def test_missing_weights_and_biases_are_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(InputError, match="pip install wandb"):
        WandB("films")


def test_tensorboard_reads_what_was_written(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for start, loss in ((0, 0.25), (2, 0.5)):
        writer = TensorBoard()
        writer.open(tmp_path, start, 9)
        writer.write({"step": 0, "begins": "small"})
        writer.write(LINE | {"loss": loss})
        writer.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(3, 0.5)]
