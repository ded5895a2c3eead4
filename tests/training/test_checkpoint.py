"""Checkpoints: whole or not there, verified before use, for any number of processes."""

import os
import signal
import threading
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from cogvideox.core.errors import CheckpointError
from cogvideox.parallel.groups import Group
from cogvideox.training import checkpoint
from cogvideox.training.checkpoint import Checkpoints
from tests.parallel.processes import PATIENCE, together


def tensors(step: int, names: str = "abcd") -> dict[str, torch.Tensor]:
    shapes = {"a": (3, 5), "b": (7,), "c": (2, 2, 2), "d": (1,)}
    values = {n: torch.full(shapes[n], step + ord(n) / 1000) + torch.arange(shapes[n][-1]) for n in names}
    return {f"{name}/0.up": value for name, value in values.items()}


def state(step: int, names: str = "abcd", rank: int = 0) -> dict[str, Any]:
    run = {"step": step, "stage": "one", "rank": rank}
    return {"run": run, "model": {"tensors": tensors(step, names), "updates": step}}


def assert_loads(checkpoints: Checkpoints, step: int, names: str = "abcd") -> None:
    """All of that step comes back, into a state of any other."""
    found, whole = checkpoints.load(state(0, names, rank=7))
    ours, expected = whole["model"].pop("tensors"), tensors(step, names)
    assert ours.keys() == expected.keys()
    assert all(torch.equal(ours[name], expected[name]) for name in ours)
    del (plain := state(step))["model"]["tensors"]
    assert (found, whole) == (step, plain)


def saved(folder: Path, *steps: int, keep: int = 3) -> Checkpoints:
    checkpoints = Checkpoints(folder, keep)
    for step in steps:
        checkpoints.save(step, state(step))
    checkpoints.wait()
    return checkpoints


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_newest_comes_back_and_old_ones_go(tmp_path):
    checkpoints = saved(tmp_path, 1, 2, 3, 14, keep=2)
    assert names(tmp_path) == ["step-00000003", "step-00000014"]
    assert_loads(checkpoints, 14)
    step, whole = checkpoints.load()  # without a template, as for a look at it
    assert step == whole["run"]["step"] == 14
    assert all(torch.equal(whole["model"]["tensors"][name], value) for name, value in tensors(14).items())


def test_what_changes_while_it_is_saved_is_saved_as_it_was(tmp_path, monkeypatch):
    gate, real = threading.Event(), checkpoint.dcp.save
    monkeypatch.setattr(checkpoint.dcp, "save", lambda *a, **k: (gate.wait(10), real(*a, **k)))
    checkpoints, changing = Checkpoints(tmp_path), state(1)
    checkpoints.save(1, changing)
    assert names(tmp_path) in ([], [".step-00000001.partial"])
    changing["model"]["updates"] = 7
    for tensor in changing["model"]["tensors"].values():
        tensor.zero_()
    gate.set()
    assert_loads(checkpoints, 1)


def test_nothing_is_found_in_a_new_folder(tmp_path):
    assert Checkpoints(tmp_path / "new").load(state(0)) is None


def test_nothing_is_pickled(tmp_path):
    saved(tmp_path, 1)
    assert {path.suffix for path in (tmp_path / "step-00000001").iterdir()} == {".safetensors", ".json"}


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda path: flip(path), "checksum differs"),
        (lambda path: path.unlink(), "is missing"),
        (lambda path: (path.parent / "manifest.json").unlink(), "manifest.json"),
        (lambda path: (path.parent / "manifest.json").write_text("{"), "manifest.json"),
    ],
)
def test_a_damaged_one_is_told_and_the_one_before_used(tmp_path, damage, says):
    checkpoints = saved(tmp_path, 1, 2)
    damage(next((tmp_path / "step-00000002").glob("*.safetensors")))
    with pytest.warns(UserWarning, match=rf"step-00000002 is not used: .*{says}"):
        assert_loads(checkpoints, 1)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def test_a_damaged_one_never_pushes_out_a_sound_one(tmp_path):
    saved(tmp_path, 1, 9)
    flip(next((tmp_path / "step-00000009").glob("*.safetensors")))
    checkpoints = Checkpoints(tmp_path, keep=1)
    with pytest.warns(UserWarning, match="not used"):
        checkpoints.load(state(0))
    checkpoints.save(2, state(2))
    checkpoints.wait()
    assert names(tmp_path) == ["step-00000002"]


def test_when_all_are_damaged_nothing_begins_anew_in_silence(tmp_path):
    checkpoints = saved(tmp_path, 1)
    flip(next((tmp_path / "step-00000001").glob("*.safetensors")))
    with (
        pytest.warns(UserWarning, match="checksum differs"),
        pytest.raises(CheckpointError, match=r"no checkpoint in .* is whole"),
    ):
        checkpoints.load(state(0))


@pytest.mark.parametrize(
    ("names", "more", "says"),
    [
        ("abcd", {"e": torch.zeros(1), "f": torch.zeros(1)}, "it lacks model:tensors:e and 1 more"),
        ("abc", {}, "it has model:tensors:d/0.up, unknown here"),
        ("abc", {"d/0.up": torch.zeros(2)}, r"model:tensors:d/0.up is \(1,\), not \(2,\)"),
    ],
)
def test_a_state_of_another_model_is_refused(tmp_path, names, more, says):
    """An optimizer's state that is missing is an error, too."""
    template = state(0, names)
    template["model"]["tensors"] |= more
    with pytest.raises(CheckpointError, match=says):
        saved(tmp_path, 1).load(template)


def test_what_goes_wrong_in_the_background_is_raised(tmp_path, monkeypatch):
    def full(path):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(checkpoint, "_sha256", full)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state(1))
    with pytest.raises(OSError, match="No space left"):
        checkpoints.wait()
    assert not list(tmp_path.glob("step-*"))


def die(folder: str, point: str, count: int) -> None:
    """Save one checkpoint, and be killed in the next, at the given call of a function."""
    left, real = count, getattr(checkpoint, point)
    group = Group.of(range(dist.get_world_size()), PATIENCE)
    checkpoints, mine = Checkpoints(Path(folder), group=group), each(group.rank, group.size)
    checkpoints.save(1, state(1, mine))
    checkpoints.wait()

    def deadly(*arguments):
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments)

    if group.rank == 0:
        setattr(checkpoint, point, deadly)
    checkpoints.save(2, state(2, mine))
    checkpoints.wait()
    dist.barrier()


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize(
    ("point", "count", "survivor"), [("_sha256", 1, 1), ("_sync", 1, 1), ("_sync", 2, 2)]
)
def test_a_kill_while_saving_leaves_the_older_one(tmp_path, size, point, count, survivor):
    with pytest.raises(Exception, match=r"SIGKILL|does not answer"):
        together(size, die, str(tmp_path), point, count)
    checkpoints = Checkpoints(tmp_path)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "checkpoint")
        assert_loads(checkpoints, survivor)
    checkpoints.save(3, state(3))
    checkpoints.wait()
    assert not list(tmp_path.glob(".*"))


# -------------------------------------------------------------------------------------- several processes


def each(rank: int, size: int) -> str:
    return "abcd"[rank::size]


def save_together(folder: str) -> None:
    group = Group.of(range(dist.get_world_size()), PATIENCE)
    checkpoints = Checkpoints(Path(folder), group=group)
    for step in (1, 2):
        checkpoints.save(step, state(step, each(group.rank, group.size), group.rank))
    checkpoints.wait()


def load_together(folder: str) -> None:
    group = Group.of(range(dist.get_world_size()), PATIENCE)
    assert_loads(Checkpoints(Path(folder), group=group), 2, each(group.rank, group.size))


def test_any_number_of_processes_goes_on_from_what_two_have_saved(tmp_path):
    together(2, save_together, str(tmp_path))
    assert len(list((tmp_path / "step-00000002").glob("*.safetensors"))) == 2
    together(3, load_together, str(tmp_path))
    together(5, load_together, str(tmp_path))  # one of them has nothing
    assert_loads(Checkpoints(tmp_path), 2)


def differ(folder: str) -> None:
    group = Group.of(range(2), PATIENCE)
    checkpoints = Checkpoints(Path(folder), group=group)
    template = state(0, each(group.rank, 2))
    if group.rank:
        template["model"]["tensors"]["e"] = torch.zeros(1)
    with pytest.raises(CheckpointError, match="it lacks model:tensors:e"):
        checkpoints.load(template)
    if group.rank == 0:
        flip(next(iter(sorted((Path(folder) / "step-00000002").glob("*.safetensors"))[1:])))
    dist.barrier()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert_loads(checkpoints, 1, each(group.rank, 2))
    assert any("checksum differs" in str(one.message) for one in caught) == (group.rank == 0)


def test_all_processes_agree_on_what_is_wrong(tmp_path):
    together(2, save_together, str(tmp_path))
    together(2, differ, str(tmp_path))


def break_one(folder: str) -> None:
    group = Group.of(range(2), PATIENCE)
    checkpoints = Checkpoints(Path(folder), group=group)
    if group.rank:

        def full(path):
            raise OSError(28, "No space left on device")

        checkpoint._sha256 = full
    checkpoints.save(1, state(1, each(group.rank, 2)))
    with pytest.raises(OSError, match="No space left"):
        checkpoints.wait()


def test_a_disk_that_is_full_in_one_process_is_told_in_all(tmp_path):
    together(2, break_one, str(tmp_path))
    assert not list(tmp_path.glob("step-*"))
