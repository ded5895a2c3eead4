"""`make demo`: any prompt reaches the command as it is, and an old Python is named."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="no make here")


@pytest.fixture
def make(tmp_path):
    """Run make in a folder with this repository's Makefile and programs that only show what they get."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "requirements").mkdir()
    for name in ("requirements/run.lock", "pyproject.toml"):
        (tmp_path / name).touch()

    def script(name, text):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)

    def run(*arguments, **environment):
        return subprocess.run(
            ["make", *arguments],
            cwd=tmp_path,
            env={k: v for k, v in os.environ.items() if not k.startswith("MAKE")} | environment,
            capture_output=True,
            text=True,
        )

    run.script = script
    return run


@pytest.mark.parametrize(
    "prompt", ["a red dog", 'a "dog" and a cat\'s $HOME', "`id` $(id) $$ a\\b #1 %s", "--help"]
)
def test_any_prompt_is_taken_as_it_is(make, tmp_path, prompt):
    make.script(".venv/bin/cogvideox", """printf '%s\\n' "$@\"""")
    (tmp_path / ".venv" / "run.done").touch()
    expected = ["generate", "--seed", "3", "--output", "out dir/it's $1.mp4", "--", prompt]
    for how in ("given", "environment"):
        words = {"PROMPT": prompt, "OUT": "out dir/it's $1.mp4"}
        given = [f"{name}={value}" for name, value in words.items()] if how == "given" else []
        done = make("demo", "SEED=3", *given, **({} if given else words))
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines() == [f"== generating out dir/it's $1.mp4: {prompt}", *expected]
    assert (tmp_path / "out dir").is_dir()


@pytest.mark.parametrize("text", ["exit 1", None])
def test_an_old_python_is_named_in_one_line(make, tmp_path, text):
    if text:
        make.script("old", text)
    done = make("demo", "PYTHON=./old")
    assert done.returncode == 2
    assert done.stdout == "./old is not Python 3.11 or newer; name one: make PYTHON=python3.12\n"
    assert not (tmp_path / ".venv").exists()
