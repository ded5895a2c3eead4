"""Adapters: equal to diffusers and PEFT, undone bit for bit, refused when they do not fit."""

import warnings
from dataclasses import replace

import peft
import pytest
import torch
from diffusers import CogVideoXPipeline
from diffusers.loaders.lora_base import LoraBaseMixin
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file

from cogvideox.checkpoints.folder import load_model
from cogvideox.checkpoints.keymaps import diffusers_transformer, from_ours
from cogvideox.checkpoints.lora import Lora, LoraLayer, apply, from_modules, load_lora, save_lora
from cogvideox.core.errors import CheckpointError, InputError
from cogvideox.models.specs import SPECS
from tests.checkpoints.conftest import same_weights
from tests.models.oracle import relative_error, run_ours
from tests.tiny import tiny_model

ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
WIDE = [
    *ATTENTION,
    "norm1.linear",
    "norm2.linear",
    "ff.net.0.proj",
    "ff.net.2",
    "time_embedding.linear_1",
    "proj_out",
]


def pipeline(folder):
    pipe = CogVideoXPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def train(transformer, config, seed=0):
    """Give every adapter matrix a value, as training would."""
    transformer.add_adapter(config)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in transformer.named_parameters():
        if "lora_" in name:
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)


@pytest.fixture
def adapter(folder_of, tmp_path):
    """`adapter("name", targets, r=, lora_alpha=)`: a folder with an adapter that diffusers wrote."""

    def make(name="a", targets=ATTENTION, seed=0, metadata=True, **settings):
        transformer = pipeline(folder_of("5b")).transformer
        config = peft.LoraConfig(target_modules=targets, **settings)
        train(transformer, config, seed)
        about = {"r": config.r, "lora_alpha": config.lora_alpha, "target_modules": sorted(targets)}
        about |= {"rank_pattern": config.rank_pattern, "alpha_pattern": config.alpha_pattern}
        about |= {"use_rslora": config.use_rslora}
        CogVideoXPipeline.save_lora_weights(
            tmp_path / name,
            transformer_lora_layers=get_peft_model_state_dict(transformer),
            transformer_lora_adapter_metadata=about if metadata else None,
        )
        return tmp_path / name

    return make


def fused(folder, adapters):
    """Weights of diffusers' transformer with adapters merged in."""
    pipe = pipeline(folder)
    for i, (path, _) in enumerate(adapters):
        pipe.load_lora_weights(path, adapter_name=f"a{i}")
    pipe.set_adapters([f"a{i}" for i in range(len(adapters))], [weight for _, weight in adapters])
    pipe.fuse_lora(components=["transformer"], adapter_names=[f"a{i}" for i in range(len(adapters))])
    pipe.unload_lora_weights()
    return pipe.transformer.state_dict()


def merged(folder, adapters):
    model = load_model(folder, dtype="fp32")
    apply(model, [(load_lora(path), weight) for path, weight in adapters])
    return from_ours(diffusers_transformer(model.spec.transformer), model.transformer.state_dict(), "")


def assert_equal(ours, theirs):
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
        assert relative_error(value, theirs[key]) < 1e-6, key


@pytest.mark.parametrize(
    "settings",
    [
        {"r": 4, "lora_alpha": 4},
        {"r": 4, "lora_alpha": 10},
        {"r": 2, "lora_alpha": 16, "use_rslora": True},
        {"r": 4, "lora_alpha": 2, "targets": WIDE},
        {
            "r": 4,
            "lora_alpha": 2,
            "rank_pattern": {"to_k": 2},
            "alpha_pattern": {"to_k": 6, "0.attn1.to_q": 3},
        },
        {"r": 4, "lora_alpha": 2, "alpha_pattern": {"to_k": 6, "0.attn1.to_k": 3, "to_v": 5}},
    ],
)
def test_merging_equals_diffusers(folder_of, adapter, settings):
    path = adapter(**settings)
    assert_equal(merged(folder_of("5b"), [(path, 1.0)]), fused(folder_of("5b"), [(path, 1.0)]))


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`")
def test_two_adapters_with_weights(folder_of, adapter):
    pair = [(adapter("a", r=4, lora_alpha=8), 0.7), (adapter("b", seed=1, r=2, lora_alpha=2), -0.4)]
    assert_equal(merged(folder_of("5b"), pair), fused(folder_of("5b"), pair))


def test_a_merged_model_equals_an_adapter_at_run_time(folder_of, adapter):
    path = adapter(r=4, lora_alpha=8)
    pipe = pipeline(folder_of("5b"))
    pipe.load_lora_weights(path)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 3, 4, 4, 6, generator=generator)
    text = torch.randn(1, 12, 16, generator=generator)
    rope = pipe._prepare_rotary_positional_embeddings(32, 48, 3, torch.device("cpu"))
    call = {"timestep": torch.tensor([500]), "image_rotary_emb": rope, "return_dict": False}
    with torch.no_grad():
        theirs = pipe.transformer(x, text, **call)[0]
    model = load_model(folder_of("5b"), dtype="fp32")
    plain = run_ours(model.transformer, x, text, torch.tensor([500]))
    apply(model, [(load_lora(path), 1.0)])
    ours = run_ours(model.transformer, x, text, torch.tensor([500]))
    assert relative_error(ours, theirs) < 1e-5
    assert relative_error(plain, theirs) > 1e-2


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_undo_restores_every_bit(folder_of, adapter, dtype):
    model = load_model(folder_of("5b"), dtype=dtype)
    before = load_model(folder_of("5b"), dtype=dtype)
    lora = load_lora(adapter(targets=WIDE, r=4, lora_alpha=8))
    outer = apply(model, [(lora, 1.0)])
    assert not same_weights(model.transformer, before.transformer)
    inner = apply(model, [(lora, 3.3), (lora, 0.1)])
    inner.undo()
    outer.undo()
    outer.undo()
    assert same_weights(model.transformer, before.transformer)


def test_undo_out_of_order_is_refused_and_changes_nothing(folder_of, adapter):
    model = load_model(folder_of("5b"), dtype="fp32")
    before = load_model(folder_of("5b"), dtype="fp32")
    # One part of a fused matrix, at whose other parts nobody looks.
    queries = load_lora(adapter("q", targets=["to_q"], r=4))
    outer = apply(model, [(queries, 1.0), (load_lora(adapter("o", targets=["to_out.0"], r=4)), 1.0)])
    inner = apply(model, [(queries, 2.0)])
    merged = model.transformer.blocks[0].attention.qkv.weight.clone()
    with pytest.raises(InputError, match="others were merged since; undo those first"):
        outer.undo()
    assert torch.equal(model.transformer.blocks[0].attention.qkv.weight, merged)
    inner.undo()
    outer.undo()
    assert same_weights(model.transformer, before.transformer)


def test_weight_zero_is_the_base_and_the_files_stay(folder_of, adapter):
    model = load_model(folder_of("5b"), dtype="fp32")
    apply(model, [(load_lora(adapter(r=4)), 0.0)])
    assert same_weights(model.transformer, load_model(folder_of("5b"), dtype="fp32").transformer)


def test_undo_after_a_change_of_precision_is_refused(folder_of, adapter):
    model = load_model(folder_of("5b"), dtype="fp32")
    applied = apply(model, [(load_lora(adapter(r=4)), 1.0)])
    model.transformer.bfloat16()
    with pytest.raises(InputError, match="dtype changed"):
        applied.undo()


def test_what_is_saved_loads_here_and_in_diffusers(folder_of, adapter, tmp_path):
    settings = {"alpha_pattern": {"to_k": 6}, "rank_pattern": {"to_out.0": 2}}
    first = load_lora(adapter(targets=WIDE, r=4, lora_alpha=8, **settings))
    save_lora(replace(first, base="tiny-5b", record={"recipe": "x"}), tmp_path / "out")
    again = load_lora(tmp_path / "out")
    assert (again.base, again.record) == ("tiny-5b", {"recipe": "x"})
    assert again.fingerprint == first.fingerprint
    for name, layer in first.layers.items():
        other = again.layers[name]
        assert (layer.alpha, layer.rank) == (other.alpha, other.rank)
    pair = [(tmp_path / "out", 1.0)]
    assert_equal(merged(folder_of("5b"), pair), fused(folder_of("5b"), pair))
    save_lora(first, tmp_path / "one.safetensors")
    assert load_lora(tmp_path / "one.safetensors").fingerprint == first.fingerprint


def test_adapters_of_our_fused_modules(folder_of, tmp_path):
    """Low-rank updates of fused matrices stay the same updates when they are written for diffusers."""
    model = load_model(folder_of("5b"), dtype="fp32")
    generator = torch.Generator().manual_seed(0)
    layers = {}
    for module in ("blocks.0.attention.qkv", "blocks.1.modulation.linear", "blocks.1.mlp.up"):
        rows, columns = model.transformer.get_submodule(module).weight.shape
        layers[module] = (
            torch.randn(3, columns, generator=generator),
            torch.randn(rows, 3, generator=generator),
        )
    expected = {
        m: model.transformer.get_submodule(m).weight + 2 * up @ down for m, (down, up) in layers.items()
    }
    lora = from_modules(model.spec.transformer, layers, alpha=6.0, base="tiny-5b")
    save_lora(lora, tmp_path / "a")
    apply(model, [(load_lora(tmp_path / "a"), 1.0)])
    for module, weight in expected.items():
        assert relative_error(model.transformer.get_submodule(module).weight, weight) < 1e-6
    assert_equal(
        merged(folder_of("5b"), [(tmp_path / "a", 1.0)]), fused(folder_of("5b"), [(tmp_path / "a", 1.0)])
    )
    with pytest.raises(CheckpointError, match=r"'blocks.0.attention.qv'.*blocks.0.attention.qkv"):
        from_modules(model.spec.transformer, {"blocks.0.attention.qv": layers["blocks.1.mlp.up"]}, 1.0)


def test_peft_folder(folder_of, tmp_path):
    transformer = pipeline(folder_of("5b")).transformer
    wrapped = peft.get_peft_model(transformer, peft.LoraConfig(r=4, lora_alpha=12, target_modules=ATTENTION))
    for name, parameter in wrapped.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    wrapped.save_pretrained(tmp_path / "peft")
    expected = wrapped.merge_and_unload().state_dict()
    assert_equal(merged(folder_of("5b"), [(tmp_path / "peft", 1.0)]), expected)


def test_old_key_names_and_alpha_keys(folder_of, adapter, tmp_path):
    path = adapter(r=4, lora_alpha=4)
    weights = load_file(path / "pytorch_lora_weights.safetensors")
    old = {k.replace("lora_A", "lora.down").replace("lora_B", "lora.up"): v for k, v in weights.items()}
    old |= {k.replace(".lora_A.weight", ".alpha"): torch.tensor(2.0) for k in weights if "lora_A" in k}
    save_file(old, tmp_path / "old.safetensors")
    layers = load_lora(tmp_path / "old.safetensors").layers
    assert {(x.alpha, x.rank) for x in layers.values()} == {(2.0, 4)}


def test_a_file_that_does_not_say_alpha_warns(adapter):
    path = adapter(r=4, lora_alpha=16, metadata=False)
    with pytest.warns(UserWarning, match="does not say its alpha"):
        assert {x.alpha for x in load_lora(path).layers.values()} == {4.0}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert {x.alpha for x in load_lora(path, alpha=1).layers.values()} == {1.0}


def test_the_wrong_base_is_refused_and_both_sides_are_named(folder_of, adapter, tmp_path):
    lora = load_lora(adapter(r=4))
    model = load_model(folder_of("5b"), dtype="fp32")
    before = load_model(folder_of("5b"), dtype="fp32")
    layers = dict(lora.layers)
    one = layers["transformer_blocks.0.attn1.to_q"]
    cases = [
        (replace(lora, base="5b-i2v"), "made for '5b-i2v', does not belong to the model 'tiny-5b'"),
        (
            replace(lora, base_fingerprint="abc"),
            f"trained on weights abc, the model 'tiny-5b'.* has {model.fingerprint}",
        ),
        (
            Lora(layers | {"transformer_blocks.7.attn1.to_q": one}, source="x"),
            "the adapter x does not fit the model 'tiny-5b'.*8 of its 9 layers fit; "
            "'transformer_blocks.7.attn1.to_q' has no place there.*--allow-partial merges those that do",
        ),
        (
            Lora(layers | {"transformer_blocks.1.attn1.to_q": LoraLayer(one.down[:, :8], one.up, 1.0)}),
            r"'transformer_blocks.1.attn1.to_q' is \(32, 8\), the model's is \(32, 32\)",
        ),
        (Lora({}), "has no layers"),
        (Lora({"blocks.0.attn.qkv": one}), "0 of its 1 layers fit; 'blocks.0.attn.qkv' has no place"),
    ]
    for wrong, message in cases:
        with pytest.raises(CheckpointError, match=message):
            apply(model, [(lora, 1.0), (wrong, 1.0)])
    assert same_weights(model.transformer, before.transformer), "all or nothing"
    apply(model, [(replace(lora, base="tiny-5b", base_fingerprint=model.fingerprint), 1.0)])


def test_a_part_of_an_adapter_is_merged_only_where_that_is_allowed(folder_of, adapter):
    lora = load_lora(adapter(r=4))
    whole, part, base = (load_model(folder_of("5b"), dtype="fp32") for _ in range(3))
    one = lora.layers["transformer_blocks.0.attn1.to_q"]
    cut = LoraLayer(one.down[:, :8], one.up, 1.0)
    more = Lora(lora.layers | {"transformer_blocks.7.attn1.to_q": one, "proj_out": cut}, source="x")
    apply(whole, [(lora, 1.0)])
    with pytest.warns(UserWarning, match="only a part is merged.*8 of its 10 layers fit"):
        applied = apply(part, [(more, 1.0)], allow_partial=True)
    assert same_weights(part.transformer, whole.transformer)
    applied.undo()
    assert same_weights(part.transformer, base.transformer)
    with pytest.raises(CheckpointError, match="0 of its 1 layers fit"):
        apply(part, [(Lora({"transformer_blocks.7.attn1.to_q": one}), 1.0)], allow_partial=True)
    with pytest.raises(CheckpointError, match="made for '5b-i2v'"):
        apply(part, [(replace(more, base="5b-i2v"), 1.0)], allow_partial=True)


def test_the_base_of_a_peft_adapter_is_recognised(adapter, tmp_path):
    path = adapter(r=4)
    (path / "pytorch_lora_weights.safetensors").rename(path / "adapter_model.safetensors")
    weights = load_file(path / "adapter_model.safetensors")
    save_file(weights, path / "adapter_model.safetensors")
    config = '{"lora_alpha": 8, "base_model_name_or_path": "THUDM/CogVideoX1.5-5B-I2V"}'
    (path / "adapter_config.json").write_text(config)
    lora = load_lora(path)
    assert lora.base == "1.5-5b-i2v"
    assert lora.base in SPECS
    assert {x.alpha for x in lora.layers.values()} == {8.0}
    (path / "adapter_config.json").write_text('{"lora_alpha": 8, "use_dora": true}')
    with pytest.raises(CheckpointError, match="use_dora"):
        load_lora(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda w: w.update({"text_encoder.x": torch.zeros(1)}),
            "'text_encoder.x' is not part of an adapter",
        ),
        (
            lambda w: w.pop("transformer.transformer_blocks.0.attn1.to_q.lora_B.weight"),
            "to_q' has no up matrix",
        ),
        (
            lambda w: w.update(
                {"transformer.transformer_blocks.0.attn1.to_q.lora_B.weight": torch.zeros(32, 3)}
            ),
            "rank 4 in one matrix and 3 in the other",
        ),
        (
            lambda w: w.update(
                {"transformer.transformer_blocks.0.attn1.to_q.lora_B.weight": torch.zeros(32)}
            ),
            r"to_q' has no up matrix but \(32,\)",
        ),
        (
            lambda w: w.update({"transformer.transformer_blocks.0.attn1.to_q.alpha": torch.zeros(2)}),
            r"to_q.alpha' is no number but has shape \(2,\)",
        ),
        (lambda w: w.clear(), "holds no adapter weights"),
    ],
)
def test_damaged_files_are_named(adapter, tmp_path, change, message):
    weights = load_file(adapter(r=4) / "pytorch_lora_weights.safetensors")
    change(weights)
    save_file(weights, tmp_path / "bad.safetensors")
    with pytest.raises(CheckpointError, match=message):
        load_lora(tmp_path / "bad.safetensors")


def test_unreadable_files_are_named(adapter, tmp_path):
    file = adapter(r=4) / "pytorch_lora_weights.safetensors"
    weights = load_file(file)
    for key, text, message in (
        ("cogvideox", "{", "'cogvideox' is not valid JSON"),
        ("lora_adapter_metadata", "[]", "'lora_adapter_metadata' does not hold a JSON object"),
        ("lora_adapter_metadata", '{"transformer.lora_alpha": "8"}', "lora_alpha = '8': .*number"),
        ("lora_adapter_metadata", '{"transformer.alpha_pattern": {"q": []}}', "alpha_pattern = .*number"),
    ):
        save_file(weights, tmp_path / "bad.safetensors", metadata={key: text})
        with pytest.raises(CheckpointError, match=rf"bad\.safetensors: .*{message}") as caught:
            load_lora(tmp_path / "bad.safetensors")
        assert "\n" not in str(caught.value)
    for name, data in (("short.safetensors", file.read_bytes()[:500]), ("x.bin", b"?"), ("y.pt", b"")):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(CheckpointError, match=rf"{name} is damaged") as caught:
            load_lora(tmp_path / name)
        assert "\n" not in str(caught.value)


def test_missing_files_are_named(tmp_path):
    for missing in ("./nothing/here/at/all", "loras/style.safetensors", "style.pt"):
        with pytest.raises(InputError, match=f"no such adapter file or folder: {missing}"):
            load_lora(missing)
    with pytest.raises(CheckpointError, match="no adapter in"):
        load_lora(tmp_path)
    with pytest.raises(InputError, match="cannot load 'someone/lora'"):
        load_lora("someone/lora")


def test_exported_sat_adapter_needs_its_alpha(tmp_path):
    """Files exported from SAT carry diffusers' names and no alpha; SAT trained them with 1."""
    model = tiny_model("5b")
    weights = {}
    for side, shape in (("A", (4, 32)), ("B", (32, 4))):
        weights[f"transformer.transformer_blocks.0.attn1.to_q.lora_{side}.weight"] = torch.ones(shape)
    LoraBaseMixin.write_lora_layers(weights, str(tmp_path), True, None, None, True)
    before = model.transformer.blocks[0].attention.qkv.weight.clone()
    apply(model, [(load_lora(tmp_path, alpha=1), 1.0)])
    change = model.transformer.blocks[0].attention.qkv.weight - before
    assert torch.allclose(change[:32], torch.full((32, 32), 1.0), atol=1e-5)
    assert torch.equal(change[32:], torch.zeros(64, 32))
