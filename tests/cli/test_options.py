"""`cogvideox generate`: what every option changes, and that files repeat whatever they were made with."""

import dataclasses
import json
import os
import signal
import time

import numpy as np
import pytest
import torch

import cogvideox
from cogvideox.checkpoints.lora import from_modules, save_lora
from cogvideox.data.video import probe, read_metadata, read_video, write_image, write_video
from cogvideox.generation.media import Latents
from tests.cli.conftest import start
from tests.cli.test_generate import DOG, FAST, frames, names
from tests.tiny import tiny_folder, tiny_spec


@pytest.fixture(scope="module")
def continuing(tmp_path_factory):
    """A text model that was trained to continue a first frame."""
    spec = dataclasses.replace(tiny_spec("5b"), first_frame=True)
    return str(tiny_folder(tmp_path_factory.mktemp("first") / "model", spec))


@pytest.fixture
def make(run, models, tmp_path):
    """Make x<suffix> from DOG and options, with the 5b unless a model is named; gives its frames."""

    def call(*options, name="x.png-folder", words=(DOG,), model=models["5b"]):
        done = run("generate", *words, "--model", model, "-o", name, *FAST, *options)
        assert done.status == 0, done.err
        return read_video(tmp_path / name).frames

    return call


def adapter(path, layers=2):
    """A file with a random adapter for the tiny models, or for deeper ones, which repeats itself."""
    spec = dataclasses.replace(tiny_spec("5b").transformer, layers=layers)
    draw = torch.Generator().manual_seed(0)
    pair = (torch.randn(2, spec.width, generator=draw), torch.randn(3 * spec.width, 2, generator=draw))
    pairs = {f"blocks.{k}.attention.qkv": pair for k in range(0, layers, 2)}
    save_lora(from_modules(spec, pairs, alpha=2.0), path)


def record(path):
    return read_metadata(path) or {}


@pytest.mark.parametrize(
    ("option", "value"),
    [("--dynamic-guidance", "smooth"), ("--sampler", "ddim"), ("--guidance", 2), ("--negative", "blue")],
)
def test_options_of_sampling_change_the_frames_and_are_recorded(make, tmp_path, option, value):
    name = option[2:].replace("-", "_")
    assert not np.array_equal(make(option, value, name="y.png-folder"), make())
    assert record(tmp_path / "y.png-folder")["request"][name] == value
    assert record(tmp_path / "x.png-folder")["request"].get(name) != value


def test_compat_is_another_convention(make, tmp_path):
    default, compat = make(), make("--compat", "diffusers", name="y.png-folder")
    assert not np.array_equal(default, compat)
    assert record(tmp_path / "y.png-folder")["model"]["compat"] == "diffusers"


def test_offload_changes_nothing_but_memory(make):
    assert np.array_equal(make("--offload", "cpu", name="y.png-folder"), make("--offload", "none"))


def test_aspect(make):
    assert make("--aspect", "1:1").shape == (9, 32, 32, 3)
    assert make("--aspect", "1:2", name="y.png-folder").shape == (9, 64, 32, 3)


def test_lora_and_its_weight(make, tmp_path):
    adapter(tmp_path / "a.safetensors")
    videos = [make("--lora", f"a.safetensors:{w}", name=f"{w}.png-folder") for w in (0, 0.5, 1)]
    assert np.array_equal(videos[0], make())
    assert not np.array_equal(videos[1], videos[0])
    assert not np.array_equal(videos[1], videos[2])
    assert record(tmp_path / "0.5.png-folder")["model"]["lora"] == [[str(tmp_path / "a.safetensors"), 0.5]]


def test_a_part_of_an_adapter_is_merged_where_that_is_allowed(run, make, models, tmp_path):
    adapter(tmp_path / "a.safetensors")
    adapter(tmp_path / "deep.safetensors", layers=4)
    deep = ("--model", models["5b"], "--lora", "deep.safetensors", *FAST)
    done = run("generate", DOG, *deep, "-o", "z.png-folder")
    assert done.status != 0
    assert "3 of its 6 layers fit" in done.err
    assert not (tmp_path / "z.png-folder").exists()
    parts = []
    for name, how in (("y", (DOG, *deep, "--allow-partial")), ("again", ("--from", "y.png-folder"))):
        done = run("generate", *how, "-o", f"{name}.png-folder")
        assert done.status == 0
        (told,) = [line for line in done.err.splitlines() if "3 of its 6 layers fit" in line]
        assert told.startswith("note  of ")
        parts.append(read_video(tmp_path / f"{name}.png-folder").frames)
    assert np.array_equal(*parts)
    assert np.array_equal(parts[0], make("--lora", "a.safetensors"))
    other = run("generate", "--from", "y.png-folder", "--lora", "deep.safetensors", "-o", "z.png-folder")
    assert other.status != 0, "what was allowed for one adapter is not for the next"


def test_rows_of_settings(run, models, tmp_path):
    rows = [{"prompt": DOG, "frames": 5, "seed": 3}, {"prompt": "the moon", "sampler": "ddim"}]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, rows)))
    done = run(
        *("generate", "--prompts", "p.jsonl", "--model", models["5b"], "-o", ".", "--seconds", 1.2, *FAST)
    )
    assert done.status == 0, done.err
    found = [record(tmp_path / f"{name}.mp4")["request"] for name in ("a-red-dog-runs-3", "the-moon-0")]
    assert [one["frames"] for one in found] == [5, 9]
    assert [one["sampler"] for one in found] == ["dpm++2m-sde", "ddim"]


def test_a_clip_file_is_continued(make, tmp_path):
    write_video(tmp_path / "clip.png-folder", [frames(9)], 8)
    assert len(make("--extend", "clip.png-folder", "--frames", 13)) == 13
    write_video(tmp_path / "clip.mp4", [frames(18)], 16)  # 9 frames at the model's 8 a second
    assert len(make("--extend", "clip.mp4", "--frames", 17, name="y.png-folder")) == 17


def test_an_image_on_a_model_that_continues_first_frames(make, continuing, tmp_path):
    for seed in (0, 1):
        write_image(tmp_path / f"{seed}.png", frames(1, seed=seed)[0])
    first, second = (
        make("--image", f"{seed}.png", name=f"{seed}.png-folder", model=continuing) for seed in (0, 1)
    )
    assert not np.array_equal(first[0], second[0])
    assert record(tmp_path / "0.png-folder")["task"] == "image"


def test_notes_are_shown_before_and_after(run, models, tmp_path):
    write_video(tmp_path / "clip.mp4", [frames(9)], 8)
    call = ("generate", DOG, "--model", models["5b"], "--video", "clip.mp4", "--frames", 49, *FAST)
    for more in (("--dry-run",), ("-o", "x.mp4")):
        done = run(*call, *more)
        assert done.status == 0, done.err
        assert done.err.count("the clip has 9 frames at 8 per second: that many are made, not 49") == 1


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".png-folder", ".safetensors"])
def test_every_form_repeats_itself_elsewhere(run, make, models, tmp_path, monkeypatch, suffix):
    """From another working folder, with an adapter and an image that were named by relative paths."""
    adapter(tmp_path / "a.safetensors")
    write_image(tmp_path / "i.png", frames(1)[0])
    (tmp_path / "models").symlink_to(os.path.dirname(models["5b-i2v"]))
    options = ("--model", "models/5b-i2v", "--image", "i.png", "--lora", "a.safetensors:0.5")
    done = run("generate", DOG, *options, "-o", f"x{suffix}", *FAST)
    assert done.status == 0, done.err
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    done = run("generate", "--from", f"../x{suffix}", "-o", f"y{suffix}")
    assert done.status == 0, done.err
    first, again = tmp_path / f"x{suffix}", tmp_path / "elsewhere" / f"y{suffix}"
    for a, b in zip(*(sorted(p.iterdir()) if p.is_dir() else [p] for p in (first, again)), strict=True):
        assert a.read_bytes() == b.read_bytes()


def test_conventions_chosen_in_python_are_repeated(run, models, tmp_path):
    plain = cogvideox.load(models["5b"])(DOG, steps=2, frames=9)
    video = cogvideox.load(models["5b"], unconditional="empty")(DOG, steps=2, frames=9)
    assert (plain.frames != video.frames).any()
    video.save(tmp_path / "x.gif")
    assert run("generate", "--from", "x.gif", "-o", "y.gif").status == 0
    assert (tmp_path / "x.gif").read_bytes() == (tmp_path / "y.gif").read_bytes()


def test_from_with_another_input(run, make, models, continuing, tmp_path):
    write_image(tmp_path / "i.png", frames(1)[0])
    make("--image", "i.png", model=continuing, name="x.mp4")
    (tmp_path / "i.png").unlink()
    done = run("generate", "--from", "x.mp4", "--extend", "x.mp4", "--frames", 17, "-o", "y.mp4")
    assert done.status == 0, done.err
    request = record(tmp_path / "y.mp4")["request"]
    assert "image" not in request
    assert request["extend"] == str(tmp_path / "x.mp4")


def test_latents_whose_name_has_dots(run, models, tmp_path):
    assert run("generate", DOG, "--model", models["5b"], "-o", "v1.5.safetensors", *FAST).status == 0
    assert run("decode", "v1.5.safetensors").status == 0
    assert probe(tmp_path / "v1.5.mp4").frames == 9


def test_a_full_disk_is_one_line_and_status_1(run, models, tmp_path, monkeypatch):
    from cogvideox.generation import render

    def write_video(path, chunks, *others):
        next(chunks)
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(render, "write_video", write_video)
    done = run("generate", DOG, "--model", models["5b"], "-o", "x.mp4", *FAST)
    assert done.status == 1
    assert done.err.splitlines()[-1] == "cogvideox: x.mp4: No space left on device"
    assert names(tmp_path) == ["x.mp4.safetensors"]


def test_stopping_while_decoding_leaves_the_latents_only(models, tmp_path):
    clip = torch.randn(4, 101, 16, 16, generator=torch.Generator().manual_seed(0))
    Latents(clip, 8, {}).save(tmp_path / "x.mp4.safetensors")
    process = start("decode", "x.mp4.safetensors", "--model", models["5b"], cwd=tmp_path)
    while not [*tmp_path.glob(".x.mp4.*/x.mp4")]:  # the file that is being written
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert err.splitlines()[-1] == "cogvideox: stopped; nothing unfinished is left behind"
    assert "Traceback" not in err
    assert names(tmp_path) == ["x.mp4.safetensors"]
