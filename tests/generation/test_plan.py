"""Plans: memory within sight of what is measured, refusals that name what would fit."""

import subprocess
import sys
from dataclasses import astuple, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cogvideox.core.device import Memory
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
    plenty, short = plan_of("5b", 200 * GIB), plan_of("5b", 30 * GIB)
    assert (plenty.wait, short.wait) == (False, True)
    assert short.peak < plenty.peak
    assert not plan_of("5b", 30 * GIB, wait=False).wait
    assert plan_of("5b", 200 * GIB, wait=True).peak == short.peak
    gpu = plan_of("5b", 16 * GIB, accelerator=True)
    assert gpu.peak == max(gpu.weights.transformer + gpu.sampling, gpu.weights.vae + gpu.decoding)
    loaded = plan_of("5b", 30 * GIB, loaded=True)
    assert loaded.peak == max(loaded.sampling, loaded.decoding)


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


MEASURE = """
import sys, torch
from cogvideox.core.device import peak_memory
from cogvideox.core.pack import Pack, Segment
from cogvideox.models.specs import TransformerSpec, VAESpec
from cogvideox.models.transformer.model import Transformer
from cogvideox.models.vae.autoencoder import VAE
from tests.generation.test_decode import resident
torch.set_num_threads(1)
dtype = torch.bfloat16
with torch.no_grad():
    if sys.argv[1] == "transformer":
        model = Transformer(TransformerSpec(layers=2, heads=4, text_dim=64)).to(dtype)
        segment = Segment(226, (9, 16, 24))
        text, video = torch.ones(2 * 226, 64), torch.ones(2 * segment.video_length, 64)
        pack = Pack((segment, segment), text.to(dtype), video.to(dtype), torch.tensor([5, 5]))
        before = resident()
        model(pack)
    else:
        vae = VAE(VAESpec(channels=(16, 32, 64, 128), blocks=1, groups=8)).to(dtype)
        latents = torch.ones(1, 16, 5, 24, 24, dtype=dtype)
        before = resident()
        for _ in vae.decode_stream(latents):
            pass
print(peak_memory() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("part", ["transformer", "vae"])
def test_estimates_are_close_to_what_is_measured(part):
    done = subprocess.run([sys.executable, "-c", MEASURE, part], capture_output=True, text=True, check=True)
    used = int(done.stdout)
    spec = SPECS["5b"]
    if part == "transformer":
        spec = replace(spec, transformer=replace(spec.transformer, heads=4, layers=2))
        estimate = _plan(spec, plan_shape((1, 2, 2), 33, 256, 384)).sampling
    else:
        spec = replace(spec, vae=VAESpec(channels=(16, 32, 64, 128), blocks=1, groups=8))
        estimate = _plan(spec, plan_shape((1, 2, 2), 17, 192, 192)).decoding
    # On the safe side, and not by much; 64 MiB of the estimate are for what does not scale.
    assert 0.8 * used <= estimate <= 1.5 * used + 64 * 2**20, (used, estimate)


def _plan(spec, shape):
    return make_plan(
        spec,
        shape,
        (shape.frames - 1) // 4 + 1,
        guided=True,
        dtype=torch.bfloat16,
        memory=Memory(GIB, GIB),
        weights=weights_of(spec, torch.bfloat16, 0),
    )


def test_operations_of_the_decoder_are_counted_right():
    from torch.utils.flop_counter import FlopCounterMode

    spec = VAESpec(channels=(16, 32, 64, 128), blocks=1, groups=8)
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        VAE(spec).decode(torch.empty(1, 16, 13, 8, 12))
    counted = decoder_operations(spec, plan_shape((1, 2, 2), 49, 64, 96))
    assert counted == pytest.approx(counter.get_total_flops(), rel=0.05)


def test_time_grows_with_the_work():
    speeds = Speeds(matmul=1e11, attention=1e11, convolution=1e11)  # a busy machine must not fail the test
    assert all(speed > 0 for speed in astuple(measure(torch.device("cpu"), torch.float32)))
    spec = SPECS["2b"]
    weights = weights_of(spec, torch.float32)

    def total(**values):
        made = decide(Request.parse({"prompt": "a"} | values), spec)
        return sum(seconds_of(spec, made, weights, torch.float32, speeds).values())

    assert total(steps=50) > 1.8 * total(steps=25)
    assert total(guidance=6) > 1.8 * total(guidance=1)
    assert total(frames=49) > total(frames=25)
    assert total(height=480, width=720) > total(height=240, width=360)
