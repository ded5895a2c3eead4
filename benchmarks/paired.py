"""Both sides of a case, each in its own process, run in turn: A B A B."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.case import Case, Random, write_random

ROOT = Path(__file__).parents[1]
MOST = 15  # pairs of runs


@dataclass(frozen=True)
class Contender:
    """Who takes part."""

    label: str
    """"ours", "diffusers" or a commit."""
    build: str = "ours"
    """Which side of a case it builds."""
    source: Path = ROOT / "src"
    """Where it imports `cogvideox` from."""


@dataclass(frozen=True)
class Session:
    """The conditions of a whole run, and its scratch folder."""

    folder: Path
    dtype: str
    quick: bool
    seconds: float
    """Time of a case's repeated runs; at least one pair is made."""

    def model(self, model: Random | Path) -> Path:
        """The folder of a case's model, written when it is first needed."""
        if isinstance(model, Path):
            return model
        folder = self.folder / hashlib.blake2b(repr(model).encode(), digest_size=8).hexdigest()
        if not folder.exists():
            write_random(model, folder)
        return folder


class WorkerError(RuntimeError):
    """A side failed; the message holds the end of what it printed."""


class Worker:
    """The process of one side."""

    def __init__(self, case: Case, contender: Contender, session: Session) -> None:
        job = {
            "suite": case.suite,
            "name": case.name,
            "side": contender.build,
            "folder": str(session.model(case.model)),
            "dtype": session.dtype,
            "quick": session.quick,
        }
        self.what = f"{case.name}, {contender.label}"
        self.errors = tempfile.TemporaryFile("w+")
        paths = [str(contender.source), str(ROOT), os.environ.get("PYTHONPATH", "")]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker", json.dumps(job)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "HF_HUB_OFFLINE": "1"},
        )

    def answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.errors.seek(0)
            raise WorkerError(f"{self.what} failed:\n{self.errors.read()[-3000:]}")
        found: dict[str, Any] = json.loads(line)
        return found

    def ask(self, command: str) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        return self.answer()

    def close(self) -> None:
        """End the process; it has nothing to lose."""
        self.process.kill()
        self.process.communicate()
        self.errors.close()


@contextlib.contextmanager
def workers(case: Case, contenders: Sequence[Contender], session: Session) -> Iterator[dict[str, Worker]]:
    """A worker for each contender, by label; they load side by side."""
    started: dict[str, Worker] = {}
    try:
        for contender in contenders:
            started[contender.label] = Worker(case, contender, session)
        yield started
    finally:
        for worker in started.values():
            worker.close()


def measure(case: Case, contenders: Sequence[Contender], session: Session) -> dict[str, Any]:
    """All numbers of a case. Ratios above 1 are in favour of the first contender, ours."""
    able = [c for c in contenders if c.build in case.sides]
    with workers(case, able, session) as sides:
        ready = {label: worker.answer() for label, worker in sides.items()}
        command = dict.fromkeys(sides, "warm")
        if not case.once:
            command[able[-1].label] = "count"  # where there is a reference, it says what the work is
        warm = {label: worker.ask(command[label]) for label, worker in sides.items()}
        pairs = int(session.seconds / sum(answer["seconds"] for answer in warm.values()))
        pairs = 1 if case.once or session.quick else min(max(pairs, 1), MOST)
        runs = [(label, sides[label].ask("run")) for _ in range(pairs) for label in sides]
        errors = _errors(sides, session.folder) if case.exact and "diffusers" in case.sides else {}
    times, cpu = (
        {label: [run[key] for who, run in runs if who == label] for label in sides}
        for key in ("seconds", "cpu")
    )
    last = dict(runs)
    found: dict[str, Any] = {
        "suite": case.suite,
        "name": case.name,
        "scale": case.scale,
        "load": os.getloadavg()[0],
        "runs": [(label, run["seconds"]) for label, run in runs],
        "flops": warm[able[-1].label].get("flops"),
        "sides": {
            label: {
                "median": statistics.median(times[label]),
                "low": min(times[label]),
                "high": max(times[label]),
                "cpu": statistics.median(cpu[label]),
                "peak": last[label]["peak"],
                "above": last[label]["peak"] - ready[label]["loaded"],
                "error": errors.get(label),
                **{key: ready[label][key] for key in ("weights", "loaded", "amount")},
                "numbers": last[label]["numbers"],
            }
            for label in sides
        },
    }
    if len(able) == 2:
        ours, theirs = (times[c.label] for c in able)
        found["ratio"] = statistics.median(b / a for a, b in zip(ours, theirs, strict=True))
    return found


def _errors(sides: dict[str, Worker], folder: Path) -> dict[str, float]:
    """Relative error (L2) of each side's last result against diffusers in fp32; empty where it is missing."""
    if importlib.util.find_spec("diffusers") is None:
        return {}
    *_, last = sides.values()
    last.ask(f"exact {folder / 'exact.pt'}")
    truth = torch.load(folder / "exact.pt").double()
    errors = {}
    for label, worker in sides.items():
        worker.ask(f"save {folder / 'result.pt'}")
        result = torch.load(folder / "result.pt").double()
        errors[label] = float((result - truth).norm() / truth.norm())
    return errors
