"""An adapter from a folder of clips, in one command: trained alone, the same clip in and after training."""

import json

import numpy as np
import pytest
import torch

from cogvideox.checkpoints.lora import load_lora
from cogvideox.core.errors import InputError
from cogvideox.data.storybook import World
from cogvideox.data.video import read_video, write_video
from cogvideox.generation.load import load
from cogvideox.training.recipe import load_recipe
from cogvideox.training.run import run_recipe
from tests.tiny import tiny_folder

SIDE, FRAMES = 32, 5


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A tiny base and a folder of clips, one of them damaged."""
    home = tmp_path_factory.mktemp("finetune")
    tiny_folder(home / "base", "5b")
    (home / "clips").mkdir()
    world, prompts = World(seed=3, split="train", level="single"), []
    for index in range(6):
        clip = world.clip(index, duration=1.0)
        video = clip.render(frames=FRAMES, fps=8, height=SIDE, width=SIDE)
        write_video(home / f"clips/{index}.mp4", [video], 8.0)
        prompts.append(clip.short_caption(0))
    (home / "clips/2.mp4").write_bytes(b"damaged")
    (home / "clips/prompts.txt").write_text("\n".join(prompts))
    (home / "clips/videos.txt").write_text("\n".join(f"{index}.mp4" for index in range(6)))
    return home


def recipe(home, *changes):
    fixed = [
        f"base={home / 'base'}",
        f"data.manifest={home / 'clips'}",
        f"stages.0.largest=[{FRAMES}, {SIDE}, {SIDE}]",
        "stages.0.capacity=64",
        "stages.0.steps=6",
        "data.held=0",
        "lora.rank=2",
        "every={log: 1, evaluate: 3}",
    ]
    return load_recipe("recipes/lora/mini.yaml", [*fixed, *changes])


@pytest.fixture(scope="module")
def run(home):
    assert run_recipe(recipe(home), home / "run", workers=0) == home / "run/adapter"
    return home / "run"


def test_one_command_trains_the_adapter_alone(home, run):
    lora, base = load_lora(run / "adapter"), load(home / "base", device="cpu", dtype="bf16")
    assert lora.base_fingerprint == base.model.fingerprint
    assert {layer.rank for layer in lora.layers.values()} == {2}
    still = [name for name, layer in lora.layers.items() if not layer.up.any()]  # they start as zeros
    assert not still
    lines = [json.loads(line) for line in (run / "metrics.jsonl").open()]
    moved = [line["moved"] for line in lines if "moved" in line]
    assert 0 < moved[0] < moved[1]
    # The damaged clip was rejected when it was listed: nobody tried to encode it.
    assert not (run / "encoded/unreadable.jsonl").read_text()


def test_the_validation_is_the_clip_that_users_get(home, run):
    """Bit for bit, by the adapter's file; the base's clip is another."""
    shown = run / "validation/000006/0.mp4"
    prompt = (home / "clips/prompts.txt").read_text().splitlines()[0]
    pipe = load(home / "base", lora=[run / "adapter"])
    made = pipe(prompt, frames=FRAMES, height=SIDE, width=SIDE, seed=0)
    made.save(home / "again.mp4")
    assert np.array_equal(read_video(home / "again.mp4").frames, read_video(shown).frames)
    base = read_video(run / "validation/base/0.mp4").frames
    assert not np.array_equal(base, read_video(shown).frames)


def test_a_stopped_run_goes_on_bit_for_bit(home, run):
    run_recipe(recipe(home, "stages.0.steps=3"), home / "parts", workers=0)
    run_recipe(recipe(home), home / "parts", workers=0)
    mine, theirs = load_lora(home / "parts/adapter"), load_lora(run / "adapter")
    for name, layer in theirs.layers.items():
        assert torch.equal(mine.layers[name].up, layer.up)


def test_what_cannot_be_trained_is_told_before_anything_is_made(home):
    with pytest.raises(InputError, match=r"attention\.qkv"):
        run_recipe(recipe(home, "lora.targets=[attention.qvk]"), home / "never", workers=0)
    assert not (home / "never/encoded").exists()
    with pytest.raises(InputError, match="no model or folder"):
        recipe(home, f"base={home / 'nothing'}")
