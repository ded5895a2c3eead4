"""Real processes that are stopped and killed: what is left goes on to the same weights."""

import json
import signal
import subprocess
import sys
import time

import torch

from cogvideox.training.checkpoint import Checkpoints
from cogvideox.training.recipe import load_recipe
from cogvideox.training.run import run_recipe
from tests.training.test_loop import same
from tests.training.test_recipes import VAE, write

SCRIPT = (
    "import sys, torch; torch.set_num_threads(1); from cogvideox.cli.main import main; "
    "sys.argv = ['cogvideox', 'train', *sys.argv[1:], '--workers', '1']; main()"
)
STAGE = {"batch": 1, "frames": 1, "crop": 32, "sizes": [32]}
RECIPE = VAE | {
    "stages": [STAGE | {"steps": 60}, STAGE | {"steps": 60, "frames": 5}],
    "every": {"log": 1, "evaluate": 120, "save_seconds": 0},
}


def stop(command, folder, step, number):
    """Run the command until it has done `step`, then send it a signal."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    log, until = folder / "metrics.jsonl", time.monotonic() + 120
    while not (log.exists() and f'"step": {step},' in log.read_text()):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < until
        time.sleep(0.02)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def test_asked_to_stop_and_killed_a_run_ends_with_the_same_weights(tmp_path):
    path, folder = write(tmp_path / "r.yaml", RECIPE), tmp_path / "run"
    command = [sys.executable, "-c", SCRIPT, str(path), "--output", str(folder)]
    status, out, err = stop(command, folder, 20, signal.SIGTERM)
    assert status == 0, err
    at = Checkpoints(folder / "checkpoints").steps()[-1]
    assert out.strip() == f"stopped after step {at} of 120, all is saved; the same command goes on"
    status, out, err = stop(command, folder, at + 45, signal.SIGKILL)
    assert status == -signal.SIGKILL
    assert f"going on after step {at} of 120" in err
    kept = Checkpoints(folder / "checkpoints").steps()[-1]
    assert kept >= at + 44  # the interval is a step here
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(folder / "vae")
    steps = [line["step"] for line in map(json.loads, (folder / "metrics.jsonl").open()) if "event" not in line]
    assert steps == [*range(1, 121)]

    run_recipe(load_recipe(path), tmp_path / "whole", workers=0)
    (step, whole), (_, halves) = (
        Checkpoints(home / "checkpoints").load({}) for home in (tmp_path / "whole", folder)
    )
    assert step == 120
    assert same(whole, halves)
    assert whole["run"]["stage"] == "5 frames"
    assert torch.is_tensor(whole["model"]["ema"][0])
