"""Real processes that are stopped and killed: what is left goes on to the same weights."""

import json
import os
import signal
import subprocess
import sys
import time

from cogvideox.training.checkpoint import Checkpoints
from cogvideox.training.loop import Every, Span, train
from tests.training.test_loop import RATES, Plane, same
from tests.training.test_recipes import VAE, write

STEPS = 100
OPTIONS = {
    "steps": STEPS,
    "stages": (Span("small", 0), Span("large", 50)),
    "every": Every(save_seconds=0, log=1),
}
SCRIPT = """
import sys, time, torch
torch.set_num_threads(1)
from cogvideox.cli.main import main
from cogvideox.training import run
from tests.training.test_kill import OPTIONS, RATES, Plane, train

def slow(recipe, folder, *, workers, writers, place):
    task = Plane(at=(range(1000), lambda: time.sleep(0.02)))
    train(task, folder, RATES, workers=workers, writers=writers, **OPTIONS)
    return folder

run.run_recipe = slow
sys.argv = ["cogvideox", "train", *sys.argv[1:]]
main()
"""


def stop(command, folder, step, number):
    """Run the command until it has done `step`, then send it a signal."""
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, start_new_session=True)
    log, until = folder / "metrics.jsonl", time.monotonic() + 120
    while not (log.exists() and f'"step": {step},' in log.read_text()):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < until
        time.sleep(0.02)
    os.killpg(process.pid, number)  # as clusters do: the processes that prepare data get it too
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def test_asked_to_stop_and_killed_a_run_ends_with_the_same_weights(tmp_path):
    recipe, folder = write(tmp_path / "r.yaml", VAE), tmp_path / "run"
    command = [sys.executable, "-c", SCRIPT, str(recipe), "--output", str(folder), "--workers", "1"]
    status, out, err = stop(command, folder, 20, signal.SIGTERM)
    assert status == 0, err
    at = Checkpoints(folder / "checkpoints").steps()[-1]
    assert out.strip() == f"stopped after step {at} of {STEPS}, all is saved; the same command goes on"
    status, out, err = stop(command, folder, at + 20, signal.SIGKILL)
    assert status == -signal.SIGKILL
    assert f"going on after step {at} of {STEPS}" in err
    # The interval is a step here; checkpoints are written beside the next steps.
    assert Checkpoints(folder / "checkpoints").steps()[-1] >= at + 18

    for home in (folder, tmp_path / "whole"):
        train(Plane(), home, RATES, workers=0, **OPTIONS)
    log = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    assert [line["step"] for line in log if "begins" not in line] == [*range(1, STEPS + 1)]
    halves, whole = (Checkpoints(home / "checkpoints").load() for home in (folder, tmp_path / "whole"))
    assert whole[0] == STEPS
    assert same(halves, whole)
