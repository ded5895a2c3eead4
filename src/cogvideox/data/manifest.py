"""The manifest: one row for each clip or picture, as Parquet (through pyarrow) or JSONL.

A row holds all that belongs to a sample, its captions too: there are no parallel lists that could slip.
Reading is strict, and a mistake is one line that names the row and the column. Rejected rows stay in the
manifest with their reason, so that counts conserve: rows = kept + rejected.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, with_config

from cogvideox.core.errors import InputError, nearest
from cogvideox.core.files import atomic_path

Positive = Annotated[int, Field(gt=0)]
Number = Annotated[float, Field(allow_inf_nan=False)]
_AS_JSON = ("lineage", "truth")
"""Columns that Parquet keeps as JSON text: their keys differ from row to row."""


@with_config(ConfigDict(extra="forbid", strict=True))
@dataclass(frozen=True, kw_only=True)
class Row:
    """A clip or a picture."""

    id: str
    """Unique in the manifest; names the sample in logs, keys and shards."""
    source: str
    """A file or folder of frames, relative to the manifest, or an address such as "storybook:..."."""
    frames: Positive
    """Of the span, at the source's own rate; 1 for a picture."""
    height: Positive
    """Pixels of the source."""
    width: Positive
    """Pixels of the source."""
    fps: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """Frames per second of the source; None for a picture."""
    span: tuple[Number, Number] | None = None
    """Seconds of the source from and to which the sample goes; None: all of it."""
    captions: Mapping[str, tuple[str, ...]]
    """Kind ("short", "dense", ...) -> captions, any of which describes the sample."""
    scores: Mapping[str, Number] = field(default_factory=dict)
    """Name ("aesthetic", "flow", ...) -> value."""
    labels: tuple[str, ...] = ()
    """Names of what the sample is or belongs to; stages choose by them."""
    licence: str | None = None
    """Under which it may be used."""
    rejected: str | None = None
    """Why it is not to be used; None: it is."""
    lineage: Mapping[str, Any] = field(default_factory=dict)
    """Versions of tools, hashes and whatever else made the row what it is."""
    truth: Mapping[str, Any] | None = None
    """What is known about the contents of a rendered clip."""

    def __post_init__(self) -> None:
        if self.frames > 1 and self.fps is None:
            raise ValueError(f"fps is missing for {self.frames} frames")
        if self.span is not None and not 0 <= self.span[0] <= self.span[1]:
            raise ValueError(f"span {self.span[0]:g} to {self.span[1]:g} is not one")
        if self.rejected is None and not any(self.captions.values()):
            raise ValueError("captions are empty")


_COLUMNS = tuple(f.name for f in fields(Row))
_ROW = TypeAdapter(Row)


def read_manifest(path: str | Path) -> list[Row]:
    """All rows. InputError, one line with row (from 1) and column, for what is missing, unknown or wrong."""
    path, rows = Path(path), []
    seen: dict[str, int] = {}
    for number, text in enumerate(_records(path), 1):
        row = read_row(text, f"{path}: row {number}")
        if row.id in seen:
            raise InputError(f"{path}: row {number}: id {row.id!r} is that of row {seen[row.id]} too")
        seen[row.id] = number
        rows.append(row)
    if not rows:
        raise InputError(f"{path}: the manifest has no rows")
    return rows


def read_row(text: str, where: str) -> Row:
    """A row from its JSON. InputError, which begins with `where`, for what is missing, unknown or wrong."""
    try:
        return _ROW.validate_json(text)
    except ValidationError as error:
        raise InputError(f"{where}: {_told(error)}") from None


def write_manifest(path: str | Path, rows: Iterable[Row]) -> int:
    """Write rows to a .parquet or .jsonl file, atomically; returns their number."""
    path, count = Path(path), 0
    if path.suffix == ".parquet":
        arrow, parquet = _pyarrow()
        records = [_columns(row) for row in rows]
        with atomic_path(path) as partial:
            parquet.write_table(arrow.Table.from_pylist(records, schema=_schema(arrow)), partial)
        return len(records)
    check_suffix(path)
    with atomic_path(path) as partial, partial.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(asdict(row), ensure_ascii=False) + "\n")
            count += 1
    return count


def _records(path: Path) -> Iterator[str]:
    """The JSON of each row."""
    check_suffix(path)
    try:
        if path.suffix == ".parquet":
            arrow, parquet = _pyarrow()
            try:
                with parquet.ParquetFile(path) as file:
                    for batch in file.iter_batches():
                        for record in batch.to_pylist(maps_as_pydicts="strict"):
                            yield json.dumps(_plain(record))
            except arrow.ArrowInvalid as error:
                raise InputError(f"{path} is not a Parquet file: {str(error).splitlines()[0]}") from None
        else:
            with path.open(encoding="utf-8") as lines:
                yield from (line for line in lines if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None


def check_suffix(path: Path) -> None:
    if path.suffix not in (".parquet", ".jsonl"):
        raise InputError(f"a manifest is a .parquet or .jsonl file, not {path.name!r}")


def _columns(row: Row) -> dict[str, Any]:
    """A row as Parquet holds it."""
    record = asdict(row)
    return record | {name: json.dumps(record[name]) for name in _AS_JSON}


def _plain(record: dict[str, Any]) -> dict[str, Any]:
    """The inverse of `_columns`, leaving out what has no value."""
    for name in set(_AS_JSON) & set(record):
        if record[name] is not None:
            record[name] = json.loads(record[name])
    return {name: value for name, value in record.items() if value is not None}


def _told(error: ValidationError) -> str:
    """The first thing that is wrong with a row."""
    first = error.errors()[0]
    where, kind = first["loc"], first["type"]
    if kind in ("extra_forbidden", "unexpected_keyword_argument"):
        return f"unknown column {str(where[0])!r}{nearest(str(where[0]), _COLUMNS)}"
    if kind in ("missing", "missing_keyword_only_argument", "missing_argument"):
        return f"column {str(where[0])!r} is missing"
    message = first["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    return f"column {'.'.join(map(str, where))!r}: {message}" if where else message


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise InputError("Parquet needs pyarrow: pip install 'cogvideox[data]', or use .jsonl") from None
    return pyarrow, parquet


def _schema(arrow: Any) -> Any:
    text = arrow.string()
    kinds = {
        "frames": arrow.int64(),
        "height": arrow.int64(),
        "width": arrow.int64(),
        "fps": arrow.float64(),
        "span": arrow.list_(arrow.float64()),
        "captions": arrow.map_(text, arrow.list_(text)),
        "scores": arrow.map_(text, arrow.float64()),
        "labels": arrow.list_(text),
    }
    return arrow.schema([(name, kinds.get(name, text)) for name in _COLUMNS])
