"""Calibration of a tiny model, and its parts on made-up numbers."""

import math

import numpy as np
import pytest
import torch

import cogvideox
from cogvideox.core.errors import InputError
from cogvideox.diffusion.inputs import Sample, build_pack
from cogvideox.diffusion.samplers import Sampler
from cogvideox.diffusion.timesteps import sampling_timesteps
from cogvideox.evaluation import calibrate as module
from cogvideox.evaluation.calibrate import FAST, HIGH_PSNR, MARGIN, Order, calibrate, presets, shortlist
from cogvideox.evaluation.curves import Curves, Recorder
from cogvideox.generation.quality import Calibration, Price, Way
from cogvideox.generation.request import Request
from tests.tiny import tiny_folder, tiny_model

STEPS = 6


@pytest.fixture(scope="module")
def pipe(tmp_path_factory):
    folder = tiny_folder(tmp_path_factory.mktemp("models") / "5b", "5b")
    return cogvideox.load(folder, dtype="fp32", device="cpu")


def test_calibration_measures_many_ways_against_the_exact_one(pipe):
    order = Order(Request(frames=1, steps=STEPS, sampler="ddim"), ("a dog runs", "the cat sleeps"))
    *ways, found = calibrate(pipe, order)
    assert isinstance(found, Calibration)
    assert found.table == tuple(ways)
    exact = ways[0]
    assert (exact.name, exact.plan, exact.price.psnr, exact.price.features) == ("exact", "f6", 99, 0)
    assert min(way.price.psnr for way in ways) < 60
    assert (found.steps, found.sampler, found.clips) == (STEPS, "ddim", 4)
    # A price is that of the video which the way makes.
    way = next(way for way in ways if way.name == "held")
    options = {"frames": 1, "sampler": "ddim", "seed": 0}
    one, two = (pipe("a dog runs", **options, **more) for more in ({"steps": STEPS}, {"plan": way.plan}))
    error = np.square(one.frames / 255.0 - two.frames / 255.0).mean()
    assert way.price.worst <= min(99, -10 * math.log10(max(error, 1e-12))) + 0.01


@pytest.mark.parametrize("values", [{"plan": "f4"}, {"guidance": 1.0}])
def test_calibration_starts_from_the_exact_way(pipe, values):
    with pytest.raises(InputError, match="leave plan, quality and guidance 1 out"):
        next(calibrate(pipe, Order(Request(**values))))


def test_one_step_leaves_nothing_to_choose(pipe):
    with pytest.raises(InputError, match="needs 2 steps or more, not 1"):
        next(calibrate(pipe, Order(Request(steps=1))))
    *_, found = calibrate(pipe, Order(Request(frames=1, steps=2, sampler="ddim"), ("a dog runs",)))
    assert found.steps == 2


def test_a_recorder_changes_nothing_and_sees_residuals():
    model = tiny_model("5b")
    recorder = Recorder(model.transformer)
    x, text = torch.randn(2, 4, 3, 4, 6), torch.randn(2, 12, 16)
    samples = [Sample(x[k], text[k], 500) for k in range(2)]
    pack = build_pack(samples, model.spec.transformer, dtype=torch.float32)
    with torch.no_grad():
        assert torch.equal(recorder(pack), model.transformer(pack))
        tokens, temb = model.transformer.embed(pack)
        residual = model.transformer.stack(tokens, temb, pack) - pack.video_rows(tokens)
    half = len(residual) // 2
    assert torch.equal(recorder.residuals[0], residual[half:].flatten())
    assert torch.equal(recorder.embeddings[0], temb[1])
    assert not torch.equal(recorder.firsts[0], recorder.residuals[0])


def curves(residual):
    steps = len(residual)
    sampler = Sampler("ddim", tiny_model().schedule, sampling_timesteps(steps))
    return Curves(torch.rand(steps, 4), torch.rand(steps, 9), residual, sampler.timesteps, (1.0,) * steps)


def test_the_cheapest_plan_uses_lines_where_residuals_move_along_lines():
    times = torch.tensor(sampling_timesteps(8)).double()
    line = (times[:, None] * torch.rand(50) + torch.rand(50)).float()
    assert curves(line).cheapest(3).blocks.strip("f") == "t" * 5
    still = torch.rand(1, 50).expand(8, 50)
    found = curves(still)
    assert found.cheapest(2).blocks == "frrrrrrf"
    assert found.ratios == [1.0] * 8
    assert found.magcache(0.1, 9).blocks == "frrrrrrf"


def test_errors_of_residuals_are_their_distances():
    rows = torch.rand(6, 40)
    made = curves(rows)
    t = made.timesteps
    slope = (t[4] - t[3]) / (t[3] - t[1])
    line = rows[3] + slope * (rows[3] - rows[1])
    expected = min(((rows[3] - rows[4]).norm(), "r"), ((line - rows[4]).norm(), "t"))
    found = made._errors(1, 3, 4)
    assert found[0] == pytest.approx(float(expected[0]), rel=1e-4)
    assert found[1] == expected[1]


def way(name, worst, faster):
    price = Price(psnr=worst + 1, worst=worst, ssim=0.9, features=0.1, seconds=1.0, faster=faster)
    return Way(name=name, steps=4, plan="f4", price=price)


def test_ways_are_ranked_for_each_preset():
    exact = way("exact", 99, 1.0)
    some = [way("a", HIGH_PSNR + 5, 1.2), way("b", HIGH_PSNR, 1.9), way("c", 25, FAST), way("d", 28, 9)]
    ranked = {name: [one.name for one in found] for name, found in shortlist([exact, *some]).items()}
    assert ranked == {"high": ["b", "a"], "fast": ["d", "c"]}
    assert shortlist([exact, way("e", 10, 1.1)]) == {"high": [], "fast": []}


def test_presets_are_checked_on_other_clips(pipe, monkeypatch):
    """The way that was best on the clips that chose is passed over when the others do not bear it out."""
    order = Order(Request(frames=1, sampler="ddim"), ("a dog runs", "the cat sleeps"))
    assert not {clip.seed for clip in order.choosing} & {clip.seed for clip in order.checking}
    seen = []

    def measure(pipe, clips, name, plan, exact, baseline):
        seen.append((name, len(clips), len(exact)))
        return way(name, HIGH_PSNR + {"b": MARGIN - 0.1, "a": MARGIN}[name], 1.1)

    monkeypatch.setattr(module, "_measure", measure)
    ways = [way("exact", 99, 1.0), way("a", HIGH_PSNR + 5, 1.2), way("b", HIGH_PSNR + 2, 1.9)]
    found = presets(pipe, order.checking, ways)
    assert seen == [("b", 4, 4), ("a", 4, 4)]
    assert {name: one.price.worst for name, one in found.items()} == {"high": HIGH_PSNR + MARGIN}


def test_no_preset_is_slower_than_exact(pipe, monkeypatch):
    """What looked fast on the clips that chose is passed over when it takes longer on the others."""
    order = Order(Request(frames=1, sampler="ddim"), ("a dog runs",))
    gains = {"b": 0.8, "a": 1.1}
    monkeypatch.setattr(module, "_measure", lambda pipe, clips, name, *_: way(name, 60, gains[name]))
    ways = [way("exact", 99, 1.0), way("a", 30, FAST), way("b", 40, FAST + 1)]
    found = presets(pipe, order.checking, ways)
    assert {name: one.name for name, one in found.items()} == {"fast": "a"}
