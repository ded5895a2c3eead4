"""The shipped judge: small, right about true renders, and about what a VAE makes of them."""

import json

import numpy as np
import pytest
import torch

import cogvideox
from cogvideox.data.storybook import World
from cogvideox.evaluation.judge.prompts import SETS, cases
from cogvideox.evaluation.judge.reading import KEY_ANSWERS, Judge
from cogvideox.evaluation.judge.scores import score
from cogvideox.evaluation.storybook import Order, evaluate
from cogvideox.generation.media import to_frames, to_signed
from cogvideox.training.judge import SHIPPED, read_judge
from cogvideox.training.judge import ceiling as measure


@pytest.fixture(scope="module")
def judge():
    return Judge.load()


def test_it_is_small_and_says_how_good_it_is():
    net, ceiling = read_judge()
    assert sum(file.stat().st_size for file in SHIPPED.iterdir()) < 4e6
    # What it says of itself is true of clips that it was neither trained nor measured on.
    again = measure(net.arrange(torch.device("cpu"), torch.float32).eval(), seed=17, clips=24)
    assert all(again[name] > ceiling[name] - 0.15 for name in KEY_ANSWERS)


@pytest.mark.parametrize("name", ["single", "narrative", "relation"])
def test_it_is_right_about_true_renders(judge, name):
    hits = []
    for case in cases(name)[:8]:
        seen = judge.read(case.clip.render(case.frames, 8, 128, 128))
        hits += [score(s, case, seen) for s in SETS[name].scores]
    assert np.mean(hits) > 0.85


def test_it_sees_who_leaves(judge):
    clip = World(seed=9).describe("tiger", "leave left", "meadow", duration=10)
    seen = judge.read(clip.render(81, 8, 64, 112))
    assert seen.characters(0, 17) == {"tiger"}
    assert seen.characters(80) == frozenset()


@torch.no_grad()
def test_what_a_vae_makes_of_a_clip_is_judged_nearly_like_it(judge):
    vae, hits = cogvideox.load("mini").vae, []
    for case in cases("single")[:8]:
        signed = to_signed(case.clip.render(17, 8, 128, 128)).bfloat16()
        seen = judge.read(to_frames(vae.decode(vae.encode(signed))))
        hits += [score(s, case, seen) for s in ("characters", "scene", "motion")]
    assert np.mean(hits) > 0.75


@pytest.mark.slow
def test_the_shipped_model_is_judged_above_the_floor(judge, tmp_path):
    """A whole evaluation, shortened: real videos by mini, read by the shipped judge."""
    order = Order(("single", "camera"), prompts=8, seeds=2)
    assert len(list(evaluate(cogvideox.load("mini"), judge, order, tmp_path))) == order.videos
    rows = json.loads((tmp_path / "report.json").read_text())["sets"]["single"]["rows"]
    assert rows["renders"]["scene"]["mean"] > 0.9
    assert rows["model"]["scene"]["mean"] > rows["shuffled"]["scene"]["mean"] + 0.3
    assert rows["model"]["motion"]["mean"] > rows["still"]["motion"]["mean"]
