"""Frame pack: nothing lost, rows full, ranks alike, the same again after a resume."""

from collections import Counter
from itertools import islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cogvideox.core.errors import InputError
from cogvideox.data.plan import (
    Cost,
    Packer,
    Plan,
    Position,
    deal,
    epoch_order,
    fill,
    imbalance,
    pack,
    stream_rows,
)

RATIOS = (1, 4 / 3, 3 / 4, 16 / 9, 9 / 16, 3 / 2, 2 / 3)


def real_mix(count, seed=0):
    """Tokens of 30 % images and clips of 17 to 81 frames, seven aspect ratios, 256 to 480 pixels high."""
    draw, lengths = np.random.default_rng(seed), []
    for _ in range(count):
        area, ratio = draw.choice([256**2, 384**2, 480 * 720]), draw.choice(RATIOS)
        height, width = (int((area * r) ** 0.5) // 16 for r in (1 / ratio, ratio))
        latents = 1 if draw.random() < 0.3 else 1 + int(draw.integers(4, 21))
        lengths.append(226 + latents * height * width)
    return lengths


lengths_of = st.lists(st.integers(1, 50), max_size=200)


@given(lengths=lengths_of, capacity=st.integers(50, 120), look_ahead=st.integers(1, 40))
def test_every_sample_lies_in_exactly_one_row_and_no_row_is_too_long(lengths, capacity, look_ahead):
    rows = list(pack(enumerate(lengths), capacity, look_ahead))
    assert Counter(i for row in rows for i in row) == Counter(range(len(lengths)))
    assert all(row and sum(lengths[i] for i in row) <= capacity for row in rows)


@given(lengths=lengths_of, cut=st.integers(0, 200), look_ahead=st.integers(1, 40))
def test_a_packer_goes_on_from_what_waits(lengths, cut, look_ahead):
    """The state that a checkpoint of a stream keeps: ids, in order."""
    whole, first = Packer(100, look_ahead), Packer(100, look_ahead)
    expected = [whole.push(i, n) for i, n in enumerate(lengths)]
    for i, n in enumerate(lengths[:cut]):
        first.push(i, n)
    second = Packer(100, look_ahead)
    assert [second.push(i, lengths[i]) for i in first.waiting] == [None] * len(first.waiting)
    assert [second.push(i, n) for i, n in list(enumerate(lengths))[cut:]] == expected[cut:]


def test_a_stream_goes_on_from_its_position():
    """Its samples are read again from the first that waits; none is lost, none comes twice."""
    lengths, opened = real_mix(150), []

    def source(first):
        opened.append(first)
        return ((n, f"clip {n}", lengths[n]) for n in range(first, len(lengths)))

    whole = list(stream_rows(source, max(lengths), 16))
    assert sorted(clip for row, _ in whole for clip in row) == sorted(f"clip {n}" for n in range(150))
    assert [row for row, _ in whole] == [
        [f"clip {n}" for n in row] for row in pack(enumerate(lengths), max(lengths), 16)
    ]
    for cut in (0, 7, len(whole) - 3, len(whole) - 1):
        position = whole[cut][1]
        assert list(stream_rows(source, max(lengths), 16, position)) == whole[cut + 1 :]
        assert opened[-1] == min((position.next, *position.waiting)) > 0
    assert list(stream_rows(source, max(lengths), 16, Position())) == whole


def test_no_sample_waits_for_ever():
    """Short samples never fit behind long ones of a full row, and still get out in turn."""
    lengths = [1] + [10] * 100
    rows = list(pack(enumerate(lengths), 10, look_ahead=5))
    assert 0 in rows[0]


def test_too_long_a_sample_is_refused_by_name():
    with pytest.raises(InputError, match="sample 1 has 11 tokens, more than the 10 of a row"):
        list(pack([(0, 3), (1, 11)], 10))


def test_rows_are_full_on_a_real_mix_of_lengths():
    lengths = real_mix(5000)
    rows = list(pack(enumerate(lengths), max(lengths)))
    assert fill(rows, lengths, max(lengths)) >= 0.98


def test_ranks_get_like_work_on_a_real_mix_of_lengths():
    """8 ranks of 4 rows. By tokens alone, rows differ by far more."""
    lengths, cost = real_mix(5000), Cost.of(1920)
    plan = Plan(lengths, [1] * len(lengths), max(lengths), rows_per_step=32, seed=0)
    total, slots, blind = [], [], []
    for rows in plan.epoch(0)[:-1]:
        dealt = deal(rows, [cost(row, lengths) for row in rows], 8)
        assert [len(mine) for mine in dealt] == [4] * 8
        total.append(imbalance([sum(cost(row, lengths) for row in mine) for mine in dealt]))
        slots.append(imbalance([cost(mine[0], lengths) for mine in dealt]))
        blind.append(imbalance([sum(cost(row, lengths) for row in rows[i::8]) for i in range(8)]))
    assert np.mean(total) < 0.05
    assert np.mean(blind) > 2 * np.mean(total)
    assert np.mean(slots) < 0.25


@given(count=st.integers(0, 40), ranks=st.integers(1, 9))
def test_dealing_loses_no_row_and_spreads_them_evenly(count, ranks):
    rows = [(i,) for i in range(count)]
    dealt = deal(rows, [float(i * i % 7) for i in range(count)], ranks)
    assert sorted(row for mine in dealt for row in mine) == rows
    assert max(map(len, dealt)) - min(map(len, dealt)) <= 1


def test_epochs_differ_and_repeat():
    assert epoch_order([1] * 50, 0, 3) == epoch_order([1] * 50, 0, 3) != epoch_order([1] * 50, 0, 4)
    counts = Counter(i for epoch in range(2000) for i in epoch_order([0.25, 2, 1.5, 0], 0, epoch))
    assert counts[1] == 4000
    assert counts[0] == pytest.approx(500, abs=60)
    assert counts[2] == pytest.approx(3000, abs=70)
    assert counts[3] == 0


def test_a_plan_resumes_at_any_step_across_epochs():
    lengths = real_mix(60)
    plan = Plan(lengths, [1] * 60, max(lengths), rows_per_step=3, seed=1)
    steps = list(islice(plan.steps(), 40))
    assert len(steps) > 2 * len(plan.epoch(0))
    for start in (0, 1, len(plan.epoch(0)), 25):
        assert list(islice(plan.steps(start), 40 - start)) == steps[start:]
    with pytest.raises(InputError, match="nothing to train on"):
        next(Plan(lengths, [0] * 60, 10**6, 3, 1).steps())
