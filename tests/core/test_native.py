"""C files built where they run, and what is kept for them."""

import copy
import shutil

import pytest
import torch
from torch import nn

from cogvideox.core.native import Kernels, kept

needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")


@pytest.fixture
def folder(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def source(folder, code):
    path = folder / "some.c"
    path.write_text(code)
    return path


@needs_compiler
def test_a_file_is_built_once_and_anew_when_it_changes(folder):
    path = source(folder, "int answer(void) { return 7; }")
    for _ in range(2):
        assert Kernels(path, frozenset()).loaded.answer() == 7
    assert len(list((folder / "cache" / "cogvideox").iterdir())) == 1
    assert Kernels(source(folder, "int answer(void) { return 8; }"), frozenset()).loaded.answer() == 8


@needs_compiler
def test_what_does_not_build_warns_and_leaves_nothing(folder):
    with pytest.warns(UserWarning, match=r"some\.c was not built"):
        assert Kernels(source(folder, "not C"), frozenset()).loaded is None
    assert not list((folder / "cache" / "cogvideox").iterdir())


def test_other_cpus_no_compiler_and_the_switch_go_the_plain_way(folder, monkeypatch):
    path = source(folder, "int answer(void) { return 7; }")
    assert Kernels(path, frozenset({"no such flag"})).loaded is None
    monkeypatch.setenv("CC", "no-such-compiler")
    assert Kernels(path, frozenset()).loaded is None
    monkeypatch.delenv("CC")
    monkeypatch.setenv("COGVIDEOX_NATIVE", "0")
    assert Kernels(path, frozenset()).loaded is None


@torch.no_grad()
def test_what_is_kept_follows_the_parameters():
    made = []

    def total(weight):
        made.append(float(weight.sum()))
        return made[-1]

    layer = nn.Linear(2, 2)
    layer.weight.fill_(1.0)
    assert [kept(layer, total, layer.weight) for _ in range(2)] == [4.0, 4.0]
    assert len(made) == 1
    layer.weight.add_(1.0)
    assert kept(layer, total, layer.weight) == 8.0
    layer.weight.data = torch.full((2, 2), 3.0)
    assert kept(layer, total, layer.weight) == 12.0
    layer.weight.data.fill_(5.0)  # no version counts this, as none counts fused optimizers
    assert kept(layer, total, layer.weight) == 20.0
    other = copy.deepcopy(layer)
    other.weight.zero_()
    assert kept(other, total, other.weight) == 0.0
    with torch.inference_mode():
        frozen = nn.Linear(2, 2)
        assert kept(frozen, total, frozen.weight) == float(frozen.weight.sum())
        frozen.weight.fill_(2.0)  # no versions at all
        assert kept(frozen, total, frozen.weight) == 8.0


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_what_is_kept_follows_any_parameter(dtype):
    """Odd numbers of bytes, parts of other tensors, other layouts: all can be summed."""
    whole = torch.arange(24, dtype=dtype)
    for parameter in (whole[1:8], whole[4:12], whole[:0], whole.view(4, 6).T, whole[3]):
        layer = nn.Identity()
        made = [kept(layer, lambda x: float(x.sum()), parameter)]
        parameter.data.add_(1)
        made.append(kept(layer, lambda x: float(x.sum()), parameter))
        assert made[1] == made[0] + parameter.numel()
