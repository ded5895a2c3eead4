"""Checkpoints of a run: written while training goes on, whole or not there, and verified before use.

A checkpoint is a folder `step-00000123` of safetensors files, one of each process that has tensors, and
`manifest.json`, written last, with the SHA-256 of each. They go through torch.distributed.checkpoint, so that
any number of processes can go on from what any other number has saved. Nothing is pickled.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import warnings
from collections import ChainMap
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from cogvideox.core.errors import CheckpointError, Note
from cogvideox.parallel.groups import Group, answering

MANIFEST = "manifest.json"
T = TypeVar("T")
State = dict[str, Any]
"""Tensors and what JSON holds, nested; the same keys at every step of a run."""


class Checkpoints:
    """Those of one run in `folder`, the `keep` newest of them.

    Of several processes all make the same calls in the same order. `load` and `wait` return when all have
    done; `save` returns when the tensors were copied, and the rest happens in a thread, which has a group of
    its own to talk through.
    """

    def __init__(self, folder: Path, keep: int = 3, group: Group | None = None) -> None:
        self.folder, self.keep = folder, keep
        self.group = None if group is None else Group.of(range(group.size))  # nobody else talks through it
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._pending: Future[None] | None = None
        # torch says so to every process that is alone.
        warnings.filterwarnings("ignore", "torch.distributed is disabled, unavailable or uninitialized")

    def save(self, step: int, state: State) -> None:
        """Begin to save the tensors that this process holds, and what else the first one does. Waits for the
        last save first, and raises what went wrong in it; `state` may change as soon as this returns.
        """
        self.wait()
        copies = {name: tensor.detach().to("cpu", copy=True) for name, tensor in _tensors(state)}
        self._pending = self._thread.submit(self._write, step, copies, json.dumps(_numbers(state)))

    def wait(self) -> None:
        """Return when the last save is done; raises what went wrong in it."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def close(self) -> None:
        """Return when nothing is at work any more, whatever became of it."""
        self._thread.shutdown()

    def load(self, template: State | None = None) -> tuple[int, State] | None:
        """Step and state of the newest sound checkpoint; None when there are no checkpoints. `template` is a
        state of the same run, whose tensors are overwritten and returned; without it, all tensors are, new.

        Warns of newer ones that are damaged. CheckpointError when all are, or when the tensors of all
        processes together are not those of the checkpoint.
        """
        self.wait()
        found = self.steps()
        for path in (self._path(step) for step in reversed(found)):
            if (fault := self._fault(path)) is None:
                return self._read(path, template)
            if self._first:
                warnings.warn(f"checkpoint {path.name} is not used: {fault}", Note, stacklevel=2)
        if found:
            raise CheckpointError(f"no checkpoint in {self.folder} is whole; the newest: {fault}")
        return None

    def steps(self) -> list[int]:
        """Those of the checkpoints that are there, oldest first."""
        return sorted(int(path.name.removeprefix("step-")) for path in self.folder.glob("step-*"))

    # --------------------------------------------------------------------------------------------- inside

    def _path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"

    @property
    def _first(self) -> bool:
        return self.group is None or self.group.rank == 0

    @property
    def _handle(self) -> dist.ProcessGroup | None:
        return self.group.handle if self.group else None

    def _share(self, items: list[Path]) -> list[Path]:
        """Those that fall to this process."""
        return items if self.group is None else items[self.group.rank :: self.group.size]

    def _everyones(self, do: Callable[[], T]) -> list[T]:
        """What `do` gives in each process; what it raises in one is raised in all."""
        if self.group is None:
            return [do()]
        value, fault = None, None
        try:
            value = do()
        except OSError as error:
            fault = error
        everyones = self.group.objects((value, fault))
        for _, fault in everyones:
            if fault is not None:
                raise fault
        return [value for value, _ in everyones]

    def _write(self, step: int, tensors: dict[str, Tensor], numbers: str) -> None:
        final = self._path(step)
        partial = final.with_name(f".{final.name}.partial")
        self._everyones(lambda: self._begin(partial))
        writer = HuggingFaceStorageWriter(str(partial), save_distributed=True)
        try:
            with answering():
                dcp.save(tensors, storage_writer=writer, process_group=self._handle)
        except CheckpointException as error:  # no Exception, and many lines
            first, _ = next(iter(error.failures.values()))
            raise OSError(f"cannot save a checkpoint in {self.folder}: {first}") from first
        files = self._share(sorted(partial.iterdir()))
        sums = self._everyones(lambda: {path.name: _sha256(path) for path in files})
        manifest = {"step": step, "numbers": json.loads(numbers), "files": dict(ChainMap(*sums))}
        self._everyones(lambda: self._finish(partial, manifest))

    def _begin(self, partial: Path) -> None:
        if self._first:
            for left in self.folder.glob(".step-*.partial"):
                shutil.rmtree(left)
            partial.mkdir(parents=True)

    def _finish(self, partial: Path, manifest: dict[str, Any]) -> None:
        if not self._first:
            return
        final = self._path(manifest["step"])
        with (partial / MANIFEST).open("w", encoding="utf-8") as file:
            json.dump(manifest, file)
            file.flush()
            os.fsync(file.fileno())
        _sync(partial)
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
        _sync(self.folder)
        # Those of later steps were damaged, or this run would have gone on from them.
        sound = [step for step in self.steps() if step <= manifest["step"]]
        for step in set(self.steps()) - set(sound[-self.keep :]):
            shutil.rmtree(self._path(step))

    def _fault(self, path: Path) -> str | None:
        """What is wrong with a checkpoint, as all processes together find: each looks at some files."""

        def look() -> str | None:
            try:
                sums = _manifest(path)["files"]
                faults = [_check(one, sums[one.name]) for one in self._share([path / name for name in sums])]
            except (OSError, ValueError, KeyError) as error:
                return f"{MANIFEST}: {error}"
            return next(filter(None, faults), None)

        return next(filter(None, self._everyones(look)), None)

    def _read(self, path: Path, template: State | None) -> tuple[int, State]:
        reader, manifest = HuggingFaceStorageReader(str(path)), _manifest(path)
        found = reader.read_metadata().state_dict_metadata.items()
        metadata = {name: one for name, one in found if isinstance(one, TensorStorageMetadata)}
        if template is None:
            template = manifest["numbers"]
            for name, one in metadata.items():
                _put(template, name, torch.empty(one.size, dtype=one.properties.dtype))
        saved = {name: tuple(one.size) for name, one in metadata.items()}
        tensors = dict(_tensors(template))
        mine = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        wanted = dict(ChainMap(*self._everyones(lambda: mine)))
        if wanted != saved:
            raise CheckpointError(f"{path} is of another model: {', '.join(_differences(wanted, saved))}")
        with answering():
            dcp.load(tensors, storage_reader=reader, process_group=self._handle)
        return manifest["step"], _with_tensors(manifest["numbers"], template)


def _tensors(state: State, path: str = "") -> Iterator[tuple[str, Tensor]]:
    for key, value in state.items():
        if isinstance(value, Tensor):
            yield path + key, value
        elif isinstance(value, dict):
            yield from _tensors(value, f"{path}{key}:")


def _put(state: State, path: str, tensor: Tensor) -> None:
    *outer, last = path.split(":")
    for key in outer:
        state = state.setdefault(key, {})
    state[last] = tensor


def _numbers(state: State) -> State:
    return {
        key: _numbers(value) if isinstance(value, dict) else value
        for key, value in state.items()
        if not isinstance(value, Tensor)
    }


def _with_tensors(numbers: State, template: State) -> State:
    """The numbers, and the tensors of `template` in their places."""
    return numbers | {
        key: _with_tensors(numbers.get(key, {}), value) if isinstance(value, dict) else value
        for key, value in template.items()
        if isinstance(value, dict | Tensor)
    }


def _manifest(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    return found


def _check(path: Path, sha256: str) -> str | None:
    if not path.exists():
        return f"{path.name} is missing"
    return None if _sha256(path) == sha256 else f"{path.name} is not what was written (its checksum differs)"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(folder: Path) -> None:
    """Make names in a folder last."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _differences(wanted: Mapping[str, Any], saved: Mapping[str, Any]) -> Iterator[str]:
    """The first of each kind, and how many more there are."""
    missing, unknown = sorted(wanted.keys() - saved.keys()), sorted(saved.keys() - wanted.keys())
    shapes = sorted(n for n in wanted.keys() & saved.keys() if wanted[n] != saved[n])
    if missing:
        yield f"it lacks {missing[0]}" + f" and {len(missing) - 1} more" * (len(missing) > 1)
    if unknown:
        yield f"it has {unknown[0]}" + f" and {len(unknown) - 1} more" * (len(unknown) > 1) + ", unknown here"
    if shapes:
        name = shapes[0]
        yield f"{name} is {saved[name]}, not {wanted[name]}"
