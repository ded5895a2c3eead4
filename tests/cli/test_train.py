"""`cogvideox train`: what it returns, and what it refuses before anything is made."""

import sys

import pytest

from cogvideox.core.errors import NonFiniteError
from cogvideox.training import run as runs
from cogvideox.training.interrupt import Stopped
from cogvideox.training.live import View
from cogvideox.training.metrics import TensorBoard
from tests.training.test_recipes import VAE, write


@pytest.fixture
def recipe(tmp_path):
    return write(tmp_path / "r.yaml", VAE)


def ends(monkeypatch, error=None):
    """Have runs end like this; returns what they are called with."""
    calls = []

    def fake(recipe, folder, **options):
        calls.append((recipe, folder, options))
        if error is not None:
            raise error
        return folder / "vae"

    monkeypatch.setattr(runs, "run_recipe", fake)
    return calls


def test_a_run_ends_with_the_path_of_its_result(run, recipe, monkeypatch):
    calls = ends(monkeypatch)
    done = run("train", recipe, "--output", "out", "--set", "seed=7", "--set", "every.log=3", "--workers", 2)
    assert (done.status, done.out.strip()) == (0, "out/vae")
    made, _, options = calls[0]
    assert (made.seed, made.every.log, options["workers"]) == (7, 3, 2)
    assert [type(writer) for writer in options["writers"]] == [View, TensorBoard]


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (Stopped(8, 40), 0, "stopped after step 8 of 40, all is saved; the same command goes on"),
        (NonFiniteError("training step 13: ..."), 3, "cogvideox: training step 13: ..."),
    ],
)
def test_how_a_run_ends_early(run, recipe, monkeypatch, error, status, said):
    ends(monkeypatch, error)
    done = run("train", recipe, "--output", "out")
    assert (done.status, (done.out + done.err).strip()) == (status, said)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((), "--output DIR says where the run goes"),
        (("--output", "out", "--wandb", "films"), "wandb is not installed; pip install wandb"),
        (("--output", "out", "--set", "sed=1"), "sed: unknown key (did you mean 'seed'?)"),
    ],
)
def test_what_cannot_be_is_one_line_and_makes_nothing(run, recipe, monkeypatch, tmp_path, options, said):
    calls = ends(monkeypatch)
    monkeypatch.setitem(sys.modules, "wandb", None)
    done = run("train", recipe, *options)
    assert (done.status, done.out) == (2, "")
    assert done.err.strip().endswith(said)
    assert not calls
    assert not (tmp_path / "out").exists()


def test_tensorboard_is_left_out_where_it_is_not_installed(run, recipe, monkeypatch):
    calls = ends(monkeypatch)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    done = run("train", recipe, "--output", "out")
    assert (done.status, [type(writer) for writer in calls[0][2]["writers"]]) == (0, [View])
    assert "cogvideox[train]" in done.err
