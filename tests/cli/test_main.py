"""The other commands, the start-up, and what a process returns."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

import cogvideox
from cogvideox.checkpoints import hub
from cogvideox.models.specs import SPECS
from tests.cli.conftest import COMMAND, start


def test_help_is_fast_and_loads_nothing_heavy():
    began = time.monotonic()
    done = subprocess.run([*COMMAND, "--help"], capture_output=True, text=True, check=True)
    assert time.monotonic() - began < 2  # 0.2 s on a machine of its own
    for name in ("generate", "decode", "info", "doctor", "models", "convert", "train", "data"):
        assert name in done.stdout
    script = (
        "import sys, cogvideox.cli.main as m\n"
        "heavy = {'torch', 'transformers', 'numpy', 'av', 'pydantic', 'PIL'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_nothing_said_is_help(run):
    assert run().status == 0
    assert run("--version").out.strip() == cogvideox.__version__
    assert "prompts" in run("generate", "--help").out


def test_a_process_returns_the_status(tmp_path):
    process = start("generate", "", cwd=tmp_path)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (2, "")
    assert err.strip() == "cogvideox: the prompt is empty"


def test_models(run, models, monkeypatch):
    monkeypatch.setattr(hub, "MINI", Path(models["5b-i2v"]))
    listed = run("models").out
    assert all(name in listed for name in ("mini", *SPECS))
    sizes = json.loads(run("models", "--json").out)
    assert list(sizes) == ["mini", *SPECS]
    assert sizes["mini"]["height"] == 32
    monkeypatch.setattr(hub, "MINI", Path("none"))
    assert list(json.loads(run("models", "--json").out)) == [*SPECS]


def test_info_of_models_and_files(run, models, tmp_path):
    assert "image_conditioned" not in run("info", "5b").out
    assert json.loads(run("info", "5b", "--json").out)["transformer"]["layers"] == 42
    assert "tiny-5b-i2v" in run("info", models["5b-i2v"]).out
    arguments = ("generate", "a dog", "--model", models["5b"], "--steps", 1)
    for name in ("x.mp4", "x.safetensors", "x.png-folder"):
        assert run(*arguments, "-o", name).status == 0
        facts = json.loads(run("info", name, "--json").out)
        assert facts["request"]["prompt"] == "a dog"
        assert facts["holds"]["frames"] == 9
        assert "a dog" in run("info", name).out


def test_doctor(run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")  # so that nothing wraps
    facts = json.loads(run("doctor", "--device", "cpu", "--json").out)
    assert facts["device"] == "cpu"
    assert facts["free"] <= facts["total"]
    assert [row["model"] for row in facts["models"] if row["model"] != "mini"] == list(SPECS)
    assert all(row["runs"].startswith(("yes", "no")) for row in facts["models"])
    shown = run("doctor", "--device", "cpu").out
    assert "GiB free of" in shown
    assert f"allocator  {facts['allocator']}" in shown
    assert facts["faster_allocator"][:20] in shown
    assert "49 frames of 720x480" in shown


@pytest.mark.parametrize(
    "name", ["load", "Pipeline", "Video", "InputError", "NonFiniteError", "CheckpointError"]
)
def test_the_package_offers(name):
    assert getattr(cogvideox, name) is not None
    assert name in dir(cogvideox)


def test_the_package_has_no_other_attributes():
    with pytest.raises(AttributeError, match="laod"):
        _ = cogvideox.laod
