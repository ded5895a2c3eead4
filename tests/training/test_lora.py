"""Adapters in training: the base model at first, alone in taking gradients, the same from their file."""

import pytest
import torch

from cogvideox.checkpoints.lora import apply, load_lora, save_lora
from cogvideox.core import rng
from cogvideox.core.errors import InputError
from cogvideox.diffusion.inputs import Sample, build_pack
from cogvideox.training.lora import Adapter, LoraSpec
from tests.tiny import tiny_model

WIDE = ("attention.qkv", "attention.out", "mlp.up", "mlp.down", "modulation.linear", "blocks.0.attention.qkv")


def run(model):
    spec = model.spec.transformer
    x = rng.normal((spec.in_channels, 2, 4, 6), 0, "x")
    text = rng.normal((spec.text_length, spec.text_dim), 0, "text")
    return model.transformer(build_pack([Sample(x, text, 400)], spec, dtype=torch.float32))


def moved(adapter):
    """Every number of the adapter becomes another, as training would have it."""
    with torch.no_grad():
        for name, parameter in adapter.module.named_parameters():
            parameter.add_(rng.normal(parameter.shape, 1, name) * 0.2)


def test_step_0_is_the_base_model():
    model = tiny_model()
    before = run(model)
    adapter = Adapter(model.transformer, LoraSpec(rank=4, targets=WIDE), seed=0)
    assert torch.equal(run(model), before)
    assert adapter.ratio() == 0
    zeros = {name for name, parameter in adapter.module.named_parameters() if not parameter.any()}
    assert zeros == {
        f"{name.replace('.', '/')}.up.weight" for name in adapter.spec.modules(model.spec.transformer)
    }
    moved(adapter)
    assert not torch.allclose(run(model), before, atol=1e-3)
    assert adapter.ratio() > 0
    with adapter.taken_out():
        assert torch.equal(run(model), before)


def test_only_the_adapter_is_trained():
    model = tiny_model()
    adapter = Adapter(model.transformer, LoraSpec(rank=4, targets=WIDE), seed=0)
    moved(adapter)
    run(model).square().sum().backward()
    mine = {id(parameter) for parameter in adapter.module.parameters()}
    assert all(
        parameter.grad is not None and parameter.grad.any() for parameter in adapter.module.parameters()
    )
    others = [p for p in model.transformer.parameters() if id(p) not in mine]
    assert others
    assert all(p.grad is None for p in others)


def test_initial_weights_are_keyed():
    torch.manual_seed(1)
    one = Adapter(tiny_model().transformer, LoraSpec(rank=2), seed=3).lora()
    torch.manual_seed(2)
    same = Adapter(tiny_model().transformer, LoraSpec(rank=2), seed=3).lora()
    other = Adapter(tiny_model().transformer, LoraSpec(rank=2), seed=4).lora()
    assert one.fingerprint == same.fingerprint != other.fingerprint


@pytest.mark.parametrize("like", ["5b", "1.5-5b-i2v"])
def test_the_file_gives_what_was_trained(like, tmp_path):
    model = tiny_model(like)
    adapter = Adapter(model.transformer, LoraSpec(rank=3, alpha=5.0, targets=WIDE), seed=0)
    moved(adapter)
    trained = run(model)
    save_lora(adapter.lora(base=model.spec.name, base_fingerprint=model.fingerprint), tmp_path / "adapter")
    fresh = tiny_model(like)
    applied = apply(fresh, [(load_lora(tmp_path / "adapter"), 1.0)])
    torch.testing.assert_close(run(fresh), trained, atol=1e-4, rtol=1e-4)
    applied.undo()
    with adapter.taken_out():
        assert torch.equal(run(fresh), run(model))


def test_averaged_weights_are_kept_by_name():
    adapter = Adapter(tiny_model().transformer, LoraSpec(rank=2), seed=0)
    doubled = {name: 2 * parameter for name, parameter in adapter.module.named_parameters()}
    mine, twice = adapter.lora(), adapter.lora(doubled)
    for name, layer in twice.layers.items():
        assert torch.equal(layer.down, 2 * mine.layers[name].down)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"targets": ("attention.qvk",)}, "attention.qkv"),
        ({"targets": ("norm1",)}, "norm1"),
        ({"rank": 0}, "rank of 1"),
        ({"alpha": 0.0}, "alpha above 0"),
    ],
)
def test_what_cannot_be_is_refused(change, said):
    with pytest.raises(InputError, match=said):
        Adapter(tiny_model().transformer, LoraSpec(**change), seed=0)
