"""A tiny random model of each kind, loaded once."""

import pytest

import cogvideox
from cogvideox.generation.generate import Place
from cogvideox.generation.pipeline import Pipeline
from tests.tiny import tiny_folder, tiny_model, tiny_spec


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return tiny_folder(tmp_path_factory.mktemp("models") / "5b", "5b")


@pytest.fixture(scope="session")
def pipe(folder):
    return cogvideox.load(folder, dtype="fp32", device="cpu")


@pytest.fixture
def fresh():
    """Makes pipelines that a test may damage: `fresh("5b-i2v", first_frame=True)`."""
    import dataclasses

    def make(like="5b", **changes):
        model = tiny_model(dataclasses.replace(tiny_spec(like), **changes))
        return Pipeline(model, Place.pick("cpu", "fp32"))

    return make
