"""`cogvideox evaluate`: what it writes and says, and what it refuses in one line."""

import json

import pytest

from cogvideox.evaluation.judge import reading
from cogvideox.evaluation.judge.prompts import cases
from tests.evaluation.test_storybook import Believer


def test_storybook_writes_a_report_and_shows_it(run, models, tmp_path, monkeypatch):
    monkeypatch.setattr(reading.Judge, "load", Believer)
    asked = ("--model", models["5b"], "--set", "single", "--quick", "-o", "out")
    done = run("evaluate", "storybook", *asked)
    assert done.status == 0, done.err
    assert done.out.strip() == (tmp_path / "out" / "report.md").read_text().strip()
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert (report["prompts"], report["seeds"], list(report["sets"])) == (4, 1, ["single"])
    videos = {path.stem for path in (tmp_path / "out" / "videos").iterdir()}
    assert videos == {f"single-{case.number:02d}-0" for case in cases("single")[:4]}


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (("--set", "singel"), "unknown set of prompts 'singel' (did you mean 'single'?)"),
        (("--seeds", "0"), "seeds must be at least 1, got 0"),
        (("-o", "no/such/folder"), "no/such"),
    ],
)
def test_wrong_orders_are_one_line(run, models, asked, message):
    done = run("evaluate", "storybook", "--model", models["5b"], "-o", "out", *asked)
    assert (done.status, done.err.count("\n")) == (2, 1)
    assert message in done.err


def test_without_a_good_judge_nothing_is_made(run, models, tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "NEEDED", 1.1)
    done = run("evaluate", "storybook", "--model", models["5b"], "-o", "out")
    assert (done.status, done.err.count("\n")) == (2, 1)
    assert "judge" in done.err
    assert not (tmp_path / "out").exists()


def test_reconstruction_tells_what_a_vae_loses(run, models):
    done = run("evaluate", "reconstruction", "--model", models["5b"], "--clips", 1, "--frames", 5)
    assert done.status == 0, done.err
    values = {line[:18].strip(): float(line[18:]) for line in done.out.splitlines()}
    assert list(values) == ["psnr", "ssim", "flicker", "source flicker", "residual flicker"]
    assert 0 < values["psnr"] < 30
