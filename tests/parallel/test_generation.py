"""Whole clips on several processes, from Python and from torchrun: the clips of one process."""

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

import cogvideox
from cogvideox.core.errors import InputError
from cogvideox.data.video import read_metadata, read_video
from cogvideox.generation import pipeline as pipelines
from cogvideox.generation.generate import Place
from cogvideox.generation.pipeline import Pipeline
from cogvideox.parallel.sequence import share_attention
from tests.parallel.processes import relative_error, together, world
from tests.tiny import tiny_folder, tiny_model

PROMPT = "a red dog runs"
TASKS: dict[str, dict[str, Any]] = {
    "text": {"negative": "blue", "frames": 17},
    "no guidance": {"guidance": 1},
    "plan": {"plan": "f3rtf/p2hpcp", "frames": 17, "sampler": "ddim"},
    "image": {"image": np.full((32, 48, 3), 99, np.uint8)},
    "video": {"video": np.arange(17 * 32 * 48 * 3, dtype=np.uint32).astype(np.uint8).reshape(17, 32, 48, 3)},
    "extend": {"extend": torch.full((1, 4, 3, 4, 6), 0.5), "frames": 17},
    "diffusers": {"generator": 7},
}


def pipes(like: str, way: str) -> tuple[Pipeline, Pipeline]:
    """One that is alone, and one that shares its work with the other processes."""
    place = Place.pick("cpu", "fp32")
    alone, shared = Pipeline(tiny_model(like), place), Pipeline(tiny_model(like), place, world=world(way))
    share_attention(shared.transformer)
    return alone, shared


def compare(alone: Pipeline, shared: Pipeline, task: str) -> None:
    def make(pipe: Pipeline) -> Any:
        values = dict(TASKS[task])
        if seed := values.pop("generator", None):
            values["generator"] = torch.Generator().manual_seed(seed)
        return pipe(PROMPT, **{"seed": 3, **values})

    expected, made = make(alone), make(shared)
    assert relative_error(made.latents, expected.latents) < 1e-5, task
    levels = np.abs(made.frames.astype(int) - expected.frames.astype(int))
    assert levels.max() <= 1, task
    assert levels.mean() < 0.01, task
    for mine in (made.latents, torch.from_numpy(made.frames)):
        everyones = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
        dist.all_gather(everyones, mine.contiguous())
        assert all(torch.equal(theirs, mine) for theirs in everyones), task


def tasks(like: str, way: str, names: list[str]) -> None:
    alone, shared = pipes(like, way)
    for name in names:
        compare(alone, shared, name)


@pytest.mark.parametrize(
    ("size", "like", "way", "names"),
    [
        (2, "5b", "cfg", ["text", "plan", "video", "extend", "diffusers"]),
        (2, "2b", "ulysses+space", ["text", "video", "no guidance"]),
        (3, "1.5-5b", "sequence", ["text", "plan"]),
        (4, "5b", "auto", ["plan", "no guidance"]),
        (4, "5b-i2v", "cfg+ulysses+space", ["image"]),
    ],
)
def test_clips_are_those_of_one_process_and_the_same_on_all(size, like, way, names):
    together(size, tasks, like, way, names)


def loaded(folder: Path) -> None:
    """`parallel` of `load`, as a script under torchrun gives it."""
    shared = cogvideox.load(folder, dtype="fp32", device="cpu", parallel="auto")
    alone = cogvideox.load(folder, dtype="fp32", device="cpu")
    assert shared.first == (dist.get_rank() == 0)
    assert alone.first
    compare(alone, shared, "text")
    with pytest.raises(InputError, match="divides the branches of guidance, and this clip has none"):
        cogvideox.load(folder, dtype="fp32", device="cpu", parallel="cfg")(PROMPT, guidance=1)


def test_a_pipeline_is_loaded_for_several_processes(tmp_path):
    together(2, loaded, tiny_folder(tmp_path / "5b"))


def apart() -> None:
    """One process finds that memory is short: all run the branches one after the other."""
    alone, shared = pipes("5b", "sequence")
    plan = pipelines.make_plan
    if dist.get_rank() == 1:
        pipelines.make_plan = lambda *a, **kw: replace(plan(*a, **kw), apart=True)
    for task in ("text", "plan"):
        compare(alone, shared, task)


def test_all_run_branches_apart_if_one_must():
    together(2, apart)


# ------------------------------------------------------------------------------------------------- torchrun

GENERATE = [
    *("generate", PROMPT, "--steps", "2", "--size", "64x64", "--dtype", "fp32"),
    *("--seed", "5", "--json"),
]
FAILING = """
import os
from cogvideox.cli.main import main
from cogvideox.core.errors import NonFiniteError
from cogvideox.generation import sample

predict = sample.predict
def failing(transformer, x, t, *rest):
    if os.environ["RANK"] == "1" and t < 900:
        raise NonFiniteError("rank 1 found\\n no numbers")
    return predict(transformer, x, t, *rest)
sample.predict = failing
if __name__ == "__main__":
    main()
"""


def torchrun(*arguments: str | Path, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*command, *map(str, arguments)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


def test_torchrun_makes_the_video_of_one_process(tmp_path):
    made = torchrun("-m", "cogvideox", *GENERATE, "-o", "two.mp4", folder=tmp_path)
    assert made.returncode == 0, made.stderr
    facts = json.loads(made.stdout)  # one line: the other process is silent
    assert facts["parallel"] == {"processes": 2, "branches": 2, "attention": "sequence", "vae": "time"}
    assert made.stderr.count("2 processes: a branch of guidance for each half; the VAE's chunks dealt") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["two.mp4"]
    one = cogvideox.load(dtype="fp32", device="cpu")(PROMPT, steps=2, width=64, height=64, seed=5)
    one.save(tmp_path / "one.mp4")
    assert np.array_equal(read_video(tmp_path / "one.mp4").frames, read_video(tmp_path / "two.mp4").frames)
    assert one.metadata["request"] == read_metadata(tmp_path / "two.mp4")["request"]


def test_an_error_of_one_process_is_one_line_and_ends_all(tmp_path):
    (tmp_path / "failing.py").write_text(FAILING)
    began = time.monotonic()
    made = torchrun("failing.py", *GENERATE, "-o", "two.mp4", folder=tmp_path)
    assert time.monotonic() - began < 100  # imports and loading included
    assert made.returncode != 0
    lines = [line for line in made.stderr.splitlines() if line.startswith("cogvideox: ")]
    assert lines == ["cogvideox: rank 1 found no numbers"]
    assert "Traceback" not in made.stderr.split("torch/distributed")[0]
    assert [p.name for p in tmp_path.iterdir()] == ["failing.py"]
