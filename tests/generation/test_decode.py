"""Decoding: a stream equals the whole, memory does not grow, out of memory and NaN are handled, latents
survive."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from cogvideox.core.errors import NonFiniteError
from cogvideox.data.video import WRITERS, read_video
from cogvideox.generation import media
from cogvideox.generation.decode import decode_chunks
from cogvideox.generation.media import Inputs, Latents, encode, to_frames, to_signed
from cogvideox.generation.render import keeps, render, write
from cogvideox.generation.request import Request
from cogvideox.generation.watch import Watch

REQUEST = Request(prompt="a red dog", frames=17, seed=4)


def latents(count=7, seed=0):
    return torch.randn(4, count, 4, 6, generator=torch.Generator().manual_seed(seed))


def test_a_stream_equals_the_whole(pipe):
    whole = to_frames(pipe.vae.decode(latents()[None]))
    chunks = list(decode_chunks(pipe.vae, latents()))
    assert [len(chunk) for chunk in chunks] == [9, 8, 8]
    assert np.array_equal(np.concatenate(chunks), whole)


def test_files_hold_what_the_call_returns(pipe, tmp_path):
    path = tmp_path / "clip.png-folder"
    made = render(pipe, REQUEST, Inputs(), path, Watch())
    video = pipe(REQUEST.prompt, frames=17, seed=4)
    assert np.array_equal(read_video(path).frames, video.frames)
    assert made.metadata == video.metadata
    assert [p.name for p in tmp_path.iterdir()] == ["clip.png-folder"]


def fail(pipe, error, after, times=1):
    """The decoder raises `error` at its `after`-th chunk, `times` times in all; returns the calls seen."""
    original, calls, raised = pipe.vae.decode_chunk, [], []

    def decode_chunk(z, cache=None, *, lead=True, reuse=False, last=False):
        calls.append(z.shape[2])
        if len(calls) >= after and len(raised) < times:
            raised.append(error)
            raise error
        return original(z, cache, lead=lead, reuse=reuse, last=last)

    pipe.vae.decode_chunk = decode_chunk
    return calls


@pytest.mark.parametrize(
    "error",
    [MemoryError(), torch.cuda.OutOfMemoryError("CUDA out of memory"), RuntimeError("not enough memory")],
)
def test_out_of_memory_is_retried_with_less(fresh, tmp_path, error):
    pipe, watch = fresh(), Watch()
    calls = fail(pipe, error, after=2)
    render(pipe, REQUEST, Inputs(), tmp_path / "clip.png-folder", watch)
    assert calls == [3, 2, 1, 1, 1, 1, 1]
    assert any("out of memory" in note and "one latent frame at a time" in note for note in watch.notes)
    assert read_video(tmp_path / "clip.png-folder").frames.shape == (17, 32, 48, 3)
    assert not keeps(tmp_path / "clip.png-folder").exists()


def test_latents_survive_a_decoder_that_never_works(fresh, pipe, tmp_path):
    broken, watch, path = fresh(), Watch(), tmp_path / "clip.mp4"
    fail(broken, MemoryError(), after=1, times=99)
    with pytest.raises(MemoryError):
        render(broken, REQUEST, Inputs(), path, watch)
    assert [p.name for p in tmp_path.iterdir()] == ["clip.mp4.safetensors"]
    assert any("cogvideox decode" in note for note in watch.notes)
    kept = Latents.load(keeps(path))
    write(fresh(), kept, path, Watch())
    render(fresh(), REQUEST, Inputs(), tmp_path / "whole.mp4", Watch())
    assert path.read_bytes() == (tmp_path / "whole.mp4").read_bytes()


def test_latents_survive_in_python(fresh):
    pipe = fresh()
    expected = pipe("a red dog", output="latents")
    fail(pipe, ZeroDivisionError(), after=1)
    with pytest.raises(ZeroDivisionError) as error:
        pipe("a red dog")
    assert torch.equal(error.value.latents, expected)


def test_other_errors_are_not_retried(fresh, tmp_path):
    pipe = fresh()
    calls = fail(pipe, RuntimeError("a bug"), after=1)
    with pytest.raises(RuntimeError, match="a bug"):
        render(pipe, REQUEST, Inputs(), tmp_path / "clip.mp4", Watch())
    assert len(calls) == 1


def test_frames_that_are_not_finite_are_never_written(fresh, tmp_path):
    pipe = fresh()
    bad = latents()
    bad[:, 4] = float("inf")
    with pytest.raises(NonFiniteError, match="decoding: frames 9 to 16 are not finite"):
        write(pipe, Latents(bad, 8, {}), tmp_path / "clip.mp4", Watch())
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_while_decoding_leaves_the_latents_and_nothing_else(fresh, tmp_path):
    pipe = fresh()
    fail(pipe, KeyboardInterrupt(), after=2)
    with pytest.raises(KeyboardInterrupt):
        render(pipe, REQUEST, Inputs(), tmp_path / "clip.mp4", Watch())
    assert [p.name for p in tmp_path.iterdir()] == ["clip.mp4.safetensors"]


def test_an_encoder_that_dies_leaves_the_latents_and_nothing_else(fresh, tmp_path, monkeypatch):
    def dies(path, frames, fps, text):
        path.write_bytes(next(frames).tobytes())
        raise OSError(28, "No space left on device")

    monkeypatch.setitem(WRITERS, ".mp4", dies)
    pipe, watch = fresh(), Watch()
    with pytest.raises(OSError, match="No space left"):
        render(pipe, REQUEST, Inputs(), tmp_path / "clip.mp4", watch)
    assert [p.name for p in tmp_path.iterdir()] == ["clip.mp4.safetensors"]
    assert any("cogvideox decode" in note for note in watch.notes)


def test_frames_are_encoded_chunk_by_chunk_to_the_same_latents(pipe, monkeypatch):
    frames = np.random.default_rng(0).integers(0, 256, (21, 32, 48, 3), np.uint8)
    drawn = torch.randn(4, 6, 4, 6, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole = pipe.vae.encode(to_signed(frames), noise=drawn[None])[0]
    converted = []
    monkeypatch.setattr(media, "to_signed", lambda part: (converted.append(len(part)), to_signed(part))[1])
    assert torch.equal(encode(pipe.vae, frames, drawn), whole)
    assert converted == [13, 8]


MEASURE = """
import sys, torch
from pathlib import Path
from cogvideox.core.device import peak_memory
from cogvideox.generation.media import Latents
from cogvideox.generation.render import write
from cogvideox.generation.watch import Watch
from tests.generation.test_decode import resident
from tests.tiny import tiny_model, tiny_spec
from cogvideox.generation.generate import Place
from cogvideox.generation.pipeline import Pipeline
torch.set_num_threads(1)
pipe = Pipeline(tiny_model(tiny_spec()), Place.pick("cpu", "fp32"))
write(pipe, Latents(torch.randn(4, 1, 4, 4, generator=torch.Generator()), 8, {}), Path(sys.argv[2]), Watch())
before = resident()
latents = torch.randn(4, (int(sys.argv[1]) - 1) // 4 + 1, 12, 12, generator=torch.Generator())
write(pipe, Latents(latents, 8, {}), Path(sys.argv[2]), Watch())
print(peak_memory() - before)
"""


def resident():
    """Resident memory now, bytes."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * 4096


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_does_not_grow_with_the_clip(tmp_path):
    # With a fixed threshold glibc gives large blocks back at once: what is measured is what is held, not how
    # freed memory happened to be split.
    env = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(2**20)}
    peaks = {}
    for frames in (17, 161):
        done = subprocess.run(
            [sys.executable, "-c", MEASURE, str(frames), str(tmp_path / "clip.mp4")],
            capture_output=True,
            text=True,
            check=True,
            env=env,
        )
        peaks[frames] = int(done.stdout)
    assert peaks[17] > 50e6  # large enough to mean something
    assert peaks[161] <= 1.1 * peaks[17], peaks
