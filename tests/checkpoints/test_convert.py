"""`cogvideox convert`: the command, VAEs and adapters by themselves."""

import shutil

import pytest
import torch
import typer
from diffusers import AutoencoderKLCogVideoX
from safetensors.torch import load_file
from typer.testing import CliRunner

from cogvideox.checkpoints.convert import Parts, convert
from cogvideox.checkpoints.folder import load_model
from cogvideox.checkpoints.lora import load_lora
from cogvideox.cli.convert import convert as command
from cogvideox.core.errors import InputError
from tests.checkpoints.conftest import same_weights


def run(*arguments):
    app = typer.Typer()
    app.command()(command)
    return CliRunner().invoke(app, [str(a) for a in arguments])


def test_the_command_there_and_back(folder_of, tmp_path):
    done = run(folder_of("5b-i2v"), tmp_path / "sat", "--to", "sat")
    assert done.exit_code == 0, done.output
    assert "SAT checkpoint" in done.output
    done = run(tmp_path / "sat", tmp_path / "back", "--model", folder_of("5b-i2v"), "--dtype", "bf16")
    assert done.exit_code == 0, done.output
    loaded = load_model(tmp_path / "back", dtype="stored")
    assert same_weights(loaded.transformer, load_model(folder_of("5b-i2v"), dtype="bf16").transformer)


def test_a_model_folder_is_rewritten_whole(folder_of, tmp_path):
    """A folder as diffusers writes it gains `cogvideox.json`; every number stays."""
    source = shutil.copytree(folder_of("1.5-5b"), tmp_path / "theirs")
    (source / "cogvideox.json").unlink()
    convert(source, tmp_path / "ours")
    assert (tmp_path / "ours" / "cogvideox.json").is_file()
    assert load_model(tmp_path / "ours").spec == load_model(source).spec


def test_a_vae_by_itself(folder_of, tmp_path):
    convert(folder_of("5b") / "vae", tmp_path / "sat", to="sat")
    parts = Parts(model=str(folder_of("5b")))
    convert(tmp_path / "sat" / "3d-vae.pt", tmp_path / "back", parts=parts)
    before, after = (
        load_file(f / "diffusion_pytorch_model.safetensors")
        for f in (folder_of("5b") / "vae", tmp_path / "back")
    )
    assert before.keys() == after.keys()
    assert all(torch.equal(before[k], after[k]) for k in before)
    assert AutoencoderKLCogVideoX.from_pretrained(tmp_path / "back").config.scaling_factor == 0.7


def test_a_sat_adapter_becomes_a_diffusers_adapter(tmp_path):
    module = {}
    for layer in range(2):
        base = f"model.diffusion_model.transformer.layers.{layer}.attention"
        for name, count, out in (("query_key_value", 3, 96), ("dense", 1, 32)):
            module[f"{base}.{name}.original.weight"] = torch.zeros(out, 32)
            for i in range(count):
                module[f"{base}.{name}.matrix_A.{i}"] = torch.randn(4, 32)
                module[f"{base}.{name}.matrix_B.{i}"] = torch.randn(32, 4)
    torch.save({"module": module}, tmp_path / "mp_rank_00_model_states.pt")
    convert(tmp_path / "mp_rank_00_model_states.pt", tmp_path / "out")
    lora = load_lora(tmp_path / "out")
    assert len(lora.layers) == 8
    layer = lora.layers["transformer_blocks.1.attn1.to_k"]
    assert torch.equal(layer.down, module[f"{base}.query_key_value.matrix_A.1"])
    assert (layer.alpha, layer.rank) == (1.0, 4)


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("", {"to": "onnx"}, "unknown layout 'onnx'"),
        ("transformer", {}, "one part of a model"),
        ("", {"dtype": "int8"}, "unknown dtype 'int8'"),
    ],
)
def test_wrong_requests(folder_of, tmp_path, source, options, message):
    with pytest.raises(InputError, match=message):
        convert(folder_of("5b") / source, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_nothing_is_overwritten(folder_of, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="exists already"):
        convert(folder_of("5b"), tmp_path)
