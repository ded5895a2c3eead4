"""`cogvideox bench`: how fast this machine runs the parts, beside diffusers or another commit."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from cogvideox.core.errors import InputError

ROOT = Path(__file__).parents[3]  # of the repository, when the package is run from one


def bench(
    suite: Annotated[
        list[str] | None,
        typer.Option(
            help="vae, transformer, sampler, text, end2end, train, packing, data or growth; may be "
            "repeated. Default: all."
        ),
    ] = None,
    against: Annotated[
        str | None, typer.Option(help="diffusers, or a commit of this repository, run in turn with this one.")
    ] = None,
    json: Annotated[Path | None, typer.Option(help="Write all numbers to this file.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Tiny shapes, one run each: does it work?")] = False,
) -> None:
    """Measure speed, memory and errors of each part on this machine; needs a clone of the repository."""
    if not (ROOT / "benchmarks" / "run.py").is_file():
        raise InputError("the benchmark comes with the repository, not with the package; run it in a clone")
    words = [f"--suite={name}" for name in suite or ()]
    words += [f"--against={against}"] if against else []
    words += [f"--json={json}"] if json else []
    words += ["--quick"] if quick else []
    paths = [str(ROOT), str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    command = [sys.executable, "-m", "benchmarks.run", *words]
    os.execve(sys.executable, command, environment)
