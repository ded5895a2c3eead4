"""`python -m benchmarks.run`: speed and memory of all parts on this machine; see docs/performance.md.

Exit status 2 for what cannot be run as asked, 1 when a case fails.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.case import SUITES, Case, cases_of
from benchmarks.cases.growth import growth
from benchmarks.machine import ROOT
from benchmarks.paired import Contender, Session, WorkerError, measure
from benchmarks.report import against_roofline, head, lines, summary
from cogvideox.core.device import native_bfloat16, pick_device
from cogvideox.core.errors import InputError, nearest
from cogvideox.core.files import write_text
from cogvideox.data.video import check_place


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    parser.add_argument("--suite", action="append", help=f"one of {', '.join(SUITES)}; may be repeated")
    parser.add_argument("--only", default="", help="run the cases whose name contains this")
    parser.add_argument("--against", help="diffusers, or a commit whose src/ is measured beside this one")
    parser.add_argument("--json", type=Path, help="write all numbers here")
    parser.add_argument("--quick", action="store_true", help="tiny shapes, one run each: does it work?")
    parser.add_argument("--seconds", type=float, default=60.0, help="for repeated runs of a case")
    return parser.parse_args()


def select(suites: list[str] | None, only: str, quick: bool) -> list[Case]:
    """The cases to run. InputError when there is none."""
    for suite in suites or ():
        if suite not in SUITES:
            raise InputError(f"unknown suite {suite!r}{nearest(suite, SUITES)}")
    cases = [case for suite in suites or SUITES for case in cases_of(suite, quick)]
    if not (chosen := [case for case in cases if only in case.name]):
        raise InputError(f"no case has {only!r} in its name{nearest(only, [case.name for case in cases])}")
    return chosen


@contextmanager
def opponents(against: str | None) -> Iterator[list[Contender]]:
    """We, and who we are compared with. InputError when that is neither diffusers nor a commit."""
    ours = Contender("ours")
    if against is None:
        yield [ours]
    elif against == "diffusers":
        if importlib.util.find_spec("diffusers") is None:
            raise InputError("diffusers is not installed here: pip install -r requirements/dev.lock")
        yield [ours, Contender("diffusers", "diffusers")]
    else:
        with tempfile.TemporaryDirectory() as folder:
            archive = Path(folder) / "src.tar"
            made = subprocess.run(
                ["git", "archive", "-o", str(archive), against, "src"], cwd=ROOT, capture_output=True
            )
            if made.returncode:
                raise InputError(f"--against takes diffusers or a commit, not {against!r}")
            subprocess.run(["tar", "xf", str(archive), "-C", folder], check=True)
            yield [ours, Contender(against, "ours", Path(folder) / "src")]


def run(options: argparse.Namespace) -> None:
    """Measure, print each case as it is done, and keep the file up to date with it."""
    cases = select(options.suite, options.only, options.quick)
    if options.json:
        check_place(options.json)
    dtype = "bfloat16" if native_bfloat16(pick_device("cpu")) else "float32"
    with opponents(options.against) as contenders, tempfile.TemporaryDirectory() as folder:
        session = Session(Path(folder), dtype, options.quick, options.seconds)
        measuring = [sys.executable, "-m", "benchmarks.machine", "0.1" if options.quick else "2"]
        described = subprocess.run(measuring, capture_output=True, text=True, check=True)
        found: dict[str, Any] = {
            "machine": json.loads(described.stdout),
            "dtype": dtype,
            "against": options.against,
            "quick": options.quick,
            "cases": [],
        }
        print(head(found), flush=True)
        for case in cases:
            result = measure(case, contenders, session)
            against_roofline(result, found["machine"]["peaks"], dtype)
            print(lines(result), flush=True)
            found["cases"].append(result)
            found["growth"] = growth({c["name"]: c["sides"]["ours"] for c in found["cases"]})
            if options.json:
                write_text(options.json, json.dumps(found, indent=1) + "\n")
    print(summary(found))


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # workers and folders go too
    try:
        run(parse())
    except InputError as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        sys.exit(error.exit_status)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    except WorkerError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
