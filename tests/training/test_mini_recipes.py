"""The recipes of mini, shortened, trained for real: minutes each."""

import json

import pytest

import cogvideox
from cogvideox.training.recipe import load_recipe
from cogvideox.training.run import run_recipe

pytestmark = pytest.mark.slow


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").open()]


def test_a_vae_learns_pictures_then_clips(tmp_path):
    """Far above what the mean colour of each clip would give, some 12 dB."""
    stages = (
        "[{steps: 120, batch: 8, crops: 2, frames: 1, crop: 64, sizes: [96, 128]},"
        " {steps: 60, batch: 2, crops: 2, frames: 9, crop: 32, sizes: [96, 128]}]"
    )
    changes = [f"stages={stages}", "every={log: 20, evaluate: 60}", "adversarial=null", "optimizer.ema=0.95"]
    home = run_recipe(load_recipe("recipes/mini/vae.yaml", changes), tmp_path / "run")
    found = [line["eval_psnr"] for line in lines(tmp_path / "run") if "eval_psnr" in line]
    assert found[0] < found[1]
    assert found[-1] > 17
    assert (home / "config.json").exists()


def test_mini_goes_on_from_its_shipped_weights(tmp_path):
    """`make mini`: the first losses are those of a trained model, and what stands in `model` makes clips."""
    parts = (
        "[{level: single, frames: 1, height: 64, width: 64, clips: 128, closeup: true},"
        " {level: full, frames: 17, height: 64, width: 64, clips: 64}]"
    )
    changes = [
        f"data.parts={parts}",
        f"data.encoded={tmp_path / 'encoded'}",
        "stages.0.mix={single-1f-64x64-closeup: 2, full-17f-64x64: 1}",
        "stages.0.steps=12",
        "stages.0.capacity=2048",
        "every={log: 4, evaluate: 6}",
    ]
    home = run_recipe(load_recipe("recipes/mini/more.yaml", changes), tmp_path / "run")
    assert max(line["loss"] for line in lines(tmp_path / "run") if "loss" in line) < 0.7  # 1 for no model
    model, shipped = cogvideox.load(str(home)), cogvideox.load("mini")
    assert model.model.fingerprint != shipped.model.fingerprint
    assert model("a tiger walks in a forest", height=64, width=64, frames=5, steps=4).frames.shape[0] == 5
