"""Manifests too long to be planned: rows are read in their order, again from the first behind the last one,
and packed as they come.

A stream has no index, so there is no random order, no mixture and no best share of it: who writes the
manifest shuffles and mixes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from cogvideox.core.errors import InputError
from cogvideox.data.manifest import Row, read_row
from cogvideox.data.samples import Sample


def rows_from(path: Path, number: int) -> Iterator[Row]:
    """The rows of a JSONL manifest from `number` on, counted on behind the last one, without end. Those
    before are passed over without a look. InputError for a row that is wrong and for a file that
    is no manifest.
    """
    if path.suffix != ".jsonl":
        raise InputError(f"a stream is read from a .jsonl file, not from {path}")
    while True:
        count = 0
        try:
            with path.open(encoding="utf-8") as lines:
                for count, line in enumerate(filter(str.strip, lines), 1):
                    if count > number:
                        yield read_row(line, f"{path}: row {count}")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"cannot read {path}: {error}") from None
        if not count:
            raise InputError(f"{path}: the manifest has no rows")
        number = max(0, number - count) % count


def samples_from(
    path: Path, number: int, take: Callable[[Row], Sample | str]
) -> Iterator[tuple[int, Sample]]:
    """What `take` makes of rows from `number` on, with their numbers; where it is a word about why a row is
    not used, the row is left out. InputError when a whole pass gives nothing.
    """
    left_out = ""
    for at, row in enumerate(rows_from(path, number), number):
        if isinstance(sample := take(row), Sample):
            left_out = ""
            yield at, sample
        elif row.id == left_out:
            raise InputError(f"{path}: no row can be used, such as {row.id}: {sample}")
        else:
            left_out = left_out or row.id
