"""Samplers against diffusers, exact solutions and their own invariants."""

import math
from itertools import pairwise

import pytest
import torch
from diffusers import CogVideoXDDIMScheduler, CogVideoXDPMScheduler, DPMSolverMultistepScheduler
from hypothesis import given, settings
from hypothesis import strategies as st

from cogvideox.core.errors import InputError
from cogvideox.diffusion.samplers import KINDS, Sampler, start_index
from cogvideox.diffusion.schedule import make_schedule
from cogvideox.diffusion.timesteps import SPACINGS, sampling_timesteps

SHAPE = (2, 3, 4, 5)
SCHEDULES = {shift: make_schedule(shift) for shift in (1.0, 3.0)}


def network(x, t):
    """Any deterministic function of latents and timestep; a stand-in for the transformer."""
    return torch.sin(3 * x + t / 100) + 0.3 * x.roll(1, -1)


def diffusers_scheduler(cls, steps, shift, spacing="trailing"):
    scheduler = cls(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=True,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing=spacing,
        snr_shift_scale=shift,
    )
    scheduler.set_timesteps(steps)
    return scheduler


def diffusers_run(scheduler, x, rng, skip=0):
    """The loop of diffusers' pipelines; yields (x, predicted x0) after each step."""
    x0, timesteps = None, scheduler.timesteps[skip:]
    for i, t in enumerate(timesteps):
        v = network(x, int(t))
        if isinstance(scheduler, CogVideoXDPMScheduler):
            back = timesteps[i - 1] if i > 0 else None
            x, x0 = scheduler.step(v, x0, t, back, x, generator=rng, return_dict=False)
        else:
            x, x0 = scheduler.step(v, t, x, return_dict=False)
        yield x, x0


def run(sampler, x, rng=None, index=0, model=network):
    """The loop of the docstring; yields the state after each step."""
    state = sampler.start(x, index)
    while not sampler.done(state):
        noise = None
        for _ in range(sampler.draws(state)):
            noise = torch.randn(x.shape, generator=rng, dtype=x.dtype)
        state = sampler.step(state, model(state.x, sampler.timestep(state)), noise)
        yield state


def noise_like(shape=SHAPE, seed=0, dtype=torch.float32):
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=rng, dtype=dtype), rng


ORACLES = {"ddim": CogVideoXDDIMScheduler, "dpm++2m-sde": CogVideoXDPMScheduler}


@pytest.mark.parametrize("kind", ORACLES)
@pytest.mark.parametrize("steps", [1, 2, 7, 10, 15, 30, 50])
@pytest.mark.parametrize("shift", SCHEDULES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
def test_each_step_equals_diffusers(kind, steps, shift, dtype, tolerance):
    """Same state in, same state out, generators in step. With 15 steps diffusers stops short of the clip."""
    x, rng = noise_like(dtype=dtype)
    scheduler = diffusers_scheduler(ORACLES[kind], steps, shift)
    sampler = Sampler(kind, SCHEDULES[shift], sampling_timesteps(steps), compat="diffusers")
    oracle_rng = torch.Generator()
    oracle_rng.set_state(rng.get_state())
    state = sampler.start(x)
    for expected, expected_x0 in diffusers_run(scheduler, x, oracle_rng):
        noise = None
        for _ in range(sampler.draws(state)):
            noise = torch.randn(SHAPE, generator=rng, dtype=dtype)
        state = sampler.step(state, network(state.x, sampler.timestep(state)), noise)
        torch.testing.assert_close(state.x, expected, rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(state.previous_x0, expected_x0, rtol=tolerance, atol=tolerance)
        assert torch.equal(rng.get_state(), oracle_rng.get_state())
        state = type(state)(expected, state.index, expected_x0)


@pytest.mark.parametrize("kind", ORACLES)
@pytest.mark.parametrize("steps", [10, 30, 50])
@pytest.mark.parametrize("shift", SCHEDULES)
@pytest.mark.parametrize("strength", [1.0, 0.8])
def test_whole_trajectory_equals_diffusers(kind, steps, shift, strength):
    x, _ = noise_like(dtype=torch.float64)
    skip = start_index(steps, strength)
    sampler = Sampler(kind, SCHEDULES[shift], sampling_timesteps(steps), compat="diffusers")
    ours = run(sampler, x, torch.Generator().manual_seed(5), skip)
    scheduler = diffusers_scheduler(ORACLES[kind], steps, shift)
    theirs = diffusers_run(scheduler, x, torch.Generator().manual_seed(5), skip)
    for state, (expected, _) in zip(ours, theirs, strict=True):
        torch.testing.assert_close(state.x, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("steps", [10, 50])
def test_default_equals_compat_where_steps_divide_the_total(kind, steps):
    x, _ = noise_like()
    ts = sampling_timesteps(steps)
    plain, compat = (Sampler(kind, SCHEDULES[1.0], ts, c) for c in (None, "diffusers"))
    for index in range(steps):
        assert plain.coefficients(index) == compat.coefficients(index)
    draws = [
        [s.draws(s.start(x)), *(s.draws(a) for a in run(s, x) if not s.done(a))] for s in (plain, compat)
    ]
    if KINDS[kind].stochastic:
        assert draws == [[1] * (steps - 1) + [0], [1] + [2] * (steps - 2) + [1]]
    else:
        assert draws == [[0] * steps] * 2


@pytest.mark.parametrize(
    ("kind", "algorithm"), [("dpm++2m-ode", "dpmsolver++"), ("dpm++2m-sde", "sde-dpmsolver++")]
)
@pytest.mark.parametrize("steps", [10, 30, 50])
def test_second_order_equals_the_general_solver(kind, algorithm, steps):
    """The general multistep solver, which has no zero terminal SNR, goes to the real next timestep."""
    oracle = DPMSolverMultistepScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        algorithm_type=algorithm,
        timestep_spacing="trailing",
        final_sigmas_type="zero",
        euler_at_final=True,
    )
    oracle.set_timesteps(steps)
    sampler = Sampler(kind, make_schedule(zero_terminal_snr=False), sampling_timesteps(steps))
    assert tuple(oracle.timesteps.tolist()) == sampler.timesteps
    x, rng = noise_like(dtype=torch.float64)
    state, noise = sampler.start(x), None
    for t in oracle.timesteps:
        v = network(x, int(t))
        if KINDS[kind].stochastic:
            noise = torch.randn(SHAPE, generator=rng, dtype=torch.float64)
        state = sampler.step(state, v, noise)
        x = oracle.step(v, t, x, variance_noise=noise).prev_sample
        torch.testing.assert_close(state.x, x, rtol=1e-4, atol=1e-4)  # the solver's table is float32
        state = type(state)(x, state.index, state.previous_x0)


def gaussian(schedule, mean, std):
    """The ideal model of clips drawn from N(mean, std^2), and the exact solution of its flow from x at t."""

    def moments(t):
        alpha_bar = schedule.alpha_bar[t].item()
        return math.sqrt(alpha_bar), math.sqrt(1 - alpha_bar), math.sqrt(alpha_bar * std**2 + 1 - alpha_bar)

    def model(x, t):
        signal, sigma, deviation = moments(t)
        x0 = mean + signal * std**2 / deviation**2 * (x - signal * mean)
        return (signal * x - x0) / sigma

    def flow(x, t, end):
        signal, _, deviation = moments(t)
        end_signal, _, end_deviation = moments(end)
        return end_signal * mean + end_deviation * (x - signal * mean) / deviation

    return model, flow


@pytest.mark.parametrize(("kind", "order"), [("ddim", 1), ("dpm++2m-ode", 2)])
def test_order_of_convergence_on_a_gaussian(kind, order):
    schedule = SCHEDULES[1.0]
    model, flow = gaussian(schedule, mean=0.7, std=0.5)
    x, _ = noise_like(dtype=torch.float64)
    exact, errors = flow(x, 900, 100), []
    for stride in (8, 4, 2, 1):
        sampler = Sampler(kind, schedule, tuple(range(900, 99, -stride)))
        reached = next(s.x for s in run(sampler, x, model=model) if sampler.timestep(s) == 100)
        errors.append((reached - exact).abs().max().item())
    orders = [math.log2(a / b) for a, b in pairwise(errors)]
    assert orders[-1] == pytest.approx(order, abs=0.15), (errors, orders)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shift", SCHEDULES)
def test_samples_of_a_gaussian_have_its_mean_and_deviation(kind, shift):
    """From pure noise to the clip; this tests the SDE too, where no single path has an exact answer."""
    model, _ = gaussian(SCHEDULES[shift], mean=0.7, std=0.5)
    x, rng = noise_like((40_000,))
    *_, state = run(Sampler(kind, SCHEDULES[shift], sampling_timesteps(500)), x, rng, model=model)
    assert state.x.mean().item() == pytest.approx(0.7, abs=0.015)
    assert state.x.std().item() == pytest.approx(0.5, abs=0.025)


sampler_cases = st.builds(
    Sampler,
    kind=st.sampled_from(sorted(KINDS)),
    schedule=st.sampled_from(list(SCHEDULES.values())),
    timesteps=st.builds(sampling_timesteps, st.integers(1, 1000), st.just(1000), st.sampled_from(SPACINGS)),
    compat=st.sampled_from([None, "diffusers"]),
)


@given(sampler_cases, st.data())
@settings(deadline=None, max_examples=200)
def test_any_step_is_finite_and_preserves_the_marginals(sampler, data):
    """Without extrapolation a step takes the mean and variance of x_t, given the clip, to those of x_t'."""
    index = data.draw(st.integers(0, len(sampler.timesteps) - 1))
    c, target = sampler.coefficients(index), sampler._next(index)
    assert all(map(math.isfinite, c))
    assert c.extrapolate >= 0
    alpha_bar = sampler.schedule.alpha_bar[sampler.timesteps[index]].item()
    next_alpha_bar = 1.0 if target is None else sampler.schedule.alpha_bar[target].item()
    assert c.keep * math.sqrt(alpha_bar) + c.pull == pytest.approx(math.sqrt(next_alpha_bar), abs=1e-12)
    assert c.keep**2 * (1 - alpha_bar) + c.noise**2 == pytest.approx(1 - next_alpha_bar, abs=1e-12)


@given(st.sampled_from(sorted(KINDS)), st.integers(1, 40), st.sampled_from(sorted(SCHEDULES)))
@settings(deadline=None, max_examples=40)
def test_a_perfect_model_gives_the_clip(kind, steps, shift):
    """A model that knows the clip: deterministic steps land on the exact x_t, every sampler on the clip."""
    schedule = SCHEDULES[shift]
    clip, rng = noise_like()
    noise = torch.randn(SHAPE, generator=rng)
    sampler = Sampler(kind, schedule, sampling_timesteps(steps))

    def model(x, t):
        signal, sigma = math.sqrt(schedule.alpha_bar[t].item()), math.sqrt(1 - schedule.alpha_bar[t].item())
        return (signal * x - clip) / sigma

    for state in run(sampler, noise, rng, model=model):
        torch.testing.assert_close(state.previous_x0, clip, rtol=1e-4, atol=1e-4)
        if not sampler.done(state) and not KINDS[kind].stochastic:
            exact = schedule.add_noise(clip, noise, torch.tensor([sampler.timestep(state)]))
            torch.testing.assert_close(state.x, exact, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(state.x, clip, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_steps_are_pure_and_runs_do_not_interact(kind):
    sampler = Sampler(kind, SCHEDULES[3.0], sampling_timesteps(8))
    starts = [noise_like(seed=s)[0] for s in (1, 2)]

    def rngs():
        return [torch.Generator().manual_seed(s) for s in (3, 4)]

    alone = [list(run(sampler, x, rng)) for x, rng in zip(starts, rngs(), strict=True)]
    kept = [x.clone() for x in starts]
    interleaved = zip(*(run(sampler, x, rng) for x, rng in zip(starts, rngs(), strict=True)), strict=True)
    for i, states in enumerate(interleaved):
        for state, expected in zip(states, (alone[0][i], alone[1][i]), strict=True):
            assert torch.equal(state.x, expected.x)
            assert torch.equal(state.previous_x0, expected.previous_x0)
    assert all(map(torch.equal, starts, kept))
    state = alone[0][3]
    before, v, noise = (state.x.clone(), state.previous_x0.clone()), *torch.randn(2, *SHAPE).unbind()
    again = [sampler.step(state, v, noise).x for _ in range(2)]
    assert torch.equal(*again)
    assert torch.equal(state.x, before[0])
    assert torch.equal(state.previous_x0, before[1])


def test_half_precision_predictions_step_in_float32():
    sampler = Sampler("ddim", SCHEDULES[1.0], sampling_timesteps(4))
    x = noise_like()[0].bfloat16()
    state = sampler.start(x)
    v = network(state.x, 999).bfloat16()
    after = sampler.step(state, v)
    assert after.x.dtype == after.previous_x0.dtype == torch.float32
    assert torch.equal(after.x, sampler.step(state, v.float()).x)


def test_errors_name_the_nearest_and_the_missing_noise():
    with pytest.raises(InputError, match=r"'dpm\+\+2m-sde'"):
        Sampler("dpm++2m_sde", SCHEDULES[1.0], (999,))
    sampler = Sampler("dpm++2m-sde", SCHEDULES[1.0], sampling_timesteps(4))
    with pytest.raises(InputError, match="needs noise at step 0"):
        sampler.step(sampler.start(noise_like()[0]), noise_like()[0])


def test_start_index():
    assert [start_index(50, s) for s in (1.0, 0.8, 0.58, 0.02)] == [0, 10, 22, 49]
    for strength in (0.0, 0.01, 1.01):
        with pytest.raises(InputError, match=r"\[0.02, 1\] with 50 steps"):
            start_index(50, strength)
