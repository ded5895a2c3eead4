"""A run's folder: what it was made from, and what may change when it goes on."""

import json
import subprocess

import pytest
import yaml

import cogvideox
from cogvideox.core.errors import InputError
from cogvideox.generation.generate import Place
from cogvideox.training import folder as folders
from cogvideox.training.folder import begin, commit
from cogvideox.training.recipe import load_recipe
from tests.test_architecture import RECIPES
from tests.training.test_recipes import DIFFUSION, VAE, write

PLACE = Place.pick("cpu")


def begun(tmp_path, recipe=VAE, *changes):
    asked = load_recipe(write(tmp_path / "r.yaml", recipe), changes)
    begin(tmp_path / "run", asked, ["cogvideox", "train"], PLACE)
    (tmp_path / "run" / "checkpoints").mkdir(exist_ok=True)
    (tmp_path / "run" / "checkpoints" / "step-00000002").touch()
    return tmp_path / "run"


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_a_resolved_recipe_is_the_same_recipe(path, tmp_path):
    recipe = load_recipe(path)
    begin(tmp_path, recipe, [], PLACE)
    assert load_recipe(tmp_path / "recipe.yaml") == recipe


def test_the_resolved_recipe_holds_defaults_and_changes(tmp_path):
    home = begun(tmp_path, VAE, "optimizer.lr=0.5", "every.log=7")
    resolved = yaml.safe_load((home / "recipe.yaml").read_text())
    assert (resolved["optimizer"]["lr"], resolved["optimizer"]["clip"]) == (0.5, 1.0)
    assert resolved["every"] == {"log": 7, "evaluate": 500, "save_seconds": 180.0, "keep": 3}


def test_every_start_is_recorded_with_what_it_depends_on(tmp_path):
    begun(tmp_path)
    starts = json.loads((begun(tmp_path) / "environment.json").read_text())
    assert [start["command"] for start in starts] == [["cogvideox", "train"]] * 2
    assert starts[0]["versions"]["cogvideox"] == cogvideox.__version__
    assert {"torch", "python"} <= set(starts[0]["versions"])


def test_the_commit_of_the_sources_is_told_apart_from_none(monkeypatch, tmp_path):
    source = tmp_path / "src" / "cogvideox"
    source.mkdir(parents=True)
    monkeypatch.setattr(folders.cogvideox, "__file__", str(source / "__init__.py"))
    assert commit() is None
    for words in (
        ("init", "-q"),
        ("-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "--allow-empty", "-m", "x"),
    ):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    assert len(commit()) == 40


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        (["optimizer.lr=0.5"], "optimizer.lr was 0.001 and is now 0.5"),
        (["seed=1"], "seed was 0 and is now 1"),
        (["stages.0.steps=3"], "stages.0.steps was 2 and is now 3"),
        (["stages.1.steps=1"], "stages.1.steps was 2 and is now 1"),
        (["stages.1.sizes=[32, 48]"], "stages.1.sizes.1 was None and is now 48"),
    ],
)
def test_a_run_goes_on_with_its_own_recipe_only(tmp_path, changes, key):
    home = begun(tmp_path)
    before = (home / "recipe.yaml").read_text()
    with pytest.raises(InputError, match=key):
        begun(tmp_path, VAE, *changes)
    assert (home / "recipe.yaml").read_text() == before


def test_a_run_may_become_longer_and_log_more(tmp_path):
    begun(tmp_path)
    home = begun(tmp_path, VAE, "stages.1.steps=9", "every.log=1")
    assert yaml.safe_load((home / "recipe.yaml").read_text())["stages"][1]["steps"] == 9
    with pytest.raises(InputError, match=r"stages.2\.\w+ was None"):
        begun(tmp_path, VAE | {"stages": [*VAE["stages"], VAE["stages"][0]]}, "stages.1.steps=9")


def test_what_has_not_begun_may_change(tmp_path):
    home = begun(tmp_path)
    (home / "checkpoints" / "step-00000002").unlink()
    begun(tmp_path, VAE, "seed=1")


def test_a_run_whose_text_encoder_learns_has_begun(tmp_path):
    home = begun(tmp_path)
    (home / "checkpoints").rename(tmp_path / "elsewhere")
    (home / "text").mkdir()
    (tmp_path / "elsewhere").rename(home / "text" / "checkpoints")
    with pytest.raises(InputError, match="seed was 0 and is now 1"):
        begun(tmp_path, VAE, "seed=1")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("optimizer.lrr=1", "optimizer.lrr: unknown key .did you mean 'lr'"),
        ("optimiser.lr=1", "optimiser: unknown key"),
        ("stages.1.steps=x", "stages.1.steps: Input should be a valid integer"),
        ("stages.2.steps=1", "there is no '2' in a list of 2"),
        ("seed.x=1", "there is no 'x' in 0"),
        ("seed", "not KEY=VALUE"),
        ("seed=[", "not a YAML value"),
    ],
)
def test_changes_that_make_no_sense_are_named(tmp_path, change, message):
    with pytest.raises(InputError, match=message) as error:
        load_recipe(write(tmp_path / "r.yaml", VAE), [change])
    assert "\n" not in str(error.value)


def test_changes_reach_lists_sections_and_what_was_not_there(tmp_path):
    changes = ["stages.1.steps=7", "optimizer.lr=1e-4", "every.keep=1", "stages.0.sizes=[32, 64]"]
    recipe = load_recipe(write(tmp_path / "r.yaml", VAE), changes)
    assert (recipe.stages[1].steps, recipe.optimizer.lr, recipe.every.keep) == (7, 1e-4, 1)
    assert recipe.stages[0].sizes == (32, 64)
    changes = ["model=2b", "objective.known=0", "objective.per=number"]
    named = load_recipe(write(tmp_path / "d.yaml", DIFFUSION), changes)
    assert named.model.transformer.layers == 30
    assert (named.objective.known, named.objective.per, named.objective.drop_text) == (0, "number", 0.1)
