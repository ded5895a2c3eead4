"""Folders of clips with captions, as public trainers lay them out -> rows of a manifest.

`prompts.txt` and `videos.txt` (or `images.txt`), a line each for every clip; `metadata.jsonl` or
`metadata.csv` with a file and a caption in each record; or a caption beside every clip, `a.mp4` and `a.txt`.
Lists of different lengths are refused: no line of one is ever matched with the wrong line of the other.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cogvideox.core.errors import InputError, nearest
from cogvideox.data.manifest import Row, read_manifest
from cogvideox.data.video import Info, probe, read_video

PROMPTS = ("prompts.txt", "prompt.txt", "captions.txt")
FILES = ("videos.txt", "images.txt")
RECORDS = ("metadata.jsonl", "metadata.csv")
MANIFESTS = ("manifest.parquet", "manifest.jsonl")
FILE_NAMES = ("file_name", "video", "path", "file", "image")
CAPTION_NAMES = ("caption", "text", "prompt")
MEDIA = (".mp4", ".mkv", ".webm", ".mov", ".avi", ".gif", ".webp", ".png", ".jpg", ".jpeg")


@dataclass(frozen=True)
class Entry:
    """A clip and what is said of it, as a folder lists them."""

    file: str
    """Relative to the folder."""
    caption: str
    place: str
    """Where both are listed, for messages."""


def entries(folder: Path) -> list[Entry]:
    """All that the folder lists. InputError, one line, for a layout that is none or lists that disagree."""
    kinds: list[tuple[tuple[str, ...], Callable[[Path], list[Entry]]]] = [
        (PROMPTS, _lists),
        (RECORDS, lambda path: list(_records(path))),
    ]
    for names, read in kinds:
        if found := [folder / name for name in names if (folder / name).is_file()]:
            return _some(read(found[0]), found[0])
    return _some(_beside(folder), folder)


def rows(folder: Path) -> list[Row]:
    """Rows of a folder that has no manifest, every clip decoded to its end: frames are counted, for headers
    lie. What cannot be used is a rejected row with its reason. InputError as `entries`.
    """
    return [_row(folder, number, entry) for number, entry in enumerate(entries(folder), 1)]


def read_rows(path: str | Path) -> tuple[list[Row], Path]:
    """Rows of a manifest or of a folder in any layout, and the folder that their sources lie in."""
    path = Path(path)
    if not path.is_dir():
        return read_manifest(path), path.parent
    for name in MANIFESTS:
        if (path / name).is_file():
            return read_manifest(path / name), path
    return rows(path), path


def _some(found: list[Entry], where: Path) -> list[Entry]:
    if not found:
        lists = f"no {PROMPTS[0]} and {FILES[0]}, no {RECORDS[0]}, no clip with a caption beside it"
        raise InputError(f"{where}: there is nothing to train on ({lists})")
    return found


def _lines(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None
    while lines and not lines[-1].strip():
        lines.pop()
    return [line.strip() for line in lines]


def _lists(prompts: Path) -> list[Entry]:
    files = next((prompts.parent / name for name in FILES if (prompts.parent / name).is_file()), None)
    if files is None:
        raise InputError(f"{prompts}: there is no {FILES[0]} beside it that names the clips")
    captions, names = _lines(prompts), _lines(files)
    if len(captions) != len(names):
        raise InputError(
            f"{prompts} has {len(captions)} lines and {files.name} {len(names)}: which belongs to which?"
        )
    return [
        Entry(name, caption, f"line {number}")
        for number, (name, caption) in enumerate(zip(names, captions, strict=True), 1)
    ]


def _records(path: Path) -> Iterator[Entry]:
    if path.suffix == ".csv":
        found: list[Any] = list(csv.DictReader(_lines(path)))
    else:
        found = [_parsed(path, number, line) for number, line in enumerate(_lines(path), 1) if line]
    for number, record in enumerate(found, 1):
        file, caption = (_pick(path, number, record, names) for names in (FILE_NAMES, CAPTION_NAMES))
        yield Entry(file, caption, f"record {number}")


def _parsed(path: Path, number: int, line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        raise InputError(f"{path}: line {number} is not JSON") from None


def _pick(path: Path, number: int, record: Any, names: tuple[str, ...]) -> str:
    """The first of these columns that a record has."""
    if not isinstance(record, Mapping):
        raise InputError(f"{path}: record {number} is not an object")
    name = next((name for name in names if name in record), None)
    if name is None:
        have = next(iter(record), "")
        raise InputError(
            f"{path}: record {number} has no {names[0]!r}{nearest(names[0], list(record)) if have else ''}"
        )
    if not isinstance(record[name], str):
        raise InputError(f"{path}: record {number}: {name!r} is no text")
    return str(record[name]).strip()


def _beside(folder: Path) -> list[Entry]:
    media = sorted(
        p for p in folder.rglob("*") if p.suffix.lower() in MEDIA and p.with_suffix(".txt").is_file()
    )
    return [
        Entry(str(path.relative_to(folder)), " ".join(_lines(path.with_suffix(".txt"))), path.name)
        for path in media
    ]


def _row(folder: Path, number: int, entry: Entry) -> Row:
    info, reason = Info(1, 1, 1, None), None if entry.caption else "it has no caption"
    try:
        info = _counted(folder / entry.file)
    except InputError as error:
        reason = str(error)
    return Row(
        id=f"{number:05d}",
        source=entry.file,
        frames=info.frames,
        height=info.height,
        width=info.width,
        fps=info.fps,
        captions={"short": (entry.caption,)} if entry.caption else {},
        rejected=reason,
        lineage={"place": entry.place},
    )


def _counted(path: Path) -> Info:
    """What a file holds, by decoding it. InputError for one that is damaged."""
    told = probe(path)
    frames = len(read_video(path, size=(8, 8)).frames)
    if frames > 1 and told.fps is None:
        raise InputError(f"cannot read {path}: it does not say how many frames a second it has")
    return Info(frames, told.height, told.width, told.fps if frames > 1 else None)
