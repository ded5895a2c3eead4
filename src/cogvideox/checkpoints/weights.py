"""Weight files: safetensors, whole or sharded, mapped into memory and written in bounded pieces."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from cogvideox.checkpoints.keymaps import Table, iter_ours
from cogvideox.checkpoints.settings import read_json
from cogvideox.core.errors import CheckpointError
from cogvideox.core.pages import FilePages

M = TypeVar("M", bound=nn.Module)
SHARD_BYTES = 4 * 2**30
DIFFUSERS_STEM = "diffusion_pytorch_model"
TRANSFORMERS_STEM = "model"


class Weights(Mapping[str, Tensor]):
    """Tensors of a safetensors file, or of a folder with one or several shards.

    A tensor is a view of the mapped file: it costs memory only once it is read, and the system can take it
    back.
    """

    def __init__(self, path: str | Path) -> None:
        path = Path(path)
        files = _shards(path) if path.is_dir() else [path]
        self._files: list[Any] = []
        self._where: dict[str, int] = {}
        for index, file in enumerate(files):
            try:
                opened = safe_open(str(file), "pt")
            except (SafetensorError, OSError) as error:
                raise CheckpointError(f"{file} is damaged or not a safetensors file: {error}") from None
            self._files.append(opened)
            for key in opened.keys():
                if key in self._where:
                    raise CheckpointError(f"{path}: {key!r} is in more than one shard")
                self._where[key] = index

    @property
    def metadata(self) -> dict[str, str]:
        """What the (first) file says about itself."""
        return self._files[0].metadata() or {}

    def __getitem__(self, key: str) -> Tensor:
        return self._files[self._where[key]].get_tensor(key)

    def __iter__(self) -> Iterator[str]:
        return iter(self._where)

    def __len__(self) -> int:
        return len(self._where)


def _shards(folder: Path) -> list[Path]:
    """The weight files of a folder; where an index names shards, exactly those."""
    indices = sorted(folder.glob("*.safetensors.index.json"))
    indices = [i for i in indices if ".fp16." not in i.name]
    if indices:
        names = sorted(set(read_json(indices[0]).get("weight_map", {}).values()))
        files = [folder / name for name in names]
    else:
        files = sorted(f for f in folder.glob("*.safetensors") if ".fp16." not in f.name)
    if not files:
        raise CheckpointError(f"no safetensors weights in {folder}")
    for file in files:
        if not file.is_file():
            raise CheckpointError(f"the weights in {folder} are incomplete: {file.name} is missing")
    if not indices and len(files) > 1:
        raise CheckpointError(
            f"{folder} holds several weight files and no index: {', '.join(f.name for f in files)}"
        )
    return files


def build(
    make: Callable[[], M],
    table: Table,
    theirs: Mapping[str, Tensor],
    what: str,
    dtype: torch.dtype | None,
    device: torch.device,
) -> M:
    """A module made on the meta device and filled with `theirs` through a key map, tensor by tensor.

    `dtype` None keeps the precision of the file. Tensors that keep their precision and stay on the CPU
    remain views of the mapped file; of the others, one at a time is in memory twice. Raises CheckpointError
    for missing, unknown and misshaped keys.
    """
    with torch.device("meta"):
        module = make()
    shapes = {name: tensor.shape for name, tensor in module.state_dict().items()}
    state = read_state(table, theirs, shapes, what, lambda _, t: t.to(device=device, dtype=dtype))
    module.load_state_dict(state, assign=True)
    return module.requires_grad_(False).eval()


def read_state(
    table: Table,
    theirs: Mapping[str, Tensor],
    shapes: Mapping[str, torch.Size],
    what: str,
    convert: Callable[[str, Tensor], Tensor],
) -> dict[str, Tensor]:
    """All of `iter_ours`, each tensor passed through `convert(name, tensor)`.

    The file's pages of a tensor that became a copy leave memory before the next is read.
    """
    pages, state = FilePages(), {}
    for rule, (name, tensor) in zip(table, iter_ours(table, theirs, shapes, what), strict=True):
        state[name] = convert(name, tensor)
        if not pages.hold(state[name]):
            for key, _ in rule.theirs:
                pages.release(theirs[key])
    return state


def write_weights(
    tensors: Iterable[tuple[str, Tensor]],
    folder: Path,
    stem: str,
    *,
    dtype: torch.dtype | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write tensors as `stem.safetensors`, or as shards with an index once they exceed `shard_bytes`.

    At most one shard is in memory besides the model.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shards: list[list[str]] = []
    pending: dict[str, Tensor] = {}
    size = total = 0

    def flush() -> None:
        save_file(pending, folder / f"part-{len(shards)}", metadata={"format": "pt"})
        shards.append(list(pending))
        pending.clear()

    for name, tensor in tensors:
        stored = tensor.detach().to(device="cpu", dtype=dtype or tensor.dtype).contiguous()
        if pending and size + stored.nbytes > shard_bytes:
            flush()
            size = 0
        pending[name] = stored
        size, total = size + stored.nbytes, total + stored.nbytes
    flush()
    if len(shards) == 1:
        (folder / "part-0").rename(folder / f"{stem}.safetensors")
        return
    where = {}
    for index, names in enumerate(shards):
        file = f"{stem}-{index + 1:05d}-of-{len(shards):05d}.safetensors"
        (folder / f"part-{index}").rename(folder / file)
        where.update(dict.fromkeys(names, file))
    content = {"metadata": {"total_size": total}, "weight_map": where}
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(content, indent=2), encoding="utf-8")
