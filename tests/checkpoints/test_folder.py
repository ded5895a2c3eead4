"""Model folders: what is written is what is read, here and in diffusers; whatever is wrong is named."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from diffusers import CogVideoXImageToVideoPipeline, CogVideoXPipeline, CogVideoXVideoToVideoPipeline
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, T5Tokenizer

import cogvideox
from cogvideox.checkpoints import folder as folders
from cogvideox.checkpoints.folder import load_model, save_model
from cogvideox.checkpoints.keymaps import diffusers_transformer, from_ours
from cogvideox.checkpoints.weights import Weights, write_weights
from cogvideox.core import device
from cogvideox.core.errors import CheckpointError, InputError
from cogvideox.models.specs import TransformerSpec
from cogvideox.models.transformer.model import Transformer
from tests.checkpoints.conftest import same_weights
from tests.models.oracle import relative_error, run_ours
from tests.tiny import VARIANTS, tiny_model

TRANSFORMER = "transformer/diffusion_pytorch_model.safetensors"


@pytest.fixture
def copy(folder_of, tmp_path):
    """A folder that a test may damage."""
    return shutil.copytree(folder_of("5b"), tmp_path / "copy")


@pytest.mark.parametrize("like", VARIANTS)
def test_what_is_written_is_what_is_read(folder_of, like):
    ours, loaded = tiny_model(like), load_model(folder_of(like), dtype="fp32")
    assert loaded.spec == ours.spec
    assert same_weights(loaded.transformer, ours.transformer)
    assert same_weights(loaded.vae, ours.vae)
    assert same_weights(loaded.text.model, ours.text.model)
    assert torch.equal(loaded.schedule.alpha_bar, ours.schedule.alpha_bar)
    assert torch.equal(loaded.text.encode(["a cat runs"]), ours.text.encode(["a cat runs"]))


def test_the_text_encoder_can_be_gone_before_the_rest_is_read(folder_of, monkeypatch):
    events, build = [], folders.build
    monkeypatch.setattr(folders, "build", lambda *a: (events.append("part"), build(*a))[1])
    load_model(folder_of("5b"), text_ready=lambda text: events.append(text.model.device.type))
    assert events == ["cpu", "part", "part"]


@pytest.mark.parametrize("like", VARIANTS)
def test_diffusers_loads_it(folder_of, like):
    model = load_model(folder_of(like), dtype="fp32")
    image = model.spec.image_conditioned
    for pipeline in (
        (CogVideoXImageToVideoPipeline,) if image else (CogVideoXPipeline, CogVideoXVideoToVideoPipeline)
    ):
        theirs = pipeline.from_pretrained(folder_of(like))
        for part in ("transformer", "vae"):
            stored = load_file(folder_of(like) / part / "diffusion_pytorch_model.safetensors")
            state = getattr(theirs, part).state_dict()
            assert state.keys() == stored.keys()
            assert all(torch.equal(state[k], stored[k]) for k in state)
        assert isinstance(theirs.tokenizer, T5Tokenizer)
        embeds = theirs._get_t5_prompt_embeds(["a cat runs"], max_sequence_length=12).detach()
        assert relative_error(model.text.encode(["a cat runs"]), embeds) < 1e-5
        latents = torch.randn(1, 4, 3, 2, 3, generator=torch.Generator().manual_seed(0))
        video = theirs.vae.decode(latents / model.spec.vae.scale).sample.detach()
        assert relative_error(model.vae.decode(latents), video) < 1e-5


def test_record_and_conventions_survive(tmp_path):
    model = tiny_model("1.5-5b-i2v")
    model.spec = replace(model.spec, unconditional="empty", sampler="ddim", licence="MIT", first_frame=True)
    model.record = {"caption_style": "storybook", "data": [{"name": "x", "licence": "CC0"}]}
    with pytest.warns(UserWarning, match=r"image condition by 1/0.7, not by 1"):
        save_model(model, tmp_path / "m")
    loaded = load_model(tmp_path / "m")
    assert loaded.spec == model.spec
    assert loaded.record == model.record
    index = json.loads((tmp_path / "m" / "model_index.json").read_text())
    assert index["_class_name"] == "CogVideoXImageToVideoPipeline"
    assert index["scheduler"] == ["diffusers", "CogVideoXDDIMScheduler"]


def test_saving_replaces_a_model_and_nothing_else(folder_of, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("text")
    with pytest.raises(InputError, match="something other than a model"):
        save_model(tiny_model("5b"), tmp_path / "thesis")
    save_model(tiny_model("5b"), tmp_path / "new" / "m")
    mapped = load_model(tmp_path / "new" / "m", dtype="fp32")
    save_model(tiny_model("5b", seed=9), tmp_path / "new" / "m")  # over the files that `mapped` is a view of
    assert same_weights(mapped.transformer, tiny_model("5b").transformer)
    assert same_weights(
        load_model(tmp_path / "new" / "m", dtype="fp32").transformer, tiny_model("5b", 9).transformer
    )
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["m"]


def test_a_failed_save_leaves_the_old_model(folder_of, copy):
    before = {p: p.stat().st_mtime_ns for p in copy.rglob("*")}
    model = tiny_model("5b")
    del model.vae.encoder.conv_in.bias
    with pytest.raises(CheckpointError, match=r"encoder\.conv_in\.bias"):
        save_model(model, copy)
    assert {p: p.stat().st_mtime_ns for p in copy.rglob("*")} == before


def test_shards(folder_of, copy, monkeypatch):
    weights = load_file(copy / TRANSFORMER)
    (copy / TRANSFORMER).unlink()
    write_weights(weights.items(), copy / "transformer", "diffusion_pytorch_model", shard_bytes=20_000)
    names = sorted(p.name for p in (copy / "transformer").glob("*.safetensors"))
    assert len(names) > 3
    assert names[0] == f"diffusion_pytorch_model-00001-of-{len(names):05d}.safetensors"
    model, whole = load_model(copy, dtype="fp32"), load_model(folder_of("5b"), dtype="fp32")
    assert same_weights(model.transformer, whole.transformer)
    assert model.fingerprint == whole.fingerprint, "the same weights, however they are split"
    assert CogVideoXPipeline.from_pretrained(copy).transformer.state_dict().keys() == weights.keys()
    (copy / "transformer" / names[1]).unlink()
    with pytest.raises(CheckpointError, match=f"incomplete: {names[1]} is missing"):
        load_model(copy)


def test_fingerprints_tell_models_apart(folder_of, copy):
    first = load_model(copy).fingerprint
    weights = load_file(copy / TRANSFORMER)
    weights["proj_out.weight"] += 1e-3
    save_file(weights, copy / TRANSFORMER, metadata={"format": "pt"})
    assert first == load_model(folder_of("5b")).fingerprint != load_model(copy).fingerprint


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda w: w.pop("norm_final.bias"), "transformer.*'norm_final.bias'"),
        (lambda w: w.update(extra=torch.zeros(1)), "transformer.*'extra'"),
        (lambda w: w.update({"norm_final.bias": torch.zeros(5)}), r"'norm_final.bias' has shape \(5,\)"),
    ],
)
def test_damaged_weights_are_named(copy, damage, message):
    weights = load_file(copy / TRANSFORMER)
    damage(weights)
    save_file(weights, copy / TRANSFORMER, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=message):
        load_model(copy)


def test_damaged_text_encoder_is_named(copy):
    file = copy / "text_encoder" / "model.safetensors"
    weights = load_file(file)
    weights["decoder.anything"] = torch.zeros(1)  # the other half of a whole T5: skipped
    save_file(weights, file, metadata={"format": "pt"})
    load_model(copy)
    weights["encoder.blok"] = weights.pop("encoder.final_layer_norm.weight")
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"text_encoder.*encoder\.final_layer_norm\.weight"):
        load_model(copy)


def test_either_name_of_the_shared_embedding_will_do(folder_of, copy):
    file = copy / "text_encoder" / "model.safetensors"
    weights = load_file(file)
    weights["encoder.embed_tokens.weight"] = weights.pop("shared.weight")
    save_file(weights, file, metadata={"format": "pt"})
    whole = load_model(folder_of("5b"), dtype="fp32")
    assert same_weights(load_model(copy, dtype="fp32").text.model, whole.text.model)


def test_a_stored_table_of_fixed_positions_is_checked_and_dropped(folder_of, tmp_path):
    copy = shutil.copytree(folder_of("2b"), tmp_path / "copy")
    key = "patch_embed.pos_embedding"
    table = CogVideoXPipeline.from_pretrained(copy).transformer.get_buffer(key)
    weights = load_file(copy / TRANSFORMER)
    for error, ok in ((0.0, True), (1e-3, False)):
        save_file(weights | {key: table + error}, copy / TRANSFORMER, metadata={"format": "pt"})
        if ok:
            load_model(copy)
        else:
            with pytest.raises(CheckpointError, match=f"'{key}' differs by 0.001"):
                load_model(copy)


def test_truncated_file_is_named(copy):
    data = (copy / TRANSFORMER).read_bytes()
    (copy / TRANSFORMER).write_bytes(data[: len(data) // 2])
    with pytest.raises(CheckpointError, match="damaged"):
        load_model(copy)


@pytest.mark.parametrize(
    "missing",
    ["transformer/config.json", TRANSFORMER, "scheduler/scheduler_config.json", "tokenizer", "text_encoder"],
)
def test_missing_parts_are_named(copy, missing):
    path = copy / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(CheckpointError, match=missing.split("/")[0]):
        load_model(copy)


def test_precision_follows_the_device(folder_of, monkeypatch):
    for native, expected in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(device, "native_bfloat16", lambda _, native=native: native)
        model = load_model(folder_of("5b"))
        kinds = {p.dtype for m in (model.transformer, model.vae, model.text.model) for p in m.parameters()}
        assert kinds == {expected}
    model = load_model(folder_of("5b"), dtype="fp16")
    assert {p.dtype for p in model.transformer.parameters()} == {torch.float16}
    kept = {n for n, p in model.text.model.named_parameters() if p.dtype == torch.float32}
    assert kept
    assert all(".wo." in n for n in kept), "layers of T5 that overflow in fp16"
    with pytest.raises(InputError, match="bf17"):
        load_model(folder_of("5b"), dtype="bf17")


def test_saving_in_another_precision(folder_of, tmp_path):
    save_model(load_model(folder_of("5b"), dtype="fp32"), tmp_path / "half", dtype="bf16")
    kinds = {
        w.dtype
        for part in ("transformer", "vae", "text_encoder")
        for w in Weights(tmp_path / "half" / part).values()
    }
    assert kinds == {torch.bfloat16}
    assert (
        load_model(tmp_path / "half", dtype="stored").transformer.patch_embed.weight.dtype == torch.bfloat16
    )


def test_conventions_are_selectable(folder_of):
    for name, expected in (("sat", 1.0), ("diffusers", 1 / 0.7), ("trainers", 0.7)):
        model = load_model(folder_of("1.5-5b-i2v"), image_scale=name)
        assert model.vae.spec.condition_scale == model.spec.vae.condition_scale == pytest.approx(expected)
    assert load_model(folder_of("1.5-5b-i2v")).spec.vae.condition_scale == 1.0
    chosen = cogvideox.load(
        folder_of("5b"), image_scale="sat", unconditional="empty", position_policy="extrapolate"
    )
    assert (chosen.spec.vae.condition_scale, chosen.spec.unconditional) == (1.0, "empty")
    assert chosen.transformer.policy == chosen.spec.position_policy == "extrapolate"
    with pytest.raises(InputError, match=r"unknown image_scale 'diffuser' .*'diffusers'"):
        load_model(folder_of("5b"), image_scale="diffuser")
    with pytest.raises(InputError, match=r"unknown unconditional 'zero' .*'zeros'"):
        load_model(folder_of("5b"), unconditional="zero")
    with pytest.raises(InputError, match="decides all conventions"):
        load_model(folder_of("5b"), compat="diffusers", unconditional="zeros")


@pytest.mark.parametrize(
    ("like", "policy", "told", "other"),
    [("5b", "extrapolate", "interpolate", (64, 48)), ("1.5-5b", "interpolate", "extrapolate", (32, 16))],
)
def test_compat_computes_what_diffusers_makes_of_the_folder(tmp_path, like, policy, told, other):
    """Whatever our own file says: positions at other sizes, the last norm, the unconditional text."""
    model = tiny_model(like)
    transformer = replace(model.spec.transformer, out_norm_eps=1e-2)
    model.spec = replace(model.spec, transformer=transformer, position_policy=policy)
    with pytest.warns(UserWarning, match=f"will {told} positions at other sizes, not {policy} them"):
        save_model(model, tmp_path)
    ours, native = cogvideox.load(tmp_path, "fp32", "cpu", "diffusers"), load_model(tmp_path, dtype="fp32")
    assert ours.spec.unconditional == "empty"
    pipe = CogVideoXPipeline.from_pretrained(tmp_path)
    generator = torch.Generator().manual_seed(0)
    for height, width in ((32, 48), other):
        x = torch.randn(1, 4, 4, height // 8, width // 8, generator=generator)
        text, t = torch.randn(1, 12, 16, generator=generator), torch.tensor([500])
        rope = pipe._prepare_rotary_positional_embeddings(height, width, 4, torch.device("cpu"))
        with torch.no_grad():
            theirs = pipe.transformer(x, text, t, image_rotary_emb=rope).sample
            assert relative_error(run_ours(ours.transformer, x, text, t), theirs) < 1e-5
            assert relative_error(run_ours(native.transformer, x, text, t), theirs) > 1e-4


def test_a_sentencepiece_tokenizer_is_read_and_kept(folder_of, tmp_path):
    """The released folders hold `spiece.model`, not `tokenizer.json`."""
    import sentencepiece

    text = tmp_path / "text.txt"
    text.write_text("\n".join(["a cat runs over the hill", "the red dog sleeps in the green sea"] * 50))
    sentencepiece.SentencePieceTrainer.train(
        input=str(text), model_prefix=str(tmp_path / "spiece"), vocab_size=40, bos_id=-1,
        pad_id=0, eos_id=1, unk_id=2, hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    words = tmp_path / "words"
    words.mkdir()
    shutil.copy(tmp_path / "spiece.model", words / "spiece.model")
    (words / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "T5Tokenizer", "extra_ids": 0, "model_max_length": 226})
    )
    tokenizer = folders.read_tokenizer(words)
    processor = sentencepiece.SentencePieceProcessor(model_file=str(words / "spiece.model"))
    prompt = "the red cat sleeps"
    assert tokenizer(prompt)["input_ids"] == [*processor.encode(prompt), 1]
    model = tiny_model("5b")
    model.text.tokenizer = tokenizer
    save_model(model, tmp_path / "m")
    assert (tmp_path / "m/tokenizer/spiece.model").read_bytes() == (words / "spiece.model").read_bytes()
    assert (
        AutoTokenizer.from_pretrained(tmp_path / "m/tokenizer")(prompt)["input_ids"]
        == tokenizer(prompt)["input_ids"]
    )


MEASURE = """
import re, sys
from pathlib import Path
import torch
from cogvideox.checkpoints.keymaps import diffusers_transformer
from cogvideox.checkpoints.weights import Weights, build
from cogvideox.models.specs import TransformerSpec
from cogvideox.models.transformer.model import Transformer

def status(field):
    return 1024 * int(re.search(field + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

spec = TransformerSpec(layers=4, heads=16)
dtype = getattr(torch, sys.argv[2])
peak, private = status("VmHWM"), status("RssAnon")
table = diffusers_transformer(spec)
model = build(lambda: Transformer(spec), table, Weights(sys.argv[1]), "", dtype, torch.device("cpu"))
total = sum(p.sum().item() for p in model.parameters())  # reads them all
assert total == 0, total
print(status("VmHWM") - peak, status("RssAnon") - private, sum(p.nbytes for p in model.parameters()))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_loading_holds_one_copy(tmp_path, dtype):
    """The peak is the weights and one tensor; what is neither converted nor fused stays the file's."""
    spec = TransformerSpec(layers=4, heads=16)
    with torch.device("meta"):
        empty = from_ours(diffusers_transformer(spec), Transformer(spec).state_dict(), "")
    tensors = ((name, torch.zeros(value.shape)) for name, value in empty.items())
    write_weights(tensors, tmp_path, "diffusion_pytorch_model", shard_bytes=50_000_000)
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path), dtype], capture_output=True, text=True, check=True
    )
    peak, private, size = map(int, done.stdout.split())
    assert size > 150e6
    assert peak < size + 80e6  # three times the largest tensor in fp32
    fused = 0.55  # query, key, value and the modulations: nearly half of so narrow a model
    assert private < (1.0 if dtype == "bfloat16" else fused) * size + 40e6
