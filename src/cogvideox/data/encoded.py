"""Encoded samples on disk: the VAE's posteriors and text embeddings in sharded safetensors, so that training
runs neither the VAE nor the text encoder.

A folder holds `source.json` (hashes of all that its contents are a function of), shards that are there whole
or not at all, and, when all are there, `index.json`. A shard is named by a hash of its samples: a manifest
that grew costs only its new shards. Shape legend: C channels, T H W latent grid, L text tokens, D text width.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from pydantic import TypeAdapter
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from cogvideox.core.errors import InputError
from cogvideox.core.files import atomic_path, same_source, write_text
from cogvideox.data.samples import Sample

SHARD = 64
"""Samples."""
INDEX = "index.json"
"""There is one when the folder is complete."""
_SAMPLES = TypeAdapter(tuple[Sample, ...])


@dataclass(frozen=True)
class Content:
    """What is stored of one sample. Latents are in the transformer's scale."""

    mean_CTHW: Tensor
    std_CTHW: Tensor
    """Of the posterior: a sample of it is mean + std * noise."""
    subject_THW: Tensor | None = None
    """Bool: where the subject is; None where nobody knows."""
    conditions: Tensor | None = None
    """(draws, C, H, W): the first frame, noised anew for each draw and encoded, in the scale of image
    conditions; None for models without.
    """
    texts: Tensor | None = None
    """(captions, L, D), in the order of `Sample.captions`; None where the trainer encodes texts."""

    def drawn(self, noise_CTHW: Tensor) -> Tensor:
        """A sample of the posterior, fp32."""
        return torch.addcmul(self.mean_CTHW.float(), self.std_CTHW.float(), noise_CTHW)


class Store(Protocol):
    """Samples, and how to get what is in them."""

    @property
    def samples(self) -> Sequence[Sample]: ...

    def read(self, index: int, caption: int) -> Content:
        """A sample's content, `texts` being that of one caption, (1, L, D). InputError: it cannot be read."""
        ...


@dataclass(frozen=True)
class Source:
    """All that the contents of a folder depend on, besides the samples themselves."""

    vae: str
    """Fingerprint of the weights, and the scales."""
    text: str | None
    """Fingerprint of the text encoder, with its length; None: no texts are stored."""
    conditions: bool
    """Whether image conditions are stored."""
    plan: Mapping[str, Any]
    """Shapes, rate and seed."""

    def claim(self, folder: Path) -> None:
        """Make the folder that of this source. InputError when it is another's."""
        folder.mkdir(parents=True, exist_ok=True)
        if not same_source(folder / "source.json", json.dumps(asdict(self))):
            what = self._changed(folder)
            raise InputError(f"{folder} holds samples of another {what}; remove it or choose another folder")

    def _changed(self, folder: Path) -> str:
        words = {"vae": "VAE", "text": "text encoder", "conditions": "kind of model", "plan": "shape plan"}
        old = json.loads((folder / "source.json").read_text(encoding="utf-8"))
        return ", ".join(word for name, word in words.items() if old.get(name) != asdict(self)[name])


def shard_name(samples: Sequence[Sample]) -> str:
    """The file of these samples."""
    digest = hashlib.blake2b(_SAMPLES.dump_json(tuple(samples)), digest_size=12)
    return f"{digest.hexdigest()}.safetensors"


def write_shard(
    folder: Path, samples: Sequence[Sample], contents: Mapping[str, Content], reasons: Mapping[str, str]
) -> None:
    """Write a shard, atomically: by id the content of each of its samples, or why there is none."""
    tensors: dict[str, Tensor] = {}
    for sample in samples:
        if sample.id in contents:
            parts = vars(contents[sample.id]).items()
            tensors |= {f"{sample.id}/{name}": part.contiguous() for name, part in parts if part is not None}
    there = tuple(sample for sample in samples if sample.id in contents)
    told = {"samples": _SAMPLES.dump_json(there).decode(), "unreadable": json.dumps(dict(reasons))}
    with atomic_path(folder / shard_name(samples)) as partial:
        save_file(tensors, partial, told)


def finish(folder: Path, shards: Iterable[str]) -> dict[str, str]:
    """Write the index, by which a folder is complete; returns what could not be read: id -> reason.

    Raises InputError when nothing could be.
    """
    names, reasons, count = list(shards), {}, 0
    for name in names:
        told = _metadata(folder / name)
        reasons.update(json.loads(told["unreadable"]))
        count += len(_SAMPLES.validate_json(told["samples"]))
    lines = [json.dumps({"id": name, "reason": reason}) + "\n" for name, reason in reasons.items()]
    write_text(folder / "unreadable.jsonl", "".join(lines))
    if not count:
        first = next(iter(reasons.values()), "there are none")
        raise InputError(f"none of the samples could be encoded; the first: {first}")
    write_text(folder / INDEX, json.dumps({"shards": names}))
    return reasons


class Encoded:
    """Reads an encoded folder. It holds no file open, so memory does not grow with what was read."""

    def __init__(
        self, folder: Path, *, vae: str | None = None, text: str | None = None, conditions: bool = False
    ) -> None:
        """`vae` and `text` are fingerprints of what the trainer uses, which may need image `conditions`.
        InputError when the folder is not complete, was made with others, or has no conditions.
        """
        self.folder = folder
        try:
            shards = json.loads((folder / INDEX).read_text(encoding="utf-8"))["shards"]
            source = json.loads((folder / "source.json").read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise InputError(
                f"{folder} is not completely encoded ({Path(error.filename).name} is missing): "
                "finish it with `cogvideox train encode`"
            ) from None
        for name, mine in (("vae", vae), ("text", text)):
            if mine is not None and source[name] not in (None, mine):
                what = "VAE" if name == "vae" else "text encoder"
                raise InputError(f"{folder} was encoded with another {what} than the one to train with")
        if conditions and not source["conditions"]:
            raise InputError(f"{folder} holds no image conditions: encode it with an image-to-video model")
        self.has_texts = source["text"] is not None
        self._where: list[Path] = []
        samples: list[Sample] = []
        for name in shards:
            there = _SAMPLES.validate_json(_metadata(folder / name)["samples"])
            samples += there
            self._where += [folder / name] * len(there)
        self.samples: tuple[Sample, ...] = tuple(samples)

    def read(self, index: int, caption: int) -> Content:
        sample, parts = self.samples[index], {}
        try:
            with safe_open(str(self._where[index]), "pt") as file:
                stored = set(file.keys())
                for name in Content.__dataclass_fields__:
                    if (key := f"{sample.id}/{name}") not in stored:
                        continue
                    if name == "texts":
                        parts[name] = file.get_slice(key)[caption : caption + 1]
                    else:
                        parts[name] = file.get_tensor(key)
            return Content(**parts)
        except (SafetensorError, OSError, TypeError) as error:
            raise InputError(f"cannot read {sample.id} of {self._where[index]}: {error}") from None


def _metadata(path: Path) -> dict[str, str]:
    try:
        with safe_open(str(path), "pt") as file:
            found: dict[str, str] = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise InputError(f"cannot read {path}: {error}") from None
    return found
