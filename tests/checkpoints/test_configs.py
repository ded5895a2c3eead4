"""Configuration files: released models are recognised, everything unknown is refused by name."""

import json
from dataclasses import replace

import pytest
from diffusers import CogVideoXDDIMScheduler, CogVideoXDPMScheduler

from cogvideox.checkpoints.configs import (
    read_spec,
    read_transformer,
    read_vae,
    write_own,
    write_scheduler,
    write_transformer,
    write_vae,
)
from cogvideox.core.errors import CheckpointError
from cogvideox.models.specs import SPECS
from tests.tiny import tiny_spec

# What the hub folders say (only what differs from the defaults of diffusers).
RELEASED = {
    "2b": {},
    "5b": {"num_layers": 42, "num_attention_heads": 48, "use_rotary_positional_embeddings": True},
    "5b-i2v": {
        "num_layers": 42,
        "num_attention_heads": 48,
        "in_channels": 32,
        "use_rotary_positional_embeddings": True,
        "use_learned_positional_embeddings": True,
    },
    "1.5-5b": {
        "num_layers": 42,
        "num_attention_heads": 48,
        "use_rotary_positional_embeddings": True,
        "patch_size_t": 2,
        "patch_bias": False,
        "sample_frames": 81,
        "sample_height": 300,
        "sample_width": 300,
        "ofs_embed_dim": None,
    },
    "1.5-5b-i2v": {
        "num_layers": 42,
        "num_attention_heads": 48,
        "in_channels": 32,
        "use_rotary_positional_embeddings": True,
        "patch_size_t": 2,
        "patch_bias": False,
        "sample_frames": 81,
        "sample_height": 96,
        "sample_width": 170,
        "ofs_embed_dim": 512,
    },
}


def write(folder, transformer, vae, scheduler, own=None):
    for name, config in (
        ("transformer/config.json", transformer),
        ("vae/config.json", vae),
        ("scheduler/scheduler_config.json", scheduler),
        ("cogvideox.json", own),
    ):
        if config is not None:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(json.dumps(config))
    return folder


def scheduler(shift=1.0, **changes):
    return {**write_scheduler(replace(SPECS["5b"], snr_shift=shift)), **changes}


@pytest.mark.parametrize("name", RELEASED)
def test_released_models_are_recognised(tmp_path, name):
    vae = {"scaling_factor": SPECS[name].vae.scale, "force_upcast": True, "sample_size": 256}
    if name.startswith("1.5"):
        vae["invert_scale_latents"] = True
    config = {"_class_name": "CogVideoXTransformer3DModel", "_diffusers_version": "0.30", **RELEASED[name]}
    write(tmp_path, config, vae, scheduler(SPECS[name].snr_shift, timestep_spacing="linspace"))
    assert read_spec(tmp_path) == SPECS[name]


@pytest.mark.parametrize("name", RELEASED)
def test_diffusers_reads_the_released_folders_its_own_way(tmp_path, name):
    ours = SPECS[name]
    vae = {"scaling_factor": ours.vae.scale, "invert_scale_latents": name == "1.5-5b-i2v"}
    write(tmp_path, RELEASED[name], vae, scheduler(ours.snr_shift))
    spec = read_spec(tmp_path, "diffusers")
    assert (spec.transformer.text_length, spec.transformer.out_norm_eps) == (226, 1e-5)
    assert spec.unconditional == "empty"
    assert spec.position_policy == ("extrapolate" if name.startswith("1.5") else "interpolate")
    assert spec.vae.condition_scale == (1 / 0.7 if name == "1.5-5b-i2v" else ours.vae.scale)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"modality": "mmdit"}, "no place for modality = 'mmdit'"),
        ({"attention": "2d+1d"}, r"no place for attention = '2d\+1d'"),
        ({"positions": ("rope", "sincos")}, "no place for positions"),
        ({"positions": ()}, "no place for positions"),
        ({"positions": ("learned",)}, "learned positions are only supported together with rotary"),
        ({"patch": (1, 2, 4)}, "no place for patch"),
    ],
)
def test_variants_that_would_be_lost_are_not_written(changes, message):
    with pytest.raises(CheckpointError, match=message):
        write_transformer(replace(tiny_spec().transformer, **changes))


@pytest.mark.parametrize("name", SPECS)
def test_specs_round_trip(name):
    spec = SPECS[name]
    back = read_transformer(write_transformer(spec.transformer))
    assert replace(back, out_norm_eps=spec.transformer.out_norm_eps) == spec.transformer
    assert read_vae(write_vae(spec.vae, 480, 720)) == spec.vae
    assert json.loads(json.dumps(write_own(spec, {})))["spec"]["condition_scale"] == spec.vae.condition_scale


@pytest.mark.parametrize("sampler", ["ddim", "dpm++2m-sde", "something else"])
def test_diffusers_makes_the_same_schedule(sampler):
    from cogvideox.diffusion.schedule import make_schedule

    config = write_scheduler(replace(SPECS["2b"], sampler=sampler))
    kind = CogVideoXDDIMScheduler if sampler == "ddim" else CogVideoXDPMScheduler
    assert config["_class_name"] == kind.__name__
    theirs = kind.from_config(config)
    assert (theirs.alphas_cumprod - make_schedule(3.0).alpha_bar).abs().max() < 1e-9
    assert theirs.config.timestep_spacing == "trailing"


def test_a_model_of_another_size_gets_derived_defaults(tmp_path):
    spec = tiny_spec("1.5-5b")
    write(
        tmp_path / "my-model",
        write_transformer(spec.transformer),
        write_vae(spec.vae, 32, 48),
        scheduler(_class_name="CogVideoXDDIMScheduler"),
    )
    found = read_spec(tmp_path / "my-model")
    assert (found.name, found.sampler, found.position_policy) == ("my-model", "ddim", "extrapolate")
    assert (found.frames, found.height, found.width, found.fps) == (17, 32, 48, 16)
    assert found.transformer == spec.transformer


@pytest.mark.parametrize(
    ("part", "setting", "value", "message"),
    [
        (0, "activation_fn", "geglu", "transformer/config.json: activation_fn = 'geglu' is not supported"),
        (0, "norm_eps", 1e-6, "transformer/config.json: norm_eps"),
        (0, "sparse_attention", True, "transformer/config.json: unknown setting 'sparse_attention'"),
        (0, "use_learned_positional_embeddings", True, "learned positions"),
        (1, "use_quant_conv", True, "vae/config.json: use_quant_conv"),
        (1, "shift_factor", 0.1, "vae/config.json: shift_factor"),
        (2, "prediction_type", "epsilon", "scheduler_config.json: prediction_type = 'epsilon'"),
        (2, "rescale_betas_zero_snr", None, "rescale_betas_zero_snr = False"),
        (3, "format", 2, "cogvideox.json: format 2 is newer"),
        (3, "colour", "red", "cogvideox.json: unknown key 'colour'"),
        (3, "spec", [], r"cogvideox.json: spec = \[\]"),
        (0, "num_layers", "30", "transformer/config.json: num_layers = '30': .*integer"),
        (0, "num_layers", 0, "transformer/config.json: num_layers = 0: must be positive"),
        (0, "attention_head_dim", 24, "attention_head_dim = 24 is not a multiple of 16"),
        (0, "sample_height", 1, "sample_height = 1 is less than one patch"),
        (0, "patch_size_t", 1.5, "patch_size_t = 1.5: .*integer"),
        (0, "use_rotary_positional_embeddings", 1, "use_rotary_positional_embeddings = 1: .*boolean"),
        (1, "scaling_factor", "big", "vae/config.json: scaling_factor = 'big': .*number"),
        (1, "scaling_factor", float("nan"), "vae/config.json: scaling_factor = nan: must be positive"),
        (1, "block_out_channels", [8, 8, -8, 8], "vae/config.json: block_out_channels = .*positive"),
        (1, "block_out_channels", [8, 8, 8], "block_out_channels = .* must be 4 multiples of 4"),
        (1, "norm_num_groups", 3, "block_out_channels = .* must be 4 multiples of 3"),
        (2, "snr_shift_scale", -1.0, "scheduler_config.json: snr_shift_scale = -1.0: must be positive"),
    ],
)
def test_what_would_change_the_computation_is_refused(tmp_path, part, setting, value, message):
    spec = tiny_spec("2b")
    configs = [
        write_transformer(spec.transformer),
        write_vae(spec.vae, 32, 48),
        scheduler(),
        write_own(spec, {}),
    ]
    if value is None:
        del configs[part][setting]
    else:
        configs[part][setting] = value
    with pytest.raises(CheckpointError, match=message):
        read_spec(write(tmp_path, *configs))


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("position_policy", "extrapolat", "'extrapolat'.*did you mean 'extrapolate'"),
        ("positon_policy", "extrapolate", "unknown setting 'positon_policy'.*position_policy"),
        ("steps", "many", "cogvideox.json: steps = 'many': .*integer"),
        ("fps", 0, "cogvideox.json: fps = 0: must be positive"),
        ("trained_frames", [9], r"cogvideox.json: trained_frames = \[9\]"),
        ("condition_scale", None, "cogvideox.json: condition_scale = None"),
    ],
)
def test_own_settings_are_checked(tmp_path, setting, value, message):
    spec = tiny_spec()
    own = write_own(spec, {})
    own["spec"][setting] = value
    parts = (write_transformer(spec.transformer), write_vae(spec.vae, 32, 48), scheduler(), own)
    with pytest.raises(CheckpointError, match=message):
        read_spec(write(tmp_path, *parts))
