"""The diffusion task: it shows the transformer what the sampler shows it, and it can learn."""

import pytest
import torch

from cogvideox.core import rng
from cogvideox.data.storybook import World
from cogvideox.diffusion.samplers import Sampler
from cogvideox.diffusion.timesteps import sampling_timesteps, stratified
from cogvideox.generation.noise import KeyedNoise
from cogvideox.generation.sample import Conditions, Known, predict, sample
from cogvideox.training.diffusion import DiffusionTask, Item
from cogvideox.training.latents import Bucket, LatentStore
from cogvideox.training.loop import Rates
from tests.tiny import prompt, tiny_model, tiny_spec


def make_task(model, drop_text=0.0, subject_weight=1.0):
    return DiffusionTask(
        model.transformer.requires_grad_(True),
        model.text,
        batches=None,
        schedule=model.schedule,
        seed=3,
        drop_text=drop_text,
        subject_weight=subject_weight,
        judge=None,
    )


def item(index=0, known=0, frames=3):
    latents = rng.normal((4, frames, 4, 6), 1, "latents", index)
    subject = torch.zeros(frames, 4, 6, dtype=torch.bool)
    subject[:, 1:3, 2:4] = True
    return Item(latents, prompt(5, seed=index), f"clip/{index}", known, subject)


class Spy:
    """Keeps the packs that a transformer is given."""

    def __init__(self, transformer):
        self.packs = []
        transformer.register_forward_pre_hook(lambda module, args: self.packs.append(args[0]))


@pytest.mark.parametrize("like", ["5b", "1.5-5b"])
def test_training_and_sampling_show_the_transformer_the_same(like):
    model = tiny_model(like)
    task, spy = make_task(model), Spy(model.transformer)
    batch = [item(0), item(1)]
    task.loss("model", batch, step=7)
    trained = spy.packs.pop()
    sizes = [s.video_length for s in trained.segments]
    for j, (one, rows) in enumerate(zip(batch, trained.video_LP.split(sizes), strict=True)):
        t = int(trained.timestep_S[j])
        frames = one.latents_CTHW.shape[1]
        clean = torch.cat(
            [one.latents_CTHW[:, :1]] * (frames % model.spec.transformer.patch[0]) + [one.latents_CTHW], 1
        )
        noise = rng.normal(clean.shape, 3, "noise", 7, j)
        noisy = model.schedule.add_noise(clean[None], noise[None], torch.tensor([t]))[0]
        text = model.text.encode([one.caption])[0]
        predict(model.transformer, noisy, t, Conditions(text, None), 1.0)
        sampled = spy.packs.pop()
        assert torch.equal(rows, sampled.video_LP)
        assert torch.equal(trained.text_LC.split(model.text.length)[j], sampled.text_LC)
        assert int(sampled.timestep_S[0]) == t
        assert sampled.segments[0].grid == trained.segments[j].grid


def test_dropped_text_is_what_the_unconditional_branch_gets():
    model = tiny_model("5b")
    task, spy = make_task(model, drop_text=1.0), Spy(model.transformer)
    task.loss("model", [item(0)], step=0)
    assert model.spec.unconditional == "zeros"
    assert not spy.packs[0].text_LC.any()


def test_known_frames_are_clean_in_training_as_in_sampling():
    model = tiny_model("5b")
    task, spy = make_task(model), Spy(model.transformer)
    one, rows = item(0, known=2), 2 * 2 * 3  # two latent frames of 2x3 tokens
    task.loss("model", [one], step=0)
    trained = spy.packs.pop().video_LP[:rows]
    sampler = Sampler("ddim", model.schedule, sampling_timesteps(3))
    noise = KeyedNoise(0)
    start = sampler.start(noise.initial(tuple(one.latents_CTHW.shape), 0), 0)
    conditions = Conditions(
        model.text.encode([one.caption])[0], None, known=Known(one.latents_CTHW[:, :2], clean=True)
    )
    states = list(sample(model.transformer, sampler, start, conditions, noise))
    assert all(torch.equal(pack.video_LP[:rows], trained) for pack in spy.packs)
    assert torch.equal(states[-1].x[:, :2], one.latents_CTHW[:, :2])


def test_no_loss_is_taken_on_known_frames():
    model = tiny_model("5b")
    task, outputs = make_task(model), []
    model.transformer.register_forward_hook(lambda module, args, out: outputs.append(out))
    loss = task.loss("model", [item(0, known=2)], step=0)
    (per_row,) = torch.autograd.grad(loss.total, outputs)
    known_rows = 2 * 2 * 3
    assert not per_row[:known_rows].any()
    assert per_row[known_rows:].any(dim=1).all()


def test_it_learns_a_clip_by_heart():
    torch.manual_seed(0)
    model = tiny_model(tiny_spec("5b", layers=1))
    task = make_task(model)
    optimizer = Rates(matrix_lr=0.02, lr=5e-3).optimizer(task.phases[0])
    batch, losses = [item(0)] * 8, []
    for step in range(150):
        loss = task.loss("model", batch, step)
        loss.total.backward()
        optimizer.update(1.0, step, optimizer.collect(loss.weight))
        losses.append(loss.total.item() / loss.weight)
    assert sum(losses[-10:]) < 0.5 * sum(losses[:10])


def test_losses_are_logged_by_timestep():
    model = tiny_model("5b")
    metrics = make_task(model).loss("model", [item(j) for j in range(8)], step=0).metrics
    assert {f"loss_{low}" for low in (0, 250, 500, 750)} <= set(metrics)
    assert metrics["tokens"][0] == 8 * (model.text.length + 3 * 2 * 3)
    assert metrics["samples"][0] == 8


def test_errors_count_more_where_a_character_is():
    """Where nothing is predicted the error is the target: the weighted mean of its square, by hand."""
    model, one = tiny_model("5b"), item(0)
    for parameter in model.transformer.output.linear.parameters():
        torch.nn.init.zeros_(parameter)
    loss = make_task(model, subject_weight=5.0).loss("model", [one], step=2)
    clean, noise = one.latents_CTHW, rng.normal(one.latents_CTHW.shape, 3, "noise", 2, 0)
    t = torch.tensor(stratified(1, 3, "timesteps", 2))
    squares = model.schedule.velocity(clean[None], noise[None], t)[0].square().mean(0)
    inside, outside = squares[one.subject_THW], squares[~one.subject_THW]
    want = (5 * inside.sum() + outside.sum()) / (5 * inside.numel() + outside.numel())
    assert torch.allclose(loss.total, want)


@pytest.mark.parametrize("like", ["5b", "1.5-5b"])
def test_a_subject_everywhere_or_nowhere_changes_nothing(like):
    model = tiny_model(like)
    batch = [item(0, frames=4), item(1, known=1, frames=4)]
    plain = make_task(model).loss("model", batch, step=2).total
    for j, one in enumerate(batch):
        one.subject_THW[:] = j == 0
    assert torch.allclose(
        make_task(model, subject_weight=5.0).loss("model", batch, step=2).total, plain, atol=1e-6
    )


def test_the_subject_is_where_the_character_is_drawn(tmp_path):
    bucket = Bucket(frames=9, height=64, width=96, clips=0, level="single")
    store = LatentStore(bucket, tmp_path, seed=4)
    for index in range(8):
        clip = World(seed=4, split="train", level=bucket.level).clip(index, duration=1.0)
        mask = store.subject(index)
        assert mask.shape == (3, 8, 12)
        boxes = clip.truth(9, 8, 64, 96)["boxes"][0]
        assert mask.any() == any(boxes)
        for frame, box in enumerate(boxes):
            if box:
                x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
                assert mask[(frame + 3) // 4, int(y * 8), int(x * 12)]
        assert mask.float().mean() < 0.8
