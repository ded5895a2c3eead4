"""Key maps: complete in both directions for every released model, exact both ways."""

import pytest
import torch
from diffusers import AutoencoderKLCogVideoX, CogVideoXTransformer3DModel
from torch import nn

from cogvideox.checkpoints.configs import write_transformer, write_vae
from cogvideox.checkpoints.keymaps import (
    diffusers_transformer,
    diffusers_vae,
    from_ours,
    sat_transformer,
    sat_vae,
    to_ours,
)
from cogvideox.core.errors import CheckpointError
from cogvideox.models.specs import SPECS, TransformerSpec
from cogvideox.models.transformer.model import Transformer
from cogvideox.models.vae.autoencoder import VAE
from tests.tiny import VARIANTS, tiny_model, tiny_spec


def on_meta(make):
    with torch.device("meta"):
        return make()


def shapes(module: nn.Module) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in module.state_dict().items()}


@pytest.mark.parametrize("name", SPECS)
def test_diffusers_map_covers_the_released_transformer(name):
    spec = SPECS[name].transformer
    ours = on_meta(lambda: Transformer(spec))
    config = {k: v for k, v in write_transformer(spec).items() if not k.startswith("_")}
    theirs = on_meta(lambda: CogVideoXTransformer3DModel(**config))
    made = from_ours(diffusers_transformer(spec), ours.state_dict(), name)
    assert {k: v.shape for k, v in made.items()} == shapes(theirs)
    back = to_ours(diffusers_transformer(spec), theirs.state_dict(), shapes(ours), name)
    assert {k: v.shape for k, v in back.items()} == shapes(ours)


def test_diffusers_map_covers_the_released_vae():
    spec = SPECS["5b"].vae
    ours = on_meta(lambda: VAE(spec))
    config = {k: v for k, v in write_vae(spec, 480, 720).items() if not k.startswith("_")}
    theirs = on_meta(lambda: AutoencoderKLCogVideoX(**config))
    made = from_ours(diffusers_vae(spec), ours.state_dict(), "vae")
    assert {k: v.shape for k, v in made.items()} == shapes(theirs)


@pytest.mark.parametrize("name", SPECS)
def test_sat_map_is_a_bijection_at_full_size(name):
    spec = SPECS[name].transformer
    ours = on_meta(lambda: Transformer(spec))
    made = from_ours(sat_transformer(spec), ours.state_dict(), name)
    back = to_ours(sat_transformer(spec), made, shapes(ours), name)
    assert {k: v.shape for k, v in back.items()} == shapes(ours)
    width = spec.width
    assert made["transformer.layers.0.attention.query_key_value.weight"].shape == (3 * width, width)
    assert made["mixins.adaln_layer.adaLN_modulations.0.1.weight"].shape == (12 * width, 512)
    assert made["mixins.patch_embed.proj.weight"].ndim == (4 if spec.patch[0] == 1 else 2)


@pytest.mark.parametrize("like", VARIANTS)
@pytest.mark.parametrize("table", [diffusers_transformer, sat_transformer])
def test_round_trip_keeps_every_bit(like, table):
    model = tiny_model(like).transformer
    made = from_ours(table(model.spec), model.state_dict(), like)
    back = to_ours(table(model.spec), made, shapes(model), like)
    assert all(torch.equal(back[k], v) for k, v in model.state_dict().items())


@pytest.mark.parametrize("table", [diffusers_vae, sat_vae])
def test_vae_round_trip_keeps_every_bit(table):
    model = tiny_model("5b").vae
    back = to_ours(table(model.spec), from_ours(table(model.spec), model.state_dict(), ""), shapes(model), "")
    assert all(torch.equal(back[k], v) for k, v in model.state_dict().items())


def test_modulation_blocks_go_where_sat_put_them():
    """norm1 holds chunks 0, 1, 2, 6, 7, 8 of SAT's fused modulation, norm2 the others."""
    spec = tiny_spec().transformer
    model = tiny_model("5b").transformer
    fused = from_ours(sat_transformer(spec), model.state_dict(), "")
    split = from_ours(diffusers_transformer(spec), model.state_dict(), "")
    chunks = fused["mixins.adaln_layer.adaLN_modulations.1.1.weight"].chunk(12)
    assert torch.equal(
        split["transformer_blocks.1.norm1.linear.weight"], torch.cat(chunks[0:3] + chunks[6:9])
    )
    assert torch.equal(
        split["transformer_blocks.1.norm2.linear.weight"], torch.cat(chunks[3:6] + chunks[9:12])
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("proj_out.bias"), "1 keys missing, such as 'proj_out.bias'"),
        (lambda w: w.update(proj_uot=torch.zeros(1)), "unknown keys, such as 'proj_uot'.*proj_out"),
        (
            lambda w: w.update({"proj_out.bias": torch.zeros(3)}),
            r"'proj_out.bias' has shape \(3,\), .*\(16,\)",
        ),
        (
            lambda w: w.update({"transformer_blocks.0.attn1.to_k.weight": torch.zeros(2, 2)}),
            "attn1.to_k.weight",
        ),
    ],
)
def test_bad_weights_are_named(change, message):
    model = tiny_model("5b").transformer
    weights = from_ours(diffusers_transformer(model.spec), model.state_dict(), "")
    change(weights)
    with pytest.raises(CheckpointError, match=message):
        to_ours(diffusers_transformer(model.spec), weights, shapes(model), "file")


def test_ablation_variants_have_no_place_elsewhere():
    with pytest.raises(CheckpointError, match="modality='mmdit'"):
        diffusers_transformer(TransformerSpec(layers=1, heads=1, modality="mmdit"))
