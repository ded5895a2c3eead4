"""SAT checkpoints: round trips keep every bit, nothing is executed, every key is accounted for."""

import os
import pickle
import shutil

import numpy as np
import pytest
import torch

from cogvideox.checkpoints import sat
from cogvideox.checkpoints.convert import Parts, convert
from cogvideox.checkpoints.folder import load_model
from cogvideox.checkpoints.keymaps import from_ours
from cogvideox.checkpoints.lora import load_lora
from cogvideox.core.errors import CheckpointError, InputError
from cogvideox.models.specs import SPECS
from cogvideox.models.transformer.positions import coordinates, sincos_table
from tests.checkpoints.conftest import same_weights
from tests.tiny import VARIANTS, tiny_model


def same_model(a, b) -> bool:
    return (
        same_weights(a.transformer, b.transformer)
        and same_weights(a.vae, b.vae)
        and same_weights(a.text.model, b.text.model)
    )


@pytest.fixture
def sat_folder(folder_of, tmp_path):
    """A tiny model under SAT's names."""
    convert(folder_of("5b"), tmp_path / "sat", to="sat")
    return tmp_path / "sat"


def states(folder):
    return folder / "transformer" / "1" / sat.STATES


def edit(file, change, key="module"):
    """Change the tensors of a checkpoint in place."""
    content = torch.load(file, weights_only=True)
    change(content[key])
    torch.save(content, file)


@pytest.mark.filterwarnings("ignore:diffusers will scale")
@pytest.mark.parametrize("like", VARIANTS)
def test_round_trip_through_sat_keeps_every_bit(folder_of, tmp_path, like):
    convert(folder_of(like), tmp_path / "sat", to="sat")
    assert (tmp_path / "sat/transformer/latest").read_text() == "1"
    convert(tmp_path / "sat", tmp_path / "back", parts=Parts(model=str(folder_of(like))))
    before, after = load_model(folder_of(like), dtype="stored"), load_model(tmp_path / "back", dtype="stored")
    assert same_model(before, after)
    assert before.spec == after.spec
    assert before.fingerprint == after.fingerprint


def test_half_precision_keeps_every_bit_too(folder_of, tmp_path):
    convert(folder_of("5b"), tmp_path / "sat", to="sat", dtype="bf16")
    convert(tmp_path / "sat", tmp_path / "back", parts=Parts(model=str(folder_of("5b"))))
    loaded = load_model(tmp_path / "back", dtype="stored")
    assert loaded.transformer.patch_embed.weight.dtype == torch.bfloat16
    assert same_model(loaded, load_model(folder_of("5b"), dtype="bf16"))


def test_file_names_and_keys_are_those_of_sat(sat_folder):
    content = torch.load(states(sat_folder), weights_only=True)["module"]
    assert "model.diffusion_model.transformer.layers.1.attention.query_key_value.weight" in content
    assert "model.diffusion_model.mixins.adaln_layer.adaLN_modulations.0.1.bias" in content
    vae = torch.load(sat_folder / "vae" / "3d-vae.pt", weights_only=True)["state_dict"]
    assert "decoder.up.3.block.0.norm1.conv_y.conv.weight" in vae
    assert "encoder.down.0.downsample.conv.weight" in vae
    size = sum(t.nbytes for t in content.values())
    assert states(sat_folder).stat().st_size < 1.5 * size + 200_000


def test_fine_tuned_checkpoint_with_everything_inside(folder_of, sat_folder, tmp_path):
    """As SAT's trainer writes them: text encoder, VAE with its loss, buffers, random states."""
    model = load_model(folder_of("5b"), dtype="stored")
    content = torch.load(states(sat_folder), weights_only=True)
    module = content["module"]
    for key, tensor in model.text.model.state_dict().items():
        module[f"conditioner.embedders.0.transformer.{key}"] = tensor.clone()
    for key, tensor in sat.vae_state(model.vae).items():
        module[f"first_stage_model.{key}"] = tensor
    module["first_stage_model.loss.logvar"] = torch.zeros(())
    module["model.diffusion_model.mixins.pos_embed.freqs_sin"] = torch.zeros(4)
    module["model.diffusion_model.transformer.word_embeddings.weight"] = torch.zeros(1, 32)
    content |= {
        "iteration": 7,
        "np_rng_state": np.random.RandomState(0).get_state(),
        "torch_rng_state": torch.get_rng_state(),
        "random_rng_state": (3, (1, 2, 3), None),
        "ds_config": {"train_batch_size": 2},
    }
    file = tmp_path / "tuned" / "1000" / sat.STATES
    file.parent.mkdir(parents=True)
    torch.save(content, file)
    (tmp_path / "tuned" / "latest").write_text("1000")
    parts = Parts(model=str(folder_of("5b")), tokenizer=folder_of("5b") / "tokenizer")
    convert(tmp_path / "tuned", tmp_path / "out", parts=parts)
    assert same_model(load_model(tmp_path / "out", dtype="stored"), model)
    other = Parts(model=parts.model, t5=folder_of("2b"), vae=folder_of("1.5-5b"))
    convert(tmp_path / "tuned", tmp_path / "other", parts=other)  # parts that are given win


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update({"denoiser.sigmas": torch.zeros(3)}), "unknown key 'denoiser.sigmas'"),
        (
            lambda m: m.update({"model.diffusion_model.extra": torch.zeros(3)}),
            "unknown keys, such as 'extra'",
        ),
        (
            lambda m: m.pop("model.diffusion_model.time_embed.0.bias"),
            "keys missing, such as 'time_embed.0.bias'",
        ),
        (
            lambda m: m.update({"model.diffusion_model.time_embed.0.bias": torch.zeros(3)}),
            "'time_embed.0.bias' has",
        ),
        (lambda m: m.update({"first_stage_model.junk": torch.zeros(3)}), "'junk'|keys missing"),
    ],
)
def test_every_key_is_accounted_for(folder_of, sat_folder, tmp_path, change, message):
    edit(states(sat_folder), change)
    shutil.rmtree(sat_folder / "vae")
    parts = Parts(model=str(folder_of("5b")), vae=None if "junk" in message else folder_of("5b"))
    with pytest.raises(CheckpointError, match=message):
        convert(sat_folder, tmp_path / "out", parts=parts)
    assert not (tmp_path / "out").exists()


def test_a_bare_vae_with_a_stray_key_names_the_stray_key(sat_folder, tmp_path):
    file = sat_folder / "vae" / sat.VAE_FILE
    edit(file, lambda m: m.update({"discriminator.x": torch.zeros(3)}), key="state_dict")
    with pytest.raises(CheckpointError, match=r"3d-vae\.pt: unknown key 'discriminator\.x'"):
        convert(file, tmp_path / "out", parts=Parts(model="5b"))


def sat_adapter(file, **extra):
    """An adapter as SAT's trainer leaves it: with the frozen weights of its base."""
    attention = "model.diffusion_model.transformer.layers.0.attention"
    state = {
        f"{attention}.query_key_value.matrix_A.0": torch.ones(4, 32),
        f"{attention}.query_key_value.matrix_B.0": torch.ones(32, 4),
        f"{attention}.query_key_value.original.weight": torch.ones(96, 32),
        "model.diffusion_model.mixins.adaln_layer.adaLN_modulations.0.1.bias": torch.ones(3),
        "model.diffusion_model.mixins.pos_embed.pos_embedding": torch.ones(3),
    }
    torch.save({"module": state | extra}, file)
    return file


def test_adapters_account_for_every_key_too(tmp_path):
    assert len(load_lora(sat_adapter(tmp_path / "good.pt")).layers) == 1
    for stray in ("transformer.layers.0.attention.query_key_value.matrix_C.0", "controlnet.weight"):
        file = sat_adapter(tmp_path / "bad.pt", **{f"model.diffusion_model.{stray}": torch.ones(4, 32)})
        with pytest.raises(CheckpointError, match=rf"bad\.pt: '{stray}' is part of neither"):
            load_lora(file)


class Planted:
    """A pickle that would run a command."""

    def __reduce__(self):
        return os.mkdir, ("planted",)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize(
    "writer", [torch.save, lambda content, file: file.write_bytes(pickle.dumps(content))]
)
def test_planted_code_is_refused_and_not_run(tmp_path, monkeypatch, writer):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / sat.STATES
    writer({"module": {"model.diffusion_model.x": torch.zeros(1)}, "args": Planted()}, file)
    with pytest.raises(
        CheckpointError, match=r"refused: it holds more than data.*nothing in it was run|damaged"
    ):
        convert(file, tmp_path / "out")
    assert not (tmp_path / "planted").exists()


def test_files_that_are_no_checkpoints_are_named(tmp_path):
    (tmp_path / "a.pt").write_bytes(b"not a checkpoint")
    torch.save([1, 2], tmp_path / "b.pt")
    torch.save({"module": {"a": 1}}, tmp_path / "c.pt")
    for name in "abc":
        with pytest.raises(CheckpointError, match=rf"{name}\.pt"):
            sat.read_file(tmp_path / f"{name}.pt")
    with pytest.raises(InputError, match="holds neither"):
        convert(tmp_path, tmp_path / "out")


def test_fixed_positions_are_checked_by_value(folder_of, tmp_path):
    convert(folder_of("2b"), tmp_path / "sat", to="sat")
    spec = tiny_model("2b").transformer.spec
    axes = coordinates(spec.base_grid, "extrapolate", spec.base_grid)
    video = sincos_table(axes, spec.width, spec.spatial_scale)
    table = torch.cat([torch.zeros(spec.text_length, spec.width), video])[None].half()
    key = sat.TRANSFORMER_PREFIX + sat.POSITIONS
    edit(states(tmp_path / "sat"), lambda m: m.update({key: table}))
    parts = Parts(model=str(folder_of("2b")))
    convert(tmp_path / "sat", tmp_path / "out", parts=parts)
    edit(states(tmp_path / "sat"), lambda m: m.update({key: table + 0.01}))
    with pytest.raises(CheckpointError, match=r"differs by 0\.01"):
        convert(tmp_path / "sat", tmp_path / "out2", parts=parts)


@pytest.mark.parametrize("name", SPECS)
def test_released_models_are_recognised_by_their_sizes(name):
    with torch.device("meta"):
        model = sat.Transformer(SPECS[name].transformer)
    state = from_ours(sat.sat_transformer(model.spec), model.state_dict(), "")
    assert sat.recognise(state, "file") == SPECS[name]


def test_an_unknown_size_must_be_named(sat_folder, tmp_path):
    with pytest.raises(CheckpointError, match="no released model has 2 layers"):
        convert(sat_folder, tmp_path / "out")
    with pytest.raises(InputError, match=r"unknown model '6b' .did you mean"):
        convert(sat_folder, tmp_path / "out", parts=Parts(model="6b"))
    with pytest.raises(CheckpointError, match="keys missing"):
        convert(sat_folder, tmp_path / "out", parts=Parts(model="5b"))


def test_missing_parts_name_the_option(folder_of, sat_folder, tmp_path):
    shutil.rmtree(sat_folder / "vae")
    parts = Parts(model=str(folder_of("5b")))
    with pytest.raises(CheckpointError, match="no VAE; give one with --vae"):
        convert(sat_folder, tmp_path / "out", parts=parts)
    shutil.rmtree(sat_folder / "t5-v1_1-xxl")
    with pytest.raises(CheckpointError, match="no tokenizer; give one with --tokenizer or --t5"):
        convert(sat_folder, tmp_path / "out", parts=Parts(model=parts.model, vae=folder_of("5b")))


def test_model_parallel_checkpoints_are_refused(sat_folder, tmp_path):
    shutil.copy(states(sat_folder), states(sat_folder).with_name("mp_rank_01_model_states.pt"))
    with pytest.raises(CheckpointError, match="model-parallel"):
        convert(sat_folder, tmp_path / "out")
