"""The one way into the transformer and out of it: what a sample's neighbours are changes nothing."""

import itertools
from dataclasses import replace
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cogvideox.core.pack import patchify, unpatchify
from cogvideox.diffusion.inputs import OFS, Sample, build_pack, image_condition, pad_front, split_output
from cogvideox.diffusion.objective import v_loss
from cogvideox.models.transformer.model import Transformer
from tests.tiny import TEXT_DIM, VARIANTS, randomise, tiny_spec

SIZES = [(4, 4, 6), (1, 4, 4), (2, 2, 6), (6, 4, 2), (1, 4, 4)]  # latents; 1 and 4 are alike, text too
WEIGHTS = [1.0, 0.25, 3.0, 1.5, 0.5]


@cache
def transformer(like: str) -> Transformer:
    model = Transformer(tiny_spec(like).transformer)
    randomise(model, 0)
    return model.requires_grad_(True)


def sample(spec, index: int, size: tuple[int, int, int], text: int) -> tuple[Sample, torch.Tensor]:
    """A noisy clip or image and what should be predicted for it, functions of the index."""
    rng = torch.Generator().manual_seed(index)
    latents = pad_front(torch.randn(4, *size, generator=rng), spec.patch)
    image = torch.randn(4, *size[1:], generator=rng)
    conditioned = spec.in_channels > 4 and index % 2 == 0  # the others get zeros
    one = Sample(
        latents,
        torch.randn(text, TEXT_DIM, generator=rng),
        timestep=100 * index + 7,
        condition_CTHW=image_condition(image, latents.shape[1]) if conditioned else None,
        weight=WEIGHTS[index % len(WEIGHTS)],
        name=str(index),
    )
    return one, torch.randn(latents.shape, generator=rng)


def run(model: Transformer, pairs, normaliser: float):
    """Loss of a pack, losses of its samples by name, and all gradients in one vector."""
    samples, targets = zip(*pairs, strict=True)
    model.zero_grad()
    pack = build_pack(samples, model.spec, dtype=torch.float32)
    outputs = split_output(model(pack), pack, model.spec)
    loss, losses = v_loss(outputs, targets, [s.weight for s in pack.segments], normaliser=normaliser)
    loss.backward()
    gradients = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    names = [s.sample for s in pack.segments]
    return loss.item(), dict(zip(names, losses.tolist(), strict=True)), gradients.clone()


@pytest.mark.parametrize("like", VARIANTS)
def test_the_loss_of_a_pack_is_that_of_its_samples(like):
    """Images and clips mixed, alone, packed and in other orders: losses, their sum and its gradient."""
    model, total = transformer(like), sum(WEIGHTS)
    pairs = [sample(model.spec, i, size, 5 + i % 3) for i, size in enumerate(SIZES)]
    alone = [run(model, [pair], total) for pair in pairs]
    expected = sum(loss for loss, *_ in alone)
    gradient = torch.stack([g for *_, g in alone]).sum(0)
    for order in ([0, 1, 2, 3, 4], [3, 1, 4, 0, 2], [4, 3, 2, 1, 0]):
        loss, losses, packed = run(model, [pairs[i] for i in order], total)
        assert loss == pytest.approx(expected, rel=1e-5)
        for i in order:
            assert losses[str(i)] == pytest.approx(alone[i][1][str(i)], rel=1e-5)
        assert (packed - gradient).norm() / gradient.norm() < 1e-5


sides = st.integers(1, 3)


@settings(max_examples=25, deadline=None)
@given(st.data(), st.sampled_from(["5b", "1.5-5b-i2v"]))
def test_random_packs(data, like):
    model = transformer(like)
    pool = data.draw(st.lists(st.tuples(sides, sides, sides, st.integers(1, 6)), min_size=1, max_size=3))
    shapes = data.draw(st.lists(st.sampled_from(pool), min_size=1, max_size=5))
    samples = [sample(model.spec, i, (t, 2 * h, 2 * w), text)[0] for i, (t, h, w, text) in enumerate(shapes)]
    with torch.no_grad():
        pack = build_pack(samples, model.spec, dtype=torch.float32)
        assert sum(group.count for group in pack.groups) == len(pack.segments) == len(samples)
        x = pack.join(pack.text_LC, pack.text_LC.new_zeros(len(pack.video_LP), TEXT_DIM))
        assert torch.equal(pack.text_rows(x), pack.text_LC)
        assert not pack.video_rows(x).any()
        together = split_output(model(pack), pack, model.spec)
        for one, output in zip(samples, together, strict=True):
            single = build_pack([one], model.spec, dtype=torch.float32)
            (expected,) = split_output(model(single), single, model.spec)
            assert output.shape == one.latents_CTHW.shape
            assert (output - expected).norm() / expected.norm() < 1e-5


@given(st.tuples(sides, sides, sides), st.tuples(sides, sides, sides), st.integers(1, 5))
def test_patchify_round_trip(grid, patch, channels):
    sizes = [n * p for n, p in zip(grid, patch, strict=True)]
    x = torch.arange(channels * sizes[0] * sizes[1] * sizes[2]).reshape(channels, *sizes)
    patches = patchify(x, patch)
    assert torch.equal(unpatchify(patches, grid, patch), x)
    for row, (t, h, w) in enumerate(itertools.product(*map(range, grid))):
        corner = x[:, t * patch[0] :, h * patch[1] :, w * patch[2] :]
        assert torch.equal(patches[row], corner[:, : patch[0], : patch[1], : patch[2]].flatten())


def test_padding_goes_in_front_and_the_image_on_it():
    clip = torch.arange(3.0).reshape(1, 3, 1, 1).expand(4, 3, 2, 2)
    assert pad_front(clip, (1, 2, 2)) is clip
    assert pad_front(clip, (2, 2, 2))[0, :, 0, 0].tolist() == [0, 0, 1, 2]
    assert image_condition(torch.ones(4, 2, 2), 3)[0, :, 0, 0].tolist() == [1, 0, 0]


def test_channels_are_latents_then_condition():
    spec = replace(tiny_spec("1.5-5b-i2v").transformer, patch=(1, 1, 1))
    one = replace(sample(spec, 0, (2, 1, 1), 5)[0], latents_CTHW=torch.zeros(4, 2, 1, 1))
    pack = build_pack([one, replace(one, condition_CTHW=None)], spec, dtype=torch.float32)
    assert pack.ofs == OFS
    assert torch.equal(pack.video_LP[0, 4:], one.condition_CTHW[:, 0, 0, 0])
    assert not pack.video_LP[:, :4].any()
    assert not pack.video_LP[1:].any()


def test_what_does_not_fit_is_refused():
    spec, plain = tiny_spec("5b-i2v").transformer, tiny_spec("5b").transformer
    one = sample(spec, 0, (3, 4, 4), 5)[0]
    for condition in (image_condition(torch.zeros(4, 4, 4), 1), image_condition(torch.zeros(4, 2, 4), 3)):
        with pytest.raises(ValueError, match=r"condition has the latent grid .*, the latents \(3, 4, 4\)"):
            build_pack([replace(one, condition_CTHW=condition)], spec, dtype=torch.float32)
    with pytest.raises(ValueError, match="no channels for an image condition"):
        build_pack([one], plain, dtype=torch.float32)
    with pytest.raises(ValueError, match="multiple of the patch"):
        build_pack([sample(plain, 1, (3, 3, 4), 5)[0]], plain, dtype=torch.float32)
    wide = replace(one, condition_CTHW=image_condition(torch.zeros(5, 4, 4), 3))
    with pytest.raises(ValueError, match="9 channels in all, the model takes 8"):
        build_pack([wide], spec, dtype=torch.float32)
