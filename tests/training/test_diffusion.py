"""The diffusion task: it shows the transformer what the sampler shows it, and it can learn."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from cogvideox.core import rng
from cogvideox.core.errors import InputError
from cogvideox.diffusion.inputs import image_condition
from cogvideox.diffusion.samplers import Sampler
from cogvideox.diffusion.timesteps import sampling_timesteps
from cogvideox.generation.noise import KeyedNoise
from cogvideox.generation.sample import Conditions, Known, predict, sample
from cogvideox.models.text import TextEncoder
from cogvideox.models.vae.autoencoder import VAE
from cogvideox.training.diffusion import DiffusionTask
from cogvideox.training.loop import Rates
from cogvideox.training.packs import DiffusionStage, Item, Objective, PackedBatches, PackedRow
from tests.tiny import prompt, tiny_model, tiny_spec
from tests.training import shelf

STAGES = (DiffusionStage(steps=100, capacity=200),)


def make_task(model, store=None, *, first_frame=True, stages=STAGES, held=0, ranks=1, rank=0, **objective):
    """A task without text dropped or frames given, unless they are asked for."""
    spec = replace(model.spec, first_frame=first_frame)
    asked = Objective(**{"drop_text": 0.0, "drop_image": 0.0, **objective})
    store = store or shelf.Shelf(shelf.mixed())
    batches = PackedBatches(store, spec, stages, asked, seed=3, held=held, ranks=ranks, rank=rank)
    return DiffusionTask(model.transformer.requires_grad_(True), spec, model.text, batches, model.schedule)


def item(index=0, known=0, frames=3, timestep=400, **more):
    latents = rng.normal((4, frames, 4, 6), 1, "latents", index)
    subject = torch.zeros(frames, 4, 6, dtype=torch.bool)
    subject[:, 1:3, 2:4] = True
    values = {"caption": prompt(5, seed=index), "subject_THW": subject, "known": known, "place": index}
    return Item(**{"name": f"clip/{index}", "latents_CTHW": latents, "timestep": timestep, **values, **more})


def row(*items):
    return PackedRow(list(items), capacity=100, imbalance=0.0)


class Spy:
    """Keeps the packs that a transformer is given."""

    def __init__(self, transformer):
        self.packs = []
        transformer.register_forward_pre_hook(lambda module, args: self.packs.append(args[0]))


@pytest.mark.parametrize("like", ["2b", "5b", "5b-i2v", "1.5-5b", "1.5-5b-i2v"])
def test_training_and_sampling_show_the_transformer_the_same(like):
    model = tiny_model(like)
    task, spy, spec = make_task(model), Spy(model.transformer), model.spec
    images = (
        [rng.normal((4, 4, 6), 2, "image", n) for n in range(2)] if spec.image_conditioned else [None] * 2
    )
    batch = [item(n, timestep=300 + n, condition_CHW=images[n]) for n in range(2)]
    task.loss("model", row(*batch), step=7)
    trained = spy.packs.pop()
    assert trained.ofs == (2.0 if spec.transformer.ofs_dim else None)
    sizes = [s.video_length for s in trained.segments]
    for j, (one, rows) in enumerate(zip(batch, trained.video_LP.split(sizes), strict=True)):
        frames = one.latents_CTHW.shape[1]
        pad = frames % spec.transformer.patch[0]
        clean = torch.cat([one.latents_CTHW[:, :1]] * pad + [one.latents_CTHW], 1)
        noise = rng.normal(clean.shape, 3, "noise", 7, j)
        noisy = model.schedule.add_noise(clean[None], noise[None], torch.tensor([one.timestep]))[0]
        text = model.text.encode([one.caption])[0]
        image = None if images[j] is None else image_condition(images[j], frames + pad)
        predict(model.transformer, noisy, one.timestep, Conditions(text, None, image_CTHW=image), 1.0)
        sampled = spy.packs.pop()
        assert torch.equal(rows, sampled.video_LP)
        assert torch.equal(trained.text_LC.split(model.text.length)[j], sampled.text_LC)
        assert int(trained.timestep_S[j]) == int(sampled.timestep_S[0]) == one.timestep
        assert sampled.segments[0].grid == trained.segments[j].grid
        assert sampled.ofs == trained.ofs


def test_the_image_condition_reaches_the_loss():
    model = tiny_model("5b-i2v")
    task, spy = make_task(model), Spy(model.transformer)
    image = rng.normal((4, 4, 6), 2, "image").requires_grad_()
    loss = task.loss("model", row(item(condition_CHW=image)), step=0)
    (gradient,) = torch.autograd.grad(loss.total, image)
    assert gradient.abs().amax(dim=0).min() > 0
    other = task.loss("model", row(item(condition_CHW=image + 1)), step=0)
    assert not torch.equal(spy.packs[0].video_LP, spy.packs[1].video_LP)
    assert loss.total != other.total
    dropped = task.loss("model", row(item()), step=0)
    zeros = task.loss("model", row(item(condition_CHW=torch.zeros(4, 4, 6))), step=0)
    assert torch.equal(dropped.total, zeros.total)


@pytest.mark.parametrize("unconditional", ["zeros", "empty"])
def test_dropped_text_is_what_the_unconditional_branch_gets(unconditional):
    model = tiny_model(replace(tiny_spec("5b"), unconditional=unconditional))
    task, spy = make_task(model), Spy(model.transformer)
    task.loss("model", row(item(drop_text=True, text_LD=torch.ones(12, 16))), step=0)
    want = model.text.encode([""])[0]
    assert torch.equal(spy.packs[0].text_LC, torch.zeros_like(want) if unconditional == "zeros" else want)


def test_stored_embeddings_are_taken_as_they_are():
    model = tiny_model("5b")
    task, spy = make_task(model), Spy(model.transformer)
    embedding = rng.normal((12, 16), 0, "text")
    task.text = None
    task.loss("model", row(item(text_LD=embedding)), step=0)
    assert torch.equal(spy.packs[0].text_LC, embedding)


@pytest.mark.parametrize("like", ["5b", "1.5-5b"])
def test_known_frames_are_clean_in_training_as_in_sampling(like):
    model = tiny_model(like)
    task, spy = make_task(model), Spy(model.transformer)
    one = item(0, known=1)
    patch = model.spec.transformer.patch
    pad, rows = 3 % patch[0], 2 * 3  # tokens of a frame
    task.loss("model", row(one), step=0)
    trained = spy.packs.pop().video_LP[:rows]
    known = torch.cat([one.latents_CTHW[:, :1]] * (pad + 1), 1)
    sampler = Sampler("ddim", model.schedule, sampling_timesteps(3))
    noise = KeyedNoise(0)
    start = sampler.start(noise.initial((4, 3 + pad, 4, 6), 0), 0)
    conditions = Conditions(model.text.encode([one.caption])[0], None, known=Known(known, clean=True))
    states = list(sample(model.transformer, sampler, start, conditions, noise))
    assert all(torch.equal(pack.video_LP[:rows], trained) for pack in spy.packs)
    assert torch.equal(states[-1].x[:, : pad + 1], known)


def test_a_prefix_may_be_slightly_noised():
    model = tiny_model("5b")
    task, spy = make_task(model), Spy(model.transformer)
    task.loss("model", row(item(known=2, prefix_timestep=20)), step=0)
    task.loss("model", row(item(known=2)), step=0)
    noised, clean = (pack.video_LP.unflatten(0, (3, -1)) for pack in spy.packs)
    assert torch.equal(noised[2], clean[2])
    error = (noised[:2] - clean[:2]).std()
    assert 0 < error < 0.3  # sqrt(1 - alpha_bar) of timestep 20 is 0.15


@pytest.mark.parametrize(("like", "frames", "rows"), [("5b", 3, 2), ("1.5-5b", 4, 1)])
def test_no_loss_is_taken_on_known_frames(like, frames, rows):
    model = tiny_model(like)
    task, outputs = make_task(model), []
    model.transformer.register_forward_hook(lambda module, args, out: outputs.append(out))
    loss = task.loss("model", row(item(0, known=2, frames=frames)), step=0)
    (per_row,) = torch.autograd.grad(loss.total, outputs)
    assert not per_row[: rows * 2 * 3].any()
    assert per_row[rows * 2 * 3 :].any(dim=1).all()


def test_known_frames_ask_for_a_model_that_gets_them_clean():
    with pytest.raises(InputError, match="first_frame: true"):
        make_task(tiny_model("5b"), first_frame=False, known=0.1)


def test_it_learns_a_clip_by_heart():
    torch.manual_seed(0)
    model = tiny_model(tiny_spec("5b", layers=1))
    task = make_task(model)
    optimizer = Rates(matrix_lr=0.02, lr=5e-3).optimizer(task.phases[0])
    losses = []
    for step in range(150):
        timesteps = rng.generator(step).integers(1000, size=8)
        loss = task.loss(
            "model", row(*(item(timestep=int(t), place=j) for j, t in enumerate(timesteps))), step
        )
        loss.total.backward()
        optimizer.update(1.0, optimizer.collect(loss.weight))
        losses.append(loss.total.item() / loss.weight)
    assert sum(losses[-10:]) < 0.5 * sum(losses[:10])


def test_metrics_of_a_row():
    model = tiny_model("5b")
    items = [item(j, timestep=125 * j) for j in range(8)] + [item(8, unreadable="damaged")]
    loss = make_task(model, shelf.Shelf(shelf.mixed(200))).loss("model", row(*items), step=0)
    assert loss.metrics["tokens"] == (9 * (model.text.length + 3 * 2 * 3), 1.0)
    assert loss.metrics["capacity"] == (100, 1.0)
    assert loss.metrics["samples"] == (8, 1.0)
    assert loss.metrics["unreadable"] == (1, 9)
    bins = [loss.metrics[f"loss_{low}"] for low in (0, 250, 500, 750)]
    assert [count for _, count in bins] == [2, 2, 2, 2]
    assert sum(total for total, _ in bins) == pytest.approx(loss.total.item(), rel=1e-5)


def test_errors_count_more_where_the_subject_is():
    """Where nothing is predicted the error is the target: the weighted mean of its square, by hand."""
    model, one = tiny_model("5b"), item(0)
    for parameter in model.transformer.output.linear.parameters():
        torch.nn.init.zeros_(parameter)
    loss = make_task(model, subject_weight=5.0).loss("model", row(one), step=2)
    clean, noise = one.latents_CTHW, rng.normal(one.latents_CTHW.shape, 3, "noise", 2, 0)
    squares = model.schedule.velocity(clean[None], noise[None], torch.tensor(400))[0].square().mean(0)
    inside, outside = squares[one.subject_THW], squares[~one.subject_THW]
    want = (5 * inside.sum() + outside.sum()) / (5 * inside.numel() + outside.numel())
    assert torch.allclose(loss.total, want)


@pytest.mark.parametrize("like", ["5b", "1.5-5b"])
def test_a_subject_everywhere_or_nowhere_changes_nothing(like):
    model = tiny_model(like)
    batch = [item(0, frames=4), item(1, known=1, frames=4), item(2, frames=4)]
    plain = make_task(model).loss("model", row(*batch), step=2).total
    batch[0].subject_THW[:], batch[1].subject_THW[:] = True, False
    batch[2] = replace(batch[2], subject_THW=None)
    weighted = make_task(model, subject_weight=5.0).loss("model", row(*batch), step=2).total
    assert torch.allclose(weighted, plain, atol=1e-6)


def gradients(task, batches, step):
    """Gradients of a step over its weight, as the loop makes them."""
    task.model.zero_grad()
    losses = [task.loss("model", micro, step) for rank in batches for micro in rank[step]]
    sum(loss.total for loss in losses).backward()
    weight = sum(loss.weight for loss in losses)
    return {name: p.grad / weight for name, p in task.model.named_parameters()}


@pytest.mark.parametrize("per", ["sample", "number"])
def test_ranks_and_rows_add_up_to_the_step(per):
    """One row, or rows of several ranks: the same loss and gradients, images and clips alike."""
    model = tiny_model("5b")
    several = (DiffusionStage(steps=9, capacity=80, rows=6),)
    tasks = [make_task(model, stages=several, ranks=3, rank=r, per=per) for r in range(3)]
    whole = make_task(model, stages=several, per=per)
    dealt = gradients(tasks[0], [task.batches() for task in tasks], 2)
    items = [one for micro in whole.batches()[2] for one in micro.items]
    items.sort(key=lambda one: one.latents_CTHW.shape)
    alone = gradients(whole, [{2: [row(*items)]}], 2)
    for name, gradient in alone.items():
        torch.testing.assert_close(dealt[name], gradient, rtol=1e-4, atol=1e-6)


def test_weights_of_samples_and_of_numbers():
    model = tiny_model("5b")
    batch = [item(0, frames=1), item(1, frames=3, known=1)]
    singles = [make_task(model).loss("model", row(one), step=0).total.item() for one in batch]
    by_sample = make_task(model).loss("model", row(*batch), step=0)
    assert by_sample.weight == 2
    assert by_sample.total.item() == pytest.approx(sum(singles), rel=1e-5)
    by_number = make_task(model, per="number").loss("model", row(*batch), step=0)
    sizes = 4 * 24, 4 * 2 * 24
    assert by_number.weight == sum(sizes)
    want = sum(size * single for size, single in zip(sizes, singles, strict=True))
    assert by_number.total.item() == pytest.approx(want, rel=1e-5)


def test_what_cannot_be_read_has_no_weight():
    model = tiny_model("5b")
    store = shelf.Shelf(shelf.mixed(200))
    lost = item(1, latents_CTHW=torch.zeros(4, 3, 4, 6), unreadable="damaged", drop_text=True)
    task = make_task(model, store)
    whole = gradients(task, [{0: [row(item(0), lost, item(2))]}], 0)
    without = gradients(task, [{0: [row(item(0), item(2))]}], 0)
    for name, gradient in without.items():
        torch.testing.assert_close(whole[name], gradient, rtol=1e-4, atol=1e-6)
    nothing = task.loss("model", row(lost), step=0)
    assert (nothing.total.item(), nothing.weight) == (0, 0)
    assert nothing.metrics["unreadable"] == (1, 1)


def test_more_than_one_in_a_hundred_unreadable_ends_the_run():
    model, count = tiny_model("5b"), 200
    task = make_task(model, shelf.Shelf(shelf.mixed(count)))
    for n in (1, 2, 2, 2, 1):
        task.loss("model", row(item(n, unreadable=f"{n} is damaged")), step=n)
    with pytest.raises(
        InputError, match="3 of 200 samples cannot be read, more than 1%; the first, clip/1: 1 is"
    ):
        task.loss("model", row(item(3, unreadable="3 is damaged")), step=9)


def step_losses(timesteps, steps=24):
    model = tiny_model("5b")
    for parameter in model.transformer.output.linear.parameters():
        torch.nn.init.zeros_(parameter)  # the loss depends on the timestep as an untrained model's does
    task = make_task(
        model, shelf.Shelf([shelf.sample("clip", frames=1, height=32, width=32)]), timesteps=timesteps
    )
    found = []
    with torch.no_grad():
        for step in range(steps):
            ts = task.batches()._timesteps(step, 16, range(16))
            items = [item(0, frames=1, timestep=ts[place], place=place) for place in range(16)]
            loss = task.loss(
                "model", row(*(replace(i, latents_CTHW=3 * i.latents_CTHW) for i in items)), step
            )
            found.append(loss.total.item() / loss.weight)
    return np.array(found)


def test_explicit_uniform_sampling_lowers_the_variance_of_the_step_loss():
    assert step_losses("uniform").var() < 0.5 * step_losses("iid").var()


def test_positions_are_those_of_the_stage():
    model = tiny_model("5b")
    task = make_task(model)
    assert model.spec.position_policy == "interpolate"
    big = item(latents_CTHW=rng.normal((4, 3, 8, 12), 0, "big"), subject_THW=None)
    plain = task.loss("model", row(big), step=0).total
    other = task.loss("model", replace(row(big), positions="extrapolate"), step=0).total
    again = task.loss("model", row(big), step=0).total
    assert plain == again != other


def test_validation_is_the_loss_at_fixed_timesteps(tmp_path):
    model, judged = tiny_model("5b"), []
    task = make_task(model, held=3)
    task._judge = lambda weights, folder, step: judged.append((folder, step))
    weights = {"model": model.transformer.state_dict()}
    first = task.evaluate(weights, tmp_path, 10)
    assert set(first) == {"val", *(f"val_{t}" for t in (100, 300, 500, 700, 900))}
    assert task.evaluate(weights, tmp_path, 20) == first
    assert judged == [(tmp_path, 10), (tmp_path, 20)]
    (items,) = [task.batches().fixed(500)]
    singles = [task.loss("model", row(one), step=-1).total.item() for one in items]
    assert first["val_500"] == pytest.approx(np.mean(singles), abs=1e-4)
    assert first["val"] == pytest.approx(
        np.mean([first[f"val_{t}"] for t in (100, 300, 500, 700, 900)]), abs=1e-4
    )
    zeros = {"model": {name: torch.zeros_like(w) for name, w in model.transformer.state_dict().items()}}
    assert task.evaluate(zeros, tmp_path, 30)["val"] != first["val"]
    assert not any(torch.equal(p, torch.zeros_like(p)) for p in list(model.transformer.parameters())[:1])


def test_with_stored_latents_no_vae_and_no_text_encoder_are_made(monkeypatch):
    model = tiny_model("5b")

    def forbidden(*arguments, **more):
        raise AssertionError("latents and texts are stored")

    monkeypatch.setattr(VAE, "__init__", forbidden)
    monkeypatch.setattr(TextEncoder, "encode", forbidden)
    store = shelf.Shelf(shelf.mixed(), texts=(12, 16))
    batches = PackedBatches(store, model.spec, STAGES, Objective(drop_text=0.5), seed=0, held=2)
    task = DiffusionTask(model.transformer.requires_grad_(True), model.spec, None, batches, model.schedule)
    for micro in batches[0]:
        assert task.loss("model", micro, 0).total > 0
    with pytest.raises(InputError, match="'empty' needs the text encoder"):
        DiffusionTask(
            model.transformer, replace(model.spec, unconditional="empty"), None, batches, model.schedule
        )
