"""Where models come from: the packaged mini model, a folder, or the model hub."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from cogvideox.core.errors import InputError, nearest
from cogvideox.models.specs import SPECS

MINI = Path(__file__).parents[1] / "assets" / "mini"
FILE_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")  # no repository has such a name
MODEL_FILES = (
    "model_index.json",
    "cogvideox.json",
    "quality.json",
    "*/*config.json",
    "*/*.safetensors",
    "*/*.safetensors.index.json",
    "tokenizer/*",
)


def resolve(source: str | Path, revision: str | None = None) -> Path:
    """The folder that `source` means: "mini", a folder, a short name such as "5b", or a hub id `owner/name`.

    From the hub only the files that are needed are downloaded (resumable, `revision` pins a version);
    without a network the local cache is used. Raises InputError, one line that says what to do.
    """
    path, name = Path(source).expanduser(), str(source)
    if revision is not None and (path.is_dir() or name == "mini"):
        raise InputError(
            f"revision {revision!r} only makes sense for a model of the hub, and {name} is local"
        )
    if name == "mini":
        if not (MINI / "model_index.json").is_file():
            raise InputError(
                "the packaged model 'mini' has no weights in this installation; give a model folder"
            )
        return MINI
    if path.is_dir():
        return path
    if path.exists():
        raise InputError(
            f"{name} is a file, not a model folder; `cogvideox convert` reads single checkpoint files"
        )
    if name in SPECS:
        name = SPECS[name].hub or name
    if name.count("/") != 1 or name.startswith((".", "/", "~")) or path.suffix in FILE_SUFFIXES:
        raise InputError(f"no model or folder named {name!r}{nearest(name, ['mini', *SPECS])}")
    return fetch(name, MODEL_FILES, revision)


def fetch(repo: str, patterns: Sequence[str], revision: str | None = None) -> Path:
    """Download the files of a hub repository that match `patterns`, or take them from the cache."""
    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=list(patterns)))
    except GatedRepoError:
        reason = "it is gated; accept its terms on the hub and run `hf auth login`"
    except RevisionNotFoundError:
        reason = f"it has no revision {revision!r}"
    except (RepositoryNotFoundError, HFValidationError):
        hubs = [spec.hub for spec in SPECS.values() if spec.hub]
        reason = f"the hub has no such repository{nearest(repo, hubs)}"
    except OSError as error:
        offline = (
            "the hub cannot be reached and the model is not in the local cache; "
            "connect once to download it, or give a local folder"
        )
        reason = error.strerror if error.errno and error.strerror else offline
    raise InputError(f"cannot load {repo!r}: {reason}")
