"""Sampling timesteps against diffusers; training draws: coverage, uniformity, variance."""

from itertools import pairwise

import numpy as np
import pytest
from diffusers import CogVideoXDDIMScheduler
from hypothesis import given, settings
from hypothesis import strategies as st

from cogvideox.core.errors import InputError
from cogvideox.diffusion.timesteps import SPACINGS, iid, per_rank, sampling_timesteps, stratified

SEED = 7


@pytest.mark.parametrize("spacing", SPACINGS)
def test_equal_diffusers_for_every_count(spacing):
    oracle = CogVideoXDDIMScheduler(timestep_spacing=spacing)
    for steps in range(1, 1001):
        oracle.set_timesteps(steps)
        # For some counts its trailing spacing has one entry more, timestep -1.
        assert sampling_timesteps(steps, spacing=spacing) == tuple(oracle.timesteps.tolist()[:steps])


def test_trailing_golden_numbers():
    assert sampling_timesteps(50)[:3] == (999, 979, 959)
    assert sampling_timesteps(50)[-1] == 19
    assert sampling_timesteps(1) == (999,)


@given(st.integers(1, 1500).flatmap(lambda total: st.tuples(st.integers(1, total), st.just(total))))
@settings(deadline=None)
def test_any_count_gives_falling_timesteps_in_range(case):
    steps, total = case
    for spacing in SPACINGS:
        ts = sampling_timesteps(steps, total, spacing)
        assert len(ts) == steps
        assert all(a > b for a, b in pairwise(ts))
        assert 0 <= ts[-1] <= ts[0] < total


@pytest.mark.parametrize("steps", [0, -3, 1001])
def test_illegal_counts_name_the_range(steps):
    with pytest.raises(InputError, match=f"1 to 1000 steps, not {steps}"):
        sampling_timesteps(steps)


def test_unknown_spacing_names_the_nearest():
    with pytest.raises(InputError, match="'trailing'"):
        sampling_timesteps(50, spacing="trialing")


@pytest.mark.parametrize("n", [*range(1, 18), 64, 1000, 1003])
def test_stratified_has_one_draw_per_stratum(n):
    for step in range(20):
        ts = stratified(n, SEED, "timesteps", step)
        assert len(ts) == n
        for p, t in enumerate(sorted(ts)):  # t + 1 and t stand for the real interval [t, t + 1)
            assert p * 1000 // n <= t < (p + 1) * 1000 / n


def chi_square(ts, total):
    counts = np.bincount(ts, minlength=total)
    assert len(counts) == total
    expected = len(ts) / total
    return ((counts - expected) ** 2 / expected).sum()


@pytest.mark.parametrize("n", [1, 3, 7, 16])
def test_each_sample_alone_is_uniform(n):
    draws = np.array([stratified(n, SEED, step, total=20) for step in range(4000)])
    for j in range(n):
        assert chi_square(draws[:, j], 20) < 50.8  # 19 degrees of freedom, p = 1e-4


@pytest.mark.parametrize("draw", [stratified, iid])
def test_histogram_is_flat(draw):
    ts = np.concatenate([draw(16, SEED, step) for step in range(2000)])
    assert chi_square(ts // 50, 20) < 50.8


def test_stratified_lowers_the_variance_of_a_step():
    def variance(draw):
        return np.var([np.mean(draw(16, SEED, step)) for step in range(500)])

    assert variance(stratified) < variance(iid) / 100  # in theory 1 / n^2


def test_draws_depend_on_the_key_alone():
    assert stratified(9, SEED, 3) == stratified(9, SEED, 3)
    assert stratified(9, SEED, 3) != stratified(9, SEED, 4)
    assert iid(9, SEED, 3) == iid(9, SEED, 3)


@pytest.mark.parametrize("ranks", [1, 3, 8, 40])
def test_per_rank_keeps_its_interval_and_covers_all(ranks):
    seen = []
    for rank in range(ranks):
        ts = np.concatenate([per_rank(8, SEED, s, rank=rank, ranks=ranks) for s in range(100)])
        assert rank * 1000 // ranks <= ts.min() <= ts.max() < (rank + 1) * 1000 / ranks
        seen.append(ts)
    assert chi_square(np.concatenate(seen) // 50, 20) < 50.8


def test_ranks_draw_independently():
    offsets = [[t - 125 * r for t in per_rank(8, SEED, 0, rank=r, ranks=8)] for r in range(8)]
    assert len({tuple(o) for o in offsets}) == 8
