"""The command, run in this process (fast) or in its own (real)."""

import subprocess
import sys
from dataclasses import dataclass

import pytest

from cogvideox.cli import main as cli
from tests.tiny import tiny_folder


@dataclass(frozen=True)
class Done:
    status: int
    out: str
    err: str


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return {like: str(tiny_folder(root / like, like)) for like in ("5b", "5b-i2v")}


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Run the command in an empty folder; returns its status and output."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["cogvideox", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return Done(end.value.code or 0, *capsys.readouterr())

    return call


COMMAND = [sys.executable, "-c", "from cogvideox.cli.main import main; main()"]


def start(*arguments, **options):
    """The command as a process of its own."""
    return subprocess.Popen(
        [*COMMAND, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )
