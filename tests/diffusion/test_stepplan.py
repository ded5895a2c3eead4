"""Step plans: text, what is carried out, and the published schedules against their running form."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cogvideox.core.errors import InputError
from cogvideox.diffusion.stepplan import (
    StepPlan,
    cheapest,
    first_block_cache,
    guidance_every,
    guidance_interval,
    magcache,
    teacache,
)

LETTERS = st.tuples(st.sampled_from("frt"), st.sampled_from("phc"))


@given(st.lists(LETTERS, min_size=1, max_size=60))
def test_text_says_the_whole_plan(letters):
    plan = StepPlan(*map("".join, zip(*letters, strict=True)))
    assert StepPlan.parse(str(plan)) == plan


def test_text_is_short():
    assert str(StepPlan("ffffffrfrf", "p" * 10)) == "f6rfrf"
    assert str(StepPlan("fff", "phc")) == "f3/phc"
    assert StepPlan.parse("f2t/p3") == StepPlan("fft", "ppp")


@pytest.mark.parametrize(
    "text", ["", "f6x", "6f", "f0", "f3/", "/p3", "f3/q3", "F3", "f3 r", "p3/f3", "f10000", "f3/p9876543210"]
)
def test_other_texts_are_refused(text):
    with pytest.raises(InputError, match="is not one such as"):
        StepPlan.parse(text)


def test_parts_must_have_equal_lengths():
    with pytest.raises(InputError, match="3 steps of blocks, 2 of guidance"):
        StepPlan.parse("f3/p2")


def test_steps_that_lack_what_they_need_are_full():
    assert str(StepPlan.parse("r3").resolved()) == "fr2"
    assert str(StepPlan.parse("t4").resolved()) == "f2t2"
    assert str(StepPlan.parse("f2/h2").resolved()) == "f2/ph"
    # The unconditional branch has run in full once only, the conditional one twice.
    assert str(StepPlan.parse("f2t2/pcpc").resolved()) == "f3t/pcpc"
    assert str(StepPlan.parse("f2r/c3").resolved()) == "f2r/c3"


def test_a_run_may_begin_late_or_without_guidance():
    plan = StepPlan.parse("f3rfr/p4h2")
    assert str(plan.resolved(start=3)) == "f2r/ph2"
    assert str(plan.resolved(guided=False)) == "f3rfr/c6"


def test_work_counts_the_branches_of_full_steps():
    assert StepPlan.parse("f4rf/p3h2c").work == 2 + 2 + 2 + 1 + 0 + 1


# Published caches decide while they run; these are those loops.


def run_teacache(changes, polynomial, threshold):
    letters, accumulated = [], 0.0
    rescale = np.poly1d(polynomial)
    for step in range(len(changes)):
        if step == 0 or step == len(changes) - 1:
            compute, accumulated = True, 0.0
        else:
            accumulated += rescale(changes[step])
            compute = not accumulated < threshold
            if compute:
                accumulated = 0.0
        letters.append("f" if compute else "r")
    return "".join(letters)


def run_magcache(ratios, threshold, longest, retained):
    letters, norm, steps, error = [], 1.0, 0, 0.0
    for step in range(len(ratios)):
        skip = False
        if step >= max(1, int(len(ratios) * retained)) and step < len(ratios) - 1:
            norm *= ratios[step]
            steps += 1
            error += abs(1 - norm)
            skip = error < threshold and steps <= longest
            if not skip:
                norm, steps, error = 1.0, 0, 0.0
        letters.append("r" if skip else "f")
    return "".join(letters)


def run_first_block_cache(residuals, threshold):
    letters, previous = [], None
    for step, residual in enumerate(residuals):
        similar = (
            previous is not None and np.abs(residual - previous).mean() / np.abs(previous).mean() < threshold
        )
        if similar and step < len(residuals) - 1:
            letters.append("r")
        else:
            letters.append("f")
            previous = residual
    return "".join(letters)


@pytest.mark.parametrize("seed", range(20))
def test_schedules_are_those_of_the_published_caches(seed):
    rng = np.random.default_rng(seed)
    steps = int(rng.integers(2, 40))
    changes, polynomial = rng.uniform(0, 0.2, steps).tolist(), rng.uniform(0, 2, 3).tolist()
    ratios = rng.uniform(0.9, 1.05, steps).tolist()
    residuals = np.cumsum(rng.normal(size=(steps, 50)), axis=0) + 5
    apart = [[np.abs(b - a).mean() / np.abs(a).mean() for b in residuals] for a in residuals]
    for threshold in (0.05, 0.2, 0.5, 2.0):
        assert teacache(changes, polynomial, threshold).blocks == run_teacache(changes, polynomial, threshold)
        for longest in (1, 3):
            made = magcache(ratios, threshold, longest, retained=0.2)
            assert made.blocks == run_magcache(ratios, threshold, longest, 0.2)
        assert first_block_cache(apart, threshold).blocks == run_first_block_cache(residuals, threshold)


@pytest.mark.parametrize("full", range(2, 9))
def test_cheapest_is_the_best_of_all_plans(full):
    rng = np.random.default_rng(full)
    table = rng.uniform(size=(9, 8, 8, 2))

    def errors(before, last, step):
        reuse, line = table[8 if before is None else before, last, step]
        return min((reuse, "r"), (line, "t"))

    def cost(inner):
        total, before, last = 0.0, None, 0
        for step in range(1, 8):
            if step in (*inner, 7):
                before, last = last, step
            else:
                total += errors(before, last, step)[0]
        return total

    best = min(combinations(range(1, 7), full - 2), key=cost)
    plan = cheapest(errors, steps=8, full=full)
    assert [k for k, letter in enumerate(plan.blocks) if letter == "f"] == [0, *best, 7]


def test_guidance_in_an_interval():
    plan = guidance_interval(StepPlan.parse("f2rf"), (999, 700, 300, 10), low=300, high=900)
    assert str(plan) == "f2rf/cp2c"


def test_guidance_at_every_nth_full_step():
    assert str(guidance_every(StepPlan.parse("f7"), 2, warm=2)) == "f7/p2hphph"
    assert str(guidance_every(StepPlan.parse("f3rfrf"), 2, warm=2)) == "f3rfrf/p2h2ph2"
    assert str(guidance_every(StepPlan.parse("f4/p2c2"), 2)) == "f4/phc2"
