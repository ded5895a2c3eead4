"""A manifest trains a model, encoded beforehand or as it is; text-to-video becomes image-to-video."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from pydantic import TypeAdapter

from cogvideox import load
from cogvideox.core.errors import InputError
from cogvideox.data.manifest import write_manifest
from cogvideox.data.samples import Rule
from cogvideox.data.storybook.rows import Part, rows
from cogvideox.models.text import TextEncoder
from cogvideox.models.vae.autoencoder import VAE
from cogvideox.training.checkpoint import Checkpoints
from cogvideox.training.diffusion import DiffusionTask
from cogvideox.training.encode import Encoder, Order, encode_manifest
from cogvideox.training.recipe import DiffusionRecipe
from cogvideox.training.run import run_recipe
from cogvideox.training.stores import encode_storybook, storybook_rows
from tests.tiny import tiny_folder, tiny_model, tiny_spec
from tests.training.test_loop import dying, same


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A manifest of 24 clips and pictures, and a text-to-video model with its image-to-video kin."""
    root = tmp_path_factory.mktemp("home")
    parts = (
        Part(frames=9, height=32, width=48, clips=12, level="single"),
        Part(frames=1, height=32, width=32, clips=12, level="single"),
    )
    write_manifest(root / "clips.jsonl", [row for part in parts for row in rows(part, 0)])
    for like in ("5b", "5b-i2v"):
        tiny_folder(root / like, like)
    return root


def recipe(home, like, data, **more):
    stages = [
        {"name": "small", "steps": 1, "capacity": 60, "mix": {"image": 1}},
        {"name": "all", "steps": 2, "capacity": 120, "rows": 2, "mix": {"image": 1, "clip": 2}},
    ]
    values = {"task": "diffusion", "seed": 0, "model": tiny_spec(like), "vae": str(home / "5b"), "data": data,
              "stages": stages, "optimizer": {"matrix_lr": None, "lr": 1e-3}}  # fmt: skip
    return TypeAdapter(DiffusionRecipe).validate_python(values | more)


def encode(home, like, output):
    order = {
        "manifest": home / "clips.jsonl",
        "model": str(home / like),
        "output": output,
        "rules": (Rule(9),),
    }
    order |= {"fps": None, "texts": True, "seed": 0, "workers": 0, "device": "cpu", "dtype": "fp32"}
    encode_manifest(Order(**order), lambda told: None)


def measured(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.filterwarnings("ignore:the prompt has", "ignore:diffusers will scale")
def test_a_text_to_video_model_learns_image_to_video_from_an_encoded_manifest(home, tmp_path):
    encode(home, "5b", tmp_path / "plain")
    with pytest.raises(InputError, match="no image conditions: encode it with an image-to-video model"):
        run_recipe(recipe(home, "5b-i2v", {"encoded": tmp_path / "plain"}), tmp_path / "none", workers=0)
    encode(home, "5b-i2v", tmp_path / "encoded")
    asked = recipe(home, "5b-i2v", {"encoded": tmp_path / "encoded", "held": 2}, start=str(home / "5b"))
    made = run_recipe(asked, tmp_path / "run", workers=0)
    last = measured(tmp_path / "run")[-1]
    assert last["step"] == 3
    assert last["unreadable"] == 0
    assert 0.5 < last["fill"] <= 1
    assert last["val"] > 0
    assert len(list((tmp_path / "run" / "validation").glob("000003/*"))) == 2  # one source in two shapes
    weight = load(made).transformer.patch_embed.weight
    old = tiny_model("5b").transformer.patch_embed.weight
    assert weight.shape[1] == 2 * old.shape[1]
    assert torch.allclose(weight[:, : old.shape[1]].float(), old, atol=0.02)
    assert weight[:, old.shape[1] :].any()


@pytest.mark.filterwarnings("ignore:the prompt has")
def test_a_run_that_died_goes_on_bit_for_bit(home, tmp_path, monkeypatch):
    """In its second stage, on stored latents: weights, moments and averages."""
    encode(home, "5b", tmp_path / "encoded")
    asked = recipe(home, "5b", {"encoded": tmp_path / "encoded"}, every={"save_seconds": 0})
    run_recipe(asked, tmp_path / "whole", workers=0)
    with dying(monkeypatch, DiffusionTask, at=2):
        run_recipe(asked, tmp_path / "halves", workers=0)
    run_recipe(asked, tmp_path / "halves", workers=0)
    whole, halves = (Checkpoints(tmp_path / name / "checkpoints").load() for name in ("whole", "halves"))
    assert whole[0] == 3
    assert same(whole, halves)


@pytest.mark.filterwarnings("ignore:the prompt has", "ignore:diffusers will interpolate")
def test_a_manifest_trains_without_being_encoded(home, tmp_path):
    """The model that is written has the positions of the last stage."""
    asked = recipe(home, "5b", {"manifest": home / "clips.jsonl"})
    assert asked.model.position_policy == "interpolate"
    last = asked.stages[-1].model_copy(update={"positions": "extrapolate"})
    asked = asked.model_copy(update={"stages": (asked.stages[0], last)})
    made = run_recipe(asked, tmp_path / "run", workers=1)
    assert load(made).spec.position_policy == "extrapolate"
    lines = measured(tmp_path / "run")
    assert lines[-1]["samples"] > 0
    assert [line["begins"] for line in lines if "begins" in line] == ["small", "all"]


@pytest.mark.filterwarnings("ignore:the prompt has")
def test_stored_latents_and_texts_need_no_vae_and_no_text_encoder(home, tmp_path, monkeypatch):
    """They are read for the final validation alone."""
    encode(home, "5b", tmp_path / "encoded")
    seen = []
    original = VAE.__init__, TextEncoder.__init__
    monkeypatch.setattr(VAE, "__init__", lambda *a: (seen.append("vae"), original[0](*a))[1])
    monkeypatch.setattr(
        TextEncoder, "__init__", lambda *a, **k: (seen.append("text"), original[1](*a, **k))[1]
    )
    monkeypatch.setattr(
        "cogvideox.training.diffusion.DiffusionTask.evaluate", lambda *a: seen.append("validation") or {}
    )
    run_recipe(recipe(home, "5b", {"encoded": tmp_path / "encoded"}), tmp_path / "run", workers=0)
    assert seen[0] == "validation"
    assert set(seen) == {"validation", "vae", "text"}  # of the model that is written at the end


@pytest.mark.filterwarnings("ignore:the prompt has", "ignore:diffusers will scale")
def test_stored_latents_are_those_of_the_recipe_s_model(home, tmp_path):
    """With scales that only a model's own file tells, as of the released 1.5 models."""
    spec = tiny_spec("5b")
    spec = replace(spec, vae=replace(spec.vae, condition_scale=0.5))
    own = tiny_folder(tmp_path / "own", spec)
    encode(home, own, tmp_path / "encoded")
    data = {"encoded": tmp_path / "encoded"}
    run_recipe(recipe(home, "5b", data, vae=str(own)), tmp_path / "run", workers=0)
    with pytest.raises(InputError, match="another VAE"):
        run_recipe(recipe(home, "5b", data), tmp_path / "other-vae", workers=0)
    shutil.rmtree(own / "text_encoder")
    shutil.copytree(tiny_folder(tmp_path / "kin", spec, seed=9) / "text_encoder", own / "text_encoder")
    with pytest.raises(InputError, match="another text encoder"):
        run_recipe(recipe(home, "5b", data, vae=str(own)), tmp_path / "other-text", workers=0)


def test_parts_of_storybook_are_encoded_once_and_may_grow(tmp_path):
    model = tiny_model("5b")
    encoder = Encoder(model.spec, model.vae, None, 3)
    few = (Part(frames=9, height=32, width=32, clips=2, level="single"),)
    first = encode_storybook(few, tmp_path, encoder, "hash", workers=0)
    assert [sample.row.id for sample in first.samples] == [f"single-9f-32x32/train/{n}" for n in range(2)]
    written = (tmp_path / "manifest.jsonl").stat().st_mtime_ns
    encode_storybook(few, tmp_path, encoder, "hash", workers=0)
    assert (tmp_path / "manifest.jsonl").stat().st_mtime_ns == written
    more = (Part(frames=9, height=32, width=32, clips=3, level="single"),)
    assert len(encode_storybook(more, tmp_path, encoder, "hash", workers=0).samples) == 3
    assert [row.id for row in storybook_rows(more, 3, tmp_path)][-1] == "single-9f-32x32/train/2"
    with pytest.raises(InputError, match="another VAE"):
        encode_storybook(more, tmp_path, encoder, "other", workers=0)
    with pytest.raises(InputError, match="another shape plan"):
        encode_storybook(more, tmp_path, Encoder(model.spec, model.vae, None, 4), "hash", workers=0)
