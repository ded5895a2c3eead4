"""The recipes of mini, shortened, trained for real: minutes each."""

import json

import pytest
import torch

import cogvideox
from cogvideox.data.metrics import frame_psnr
from cogvideox.data.storybook import World
from cogvideox.data.video import read_video, write_video
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


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Twelve clips of one rocket, so that one can be kept for validation."""
    home = tmp_path_factory.mktemp("clips")
    prompts = []
    for index in range(12):
        clip = World(seed=5, split="train", level="single").describe(
            "rocket", "move up", "meadow", duration=2
        )
        write_video(home / f"{index}.mp4", [clip.render(17, 8, 128, 128, start=0.05 * index)], 8.0)
        prompts.append(clip.short_caption(index))
    (home / "prompts.txt").write_text("\n".join(prompts))
    (home / "videos.txt").write_text("\n".join(f"{index}.mp4" for index in range(12)))
    return home


def tuned(clips, folder, lr):
    """Losses of each validation, and the likeness of a clip that is made to one that was shown."""
    steps = ["stages.0.steps=160", "every={log: 20, evaluate: 40}", f"optimizer.lr={lr}"]
    recipe = load_recipe("recipes/lora/mini.yaml", [f"data.manifest={clips}", "data.held=1", *steps])
    adapter = run_recipe(recipe, folder)
    prompt = (clips / "prompts.txt").read_text().splitlines()[0]
    made = cogvideox.load("mini", lora=[adapter])(prompt, frames=17, seed=0).frames
    pair = (torch.from_numpy(x).permute(0, 3, 1, 2) / 255 for x in (made, read_video(clips / "0.mp4").frames))
    return [line for line in lines(folder) if "val" in line], frame_psnr(*pair)


def test_a_few_clips_are_learned_and_absurd_rates_show(clips, tmp_path):
    """The loss of a clip that was kept back falls; a rate of 30 breaks what validation sees (one that
    looked at other weights would not notice).
    """
    (base, *_), like_base = tuned(clips, tmp_path / "base", 0.0)
    good, like_good = tuned(clips, tmp_path / "good", 1e-3)
    bad, like_bad = tuned(clips, tmp_path / "bad", 30.0)
    assert good[-1]["val"] < good[0]["val"] < base["val"]
    falls = [good[-1][f"val_{t}"] < base[f"val_{t}"] for t in (100, 300, 500, 700, 900)]
    assert sum(falls) >= 4, falls  # of few clips some noise levels learn little
    assert like_good > max(15, like_base + 1)
    assert bad[-1]["val"] > 1.5 * base["val"]
    assert like_bad < like_good - 1.5
