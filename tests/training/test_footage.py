"""What a VAE trains on: clips of a manifest, drawn and cut, counted when damaged, dealt to processes."""

import json

import numpy as np
import pytest
import torch

from cogvideox.core import rng
from cogvideox.core.errors import InputError
from cogvideox.data.video import write_video
from cogvideox.training.footage import Recordings, Storybook
from cogvideox.training.recipe import load_recipe
from cogvideox.training.run import run_recipe
from cogvideox.training.task import Unreadable
from cogvideox.training.vae import VAEBatches, VAEStage
from tests.training.test_recipes import VAE, write

HEIGHT, WIDTH, FPS = 48, 80, 16


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Twenty clips of 33 frames, of which frame t has brightness 7 t; one of five frames, one damaged."""
    home = tmp_path_factory.mktemp("clips")
    rows = []
    for index in range(21):
        frames = 5 if index == 20 else 33
        ramp = 7 * np.arange(frames, dtype=np.uint8)
        video = np.broadcast_to(ramp[:, None, None, None], (frames, HEIGHT, WIDTH, 3))
        write_video(home / f"{index}.mp4", [video], FPS)
        told = {
            "id": str(index),
            "source": f"{index}.mp4",
            "frames": frames,
            "height": HEIGHT,
            "width": WIDTH,
        }
        rows.append(told | {"fps": FPS, "captions": {"short": ["a ramp"]}})
    (home / "0.mp4").write_bytes(b"damaged")
    (home / "clips.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return home / "clips.jsonl"


def draw(key=0):
    return rng.generator(key, "test")


def test_clips_are_cut_in_time_and_keep_their_shape(clips):
    footage, starts = Recordings(clips, held=2), set()
    for key in range(12):
        video = footage.cut(draw(key), 9, 8, 32).video_THWC
        assert video.shape == (9, 32, 53, 3)
        level = video.mean((1, 2, 3)) / 7
        assert np.allclose(np.diff(level), 2, atol=0.5)  # every second frame of 16 a second
        starts.add(round(level[0]))
    assert len(starts) > 4
    assert max(starts) + 16 <= 32


def test_the_same_draw_gives_the_same_clip(clips):
    one, other = (Recordings(clips, held=2).cut(draw(3), 5, 16, 48) for _ in range(2))
    assert one.name == other.name
    assert np.array_equal(one.video_THWC, other.video_THWC)


def test_held_out_clips_are_never_trained_on(clips):
    footage = Recordings(clips, held=2)
    held = {row.id for row in footage._held}
    drawn = {footage.cut(draw(key), 1, 8, 16).name.split()[0] for key in range(60)}
    assert len(held) == 2
    assert not held & drawn
    squares = list(footage.held_out(16, 5, 32))
    assert [video.shape for video in squares] == [(5, 32, 32, 3)] * len(squares)
    assert 0 < len(squares) <= 2


def test_short_and_small_clips_are_left_out_and_damaged_ones_told(clips):
    footage, lost = Recordings(clips, held=0), {}
    for key in range(60):
        found = footage.cut(draw(key), 9, 16, 48)
        assert not found.name.startswith(("0 ", "20 "))
        lost |= found.unreadable
    assert lost.keys() == {"0"}
    assert "0.mp4" in lost["0"]
    with pytest.raises(InputError, match="no clip has 17 frames at 8 per second, 64 pixels"):
        footage.cut(draw(), 17, 8, 64)
    with pytest.raises(InputError, match="no clip has 5 frames at 24 per second"):
        footage.cut(draw(), 5, 24, 16)


def test_more_than_one_in_a_hundred_ends_the_run():
    lost = Unreadable(known=200)
    lost.add({"a": "damaged", "b": "damaged"})
    lost.add({"a": "damaged"})
    with pytest.raises(
        InputError, match="3 of 200 samples cannot be read, more than 1%; the first, a: damaged"
    ):
        lost.add({"c": "missing"})


@pytest.mark.parametrize(("ranks", "sequence"), [(2, 1), (3, 1), (4, 2), (4, 4)])
def test_clips_are_dealt_to_processes(ranks, sequence):
    stage = VAEStage(steps=1, batch=5, frames=5, crop=16, sizes=(32,), micro=4, sequence=sequence)
    (whole,) = [VAEBatches((stage,), Storybook(0), seed=0)[0]]
    parts = [VAEBatches((stage,), Storybook(0), 0, rank, ranks)[0] for rank in range(ranks)]
    for rank in range(0, ranks, sequence):
        for other in parts[rank : rank + sequence]:  # those that share clips
            assert [m.names for m in other] == [m.names for m in parts[rank]]
    dealt = sorted((m for part in parts[::sequence] for m in part), key=lambda m: m.first)
    assert [m.names for m in dealt] == [m.names for m in whole]
    assert all(torch.equal(a.video_BTHWC, b.video_BTHWC) for a, b in zip(dealt, whole, strict=True))


def test_a_vae_trains_on_clips_of_a_manifest(clips, tmp_path):
    home = tmp_path / "clips"
    home.mkdir()
    rows = [json.loads(line) for line in clips.read_text().splitlines()][1:20]
    for row in rows:
        row["source"] = str(clips.parent / row["source"])
    (home / "clips.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    stages = [
        {"steps": 2, "batch": 2, "frames": 1, "crop": 32, "sizes": [48]},
        {"steps": 2, "batch": 2, "frames": 5, "crop": 32, "sizes": [32, 48], "fps": [8, 16]},
    ]
    recipe = VAE | {"data": {"manifest": str(home / "clips.jsonl")}, "stages": stages}
    assert (
        run_recipe(load_recipe(write(tmp_path / "r.yaml", recipe)), tmp_path / "run") / "config.json"
    ).exists()
    measured = json.loads((tmp_path / "run/metrics.jsonl").read_text().splitlines()[-1])
    assert measured["eval_psnr"] > 5


def test_what_is_missing_is_told_before_training(clips, tmp_path):
    recipe = VAE | {"data": {"manifest": str(clips), "held": 0}}
    with pytest.raises(InputError, match="is kept for validation"):
        run_recipe(load_recipe(write(tmp_path / "r.yaml", recipe)), tmp_path / "run")
    stages = [*VAE["stages"][:1], VAE["stages"][1] | {"frames": 65}]
    recipe = VAE | {"data": {"manifest": str(clips)}, "stages": stages}
    with pytest.raises(InputError, match="no clip has 65 frames"):
        run_recipe(load_recipe(write(tmp_path / "r.yaml", recipe)), tmp_path / "run2")
    assert not list(tmp_path.glob("run*/metrics.jsonl"))
