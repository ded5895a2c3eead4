"""The executor of step plans against plain simulations, and how presets travel."""

import json

import pytest
import torch

import cogvideox
from cogvideox.core.errors import InputError
from cogvideox.diffusion.inputs import Sample, build_pack, split_output
from cogvideox.diffusion.samplers import Sampler
from cogvideox.diffusion.stepplan import StepPlan
from cogvideox.diffusion.timesteps import sampling_timesteps
from cogvideox.generation import jobs
from cogvideox.generation.noise import KeyedNoise
from cogvideox.generation.plan import Speeds, seconds_of, weights_of
from cogvideox.generation.quality import Calibration, Price, Way
from cogvideox.generation.request import Request, decide
from cogvideox.generation.sample import Conditions, sample
from tests.tiny import tiny_model, tiny_spec

SCALE = 4.0


@pytest.fixture(scope="module")
def model():
    return tiny_model("5b")


def texts(model):
    return torch.randn(2, 12, 16, generator=torch.Generator().manual_seed(1))


def final(model, kind, steps, plan, start=0, branches=2):
    generator = torch.Generator().manual_seed(3)
    cond, uncond = texts(model)
    conditions = Conditions(cond, uncond if branches == 2 else None, SCALE)
    sampler = Sampler(kind, model.schedule, sampling_timesteps(steps))
    x = torch.randn(4, 3, 4, 6, generator=generator)
    plan = None if plan is None else StepPlan.parse(plan)
    states = sample(model.transformer, sampler, sampler.start(x, start), conditions, KeyedNoise(0), plan=plan)
    return list(states)[-1].x


@torch.no_grad()
def simulate(model, kind, steps, blocks, guidance, line=lambda t, a, b: (t - b) / (b - a)):
    """The same by a plain loop that runs each branch alone and keeps everything."""
    cond, uncond = texts(model)
    spec, transformer = model.spec.transformer, model.transformer
    sampler = Sampler(kind, model.schedule, sampling_timesteps(steps))
    state = sampler.start(torch.randn(4, 3, 4, 6, generator=torch.Generator().manual_seed(3)))
    full, gap = {"cond": [], "uncond": []}, None

    def branch(name, text, letter, t):
        pack = build_pack([Sample(state.x, text, t)], spec, dtype=torch.float32)
        x, temb = transformer.embed(pack)
        before = pack.video_rows(x)
        if letter == "f":
            residual = transformer.stack(x, temb, pack) - before
            full[name].append((t, residual))
        elif letter == "r":
            residual = full[name][-1][1]
        else:
            (a, first), (b, last) = full[name][-2:]
            residual = last + (last - first) * line(t, a, b)
        return split_output(transformer.output(before + residual, temb, pack), pack, spec)[0]

    for letter, guide in zip(blocks, guidance, strict=True):
        t = sampler.timestep(state)
        v = branch("cond", cond, letter, t)
        if guide == "p":
            gap = v - branch("uncond", uncond, letter, t)
        if guide != "c":
            v = v + (SCALE - 1) * gap
        state = sampler.step(state, v)
    return state.x


@pytest.mark.parametrize("kind", ["ddim", "dpm++2m-ode"])
@pytest.mark.parametrize(
    ("blocks", "guidance"),
    [
        ("fffffff", "ppppppp"),
        ("frrfrrf", "ppppppp"),
        ("fftftff", "ppppppp"),
        ("fffffff", "phpphhp"),
        ("fffffff", "cppphcc"),
        ("fftrfrf", "pphpccp"),
    ],
)
def test_a_plan_is_what_a_plain_loop_does(model, kind, blocks, guidance):
    made = final(model, kind, 7, f"{blocks}/{guidance}")
    torch.testing.assert_close(made, simulate(model, kind, 7, blocks, guidance), rtol=1e-4, atol=1e-4)


def test_a_plan_that_leaves_nothing_out_changes_no_bit(model):
    assert torch.equal(final(model, "dpm++2m-ode", 5, "f5"), final(model, "dpm++2m-ode", 5, None))
    assert torch.equal(final(model, "ddim", 5, "f5", branches=1), final(model, "ddim", 5, None, branches=1))


def test_plans_differ_from_the_exact_way(model):
    exact = final(model, "ddim", 6, None)
    made = {plan: final(model, "ddim", 6, plan) for plan in ("f2rfrf", "f2tftf", "f6/p2hphp", "f6/p3c3")}
    for plan, x in made.items():
        assert 1e-3 < (x - exact).abs().max(), plan


def test_only_full_steps_run_the_blocks(model, monkeypatch):
    ran = []
    stack = type(model.transformer).stack
    counting = lambda self, x, temb, pack: ran.append(len(pack.segments)) or stack(self, x, temb, pack)  # noqa: E731
    monkeypatch.setattr(type(model.transformer), "stack", counting)
    plan = StepPlan.parse("f3rftf/p3h2cp")
    final(model, "ddim", 7, str(plan))
    assert ran == [2, 2, 2, 1, 2]
    assert sum(ran) == plan.work


def test_a_run_that_starts_late_begins_in_full(model):
    assert torch.equal(final(model, "ddim", 6, "f2rfrf", start=2), final(model, "ddim", 6, "f2f2rf", start=2))


# ---------------------------------------------------------------------------------------------------- presets

PRICE = Price(psnr=33.3, worst=30.0, ssim=0.95, features=0.1, seconds=1.0, faster=2.5)
FAST = Way(name="fewer steps", steps=3, plan="f3/phc", price=PRICE)


def calibration(**changes):
    values = {
        "model": "tiny-5b",
        "fingerprint": "0",
        "sampler": "dpm++2m-sde",
        "steps": 4,
        "guidance": 6.0,
        "shape": "9 frames of 48x32",
        "clips": 1,
        "machine": "tests",
        "presets": {"fast": FAST},
        "table": (FAST,),
    }
    return Calibration(**{**values, **changes})


def settings(known=None, **values):
    return decide(Request.parse({"prompt": "a", **values}), tiny_spec(), calibration=known)


def test_the_default_is_exact():
    made = settings(calibration())
    assert (made.quality, made.plan, made.price, made.steps) == ("exact", None, None, 4)


def test_a_preset_is_its_way_and_its_price():
    made = settings(calibration(), quality="fast")
    assert (made.steps, str(made.plan), made.price) == (3, "f3/phc", PRICE)
    assert made.work == 2 + 1 + 1


@pytest.mark.parametrize(
    ("known", "values", "says"),
    [
        (None, {"quality": "fast"}, "run `cogvideox calibrate`"),
        (calibration(), {"quality": "high"}, "good enough"),
        (calibration(), {"quality": "fast", "steps": 20}, "4 steps of dpm.*, not 20"),
        (calibration(), {"quality": "fast", "sampler": "ddim"}, "not 4 of ddim"),
        (calibration(model="mini"), {"quality": "fast"}, "for mini, not for tiny-5b"),
        (calibration(), {"quality": "fats"}, "did you mean 'fast'"),
        (None, {"plan": "f3", "steps": 4}, "for 3 steps, not 4"),
        (None, {"plan": "f3?"}, "not one such as"),
    ],
)
def test_what_was_not_measured_is_refused(known, values, says):
    with pytest.raises(InputError, match=says):
        settings(known, **values)


def test_a_plan_needs_no_calibration_and_has_no_price_then():
    made = settings(plan="f2rf")
    assert (made.steps, str(made.plan), made.price, made.quality) == (4, "f2rf", None, "by plan")


def test_a_finished_request_repeats_its_plan_without_the_calibration():
    request = Request.parse({"prompt": "a", "quality": "fast"})
    first = decide(request, tiny_spec(), calibration=calibration())
    again = decide(Request.parse(first.complete(request).brief()), tiny_spec())
    assert (again.plan, again.steps, again.quality) == (first.plan, first.steps, "fast")


def test_what_is_given_anew_replaces_the_recorded_plan():
    recorded = {"prompt": "a", "quality": "fast", "plan": "f3/phc", "steps": 3, "sampler": "dpm++2m-sde"}
    assert jobs.override(recorded, {"quality": "exact"}) == {"prompt": "a", "quality": "exact"}
    assert jobs.override(recorded, {"plan": "f9"}) == {"prompt": "a", "plan": "f9", "sampler": "dpm++2m-sde"}
    assert "plan" not in jobs.override(recorded, {"steps": 4})
    assert jobs.override(recorded, {"seed": 1}) == recorded | {"seed": 1}


def test_less_work_is_less_time():
    spec, speeds = tiny_spec(), Speeds(1e9, 1e9, 1e9)
    times = [
        seconds_of(spec, one, weights_of(spec, torch.float32), torch.float32, speeds)["sample"]
        for one in (settings(), settings(plan="f2r2"))
    ]
    assert times[1] == pytest.approx(times[0] / 2)


def test_files_of_other_kinds_are_no_calibrations(tmp_path):
    path = tmp_path / "plan.json"
    with pytest.raises(InputError, match="No such file"):
        Calibration.read(path)
    path.write_text('{"model": "a"}')
    with pytest.raises(InputError, match="no file of `cogvideox calibrate`: fingerprint"):
        Calibration.read(path)
    calibration().write(path)
    assert Calibration.read(path) == calibration()


def test_the_record_holds_preset_and_price(folder, tmp_path):
    path = tmp_path / "plan.json"
    calibration().write(path)
    pipe = cogvideox.load(folder, dtype="fp32", device="cpu", calibration=path)
    exact = pipe("a dog runs")
    made = pipe("a dog runs", quality="fast", sampler="dpm++2m-sde")
    assert exact.metadata["quality"] == {"name": "exact", "price": None}
    assert made.metadata["quality"] == {"name": "fast", "price": json.loads(PRICE.model_dump_json())}
    assert made.metadata["request"]["plan"] == "f3/phc"
    assert (made.frames != exact.frames).any()
