"""`cogvideox generate` and `decode`: files, exit codes, nothing left behind, repeats."""

import json
import os
import re
import signal
import time

import numpy as np
import pytest
import torch

from cogvideox.data.video import WRITERS, probe, read_metadata, read_video, write_image, write_video
from cogvideox.generation import load
from cogvideox.generation.media import Latents
from tests.cli.conftest import start

DOG = "a red dog runs"
FAST = ("--steps", 2, "--dtype", "fp32", "--device", "cpu")


def frames(count, height=32, width=48, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("suffix", [s for s in WRITERS if s != ".png"])
def test_every_kind_of_file(run, models, tmp_path, suffix):
    done = run("generate", DOG, "--model", models["5b"], "-o", f"x{suffix}", "--fps", 12, *FAST)
    assert done.status == 0, done.err
    info = probe(tmp_path / f"x{suffix}")
    assert (info.frames, info.height, info.width) == (9, 32, 48)
    assert info.fps == pytest.approx(12)
    assert read_metadata(tmp_path / f"x{suffix}")["request"]["prompt"] == DOG
    assert names(tmp_path) == [f"x{suffix}"]
    assert done.out.startswith(f"x{suffix}  9 frames of 48x32 at 12 fps")


def test_the_terminal_says_plan_report_and_file(run, models, tmp_path):
    done = run("generate", DOG, "--model", models["5b"], "-o", "x.mp4", "--size", "60x33", *FAST)
    lines = done.err.splitlines()
    assert lines[0] == "tiny-5b: text to 9 frames of 64x32 at 8 fps = 1.1 s"
    assert "2 steps of dpm++2m-sde" in lines[1]
    assert "tokens; needs" in lines[2]
    assert "about" in lines[2]
    assert any("changed 60x33 to 64x32" in line for line in lines)
    parts, total = lines[-1].removesuffix(" s").split(" = ")
    assert sum(float(part.split()[-1]) for part in parts.split(" + ")) == pytest.approx(
        float(total), abs=0.31
    )
    assert done.out.strip() == "x.mp4  9 frames of 64x32 at 8 fps"


def test_a_picture(run, models, tmp_path):
    assert run("generate", DOG, "--model", models["5b"], "-o", "x.png", "--frames", 1, *FAST).status == 0
    assert probe(tmp_path / "x.png").frames == 1


def test_latents_then_decode(run, models, tmp_path):
    model = ("--model", models["5b"])
    assert run("generate", DOG, *model, "-o", "x.safetensors", *FAST).status == 0
    assert run("generate", DOG, *model, "-o", "y.mp4", *FAST).status == 0
    done = run("decode", "x.safetensors")
    assert done.status == 0, done.err
    assert (tmp_path / "x.mp4").read_bytes() == (tmp_path / "y.mp4").read_bytes()
    assert names(tmp_path) == ["x.mp4", "x.safetensors", "y.mp4"]


def test_count_and_prompts_files_are_independent_of_order(run, models, tmp_path):
    (tmp_path / "p.txt").write_text("the moon\na red dog runs\n")
    model = ("--model", models["5b"], *FAST)
    (tmp_path / "out").mkdir()
    done = run("generate", "--prompts", "p.txt", "--count", 2, "--seed", 4, "-o", "out", "--json", *model)
    assert done.status == 0, done.err
    rows = [json.loads(line) for line in done.out.splitlines()]
    assert [row["file"] for row in rows] == [
        "out/the-moon-4.mp4",
        "out/the-moon-5.mp4",
        "out/a-red-dog-runs-4.mp4",
        "out/a-red-dog-runs-5.mp4",
    ]
    assert all(row["seconds"]["sample"] > 0 for row in rows)
    assert run("generate", DOG, "--seed", 5, "-o", "alone.mp4", *model).status == 0
    alone, batch = (read_video(tmp_path / p).frames for p in ("alone.mp4", "out/a-red-dog-runs-5.mp4"))
    assert np.array_equal(alone, batch)


def test_from_repeats_a_file_bit_for_bit(run, models, tmp_path):
    first = ("--model", models["5b"], "--seed", 9, "--negative", "blue", "--size", "32x32", "--guidance", 3)
    assert run("generate", DOG, "-o", "a.mp4", *first, *FAST).status == 0
    assert run("generate", "--from", "a.mp4", "-o", "b.mp4").status == 0
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()
    assert run("generate", "--from", "a.mp4", "-o", "c.mp4", "--seed", 10).status == 0
    assert read_metadata(tmp_path / "c.mp4")["request"] == read_metadata(tmp_path / "a.mp4")["request"] | {
        "seed": 10
    }
    assert run("generate", "--from", "a.mp4", "-o", "d.webm", "--seconds", 2).status == 0
    assert probe(tmp_path / "d.webm").frames == 17


def test_from_notices_inputs_that_changed(run, models, tmp_path):
    write_image(tmp_path / "i.png", frames(1)[0])
    call = ("generate", DOG, "--model", models["5b-i2v"], "--image", "i.png", *FAST)
    assert run(*call, "-o", "a.mp4").status == 0
    assert run("generate", "--from", "a.mp4", "-o", "b.mp4").status == 0
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()
    write_image(tmp_path / "i.png", frames(1, seed=1)[0])
    done = run("generate", "--from", "a.mp4", "-o", "c.mp4")
    assert done.status == 2
    assert "i.png has changed since" in done.err
    assert run("generate", "--from", "a.mp4", "-o", "c.mp4", "--image", "i.png").status == 0


def test_video_and_extend(run, models, tmp_path):
    write_video(tmp_path / "clip.mp4", [frames(17, 64, 64)], 16)
    call = ("generate", DOG, "--model", models["5b"], *FAST)
    assert run(*call, "--video", "clip.mp4", "--strength", 0.6, "-o", "v.mp4").status == 0
    assert probe(tmp_path / "v.mp4").frames == 5  # 17 frames at 16 per second are 8.5 at 8
    assert run(*call, "-o", "first.safetensors").status == 0
    done = run(*call, "--extend", "first.safetensors", "--seconds", 3, "-o", "long.mp4")
    assert done.status == 0, done.err
    assert "in 2 windows" in done.err
    assert probe(tmp_path / "long.mp4").frames == 25


def test_dry_run_writes_nothing_and_tells_all(run, models, tmp_path):
    done = run("generate", DOG, "--model", models["5b"], "--dry-run", "--json", "--frames", 18)
    plan = json.loads(done.out)
    assert done.status == 0
    assert plan["shape"]["frames"] == 17
    assert plan["needs"] < plan["free"]
    assert set(plan["seconds"]) == {"text", "sample", "decode"}
    assert "changed 18 frames to 17 (4k+1)" in plan["notes"][0]
    assert names(tmp_path) == []
    assert run("generate", DOG, "--model", "5b", "--dry-run", "--size", "64x64", "--frames", 1).status in (
        0,
        2,
    )


BAD = [
    (("generate",), "nothing to make"),
    (("generate", ""), "prompt is empty"),
    (("generate", DOG, "--model", "nope"), "nope"),
    (("generate", DOG, "--size", "0x32"), "height|width"),
    (("generate", DOG, "--size", "48by32"), "WIDTHxHEIGHT"),
    (("generate", DOG, "--size", "99999999x99999999"), "no shape would fit|would fit"),
    (("generate", DOG, "--steps", "-4"), "steps"),
    (("generate", DOG, "--steps", "x"), "steps"),
    (("generate", DOG, "--frames", "0"), "frames"),
    (("generate", DOG, "--seconds", "1", "--frames", "9"), "not both"),
    (("generate", DOG, "--guidance", "-1"), "guidance"),
    (("generate", DOG, "--sampler", "euler"), "sampler"),
    (("generate", DOG, "--image", "missing.png"), "missing.png"),
    (("generate", DOG, "--image", "text.png"), "^cogvideox: cannot read .*/text.png"),
    (("generate", DOG, "--image", "cut.png"), "^cogvideox: cannot read .*/cut.png"),
    (("generate", DOG, "--image", "cut.png", "--dry-run"), "cut.png"),
    (("generate", DOG, "--video", "missing.mp4"), "missing.mp4"),
    (("generate", DOG, "--extend", "missing.safetensors"), "missing.safetensors"),
    (("generate", DOG, "--video", "text.mp4"), "text.mp4"),
    (("generate", DOG, "--output", "none/x.mp4"), "does not exist"),
    (("generate", DOG, "--output", "x.avi"), "avi"),
    (("generate", DOG, "--output", "x.png"), "one frame"),
    (("generate", DOG, "--output", "folder.mp4"), "there is a folder of that name"),
    (("generate", DOG, "--output", "text.png-folder"), "there is a file of that name"),
    (("generate", DOG, "--output", "text.txt/x.mp4"), "text.txt does not exist"),
    (("generate", DOG, "--count", "0"), "count"),
    (("generate", DOG, "--dtype", "fp8"), "fp8"),
    (("generate", DOG, "--device", "quantum"), "quantum"),
    (("generate", DOG, "--offload", "disk"), "offload"),
    (("generate", DOG, "--compat", "sat"), "compat"),
    (("generate", DOG, "--lora", "missing.safetensors"), "missing.safetensors"),
    (("generate", DOG, "--lora", "missing.safetensors", "--dry-run"), "missing.safetensors"),
    (("generate", DOG, "--lora", "cut.safetensors"), "cut.safetensors is damaged"),
    (("generate", DOG, "--lora", "text.safetensors:2", "--dry-run"), "text.safetensors is damaged"),
    (("generate", DOG, "--prompts", "text.txt"), "not both"),
    (("generate", "--prompts", "missing.txt"), "missing.txt"),
    (("generate", "--from", "missing.mp4"), "missing.mp4"),
    (("generate", "--from", "plain.mp4"), "holds no request"),
    (("generate", DOG, "--no-such-option"), "no-such-option"),
    (("decode", "missing.safetensors"), "missing.safetensors"),
    (("decode", "text.txt"), "text.txt"),
    (("decode", "many.safetensors", "-o", "x.png"), "one frame of 9"),
    (("decode", "many.safetensors", "-o", "x.safetensors"), "suffix is none of"),
    (("decode", "many.safetensors", "-o", "folder.mp4"), "there is a folder of that name"),
    (("info", "nope"), "nope"),
    (("info", "text.mp4"), "text.mp4"),
    (("doctor", "--device", "quantum"), "quantum"),
    (("no-such-command",), "no-such-command"),
]


@pytest.mark.parametrize(
    ("arguments", "word"), BAD, ids=lambda v: " ".join(v) if isinstance(v, tuple) else ""
)
def test_bad_input_is_one_line_and_status_2(run, models, tmp_path, monkeypatch, arguments, word):
    for suffix in ("png", "mp4", "txt", "safetensors", "png-folder"):
        (tmp_path / f"text.{suffix}").write_text("words")
    write_video(tmp_path / "plain.mp4", [frames(5)], 8)
    write_image(tmp_path / "cut.png", frames(1)[0])
    Latents(torch.zeros(4, 3, 4, 6), 8, {}).save(tmp_path / "many.safetensors")
    Latents(torch.zeros(4, 3, 4, 6), 8, {}).save(tmp_path / "cut.safetensors")
    for name in ("cut.png", "cut.safetensors"):
        os.truncate(tmp_path / name, (tmp_path / name).stat().st_size // 2)
    (tmp_path / "folder.mp4").mkdir()
    monkeypatch.setattr(load, "load_model", lambda *a, **k: pytest.fail("too late: the model is loaded"))
    before = names(tmp_path)
    extra = ("--model", models["5b"]) if arguments[0] == "generate" and "--model" not in arguments else ()
    done = run(*arguments, *extra)
    assert done.status == 2, done.err
    assert done.out == ""
    (message,) = done.err.splitlines()
    assert message.startswith("cogvideox: ")
    assert re.search(word, message), message
    assert names(tmp_path) == before


def test_nan_is_status_3_and_leaves_nothing(run, models, tmp_path, monkeypatch):
    from cogvideox.models.transformer.model import OutputLayer

    original, calls = OutputLayer.forward, []

    def forward(self, *arguments):
        calls.append(1)
        return original(self, *arguments) * (float("nan") if len(calls) == 2 else 1.0)

    monkeypatch.setattr(OutputLayer, "forward", forward)
    done = run("generate", DOG, "--model", models["5b"], "-o", "x.mp4", "--steps", 3)
    assert done.status == 3
    assert done.err.strip().splitlines()[-1] == (
        "cogvideox: sampling: latents are not finite after step 2 of 3"
    )
    assert names(tmp_path) == []


def test_nan_in_frames_is_status_3_and_writes_no_video(run, models, tmp_path, monkeypatch):
    from cogvideox.models.vae.autoencoder import VAE

    original = VAE.decode_chunk
    monkeypatch.setattr(
        VAE, "decode_chunk", lambda *a, **k: (original(*a, **k)[0] * float("inf"), original(*a, **k)[1])
    )
    done = run("generate", DOG, "--model", models["5b"], "-o", "x.mp4", *FAST)
    assert done.status == 3
    assert "decoding: frames 0 to 8 are not finite" in done.err
    assert names(tmp_path) == ["x.mp4.safetensors"]  # sampled well, so not thrown away


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopping_while_sampling_leaves_nothing(models, tmp_path, number, status):
    long = ("--steps", 1000, "--size", "256x256", "--frames", 49)
    process = start("generate", DOG, "--model", models["5b"], "-o", "x.mp4", *long, cwd=tmp_path)
    assert process.stderr is not None
    while "tokens" not in process.stderr.readline():
        assert process.poll() is None
    time.sleep(2)  # the model is loaded by then, sampling takes minutes
    os.kill(process.pid, number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == status
    assert "Traceback" not in err
    assert names(tmp_path) == []


def test_previews_come_and_go(run, models, tmp_path, monkeypatch):
    from cogvideox.generation import console

    shown = []
    monkeypatch.setattr(console, "PREVIEW_SECONDS", 0)
    monkeypatch.setattr(console, "write_image", lambda path, frame: shown.append((path.name, frame.shape)))
    assert run("generate", DOG, "--model", models["5b"], "-o", "x.mp4", "--preview", *FAST).status == 0
    assert shown
    assert shown[0] == ("x.mp4.preview.png", (32, 48, 3))
    assert names(tmp_path) == ["x.mp4"]
