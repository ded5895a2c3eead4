"""Encoding a manifest: the same latents as generation's, whole shards, nothing lost, nothing stale."""

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial

import pytest
import torch

from cogvideox.core import rng
from cogvideox.core.errors import InputError
from cogvideox.data import encoded
from cogvideox.data.encoded import Encoded, Source
from cogvideox.data.manifest import Row, read_manifest, write_manifest
from cogvideox.data.samples import Rule, pixels, select
from cogvideox.data.storybook.rows import Part, rows
from cogvideox.data.video import write_video
from cogvideox.generation.media import encode as encode_clip
from cogvideox.generation.media import to_signed
from cogvideox.training import encode as module
from cogvideox.training.encode import Encoder, Live, Order, encode_manifest, text_hash, vae_hash
from tests.tiny import tiny_folder, tiny_model, tiny_spec

PARTS = (
    Part(frames=9, height=32, width=48, clips=5, level="single"),
    Part(frames=1, height=32, width=32, clips=6, level="single"),
)


@pytest.fixture(scope="module")
def story(tmp_path_factory):
    path = tmp_path_factory.mktemp("story") / "manifest.jsonl"
    write_manifest(path, [row for part in PARTS for row in rows(part, seed=0)])
    return path


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return {like: str(tiny_folder(root / like, like)) for like in ("5b", "5b-i2v")}


def order(manifest, model, output, **changes):
    values = {"rules": (Rule(9),), "fps": None, "texts": True, "seed": 0, "workers": 0, "device": "cpu",
              "dtype": "fp32"}  # fmt: skip
    return Order(manifest=manifest, model=model, output=output, **(values | changes))


def run(*arguments, **changes):
    lines = []
    return encode_manifest(order(*arguments, **changes), lines.append), lines


@pytest.fixture(scope="module")
def folder(story, models, tmp_path_factory):
    output = tmp_path_factory.mktemp("encoded")
    told, _ = run(story, models["5b"], output)
    assert told == "11 rows in 1 shapes: 11 encoded, 0 unreadable, 0 left out"
    return output


def test_stored_latents_are_those_of_generation(folder, story):
    store, model = Encoded(folder), tiny_model("5b")
    clips = [index for index, sample in enumerate(store.samples) if sample.frames == 9]
    assert len(clips) == 5
    for index in clips[:2]:
        sample, content = store.samples[index], store.read(index, caption=1)
        frames = pixels(sample, story.parent)
        noise = rng.normal(content.mean_CTHW.shape, 1, "noise")
        # In batches, sums are taken in another order.
        close = partial(torch.testing.assert_close, rtol=1e-3, atol=1e-4)
        close(content.mean_CTHW, encode_clip(model.vae, frames))
        close(content.drawn(noise), encode_clip(model.vae, frames, noise))
        want = model.text.encode([sample.captions[1][1]])
        assert torch.equal(content.texts, want)
        assert content.subject_THW.shape == (3, 4, 6)
        assert content.conditions is None


def test_the_same_live_as_stored(folder, story):
    stored, model = Encoded(folder), tiny_model("5b")
    live = Live(stored.samples, story.parent, Encoder(model.spec, model.vae, model.text, 0))
    for index in (0, 7):
        for name, part in vars(stored.read(index, 2)).items():
            other = getattr(live.read(index, 2), name)
            assert other is part is None or torch.allclose(other.float(), part.float(), rtol=1e-3, atol=1e-4)


def test_image_conditions_are_noised_in_pixels_and_scaled_as_conditions(story):
    model = tiny_model("1.5-5b-i2v")
    (sample,) = select(read_manifest(story)[:1], [Rule(9)], (1, 2, 2), 8).samples
    frames = pixels(sample, story.parent)
    encoder = Encoder(model.spec, model.vae, None, seed=5)
    (content,) = encoder([sample], [frames], [[]])
    assert content.texts is None
    assert content.conditions.shape == (4, 4, 4, 6)
    key, image = (5, "condition", sample.id), to_signed(frames[:1])
    sigmas = [float(torch.tensor(rng.generator(*key, "sigma", n).normal(-3.0, 0.5)).exp()) for n in range(4)]
    noised = [image + s * rng.normal(image.shape, *key, n) for n, s in enumerate(sigmas)]
    want = model.vae.encode(
        torch.cat(noised), noise=rng.normal((4, 4, 1, 4, 6), *key, "posterior"), condition=True
    )
    torch.testing.assert_close(content.conditions, want[:, :, 0])
    assert model.spec.vae.condition_scale != model.spec.vae.scale


def test_a_killed_encode_goes_on_without_double_or_missing_samples(story, models, tmp_path, monkeypatch):
    monkeypatch.setattr(encoded, "SHARD", 64)
    script = (
        "import sys; from cogvideox.training import encode; encode.SHARD = 2; "
        "from cogvideox.cli.main import main; main()"
    )
    command = ["train", "encode", str(story), "--model", models["5b"], "--output", str(tmp_path / "out"),
               "--shapes", "9", "--dtype", "fp32", "--workers", "0"]  # fmt: skip
    process = subprocess.Popen([sys.executable, "-c", script, *command], stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while not list((tmp_path / "out").glob("*.safetensors")) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    there = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "out").glob("*.safetensors")}
    assert 0 < len(there) < 6
    with pytest.raises(InputError, match=r"not completely encoded .index.json is missing"):
        Encoded(tmp_path / "out")
    monkeypatch.setattr("cogvideox.training.encode.SHARD", 2)
    run(story, models["5b"], tmp_path / "out")
    assert (
        there.items()
        <= {p.name: p.stat().st_mtime_ns for p in (tmp_path / "out").glob("*.safetensors")}.items()
    )
    names = [sample.row.id for sample in Encoded(tmp_path / "out").samples]
    assert names == [row.id for row in read_manifest(story)]
    run(story, models["5b"], tmp_path / "whole")
    one, other = Encoded(tmp_path / "out"), Encoded(tmp_path / "whole")
    for index in range(len(names)):
        assert torch.equal(one.read(index, 0).mean_CTHW, other.read(index, 0).mean_CTHW)


def test_a_manifest_that_grew_costs_only_its_new_shards(story, models, tmp_path, monkeypatch):
    monkeypatch.setattr("cogvideox.training.encode.SHARD", 4)
    all_rows = read_manifest(story)
    grown = tmp_path / "m.jsonl"
    write_manifest(grown, all_rows[:8])
    run(grown, models["5b"], tmp_path / "out")
    before = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "out").glob("*.safetensors")}
    write_manifest(grown, all_rows)
    run(grown, models["5b"], tmp_path / "out")
    after = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "out").glob("*.safetensors")}
    assert before.items() < after.items()
    assert len(Encoded(tmp_path / "out").samples) == 11


@pytest.mark.parametrize(
    ("change", "what"),
    [({"seed": 1}, "shape plan"), ({"rules": (Rule(5),)}, "shape plan"), ({"texts": False}, "text encoder")],
)
def test_a_folder_of_something_else_is_refused(folder, story, models, change, what):
    with pytest.raises(InputError, match=f"holds samples of another {what};"):
        run(story, models["5b"], folder, **change)


def test_stale_hashes_are_refused(folder, story, models, tmp_path):
    other = tiny_folder(tmp_path / "other", seed=9)
    with pytest.raises(InputError, match="of another VAE, text encoder;"):
        run(story, str(other), folder)
    mine, spec = tmp_path.__class__(models["5b"]), tiny_spec("5b")
    vae, text = vae_hash(mine / "vae", spec.vae), text_hash(mine / "text_encoder", spec)
    Encoded(folder, vae=vae, text=text)
    with pytest.raises(InputError, match="encoded with another VAE"):
        Encoded(folder, vae=vae_hash(other / "vae", spec.vae), text=text)
    with pytest.raises(InputError, match="encoded with another text encoder"):
        Encoded(folder, vae=vae, text=text_hash(other / "text_encoder", spec))


@pytest.fixture
def faulty(tmp_path):
    """A manifest with a clip of every fault among good ones, each with a caption that names it."""
    import numpy as np

    frames = np.random.default_rng(0).integers(0, 255, (20, 32, 48, 3), dtype=np.uint8)
    write_video(tmp_path / "good.mp4", [frames], 8)
    write_video(tmp_path / "last.mp4", [frames[::-1].copy()], 8)
    write_video(tmp_path / "short.mp4", [frames[:6]], 8)
    write_video(tmp_path / "fast.mp4", [frames], 16)
    (tmp_path / "corrupt.mp4").write_bytes((tmp_path / "good.mp4").read_bytes()[:300])
    (tmp_path / "zero.mp4").touch()
    names = ["good", "short", "corrupt", "zero", "missing", "fast", "small", "poor"]
    made = [
        Row(
            id=n,
            source=f"{n}.mp4",
            frames=20,
            height=32,
            width=48,
            fps=8.0,
            captions={"a": (f"the {n} cat",)},
        )
        for n in names
    ]
    made[6] = Row(**vars(made[6]) | {"height": 8, "source": "good.mp4"})
    made[7] = Row(**vars(made[7]) | {"rejected": "low quality", "source": "good.mp4"})
    made.append(
        Row(**vars(made[0]) | {"id": "last", "source": "last.mp4", "captions": {"a": ("the last cat",)}})
    )
    write_manifest(tmp_path / "faulty.jsonl", made)
    return tmp_path / "faulty.jsonl"


def test_faults_are_reported_and_captions_stay_with_their_clips(faulty, models, tmp_path):
    told, _ = run(faulty, models["5b"], tmp_path / "out", rules=(Rule(9, 32),))
    assert told == (
        "9 rows in 1 shapes: 2 encoded, 5 unreadable (see unreadable.jsonl), 2 left out "
        "(1 times: is 48x8, too small; 1 times: was rejected: low quality)"
    )
    lost = [json.loads(line) for line in (tmp_path / "out" / "unreadable.jsonl").read_text().splitlines()]
    assert {line["id"].split("@")[0] for line in lost} == {"short", "corrupt", "zero", "missing", "fast"}
    store, model = Encoded(tmp_path / "out"), tiny_model("5b")
    for index, name in enumerate(("good", "last")):
        assert store.samples[index].row.id == name
        content, own = store.read(index, 0), pixels(store.samples[index], faulty.parent)
        assert torch.equal(content.texts, model.text.encode([f"the {name} cat"]))
        torch.testing.assert_close(content.mean_CTHW, encode_clip(model.vae, own), rtol=1e-3, atol=1e-4)
    assert not torch.allclose(*(store.read(index, 0).mean_CTHW for index in range(2)), atol=0.1)


def test_nothing_encoded_is_an_error_that_says_why(faulty, models, tmp_path):
    bad = tmp_path / "bad.jsonl"
    write_manifest(bad, [row for row in read_manifest(faulty) if row.id == "zero"])
    with pytest.raises(InputError, match="none of the samples could be encoded; the first: cannot read"):
        run(bad, models["5b"], tmp_path / "out")
    write_manifest(bad, [row for row in read_manifest(faulty) if row.id == "poor"])
    with pytest.raises(InputError, match=r"none can be used, 1 left out .1 times: was rejected: low quality"):
        run(bad, models["5b"], tmp_path / "out2")


def test_workers_give_the_same(story, models, folder, tmp_path):
    run(story, models["5b"], tmp_path, workers=2)
    one, other = Encoded(folder), Encoded(tmp_path)
    assert all(torch.equal(one.read(i, 0).mean_CTHW, other.read(i, 0).mean_CTHW) for i in range(11))


def test_processes_share_the_shards(story, models, folder, tmp_path):
    script = (
        "from cogvideox.training import encode; encode.SHARD = 4; from cogvideox.cli.main import main; main()"
    )
    (tmp_path / "run.py").write_text(script)
    output = tmp_path / "out"
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    command += [str(tmp_path / "run.py"), "train", "encode", str(story), "--model", models["5b"]]
    command += ["--output", str(output), "--shapes", "9", "--device", "cpu", "--dtype", "fp32"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "11 rows in 1 shapes: 11 encoded, 0 unreadable, 0 left out"
    assert [line for line in done.stderr.splitlines() if " of 11" in line] == [
        f"{n} of 11" for n in (0, 4, 7, 11)
    ]  # those of the first and the third shard, then all
    assert len(list(output.glob("*.safetensors"))) == 3
    one, other = Encoded(folder), Encoded(output)
    for index, sample in enumerate(one.samples):
        same = next(i for i, s in enumerate(other.samples) if s.id == sample.id)
        mean = other.read(same, 0).mean_CTHW
        torch.testing.assert_close(mean, one.read(index, 0).mean_CTHW, rtol=1e-3, atol=1e-4)


def test_one_that_encodes_for_all_waits_for_nobody(story, tmp_path, monkeypatch):
    """As in training; and what is no longer complete has no index."""
    for name, value in (("WORLD_SIZE", "2"), ("TORCHELASTIC_RUN_ID", "x"), ("RANK", "0")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(module, "SHARD", 4)
    model, output, done = tiny_model("5b"), tmp_path / "out", []
    selection = select(read_manifest(story), (Rule(9),), model.spec.transformer.patch, 8.0)
    made = Encoder(model.spec, model.vae, None, 0)
    source = Source(vae="x", text=None, conditions=False, plan={})
    module.encode(selection, story.parent, output, made, source, done=done.append)
    assert done == [0, 4, 4, 3]
    assert len(Encoded(output).samples) == 11
    next(output.glob("*.safetensors")).unlink()

    def dies(*_):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        module.encode(selection, story.parent, output, dies, source)
    assert not (output / encoded.INDEX).exists()


def test_a_damaged_shard_is_told_by_the_sample(folder, tmp_path):
    import shutil

    shutil.copytree(folder, tmp_path / "copy")
    store = Encoded(tmp_path / "copy")
    (shard,) = (tmp_path / "copy").glob("*.safetensors")
    with shard.open("r+b") as file:
        file.truncate(shard.stat().st_size // 2)
    with pytest.raises(InputError, match=r"cannot read single-9f-48x32/train/0@9x32x48 of "):
        store.read(0, 0)


def test_memory_stays_flat_over_ten_times_the_reads(folder):
    """Shards are not kept open or mapped: what a larger data set needs is the room of one sample."""
    resident = lambda: int(open("/proc/self/statm").read().split()[1])  # noqa: E731
    store = Encoded(folder)
    for index in range(50):
        store.read(index % 11, 0)
    before = resident()
    for index in range(5000):
        store.read(index % 11, 0)
    assert resident() - before < 1024  # pages of 4 KiB; what was read is 10 MB
    one, same = (store.read(0, 0).mean_CTHW for _ in range(2))
    assert one.data_ptr() != same.data_ptr(), "a sample is not kept either"
