"""`cogvideox train` under torchrun: the losses and the files of one process."""

import json
from pathlib import Path

import pytest

from cogvideox import load
from cogvideox.generation.generate import Place
from cogvideox.training.checkpoint import Checkpoints
from cogvideox.training.recipe import load_recipe
from cogvideox.training.run import run_recipe
from tests.parallel.processes import relative_error
from tests.parallel.test_generation import torchrun
from tests.tiny import tiny_folder, tiny_spec
from tests.training.test_recipes import DIFFUSION, SMALL, VAE, write

FULL = Place.pick("cpu", "fp32")
LAYOUT = {"ranks": 2, "shards": 2, "recompute": True}


def recipe(folder: Path) -> Path:
    """Two stages: in the second both processes share every row."""
    spec = tiny_spec("5b", **SMALL | {"text_length": 12})
    model = DIFFUSION["model"] | {"transformer": DIFFUSION["model"]["transformer"] | {"text_length": 12}}
    stage = DIFFUSION["stages"][0] | {"rows": 3, "steps": 2}
    given = {
        "model": model,
        "vae": str(tiny_folder(folder / "given", spec)),
        "data": DIFFUSION["data"] | {"encoded": str(folder / "encoded")},
        "stages": [stage, stage | {"name": "shared", "sequence": 2}],
        "parallel": LAYOUT,
        "every": {"log": 1},
    }
    kept = {name: value for name, value in DIFFUSION.items() if name != "text"}
    return write(folder / "recipe.yaml", kept | given)


def losses(folder: Path) -> list[float]:
    log = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in log if "begins" not in line]


@pytest.mark.filterwarnings("ignore:the prompt has")
def test_two_processes_train_as_one_does(tmp_path):
    path = recipe(tmp_path)
    options = ("-m", "cogvideox", "train", path, "--output", "two", "--workers", "0")
    made = torchrun(*options, folder=tmp_path)
    assert made.returncode == 0, made.stderr
    assert made.stdout.strip() == "two/model"  # one line: the other process is silent
    assert made.stderr.count("step 4/4") == 1
    run_recipe(load_recipe(path), tmp_path / "one", workers=0)
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-3)
    two, one = (Checkpoints(tmp_path / name / "checkpoints") for name in ("two", "one"))
    assert two.steps() == one.steps() == [2, 4]
    assert two.load()[1]["model"]["tensors"].keys() == one.load()[1]["model"]["tensors"].keys()
    assert load(tmp_path / "two" / "model").transformer.spec.layers == 1


def test_two_processes_train_a_vae_as_one_does(tmp_path):
    """First each with clips of its own, then with halves of the same ones; the discriminator included."""
    stages = [
        {"steps": 2, "batch": 2, "micro": 2, "frames": 5, "crop": 16, "sizes": [32]},
        {"steps": 2, "batch": 1, "frames": 17, "crop": 16, "sizes": [32], "sequence": 2},
    ]
    judge = {"begins": 1, "ramp": 1, "model": {"channels": [8, 8, 8], "groups": 4}}
    path = write(tmp_path / "vae.yaml", VAE | {"stages": stages, "adversarial": judge, "every": {"log": 1}})
    options = ("-m", "cogvideox", "train", path, "--output", "two", "--workers", "0", "--dtype", "fp32")
    made = torchrun(*options, folder=tmp_path)
    assert made.returncode == 0, made.stderr
    run_recipe(load_recipe(path), tmp_path / "one", workers=0, place=FULL)
    both = []
    for name in ("two", "one"):
        lines = map(json.loads, (tmp_path / name / "metrics.jsonl").read_text().splitlines())
        both.append([line for line in lines if "begins" not in line])
    for name in ("vae_loss", "l1", "kl", "discriminator_loss", "samples"):
        values = [[line[name] for line in lines if name in line] for lines in both]
        assert values[0] == pytest.approx(values[1], rel=2e-2), name
    # One process goes on where two have stopped.
    states = []
    for name in ("two", "one"):
        run_recipe(load_recipe(path, ["stages.1.steps=3"]), tmp_path / name, workers=0, place=FULL)
        step, state = Checkpoints(tmp_path / name / "checkpoints").load()
        assert step == 5
        states.append(state)
    for phase in ("vae", "discriminator"):
        ours, theirs = (state[phase]["tensors"] for state in states)
        for name, tensor in theirs.items():
            if name.endswith(("master", "ema")):
                assert relative_error(ours[name], tensor) < 1e-2, name
