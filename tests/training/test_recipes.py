"""Recipes end to end: VAE, latents, transformer and a model that generates, through the command."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from cogvideox import load
from cogvideox.checkpoints.configs import read_record
from cogvideox.core.errors import InputError
from cogvideox.training.checkpoint import Checkpoints
from cogvideox.training.footage import Storybook
from cogvideox.training.heldout import changing
from cogvideox.training.recipe import load_recipe
from cogvideox.training.vae import VAEBatches, VAEStage, motion

VAE = {
    "task": "vae",
    "seed": 0,
    "vae": {"channels": [8, 8, 16, 16], "blocks": 1, "groups": 4, "latent_channels": 4, "scale": 1.0},
    "loss": {"kl_weight": 1e-4, "perceptual": "gradients"},
    "adversarial": {"begins": 2, "ramp": 1, "model": {"channels": [8, 8, 8], "groups": 2}},
    "stages": [
        {"steps": 2, "batch": 1, "frames": 1, "crop": 32, "sizes": [32]},
        {"steps": 2, "batch": 1, "frames": 9, "crop": 32, "sizes": [32]},
    ],
    "optimizer": {"matrix_lr": 0.02, "lr": 1e-3},
}
SMALL = {"layers": 1, "heads": 2, "head_dim": 16, "time_dim": 16, "text_dim": 16, "text_length": 24}
DIFFUSION = {
    "task": "diffusion",
    "seed": 0,
    "model": {
        "name": "tiny",
        "transformer": {**SMALL, "in_channels": 4, "out_channels": 4, "base_grid": [3, 2, 2]},
        "vae": {},
        "frames": 9,
        "height": 32,
        "width": 32,
        "trained_frames": [1, 9],
        "trained_side": [32, 32],
        "steps": 2,
        "first_frame": True,
    },
    "vae": "vae",
    "text": {"layers": 1, "heads": 2, "head_dim": 8, "ff_dim": 16, "vocabulary": 200, "steps": 2},
    "data": {
        "encoded": "encoded",
        "parts": [
            {"level": "single", "frames": 9, "height": 32, "width": 32, "clips": 64},
            {"level": "single", "frames": 1, "height": 32, "width": 32, "clips": 64, "closeup": True},
        ],
    },
    "objective": {"known": 0.5},
    "stages": [
        {
            "name": "all",
            "steps": 3,
            "capacity": 216,
            "mix": {"single-9f-32x32": 4, "single-1f-32x32-closeup": 2},
        }
    ],
    "optimizer": {"matrix_lr": 0.02, "lr": 1e-3},
}


def write(path: Path, recipe: dict) -> Path:
    path.write_text(yaml.safe_dump(recipe))
    return path


def train(recipe: Path, folder: Path, *options: str) -> subprocess.CompletedProcess:
    script = (
        "import sys, torch; torch.set_num_threads(1); from cogvideox.cli.main import main; "
        "sys.argv = ['cogvideox', 'train', *sys.argv[1:], '--workers', '0']; main()"
    )
    command = [sys.executable, "-c", script, str(recipe), "--output", str(folder), *options]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def learned(run: Path, pipe) -> int:
    """Steps after which the text encoder of a model was frozen, as the run's own folder holds it."""
    step, state = Checkpoints(run / "text" / "checkpoints").load()
    for name, shipped in pipe.text_encoder.model.named_parameters():
        master = state["model"]["tensors"][f"text.{name}.0.master"]
        assert torch.equal(master.bfloat16(), shipped.bfloat16())
    return step


def test_from_recipes_to_a_model_that_generates(tmp_path):
    first = train(write(tmp_path / "vae.yaml", VAE), tmp_path / "vae")
    assert first.returncode == 0, first.stderr
    assert "perceptual loss: gradients" in first.stdout
    (tmp_path / "vae" / "perceptual.txt").write_text("lpips")
    other = train(tmp_path / "vae.yaml", tmp_path / "vae")
    assert (other.returncode, "begun with another perceptual loss" in other.stderr) == (2, True)
    measured = json.loads((tmp_path / "vae" / "metrics.jsonl").read_text().splitlines()[-1])
    assert all(5 < measured[name] < 40 for name in ("eval_psnr", "still", "moving"))
    data = DIFFUSION["data"] | {"encoded": str(tmp_path / "encoded")}
    recipe = DIFFUSION | {"vae": str(tmp_path / "vae" / "vae"), "data": data}
    second = train(write(tmp_path / "model.yaml", recipe), tmp_path / "model")
    assert second.returncode == 0, second.stderr
    assert list((tmp_path / "model" / "validation").glob("*.png"))
    line = json.loads((tmp_path / "model" / "metrics.jsonl").read_text().splitlines()[-1])
    assert line["samples"] == pytest.approx(6, abs=1)
    assert line["mfu"] > 0
    pipe = load(tmp_path / "model" / "model")
    assert pipe("a cat runs in the snow", seed=1).frames.shape == (9, 32, 32, 3)
    assert pipe.vae.spec.scale != 1.0  # measured from the latents
    assert read_record(tmp_path / "model" / "model") == {"vae": {"perceptual": "gradients"}}
    index = json.loads((tmp_path / "model" / "model" / "model_index.json").read_text())
    assert index["tokenizer"] == ["transformers", "PreTrainedTokenizerFast"]  # a name of transformers 4 too
    # The same command again finds all done: nothing is trained twice.
    again = train(tmp_path / "model.yaml", tmp_path / "model")
    assert again.returncode == 0
    assert "step 3/3" in second.stderr
    assert "step 3/3" not in again.stderr
    # The text encoder was trained first, and then frozen.
    assert learned(tmp_path / "model", pipe) == DIFFUSION["text"]["steps"]
    # A new run may go on from the model: at a rate of next to nothing it is the same, but for what its text
    # encoder goes on to learn.
    still = {"matrix_lr": 1e-9, "lr": 1e-9}
    more = recipe | {"start": str(tmp_path / "model" / "model"), "optimizer": still, "text_steps": 3}
    third = train(write(tmp_path / "more.yaml", more), tmp_path / "more")
    assert third.returncode == 0, third.stderr
    again = load(tmp_path / "more" / "model")
    for part in ("transformer", "vae"):
        new, old = (dict(getattr(p, part).named_parameters()) for p in (again, pipe))
        assert all(torch.allclose(new[name], old[name], rtol=0, atol=1e-6) for name in old)
    assert learned(tmp_path / "more", again) == 3
    assert again.text_encoder.fingerprint != pipe.text_encoder.fingerprint
    # Another text encoder in the same folder would be one that the transformer has never seen.
    other = train(tmp_path / "model.yaml", tmp_path / "model", "--set", "text.steps=3")
    assert other.returncode == 2
    assert "text.steps was 2 and is now 3; take a new --output" in other.stderr


def test_pixels_that_change_are_told_from_those_that_do_not():
    video = torch.zeros(1, 3, 4, 2, 2)
    video[0, 1, 2, 0, 1] = 0.5  # one colour of one pixel in one frame: it comes and goes
    video[0, 2, 3, 1, 1] = 0.05  # too little
    moves = changing(video)
    assert moves.sum() == 3
    assert moves[0, 1:, 0, 1].all()


def test_crops_are_cut_where_most_moves():
    stage = {"steps": 1, "batch": 1, "frames": 5, "crop": 32, "sizes": (128,)}
    plain, lively = (
        VAEBatches((VAEStage(**stage, crops=8 // n, candidates=n),), Storybook(0), seed=0)[0][
            0
        ].video_BTHWC.numpy()
        for n in (1, 8)
    )
    assert motion(lively[0]) == max(motion(clip) for clip in plain)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stepps": 1}, "stepps: unknown key"),
        ({"vae": {"chanels": [1]}}, "vae.chanels: unknown key .did you mean 'channels'"),
        ({"vae": {"channels": "x"}}, "vae.channels: "),
        ({"optimizer": {"lr": 1, "matrix_lr": 1, "weight_decai": 0}}, "did you mean 'weight_decay'"),
        ({"seed": "x"}, "seed: Input should be a valid integer"),
        ({"stages": [{"steps": 1}]}, "stages.0"),
        ({"task": "dance"}, "dance"),
    ],
)
def test_wrong_recipes_are_named(tmp_path, change, message):
    with pytest.raises(InputError, match=message):
        load_recipe(write(tmp_path / "r.yaml", VAE | change))


PARTS = DIFFUSION["data"]["parts"]


def data(**changes):
    return DIFFUSION["data"] | changes


def stage(**changes):
    return DIFFUSION["stages"][0] | changes


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": data(parts=[PARTS[0] | {"closeup": True}])}, "data.parts.0: .*of 1 frame and not 9"),
        ({"data": data(parts=PARTS[:1] * 2)}, "two parts are called single-9f-32x32"),
        ({"data": data(partss=[])}, "data.partss: unknown key .did you mean 'parts'"),
        (
            {"stages": [stage(mix={"single-9f-32x3": 4})]},
            "unknown part 'single-9f-32x3' .did you mean 'single-9f-32x32'",
        ),
        ({"stages": [stage(), stage()]}, "two stages are called all"),
        (
            {"data": {"manifest": "x", "encoded": "y"}},
            "a `manifest`, a `stream` or an `encoded` folder, one of them",
        ),
        ({"data": {"held": 3}}, "a `manifest`, a `stream` or an `encoded` folder, one of them"),
        ({"objective": {"drop_image": 1.1}}, "objective.drop_image: "),
        ({"model": DIFFUSION["model"] | {"first_frame": False}}, "known > 0 .*first_frame: true"),
        ({"objective": {"drop_txt": 0.1}}, "objective.drop_txt: unknown key .did you mean 'drop_text'"),
        ({"text": DIFFUSION["text"] | {"steps": 0}}, "text.steps"),
        ({"text_steps": 1}, "text_steps: the text encoder of a `start` goes on"),
        ({"start": "mini", "text_steps": 1, "data": {"manifest": "x"}}, "text_steps: .*on Storybook alone"),
        ({"task": "lora", "base": "mini", "text": None, "text_steps": 1}, "text_steps: "),
        ({"model": "2bb"}, "no model or folder named '2bb' .did you mean '2b'"),
    ],
)
def test_wrong_mixes_are_named_before_anything_is_made(tmp_path, change, message):
    recipe = DIFFUSION | change
    with pytest.raises(InputError, match=message):
        load_recipe(write(tmp_path / "r.yaml", recipe))


def test_unreadable_recipes_are_one_line(tmp_path):
    with pytest.raises(InputError, match="No such file"):
        load_recipe(tmp_path / "none.yaml")
    (tmp_path / "bad.yaml").write_text("a: [")
    with pytest.raises(InputError, match="not YAML"):
        load_recipe(tmp_path / "bad.yaml")
    done = train(tmp_path / "none.yaml", tmp_path / "run")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()
