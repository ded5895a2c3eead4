"""What the README tells people to type works, with the shipped model: commands and the Python example."""

import os
import re
import shlex
import subprocess
from pathlib import Path

import numpy as np
import pytest

from cogvideox.data.video import probe
from tests.cli.conftest import COMMAND

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def lines(block):
    return [words for line in block.splitlines() if (words := shlex.split(line, comments=True))]


def test_the_two_commands(tmp_path):
    demo, test = lines(blocks("sh")[0])
    assert (demo, test) == (["make", "demo"], ["make", "test"])  # the second is what runs this
    options = {
        "cwd": ROOT,
        "env": {name: value for name, value in os.environ.items() if not name.startswith("MAKE")},
        "capture_output": True,
        "text": True,
    }
    if subprocess.run(["make", "-q", ".venv/run.done"], **options).returncode:
        pytest.skip("make would set up .venv anew")
    done = subprocess.run([*demo, f"OUT={tmp_path / 'demo.mp4'}"], **options)
    assert done.returncode == 0, done.stderr
    assert probe(tmp_path / "demo.mp4").frames == 17


def test_the_python_example(tmp_path, monkeypatch):
    (example,) = blocks("python")
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(compile(example, "README.md", "exec"), names)
    assert (tmp_path / "boat.mp4").stat().st_size > 2000
    assert names["video"].frames.shape == (17, 128, 128, 3)
    kept = names["again"].frames[0].astype(float) - names["first"]
    assert np.abs(kept).mean() < 12  # the picture that it was given, through the VAE
    assert len(names["longer"].frames) == 33


def test_the_commands(tmp_path):
    (commands,) = (block for block in blocks("sh") if "cogvideox generate" in block)
    for words in lines(commands):
        assert words[0] == "cogvideox"
        done = subprocess.run([*COMMAND, *words[1:]], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, (words, done.stderr)
        assert done.stderr if "--dry-run" in words else done.stdout
    assert (tmp_path / "penguin.mp4").read_bytes() == (tmp_path / "same.mp4").read_bytes()
