"""`cogvideox calibrate`, and what `generate` does with its file."""

import json

import numpy as np
import pytest

from cogvideox.data.video import read_metadata, read_video
from cogvideox.evaluation import calibrate

MACHINE = ("--dtype", "fp32", "--device", "cpu")
SHAPE = ("--frames", 5, "--steps", 6, "--sampler", "ddim")


@pytest.fixture
def plan_file(run, models, tmp_path, monkeypatch):
    monkeypatch.setattr(calibrate, "HIGH_PSNR", 0.0)
    monkeypatch.setattr(calibrate, "MARGIN", 0.0)
    monkeypatch.setattr(calibrate, "FAST", 0.0)
    monkeypatch.setattr(calibrate, "GAIN", 0.0)
    (tmp_path / "words.txt").write_text("a red dog runs\n")
    done = run("calibrate", models["5b"], "-o", "plan.json", "--prompts", "words.txt", *SHAPE, *MACHINE)
    assert done.status == 0, done.err
    header, exact, *_, high, fast = done.out.splitlines()
    assert header.split() == ["way", "steps", "time", "faster", "PSNR", "worst", "SSIM", "edges", "plan"]
    assert exact.startswith("exact ")
    assert high.startswith("high: ")
    assert fast.startswith("fast: ")
    return tmp_path / "plan.json"


def test_a_preset_is_shown_made_recorded_and_repeated(run, models, plan_file, tmp_path):
    found = json.loads(plan_file.read_text())
    high = found["presets"]["high"]
    preset = ("generate", "a cat", "--model", models["5b"], "--frames", 5, "--sampler", "ddim", *MACHINE)
    preset = (*preset, "--quality", "high", "--plan", plan_file)

    shown = run(*preset, "--dry-run", "--json")
    assert f"plan {high['plan']}: " in shown.err
    assert f"{high['price']['faster']:.1f}x as fast, PSNR {high['price']['psnr']:.1f} dB" in shown.err
    assert found["machine"] in shown.err
    assert json.loads(shown.out)["quality"] == {"name": "high", "price": high["price"]}

    assert run(*preset, "-o", "x.mp4").status == 0
    record = read_metadata(tmp_path / "x.mp4")
    assert record["quality"] == {"name": "high", "price": high["price"]}
    assert (record["request"]["plan"], record["request"]["steps"]) == (high["plan"], high["steps"])

    plan_file.unlink()
    assert run("generate", "--from", "x.mp4", "-o", "y.mp4").status == 0
    assert run("generate", "--from", "x.mp4", "--quality", "exact", "--steps", 6, "-o", "z.mp4").status == 0
    x, y, z = (read_video(tmp_path / f"{name}.mp4").frames for name in "xyz")
    assert np.array_equal(x, y)
    assert "plan" not in read_metadata(tmp_path / "z.mp4")["request"]
    if high["plan"] != "f6":
        assert not np.array_equal(x, z)


def test_a_plan_file_needs_a_preset(run, models, plan_file):
    done = run("generate", "a cat", "--model", models["5b"], "--plan", plan_file)
    assert done.status == 2
    assert "holds presets: choose one" in done.err


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("--quality", "fast"), "run `cogvideox calibrate`"),
        (("--quality", "faster"), "did you mean 'fast'"),
        (("--plan", "f3q"), "not one such as f6rfrf21"),
        (("--plan", "f3", "--steps", 5), "for 3 steps, not 5"),
    ],
)
def test_what_was_not_measured_is_one_line_and_status_2(run, models, arguments, word):
    done = run("generate", "a cat", "--model", models["5b"], *arguments, *MACHINE)
    assert done.status == 2
    assert word in done.err
    assert done.err.count("\n") == 1


def test_plans_can_be_written_by_hand(run, models, tmp_path):
    done = run("generate", "a cat", "--model", models["5b"], "--plan", "f2rf/p3h", "-o", "x.mp4", *MACHINE)
    assert done.status == 0, done.err
    assert "plan f2rf/p3h: 3 of 4 steps in full, guidance in 4; price not measured" in done.err
    assert read_metadata(tmp_path / "x.mp4")["quality"] == {"name": "by plan", "price": None}
