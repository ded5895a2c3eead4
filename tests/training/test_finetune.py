"""An adapter from a folder of clips, in one command: trained alone, the same clip in and after training."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from cogvideox.checkpoints.lora import load_lora
from cogvideox.cli.main import main
from cogvideox.core.errors import InputError
from cogvideox.data.storybook import World
from cogvideox.data.video import read_video, write_video
from cogvideox.generation.load import load
from cogvideox.training.checkpoint import Checkpoints
from cogvideox.training.finetune import LoraTask
from cogvideox.training.recipe import load_recipe
from cogvideox.training.run import run_recipe
from tests.parallel.processes import relative_error, together
from tests.tiny import tiny_folder
from tests.training.test_loop import dying, same

SIDE, FRAMES = 32, 5
SHARED = "stages.0.sequence=2"


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


def test_the_validation_is_the_clip_that_the_command_makes(home, run, monkeypatch):
    """Bit for bit, by the adapter's file; the base's clip is another."""
    shown = run / "validation/000006/0.mp4"
    prompt = (home / "clips/prompts.txt").read_text().splitlines()[0]
    size = ["--frames", FRAMES, "--size", f"{SIDE}x{SIDE}", "--seed", 0]
    options = ["--model", home / "base", "--lora", run / "adapter", *size, "--output", home / "again.mp4"]
    monkeypatch.setattr(sys, "argv", ["cogvideox", "generate", prompt, *map(str, options)])
    with pytest.raises(SystemExit) as end:
        main()
    assert not end.value.code
    assert np.array_equal(read_video(home / "again.mp4").frames, read_video(shown).frames)
    base = read_video(run / "validation/base/0.mp4").frames
    assert not np.array_equal(base, read_video(shown).frames)


def test_a_run_that_died_goes_on_bit_for_bit(home, run, monkeypatch):
    """Weights, moments and averages, and the file."""
    often = recipe(home, "every={log: 1, evaluate: 3, save_seconds: 0}")
    with dying(monkeypatch, LoraTask, at=4):
        run_recipe(often, home / "parts", workers=0)
    assert Checkpoints(home / "parts/checkpoints").steps()[-1] == 4
    run_recipe(often, home / "parts", workers=0)
    mine, theirs = (Checkpoints(folder / "checkpoints").load() for folder in (home / "parts", run))
    assert same(mine, theirs)
    name = "pytorch_lora_weights.safetensors"  # its header may name them in another order
    assert same(load_file(home / "parts/adapter" / name), load_file(run / "adapter" / name))


def some_steps(home: str) -> None:
    run_recipe(recipe(Path(home), "stages.0.steps=3", SHARED), Path(home) / "ranks", workers=0)


def test_two_processes_share_rows_and_one_goes_on(home, run):
    together(2, some_steps, str(home))
    run_recipe(recipe(home, SHARED), home / "ranks", workers=0)
    mine, theirs = load_lora(home / "ranks/adapter"), load_lora(run / "adapter")
    for name, layer in theirs.layers.items():
        assert relative_error(mine.layers[name].up, layer.up) < 1e-2, name


def test_blocks_may_be_recomputed(home, run):
    """As all recipes of released models do: the base's blocks, and the same adapter but for rounding."""
    run_recipe(recipe(home, "parallel.recompute=true"), home / "again", workers=0)
    mine, theirs = load_lora(home / "again/adapter"), load_lora(run / "adapter")
    for name, layer in theirs.layers.items():
        assert relative_error(mine.layers[name].up, layer.up) < 1e-2, name


def test_its_base_is_never_sharded(home):
    with pytest.raises(InputError, match=r"parallel\.shards: the base of an adapter is whole"):
        recipe(home, "parallel.shards=2")


def test_what_cannot_be_trained_is_told_before_anything_is_made(home):
    with pytest.raises(InputError, match=r"attention\.qkv"):
        run_recipe(recipe(home, "lora.targets=[attention.qvk]"), home / "never", workers=0)
    assert not (home / "never/encoded").exists()
    with pytest.raises(InputError, match="no model or folder"):
        recipe(home, f"base={home / 'nothing'}")
