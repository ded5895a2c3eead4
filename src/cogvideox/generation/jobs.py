"""Requests in numbers: prompt files, counts, repeats of finished files, and where each result goes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cogvideox.core.errors import InputError
from cogvideox.data.video import WRITERS, read_metadata
from cogvideox.generation.media import LATENTS, Latents
from cogvideox.generation.request import Request
from cogvideox.generation.result import check_output

Values = dict[str, Any]
_RIVALS = {
    "seconds": ("frames",),
    "frames": ("seconds",),
    "aspect": ("height", "width"),
    "height": ("aspect",),
    "width": ("aspect",),
    "image": ("video", "extend"),
    "video": ("image", "extend"),
    "extend": ("image", "video"),
    "quality": ("plan", "steps", "sampler"),
    "plan": ("quality", "steps"),
    "steps": ("plan",),
    "sampler": ("plan",),
}


@dataclass(frozen=True)
class Job:
    """One video to make."""

    request: Request
    output: Path


def expand(base: Values, rows: Sequence[Values], count: int) -> list[Request]:
    """Every row on top of `base`, each `count` times with seeds seed, seed + 1, ..."""
    if count < 1:
        raise InputError(f"count must be at least 1, not {count}")
    requests = []
    for row in rows:
        first = Request.parse(override(base, row))
        if not first.prompt.strip():
            raise InputError("the prompt is empty")
        requests += [Request.parse(first.model_dump() | {"seed": first.seed + k}) for k in range(count)]
    return requests


def rows(base: Values, prompts: Path | None) -> list[Values]:
    """The rows of a prompts file, or one empty row when the prompt is in `base`. InputError: neither or
    both."""
    if prompts is not None and "prompt" in base:
        raise InputError("give a prompt or a prompts file, not both")
    if prompts is None and "prompt" not in base:
        raise InputError("nothing to make: give a PROMPT, --prompts FILE or --from FILE")
    return [{}] if prompts is None else read_prompts(prompts)


def read_prompts(path: str | Path) -> list[Values]:
    """Rows of a prompts file: JSONL objects with a request's fields, or one prompt a line (`#` comments).

    UTF-8, with or without a byte order mark.
    """
    path = Path(path)
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not a text file"
        raise InputError(f"cannot read the prompts file {path}: {reason}") from None
    found: list[Values] = []
    for number, line in enumerate(lines, 1):
        if not line or line.startswith("#"):
            continue
        if path.suffix.lower() != ".jsonl":
            found.append({"prompt": line})
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(f"{path}, line {number}: not JSON ({error.msg})") from None
        if not isinstance(row, dict) or not isinstance(row.get("prompt"), str):
            raise InputError(f'{path}, line {number}: not an object with a "prompt"')
        found.append(row)
    if not found:
        raise InputError(f"the prompts file {path} holds no prompts")
    return found


def place(requests: Sequence[Request], output: Path | None) -> list[Job]:
    """Give each request its file: `output` itself, `output` with the seed in its name, or names in a folder.

    InputError when the folder does not exist, the suffix is unknown, or one file is meant for several
    prompts.
    """
    if output is not None and output.suffix.lower() in (*WRITERS, LATENTS):
        check_output(output)
        if len(requests) == 1:
            return [Job(requests[0], output)]
        if len({r.seed for r in requests}) < len(requests):
            raise InputError(f"{len(requests)} videos do not fit in {output.name}: give a folder")
        return [Job(r, output.with_name(f"{output.stem}-{r.seed}{output.suffix}")) for r in requests]
    folder = Path() if output is None else output
    if not folder.is_dir():
        known = ", ".join((*WRITERS, LATENTS))
        wrong = (
            f"nor is {folder.suffix} one of {known}" if folder.suffix else "give a file or an existing folder"
        )
        raise InputError(f"the output folder {folder} does not exist; {wrong}")
    jobs: list[Job] = []
    taken: set[Path] = set()
    for request in requests:
        stem, path, number = name_of(request), Path(), 1
        while number == 1 or path in taken or path.exists():
            path = folder / f"{stem}{f'-{number}' if number > 1 else ''}.mp4"
            number += 1
        taken.add(path)
        jobs.append(Job(request, path))
    return jobs


def name_of(request: Request) -> str:
    """A file name that tells the request: its first words, as far as they fit in 100 bytes, and the seed."""
    words = "-".join(re.findall(r"\w+", request.prompt.lower())[:6])
    return f"{words.encode()[:100].decode(errors='ignore')}-{request.seed}".strip("-")


# ------------------------------------------------------------------------------------------------ repeating


def recorded(path: str | Path) -> Values:
    """The record in a finished file. InputError when it has none."""
    path = Path(path)
    if not path.exists():
        raise InputError(f"cannot read {path}: no such file")
    record = Latents.load(path).metadata if path.suffix == LATENTS else read_metadata(path)
    if not record or "request" not in record:
        raise InputError(f"{path} holds no request: it was not made by cogvideox, or lost its metadata")
    return dict(record)


def repeatable(record: Values, path: str | Path, given: Mapping[str, Any]) -> Values:
    """The request of a record as plain values. InputError when it came with tensors, which no file keeps,
    unless files are `given` in their place.
    """
    replaced = {*given, *_rivals(given)}
    if missing := [name for name in record.get("unrepeatable", []) if name not in replaced]:
        raise InputError(
            f"{path} was made with {' and '.join(missing)} given in Python: no file can repeat that"
        )
    return dict(record["request"])


def override(request: Values, given: Values) -> Values:
    """`request` with what is given now; a new length, size or input takes the place of the old one in any
    form.
    """
    dropped = _rivals(given)
    return {name: value for name, value in request.items() if name not in dropped} | given


def _rivals(given: Iterable[str]) -> set[str]:
    """The settings that cannot stand beside those that are given."""
    found = {rival for name in given for rival in _RIVALS.get(name, ())}
    return found - set(given)


def check_inputs(record: Mapping[str, Any], digests: Mapping[str, str], given: Mapping[str, Any]) -> None:
    """InputError when a file that a recorded request used has changed since; those given anew may differ, and
    those that are not used any more are no matter.
    """
    for name, digest in record.get("inputs", {}).items():
        if name not in given and digests.get(name, digest) != digest:
            raise InputError(
                f"the {name} {record['request'].get(name)} has changed since; give it again to accept"
            )
