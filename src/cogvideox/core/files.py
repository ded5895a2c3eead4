"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` (same suffix, a file or a folder that the caller makes) and rename
    it to `path` when the block ends well; on any error, Ctrl-C included, it is removed and `path` stays as it
    was.

    A folder that already stands at `path` is replaced only after the new one is complete; on Linux, as
    a rule, there is no moment without one.
    """
    path = Path(path)
    holder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    partial, replaced = holder / path.name, holder / f"{path.name}.replaced"
    try:
        yield partial
        folders = path.is_dir() and partial.is_dir()
        if not (folders and _exchange(partial, path)):
            if folders:
                path.rename(replaced)
            os.replace(partial, path)
    finally:
        if replaced.exists() and not path.exists():
            replaced.rename(path)
        shutil.rmtree(holder, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two folders in one step; False where the system or its files cannot."""
    try:
        swap = ctypes.CDLL(None).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return swap(here, os.fsencode(one.absolute()), here, os.fsencode(other.absolute()), exchange) == 0


def write_text(path: str | Path, text: str) -> None:
    """Write `text` to `path` atomically, in UTF-8."""
    with atomic_path(path) as partial:
        partial.write_text(text, encoding="utf-8")


def same_source(path: str | Path, record: str) -> bool:
    """Whether `path` holds `record`, which says what a folder is made from; written when there is no file."""
    path = Path(path)
    if not path.exists():
        write_text(path, record)
    return path.read_text(encoding="utf-8") == record
