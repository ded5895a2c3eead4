"""The packed loader: a step is a function of its number, whatever the number of ranks and workers."""

from collections import Counter

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from cogvideox.core.errors import InputError
from cogvideox.data.mixture import Choice
from cogvideox.training.packs import DiffusionStage, Objective, PackedBatches
from tests.tiny import tiny_spec
from tests.training.shelf import Shelf, mixed, sample

CAPACITY = 100


def loader(store=None, *, like="5b", stages=None, objective=None, **more):
    stages = stages or [DiffusionStage(steps=1000, capacity=CAPACITY, rows=6)]
    store = store or Shelf(mixed())
    return PackedBatches(store, tiny_spec(like), stages, objective or Objective(), seed=1, **more)


def facts(batches, step):
    """Place -> all that is random about a segment."""
    return {
        item.place: (item.name, item.timestep, item.drop_text, item.caption, item.latents_CTHW.sum().item())
        for row in batches[step]
        for item in row.items
    }


def length(item, spec):
    _, t, h, w = item.latents_CTHW.shape
    pt, ph, pw = spec.patch
    return spec.text_length + -(-t // pt) * (h // ph) * (w // pw)


@pytest.mark.parametrize("like", ["5b", "1.5-5b"])
def test_rows_hold_no_more_than_their_capacity_and_are_full(like):
    batches = loader(like=like)
    total, rows, seen = 0, 0, Counter()
    steps = batches._epoch(0, 0)
    for step in range(len(steps)):
        for row in batches[step]:
            tokens = sum(length(item, batches.spec.transformer) for item in row.items)
            assert tokens <= row.capacity == CAPACITY
            shapes = [item.latents_CTHW.shape for item in row.items]
            assert shapes == sorted(shapes)
            total, rows = total + tokens, rows + 1
            seen.update(item.name for item in row.items)
    assert set(seen.values()) == {1}
    assert len(seen) == 60
    assert total / (rows * CAPACITY) > 0.85


@pytest.mark.parametrize("timesteps", ["uniform", "iid"])
def test_the_number_of_ranks_does_not_matter(timesteps):
    objective = Objective(known=0.5, drop_text=0.3, timesteps=timesteps)
    for step in (0, 3, 40):
        whole = facts(loader(objective=objective), step)
        assert sorted(whole) == list(range(len(whole)))
        for ranks in (2, 3, 8):
            parts = [facts(loader(objective=objective, rank=r, ranks=ranks), step) for r in range(ranks)]
            assert sum(map(len, parts)) == len(whole)
            assert {place: fact for part in parts for place, fact in part.items()} == whole


def test_a_resume_at_any_step_gives_the_same_step():
    batches = loader()
    steps = {step: facts(batches, step) for step in range(40)}
    assert len(batches._epoch(0, 0)) < 20  # several epochs
    for step in (39, 0, 17):
        assert facts(loader(), step) == steps[step]


def test_workers_give_the_same():
    batches = loader(stages=[DiffusionStage(steps=6, capacity=CAPACITY, rows=2)])
    shared = dict(enumerate(DataLoader(batches, batch_size=None, num_workers=2)))
    assert [facts(shared, step) for step in range(6)] == [facts(batches, step) for step in range(6)]


def test_samples_are_drawn_afresh_whenever_they_come():
    drawn = {}
    batches = loader()
    for step in range(30):
        for row in batches[step]:
            for item in row.items:
                drawn.setdefault(item.name, []).append(item.latents_CTHW)
    several = [latents for latents in drawn.values() if len(latents) > 1]
    assert several
    for first, second, *_ in several:
        assert not torch.equal(first, second)
    name, latents = next(iter(drawn.items()))
    index = [s.id for s in batches.store.samples].index(name)
    error = latents[0] - batches.store.read(index, 0).mean_CTHW
    assert error.std().item() == pytest.approx(0.1, rel=0.3)


def test_one_timestep_for_each_stratum_over_all_ranks():
    for ranks in (1, 3):
        for step in range(5):
            parts = [facts(loader(rank=r, ranks=ranks), step) for r in range(ranks)]
            timesteps = sorted(t for part in parts for _, t, *_ in part.values())
            n = len(timesteps)
            assert all(p * 1000 // n <= t < (p + 1) * 1000 / n for p, t in enumerate(timesteps))


def test_the_marginal_of_a_place_is_uniform():
    batches = loader()
    drawn = [batches._timesteps(step, 13, range(13))[4] for step in range(4000)]
    counts = np.bincount(np.array(drawn) // 50, minlength=20)
    assert ((counts - 200) ** 2 / 200).sum() < 50.8  # 19 degrees of freedom, p = 1e-4


def test_per_rank_mode_keeps_each_rank_in_its_interval():
    objective = Objective(timesteps="per-rank")
    for rank in range(4):
        batches = loader(objective=objective, rank=rank, ranks=4)
        ts = [t for step in range(10) for _, t, *_ in facts(batches, step).values()]
        assert 250 * rank <= min(ts) <= max(ts) < 250 * (rank + 1)


def test_stages_follow_each_other_with_their_own_mixtures():
    stages = [
        DiffusionStage(steps=3, capacity=40, rows=2, data=(Choice(label="image"),)),
        DiffusionStage(
            steps=2, capacity=CAPACITY, rows=1, data=(Choice(label="clip"),), positions="extrapolate"
        ),
    ]
    batches = loader(stages=stages)
    assert len(batches) == 5
    for step in range(5):
        for row in batches[step]:
            assert row.capacity == (40 if step < 3 else CAPACITY)
            assert row.positions == (None if step < 3 else "extrapolate")
            assert all((item.latents_CTHW.shape[1] == 1) == (step < 3) for item in row.items)
    with pytest.raises(IndexError):
        batches[5]


def test_too_long_samples_are_refused_before_the_first_step():
    with pytest.raises(InputError, match=r"s\d+@17x64x48 has 72 tokens, a row of the stage holds 50"):
        loader(stages=[DiffusionStage(steps=1, capacity=50)])


def test_held_out_samples_are_never_trained_on_and_always_the_same():
    batches = loader(held=3)
    names = {batches.store.samples[i].id for i in batches.held}
    assert len(names) == 3
    trained = {item.name for step in range(40) for row in batches[step] for item in row.items}
    assert not trained & names
    one, other = batches.fixed(300), loader(held=3).fixed(300)
    assert {item.name for item in one} == names
    assert all(torch.equal(a.latents_CTHW, b.latents_CTHW) for a, b in zip(one, other, strict=True))
    assert all(item.timestep == 300 and not item.drop_text and not item.known for item in one)


@pytest.mark.parametrize("like", ["5b", "1.5-5b"])
def test_what_cannot_be_read_is_a_segment_of_the_same_tokens_without_weight(like):
    good, bad = loader(like=like), loader(Shelf(mixed(), broken={"s3", "s7"}), like=like)
    lost = 0
    for step in range(len(good._epoch(0, 0))):
        for row, other in zip(good[step], bad[step], strict=True):
            pairs = zip(
                sorted(row.items, key=lambda i: i.place),
                sorted(other.items, key=lambda i: i.place),
                strict=True,
            )
            for item, there in pairs:
                assert (item.name, item.timestep, item.place) == (there.name, there.timestep, there.place)
                assert item.latents_CTHW.shape == there.latents_CTHW.shape
                if there.unreadable:
                    assert there.name.startswith(("s3@", "s7@"))
                    assert "is damaged" in there.unreadable
                    lost += 1
                else:
                    assert torch.equal(item.latents_CTHW, there.latents_CTHW)
    assert lost == 2


def test_given_frames_are_the_first_one_or_a_prefix_without_the_single_frame():
    one = sample("clip", frames=17)
    store = Shelf([one])
    stages = [DiffusionStage(steps=400, capacity=CAPACITY)]
    objective = Objective(known=0.6, continued=0.5, prefix_noise=30)
    batches = loader(store, stages=stages, objective=objective)
    items = [row.items[0] for step in range(400) for row in batches[step]]
    known = Counter((item.latents_CTHW.shape[1], item.known) for item in items)
    assert set(known) == {(5, 0), (5, 1), (4, 1), (4, 2), (4, 3)}
    assert known[5, 0] == pytest.approx(160, abs=40)
    assert known[5, 1] == pytest.approx(120, abs=40)
    first = next(item for item in items if item.latents_CTHW.shape[1] == 4)
    error = first.latents_CTHW - store.read(0, 0).mean_CTHW[:, 1:]
    assert error.abs().max() < 0.6
    assert first.subject_THW.shape[0] == 4
    assert {item.prefix_timestep for item in items} == set(range(31))


def test_images_of_the_condition_are_any_of_the_draws_or_dropped():
    store = Shelf([sample("clip")], conditions=3)
    objective = Objective(drop_image=0.25)
    batches = loader(
        store, like="5b-i2v", stages=[DiffusionStage(steps=200, capacity=50)], objective=objective
    )
    found, draws = Counter(), store.read(0, 0).conditions
    for step in range(200):
        item = batches[step][0].items[0]
        same = [
            n
            for n in range(3)
            if item.condition_CHW is not None and torch.equal(item.condition_CHW, draws[n])
        ]
        found[same[0] if same else None] += 1
    assert found[None] == pytest.approx(50, abs=25)
    assert all(found[n] == pytest.approx(50, abs=25) for n in range(3))


def test_captions_are_chosen_by_the_weights_of_their_kinds():
    store = Shelf([sample("clip", captions={"short": ("a", "b"), "dense": ("c",), "tags": ("d",)})])
    objective = Objective(drop_text=0.2, captions={"short": 0.8, "dense": 0.2})
    batches = loader(store, stages=[DiffusionStage(steps=600, capacity=50)], objective=objective)
    found = Counter(row.items[0].caption for step in range(600) for row in batches[step])
    assert found[""] == pytest.approx(120, abs=40)
    assert found["a"] == pytest.approx(192, abs=50)
    assert found["c"] == pytest.approx(96, abs=35)
    assert found["d"] == 0
    none = loader(
        store, stages=[DiffusionStage(steps=99, capacity=50)], objective=Objective(captions={"x": 1.0})
    )
    assert {row.items[0].caption for step in range(99) for row in none[step]} >= {"a", "b", "c", "d"}


def test_imbalance_is_that_of_the_rows_dealt():
    batches = [loader(rank=r, ranks=3) for r in range(3)]
    for step in range(4):
        loads = []
        for mine in batches:
            rows = [[length(i, mine.spec.transformer) for i in row.items] for row in mine[step]]
            loads.append(sum(mine.cost(range(len(row)), row) for row in rows))
        (told,) = {row.imbalance for mine in batches for row in mine[step]}
        assert told == pytest.approx(max(loads) * 3 / sum(loads) - 1)


def test_a_rank_may_have_no_row():
    stages = [DiffusionStage(steps=2, capacity=CAPACITY, rows=1)]
    counts = [len(loader(stages=stages, rank=r, ranks=2)[0]) for r in range(2)]
    assert sorted(counts) == [0, 1]
