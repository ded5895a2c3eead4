"""Keyed randomness, atomic files, shapes, devices."""

import math
import os
import signal
import subprocess
import sys
import threading
import time
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cogvideox.core import device, files, rng
from cogvideox.core.errors import InputError, nearest
from cogvideox.core.launch import processes_here
from cogvideox.core.shapes import decode_plan, encode_plan, pixel_frames, plan_shape


def test_same_key_same_numbers_whatever_came_before():
    first = rng.normal((4, 5), 7, "noise", 3)
    rng.normal((100,), 7, "other")
    assert torch.equal(rng.normal((4, 5), 7, "noise", 3), first)


def test_different_keys_are_independent():
    keys = [(7, "noise", 3), (7, "noise", 4), (8, "noise", 3), (7, "noise", "3"), (7, "noise"), (7, "noise3")]
    rows = torch.stack([rng.normal((2000,), *key) for key in keys])
    assert (torch.corrcoef(rows) - torch.eye(len(keys))).abs().max() < 0.1


def test_numbers_are_standard_normal_and_stay_the_same_across_versions():
    sample = rng.normal((50_000,), 0, "check")
    assert abs(sample.mean()) < 0.02
    assert abs(sample.std() - 1) < 0.02
    expected = torch.tensor([1.5821785, 0.2719896, 0.6756229])
    assert torch.allclose(rng.normal((3,), 0, "a"), expected, atol=1e-6)


def test_integers_of_any_type_are_the_same_key():
    assert torch.equal(rng.normal((3,), np.int64(3), "a"), rng.normal((3,), 3, "a"))
    with pytest.raises(TypeError):
        rng.normal((3,), 0.5)


def test_a_key_is_needed():
    with pytest.raises(ValueError, match="key"):
        rng.generator()


def test_atomic_path_leaves_the_old_file_on_error(tmp_path):
    target = tmp_path / "file.txt"
    files.write_text(target, "old")

    def fail() -> None:
        with files.atomic_path(target) as partial:
            partial.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("at_once", [True, False])
def test_atomic_path_replaces_folders_whole(tmp_path, monkeypatch, at_once):
    if not at_once:
        monkeypatch.setattr(files, "_exchange", lambda *_: False)
    target = tmp_path / "folder"
    target.mkdir()
    (target / "old").touch()
    with files.atomic_path(target) as partial:
        partial.mkdir()
        (partial / "new").touch()
    assert [p.name for p in target.iterdir()] == ["new"]
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere there is a moment without a folder")
def test_a_folder_that_is_replaced_is_never_missing(tmp_path):
    target, missing, ended = tmp_path / "folder", [], threading.Event()
    target.mkdir()

    def watch():
        while not ended.is_set():
            missing.extend([1] * (not target.exists()))

    watcher = threading.Thread(target=watch)
    watcher.start()
    for _ in range(300):
        with files.atomic_path(target) as partial:
            partial.mkdir()
    ended.set()
    watcher.join()
    assert not missing


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_atomic_path_restores_the_old_folder_when_the_last_step_fails(tmp_path, monkeypatch, error):
    target = tmp_path / "folder"
    target.mkdir()
    (target / "old").touch()
    monkeypatch.setattr(files, "_exchange", lambda *_: False)
    monkeypatch.setattr(os, "replace", Mock(side_effect=error))
    with pytest.raises(error), files.atomic_path(target) as partial:
        partial.mkdir()
    assert [p.name for p in target.iterdir()] == ["old"]
    assert list(tmp_path.iterdir()) == [target]


def test_a_kill_leaves_no_half_file(tmp_path):
    script = (
        "import time, sys; from cogvideox.core.files import atomic_path\n"
        "with atomic_path(sys.argv[1]) as p:\n"
        "    p.write_text('half'); print('ready', flush=True); time.sleep(60)\n"
    )
    target = tmp_path / "out.txt"
    process = subprocess.Popen([sys.executable, "-c", script, str(target)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    os.kill(process.pid, signal.SIGINT)
    process.wait(timeout=20)
    time.sleep(0.05)
    assert not target.exists()
    assert list(tmp_path.iterdir()) == []


@given(
    st.sampled_from([(1, 2, 2), (2, 2, 2)]),
    st.integers(1, 400),
    st.integers(1, 3000),
    st.integers(1, 3000),
)
def test_planned_shapes_are_legal_near_and_stable(patch, frames, height, width):
    shape = plan_shape(patch, frames, height, width)
    assert shape.frames % 4 == 1
    assert abs(shape.frames - frames) <= 2
    assert shape.height % 16 == 0
    assert shape.width % 16 == 0
    for asked, got in ((height, shape.height), (width, shape.width)):
        assert abs(got - asked) <= 8 or got == 16
    t, h, w = shape.latents
    assert (h, w) == (shape.height // 8, shape.width // 8)
    assert pixel_frames(t - shape.pad) == shape.frames
    assert [g * p for g, p in zip(shape.grid, patch, strict=True)] == [t, h, w]
    assert shape.tokens == math.prod(shape.grid)
    again = plan_shape(patch, shape.frames, shape.height, shape.width)
    assert again.snapped == ""
    assert (again.frames, again.height, again.width) == (shape.frames, shape.height, shape.width)
    transposed = plan_shape(patch, frames, width, height)
    assert (transposed.height, transposed.width) == (shape.width, shape.height)


@given(st.integers(0, 100))
def test_chunk_plans_add_up(k):
    frames = 4 * k + 1
    assert encode_plan(frames).length == frames
    assert decode_plan(k + 1).length == k + 1
    assert max(encode_plan(frames).sizes) < 16
    assert max(decode_plan(k + 1).sizes) <= 3


@pytest.mark.parametrize("shape", [(0, 16, 16), (9, 0, 16), (9, 16, -5)])
def test_impossible_shapes_are_refused(shape):
    with pytest.raises(InputError, match="at least 1"):
        plan_shape((1, 2, 2), *shape)


def test_the_released_padding_rule_of_1_5():
    assert plan_shape((2, 2, 2), 81, 768, 1360).latents == (22, 96, 170)
    assert plan_shape((2, 2, 2), 161, 768, 1360).pad == 1
    assert plan_shape((1, 2, 2), 49, 480, 720).tokens == 17550
    assert plan_shape((2, 2, 2), 81, 768, 1360).tokens == 44880


def test_nearest_name():
    assert "'dpm'" in nearest("dmp", ["dpm", "ddim"])
    assert "known: a, b" in nearest("zzz", ["a", "b"])


def test_devices_and_dtypes():
    cpu = device.pick_device("cpu")
    assert device.pick_dtype("bf16", cpu) is torch.bfloat16
    assert device.pick_dtype(torch.float16, cpu) is torch.float16
    assert device.pick_dtype(None, cpu) in (torch.bfloat16, torch.float32)
    assert 0 < device.memory(cpu).free <= device.memory(cpu).total
    assert device.peak_memory() > 10**6
    for name in ("cupboard", "mps:x:y"):
        with pytest.raises(InputError):
            device.pick_device(name)
    with pytest.raises(InputError, match="bfloat16"):
        device.pick_dtype("bfloat61", cpu)


def test_out_of_memory_is_recognised_however_torch_says_it():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**58)
    assert device.out_of_memory(caught.value)
    assert device.out_of_memory(MemoryError())
    assert device.out_of_memory(RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"))
    assert device.out_of_memory(RuntimeError("DefaultCPUAllocator: not enough memory"))  # on Windows
    assert not device.out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not device.out_of_memory(ValueError("out of memory"))


@pytest.mark.parametrize("count", ["8", "0"])
def test_other_launchers_take_no_memory_from_one_process(monkeypatch, count):
    """Only torchrun's processes share a machine; others use the same names for other things."""
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", count)
    assert processes_here() == 1
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "some")
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert processes_here() == 4
