"""A text-to-video transformer that got an image condition computes the same until it is trained."""

import pytest
import torch

from cogvideox.checkpoints.surgery import image_to_video
from cogvideox.core import rng
from cogvideox.core.errors import CheckpointError
from cogvideox.diffusion.inputs import Sample, build_pack
from tests.tiny import tiny_model, tiny_spec


def pack_of(spec, condition):
    x = rng.normal((4, 2, 4, 6), 0, "x")
    image = rng.normal(x.shape, 0, "condition") if condition else None
    text = rng.normal((spec.text_length, spec.text_dim), 0, "text")
    return build_pack([Sample(x, text, 500, image)], spec, dtype=torch.float32)


@pytest.mark.parametrize(("old", "new"), [("5b", "5b-i2v"), ("1.5-5b", "1.5-5b-i2v")])
def test_step_0_is_the_old_model_exactly_and_the_condition_can_be_learned(old, new):
    before, spec = tiny_model(old).transformer, tiny_spec(new).transformer
    after = image_to_video(before, spec)
    assert after.spec == spec
    want = before(pack_of(before.spec, condition=False))
    got = after(pack_of(spec, condition=True))
    assert torch.equal(got, want)
    after.requires_grad_(True)(pack_of(spec, condition=True)).square().sum().backward()
    columns = after.patch_embed.weight.grad[:, before.patch_embed.in_features :]
    assert columns.abs().amax(dim=0).min() > 0  # every number of the condition
    assert all(p.grad is not None for p in after.parameters())
    if spec.ofs_dim:
        assert after.ofs_embed.down.weight.grad.any()
    after.patch_embed.weight.data.add_(1)
    assert torch.equal(before(pack_of(before.spec, condition=False)), want)  # nothing is shared


@pytest.mark.parametrize(("old", "new"), [("5b-i2v", "5b"), ("2b", "5b-i2v"), ("5b", "1.5-5b-i2v")])
def test_other_changes_are_refused(old, new):
    with pytest.raises(CheckpointError, match="cannot become"):
        image_to_video(tiny_model(old).transformer, tiny_spec(new).transformer)
