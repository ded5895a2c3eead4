"""Plans: memory within sight of what is measured, refusals that name what would fit."""

import sys
from dataclasses import astuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cogvideox.core.device import Memory, native_bfloat16
from cogvideox.core.errors import InputError
from cogvideox.core.shapes import plan_shape
from cogvideox.generation.plan import (
    GIB,
    Speeds,
    check,
    decoder_operations,
    make_plan,
    measure,
    seconds_of,
    weights_of,
)
from cogvideox.generation.request import Request, decide
from cogvideox.models.specs import SPECS, VAESpec
from cogvideox.models.vae.autoencoder import VAE
from tools.fit_memory import RELEASED, Case, estimate, run


def plan_of(name, free, shape=None, **changes):
    spec = SPECS[name]
    shape = shape or plan_shape(spec.transformer.patch, spec.frames, spec.height, spec.width)
    arguments = {
        "guided": True,
        "dtype": torch.bfloat16,
        "memory": Memory(free, free),
        "weights": weights_of(spec, torch.bfloat16),
    }
    return make_plan(spec, shape, (shape.frames - 1) // 4 + 1, **(arguments | changes))


def test_weights_are_those_of_the_released_models():
    sizes = {name: weights_of(spec, torch.bfloat16) for name, spec in SPECS.items()}
    assert sizes["2b"].transformer / 2 == pytest.approx(1.694e9, rel=1e-3)
    assert sizes["5b"].transformer / 2 == pytest.approx(5.570e9, rel=1e-3)
    assert sizes["5b-i2v"].transformer / 2 == pytest.approx(5.625e9, rel=1e-3)
    assert sizes["1.5-5b"].vae / 2 == pytest.approx(215.6e6, rel=1e-3)
    assert sizes["5b"].text == pytest.approx(9.52e9, rel=1e-2)


def test_tokens_are_those_of_the_paper():
    assert plan_of("5b", GIB).tokens == 17_550 + 226
    assert plan_of("1.5-5b", GIB).tokens == 44_880 + 224


def test_decoding_does_not_grow_with_the_clip_and_sampling_does():
    short, long = (plan_of("5b", GIB, plan_shape((1, 2, 2), frames, 480, 720)) for frames in (17, 161))
    assert short.decoding == long.decoding
    assert short.sampling < long.sampling


def test_parts_wait_only_when_memory_is_short():
    plenty = plan_of("5b", 200 * GIB)
    little = plenty.peak - GIB
    short = plan_of("5b", little)
    assert (plenty.wait, short.wait) == (False, True)
    assert short.peak < plenty.peak
    assert not plan_of("5b", little, wait=False).wait
    assert plan_of("5b", 200 * GIB, wait=True).peak == short.peak
    gpu = plan_of("5b", 16 * GIB, accelerator=True)
    assert gpu.peak == max(gpu.weights.transformer + gpu.sampling, gpu.weights.vae + gpu.decoding)
    loaded = plan_of("5b", little, held=weights_of(SPECS["5b"], torch.bfloat16).total, wait=False)
    assert loaded.peak == max(loaded.sampling, loaded.decoding)


def test_branches_run_apart_only_when_memory_is_short():
    long = plan_shape((1, 2, 2), 401, 480, 720)  # so long that sampling takes more than decoding
    together = plan_of("5b", 200 * GIB, long)
    assert not together.apart
    apart = plan_of("5b", together.peak - together.weights.text - GIB, long)
    assert apart.apart
    assert apart.fits
    assert apart.sampling < 0.51 * together.sampling + 64e6
    assert not plan_of("5b", GIB, guided=False).apart


def test_encoding_counts_when_a_clip_is_given():
    assert plan_of("5b", GIB).encoding == 0
    picture, clip = (plan_of("5b", GIB, encoded=count) for count in (1, 49))
    assert 0 < picture.encoding < clip.encoding
    assert plan_of("5b", GIB, encoded=161).encoding == clip.encoding


@settings(max_examples=60, deadline=None)
@given(
    frames=st.integers(1, 400),
    height=st.integers(16, 3000),
    width=st.integers(16, 3000),
    free=st.integers(1, 80),
    name=st.sampled_from(sorted(SPECS)),
)
def test_refusals_name_a_shape_that_fits(frames, height, width, free, name):
    spec = SPECS[name]

    def make(shape):
        return plan_of(name, free * GIB, shape)

    plan = make(plan_shape(spec.transformer.patch, frames, height, width))
    try:
        check(plan, spec, make)
        fits = True
    except InputError as error:
        fits, message = False, str(error)
    assert fits == plan.fits
    if fits:
        return
    assert "\n" not in message
    if "would fit" in message and "no shape" not in message:
        words = message.split("; ")[1].split()
        size = words[3].split("x")
        smaller = make(plan_shape(spec.transformer.patch, int(words[0]), int(size[1]), int(size[0])))
        assert smaller.fits
        assert smaller.shape.tokens < plan.shape.tokens
    else:
        assert "use a smaller model" in message


CPU = torch.device("cpu")
CASES = (
    *(Case("sample", latents) for latents in ((1, 16, 16), (13, 16, 16), (5, 60, 90))),
    Case("sample", (5, 16, 16), heads=30),
    Case("sample", (9, 32, 48), dtype="float32"),
    Case("sample", (5, 30, 46), 12, positions="sincos"),
    *(Case(stage, (2, 30, 46)) for stage in ("decode", "encode")),
    *(Case(stage, (5, 32, 32)) for stage in ("decode", "encode")),
    *(Case(stage, (1, 16, 16), channels=RELEASED, blocks=3) for stage in ("decode", "encode")),
)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.stage}-{case.latents}")
def test_estimates_are_close_to_what_is_measured(case):
    """`python -m tools.fit_memory` looks at more shapes, all within a fifth. Heaps are never quite alike: the
    same stage takes up to a third more in one run than in the next, so that the least of a few is meant.
    """
    if case.dtype == "bfloat16" and not native_bfloat16(CPU):
        pytest.skip("bf16 is emulated here, with other buffers, and only runs where it is asked for")
    guess, least = estimate(case).bytes(), run(case)
    for _ in range(2):
        if guess != pytest.approx(least, rel=0.25):
            least = min(least, run(case))
    assert guess == pytest.approx(least, rel=0.25)


def test_operations_of_the_decoder_are_counted_right():
    from torch.utils.flop_counter import FlopCounterMode

    spec = VAESpec(channels=(16, 32, 64, 128), blocks=1, groups=8)
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        VAE(spec).decode(torch.empty(1, 16, 13, 8, 12))
    counted = decoder_operations(spec, plan_shape((1, 2, 2), 49, 64, 96))
    assert counted == pytest.approx(counter.get_total_flops(), rel=0.05)


def test_time_grows_with_the_work():
    speeds = Speeds(matmul=1e11, attention=1e11, convolution=1e11)  # a busy machine must not fail the test
    assert all(speed > 0 for speed in astuple(measure(CPU, torch.float32)))
    spec = SPECS["2b"]
    weights = weights_of(spec, torch.float32)

    def total(**values):
        made = decide(Request.parse({"prompt": "a"} | values), spec)
        return sum(seconds_of(spec, made, weights, torch.float32, speeds).values())

    assert total(steps=50) > 1.8 * total(steps=25)
    assert total(guidance=6) > 1.8 * total(guidance=1)
    assert total(frames=49) > total(frames=25)
    assert total(height=480, width=720) > total(height=240, width=360)
