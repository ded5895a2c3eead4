"""All tasks with a tiny random model: what stays, what changes, and that nothing else matters."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import cogvideox
from cogvideox.checkpoints.lora import from_modules, save_lora
from cogvideox.core.errors import InputError, NonFiniteError
from cogvideox.data.video import write_image, write_video
from cogvideox.generation import pipeline as pipelines
from cogvideox.generation.generate import Place
from cogvideox.generation.media import encode
from cogvideox.generation.watch import Watch
from tests.tiny import prompt, tiny_folder, tiny_model

PROMPT = "a red dog runs"


def frames(count, height=32, width=48, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def equal(a, b):
    return torch.equal(a.latents, b.latents) and np.array_equal(a.frames, b.frames)


def test_the_public_face(pipe):
    video = pipe(PROMPT, seed=1)
    assert video.frames.shape == (9, 32, 48, 3)
    assert video.frames.dtype == np.uint8
    assert (video.fps, video.latents.shape) == (8, (1, 4, 3, 4, 6))
    assert video.metadata["request"]["seed"] == 1
    assert "<video" in video._repr_html_()
    assert torch.equal(pipe(PROMPT, seed=1, output="latents"), video.latents)
    decoded = pipe.vae.decode(video.latents)
    assert decoded.shape == (1, 3, 9, 32, 48)
    assert pipe.vae.encode(decoded.clamp(-1, 1)).shape == video.latents.shape
    assert np.array_equal(
        ((decoded[0] / 2 + 0.5).clamp(0, 1) * 255).round().permute(1, 2, 3, 0), video.frames
    )
    for part in ("transformer", "text_encoder", "schedule"):
        assert getattr(pipe, part) is not None
    assert isinstance(video, cogvideox.Video)
    assert isinstance(pipe, cogvideox.Pipeline)


def test_alone_in_a_batch_in_any_order(pipe):
    prompts = [PROMPT, "a blue cat sleeps", "the moon"]
    alone = [pipe(text, seed=5) for text in prompts]
    for order in ([0, 1, 2], [2, 0, 1], [1, 1]):
        batch = pipe([prompts[k] for k in order], seed=5)
        assert all(equal(video, alone[k]) for video, k in zip(batch, order, strict=True))
    assert not equal(alone[0], alone[1])
    assert isinstance(pipe([PROMPT], seed=5), list)


def test_the_seed_matters_and_the_global_generator_does_not(pipe):
    torch.manual_seed(1)
    first = pipe(PROMPT, seed=1)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    assert equal(pipe(PROMPT, seed=1), first)
    assert torch.equal(torch.get_rng_state(), state)
    assert not equal(pipe(PROMPT, seed=2), first)


def test_words_and_guidance_matter(pipe):
    base = pipe(PROMPT, guidance=3.0)
    for change in ({"guidance": 4.0}, {"guidance": 1}, {"negative": "blue"}, {"dynamic_guidance": "smooth"}):
        assert not equal(pipe(PROMPT, **({"guidance": 3.0} | change)), base)
    assert equal(pipe(PROMPT, guidance=1), pipe(PROMPT, dynamic_guidance="off"))


@settings(max_examples=12, deadline=None)
@given(
    count=st.integers(1, 14),
    height=st.integers(1, 60),
    width=st.integers(1, 60),
    like=st.sampled_from(["2b", "5b", "1.5-5b"]),
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_any_shape_comes_out_as_planned(any_pipe, count, height, width, like):
    video = any_pipe(like)(PROMPT, frames=count, height=height, width=width, steps=1, guidance=1)
    expected = (count // 4 * 4 + 1, *(max(16, -(-(2 * side - 16) // 32) * 16) for side in (height, width)))
    assert video.frames.shape == (*expected, 3)
    request = video.metadata["request"]
    assert (request["frames"], request["height"], request["width"]) == expected


@pytest.fixture(scope="module")
def any_pipe(tmp_path_factory):
    root, loaded = tmp_path_factory.mktemp("all"), {}

    def get(like):
        if like not in loaded:
            loaded[like] = cogvideox.load(tiny_folder(root / like, like), dtype="fp32", device="cpu")
        return loaded[like]

    return get


@pytest.mark.parametrize("like", ["5b-i2v", "1.5-5b-i2v"])
def test_the_image_enters(any_pipe, like, tmp_path):
    pipe, picture = any_pipe(like), frames(1)[0]
    video = pipe(PROMPT, image=picture, frames=9)
    write_image(tmp_path / "image.png", picture)
    assert equal(pipe(PROMPT, image=tmp_path / "image.png", frames=9), video)
    assert equal(pipe(PROMPT, image=Image.fromarray(picture), frames=9), video)
    assert not equal(pipe(PROMPT, image=frames(1, seed=1)[0], frames=9), video)
    assert not equal(pipe("the moon", image=picture, frames=9), video)
    assert video.metadata["inputs"]["image"]


def test_a_given_first_frame_is_kept_exactly(fresh):
    """A text model trained to continue a first frame: latent frame 0 is the image's, at every step and at
    the end."""
    pipe, picture = fresh(first_frame=True), frames(1)[0]
    video = pipe(PROMPT, image=picture)
    assert torch.equal(video.latents[0, :, :1], encode(pipe.vae, picture[None]))
    free = pipe(PROMPT)
    assert not torch.equal(video.latents[0, :, 1:], free.latents[0, :, 1:])
    with pytest.raises(InputError, match="makes video from text"):
        fresh()(PROMPT, image=picture)


def test_known_frames_are_clean_only_for_models_that_know_them(fresh):
    seen = {}
    for clean in (True, False):
        pipe, inputs = fresh(first_frame=clean), []
        start = pipe(PROMPT)
        embed = pipe.transformer.patch_embed
        handle = embed.register_forward_hook(lambda m, args, out, inputs=inputs: inputs.append(args[0]))
        pipe(PROMPT, extend=start, guidance=1)
        handle.remove()
        seen[clean] = [x[:6] for x in inputs]  # the first latent frame's tokens
    assert all(torch.equal(x, seen[True][0]) for x in seen[True])
    assert len({x.sum().item() for x in seen[False]}) == len(seen[False])


def test_a_video_is_repainted_by_strength(pipe):
    clip = frames(9)
    videos = {s: pipe(PROMPT, video=clip, strength=s, steps=10, guidance=1) for s in (0.1, 0.5, 1.0)}
    origin = encode(pipe.vae, clip)
    distance = {s: (v.latents[0] - origin).abs().mean().item() for s, v in videos.items()}
    assert distance[0.1] < distance[0.5]
    assert videos[0.5].metadata["request"]["strength"] == 0.5
    assert videos[0.5].metadata["unrepeatable"] == ["video"]
    assert pipe(PROMPT, video=videos[0.5], steps=2).frames.shape == clip.shape
    with pytest.raises(InputError, match="strength"):
        pipe(PROMPT, video=clip, strength=0.05, steps=10)


def test_results_are_seen_at_their_own_speed(pipe, tmp_path):
    fast = cogvideox.Video(frames(17), 16, torch.zeros(0), {})
    every_second = pipe(PROMPT, video=fast.frames[::2][:5], steps=2, strength=0.5)
    fast.save(tmp_path / "fast.png-folder")
    for source in (fast, tmp_path / "fast.png-folder"):
        assert equal(pipe(PROMPT, video=source, steps=2, strength=0.5), every_second)


@pytest.mark.parametrize("like", ["5b", "1.5-5b", "5b-i2v", "1.5-5b-i2v"])
def test_continuing_leaves_the_beginning_alone(any_pipe, like, tmp_path):
    pipe = any_pipe(like)
    image = {"image": frames(1)[0]} if like.endswith("i2v") else {}
    first = pipe(PROMPT, frames=9, **image)
    longer = pipe(PROMPT, extend=first, frames=33)
    assert longer.frames.shape[0] == 33
    assert torch.equal(longer.latents[:, :, :3], first.latents)
    assert np.array_equal(longer.frames[:9], first.frames)  # decoded as one stream, from the same latents
    tail = longer.latents[:, :, 3:]
    assert torch.isfinite(tail).all()
    first.save(tmp_path / "first.safetensors")
    again = pipe(PROMPT, extend=tmp_path / "first.safetensors", frames=33)
    assert equal(again, longer)
    assert torch.equal(pipe(PROMPT, extend=first.latents, frames=33).latents, longer.latents)


@pytest.mark.filterwarnings("ignore:.*motion is off speed")
def test_a_continuation_has_the_rate_and_the_length_that_were_asked_for(pipe):
    first = pipe(PROMPT, frames=9, fps=12, steps=1)
    longer = pipe(PROMPT, extend=first, frames=17, steps=1)
    assert (len(longer.frames), longer.fps) == (17, 12)
    assert pipe(PROMPT, extend=first.latents, frames=17, fps=12, steps=1).fps == 12  # a tensor has no rate


def test_continuing_a_clip_keeps_its_end(pipe, tmp_path):
    clip = frames(11)
    write_video(tmp_path / "clip.png-folder", [clip], 8)
    for source in (clip, tmp_path / "clip.png-folder"):
        longer = pipe(PROMPT, extend=source, frames=13)
        assert torch.equal(longer.latents[0, :, :3], encode(pipe.vae, clip[2:]))
        assert len(longer.frames) == 13


def test_every_window_draws_its_own_noise(pipe):
    first = pipe(PROMPT)
    longer = pipe(PROMPT, extend=first, frames=33, guidance=1)
    windows = longer.latents[0, :, 3:].split(2, dim=1)
    assert len(windows) == 3
    assert not any(torch.allclose(windows[0], other, atol=1e-3) for other in windows[1:])


def test_given_latents_are_the_start(pipe):
    noise = torch.randn(1, 4, 3, 4, 6, generator=torch.Generator().manual_seed(0))
    one = pipe(PROMPT, latents=noise, sampler="ddim", output="latents")
    assert torch.equal(one, pipe(PROMPT, latents=noise, sampler="ddim", seed=9, output="latents"))
    with pytest.raises(InputError, match="needed"):
        pipe(PROMPT, latents=noise[:, :, :2])


def test_planted_nan_names_the_step(fresh):
    pipe = fresh()
    calls = []

    def hook(module, arguments, output):
        calls.append(1)
        return output * float("nan") if len(calls) == 3 else output

    pipe.transformer.output.register_forward_hook(hook)
    with pytest.raises(NonFiniteError, match="sampling: latents are not finite after step 3 of 4"):
        pipe(PROMPT)


def test_long_prompts_say_what_is_lost(pipe):
    with pytest.warns(UserWarning, match=r"tokens, 12 fit; lost: .*slowly"):
        pipe(prompt(14) + " slowly", steps=1)


def test_previews_change_nothing(pipe):
    class Looker(Watch):
        wants_preview = True

        def preview(self, frame):
            seen.append(frame)

    seen: list = []
    assert equal(pipe(PROMPT, watch=Looker()), pipe(PROMPT))
    assert len(seen) == 4
    assert seen[0].shape == (32, 48, 3)


def test_the_report_sums_to_the_wall_time(pipe):
    import time

    watch, began = Watch(), time.monotonic()
    pipe(PROMPT, watch=watch)
    report, wall = watch.report(), time.monotonic() - began
    assert sum(report.values()) == pytest.approx(wall, rel=0.02, abs=2e-3)
    assert set(report) == {"text", "sample", "decode", "other"}


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"prompt": ""}, "prompt is empty"),
        ({"prompt": "  "}, "prompt is empty"),
        ({"prompt": []}, "list of prompts is empty"),
        ({"prompt": None}, "prompt or prompt_embeds"),
        ({"prompt": PROMPT, "output": "gif"}, "output"),
        ({"prompt": PROMPT, "video": np.zeros((9, 32, 48, 3))}, "uint8"),
        ({"prompt": PROMPT, "video": 7}, "int"),
        ({"prompt": PROMPT, "video": "missing.mp4"}, "missing.mp4"),
        ({"prompt": PROMPT, "latents": torch.zeros(3)}, "latents"),
        ({"prompt": PROMPT, "extend": torch.zeros(1, 3, 4, 4, 6)}, "diffusers' order"),
        ({"prompt": [PROMPT] * 2, "generator": [torch.Generator()]}, "1 generators for 2 prompts"),
    ],
)
def test_illegal_calls_are_one_line(pipe, arguments, word):
    with pytest.raises(InputError, match=word) as error:
        pipe(**arguments)
    assert "\n" not in str(error.value)


def test_releasing_the_text_encoder_changes_nothing(folder, pipe):
    released = cogvideox.load(folder, dtype="fp32", device="cpu", offload="cpu")
    assert released.release_text
    videos = released([PROMPT, "the moon"], negative="blue")
    assert all(equal(a, b) for a, b in zip(videos, pipe([PROMPT, "the moon"], negative="blue"), strict=True))
    assert released.text_encoder.model.device.type == "meta"


def test_texts_given_ahead_are_encoded_and_the_encoder_is_gone(folder, pipe):
    early = cogvideox.load(folder, dtype="fp32", device="cpu", offload="cpu", texts=[PROMPT, ""])
    assert early.text_encoder.model.device.type == "meta"
    assert early.weights.text == 0
    assert equal(early(PROMPT), pipe(PROMPT))
    with pytest.raises(InputError, match="released"):
        early("the moon")


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_branches_apart_give_the_same_numbers(folder, dtype, monkeypatch):
    pipe = cogvideox.load(folder, dtype=dtype, device="cpu", offload="none")
    together = pipe(PROMPT, frames=17, output="latents")
    calls, forward = [], pipe.transformer.forward
    monkeypatch.setattr(pipe.transformer, "forward", lambda pack: (calls.append(pack), forward(pack))[1])
    plan = pipelines.make_plan
    monkeypatch.setattr(pipelines, "make_plan", lambda *a, **kw: replace(plan(*a, **kw), apart=True))
    apart = pipe(PROMPT, frames=17, output="latents")
    # In fp32 the timestep's layers round otherwise for one row than for two.
    assert torch.equal(apart, together) if dtype == "bf16" else torch.allclose(apart, together, atol=1e-4)
    assert {len(pack.segments) for pack in calls} == {1}


def test_a_released_text_encoder_knows_long_lists_of_prompts(folder):
    released = cogvideox.load(folder, dtype="fp32", device="cpu", offload="cpu")
    prompts = [prompt(5, seed) for seed in range(70)]  # more than a cache holds by itself
    small = {"frames": 1, "height": 32, "width": 32, "steps": 1, "output": "latents"}
    assert len(released(prompts, **small)) == 70


def test_parts_take_turns_on_the_device():
    moves = []

    class Part(torch.nn.Module):
        def to(self, device):
            moves.append(str(device))
            return self

    for offload, expected in ((True, ["meta", "cpu"]), (False, [])):
        place = Place(torch.device("meta"), torch.float32, offload=offload)
        with pytest.raises(KeyboardInterrupt), place.turn(Part()):
            raise KeyboardInterrupt
        assert moves == expected
        moves.clear()


def test_adapters_change_the_video_by_their_weight(folder, pipe, tmp_path):
    draw = torch.Generator().manual_seed(0)
    width = pipe.spec.transformer.width
    pair = (torch.randn(2, width, generator=draw), torch.randn(3 * width, 2, generator=draw))
    lora = from_modules(pipe.spec.transformer, {"blocks.0.attention.qkv": pair}, alpha=2.0)
    save_lora(lora, tmp_path / "a.safetensors")
    videos = {}
    for weight in (0.0, 0.5, 1.0):
        one = cogvideox.load(folder, dtype="fp32", device="cpu", lora=[(tmp_path / "a.safetensors", weight)])
        videos[weight] = one(PROMPT)
        assert videos[weight].metadata["model"]["lora"] == [[str(tmp_path / "a.safetensors"), weight]]
    assert equal(videos[0.0], pipe(PROMPT))  # and pipelines do not share weights
    assert not equal(videos[0.5], videos[0.0])
    assert not equal(videos[0.5], videos[1.0])


def test_records_hold_in_any_working_folder(folder, tmp_path, monkeypatch):
    from pathlib import Path

    from cogvideox.generation import load

    (tmp_path / "model").symlink_to(folder)
    write_image(tmp_path / "i.png", frames(1)[0])
    monkeypatch.chdir(tmp_path)
    made = cogvideox.load("model", dtype="fp32", device="cpu")(PROMPT, video="i.png", steps=2).metadata
    assert made["model"]["source"] == str(tmp_path / "model")
    assert made["request"]["video"] == str(tmp_path / "i.png")
    assert load.lasting("i.png") == str(tmp_path / "i.png")  # as adapters are recorded
    assert [load.lasting(name) for name in ("mini", "5b", "owner/name")] == ["mini", "5b", "owner/name"]
    Path("mini").mkdir()
    assert load.lasting("mini") == "mini"  # always the packaged model


def test_records_hold_the_revision(folder, monkeypatch):
    from cogvideox.generation import load

    asked = []
    monkeypatch.setattr(load, "load_model", lambda *a, revision, **k: asked.append(revision) or tiny_model())
    monkeypatch.setattr(load, "resolve", lambda source, revision: asked.append(revision) or folder)
    pipe = cogvideox.load("owner/name", dtype="fp32", device="cpu", revision="v2")
    assert asked == ["v2"] * 3
    assert pipe(PROMPT, steps=1).metadata["model"]["revision"] == "v2"


def test_adapters_are_read_before_the_model(folder, tmp_path, monkeypatch):
    from cogvideox.generation import load

    monkeypatch.setattr(load, "load_model", lambda *a, **k: pytest.fail("too late"))
    (tmp_path / "text.safetensors").write_text("no adapter")
    with pytest.raises(InputError, match=r"text\.safetensors"):
        cogvideox.load(folder, lora=[tmp_path / "text.safetensors"])


def test_an_image_may_be_the_first_frame_of_a_clip(any_pipe, tmp_path):
    pipe, clip = any_pipe("5b-i2v"), frames(9)
    write_video(tmp_path / "clip.png-folder", [clip], 8)
    expected = pipe(PROMPT, image=clip[0], steps=1)
    for image in (tmp_path / "clip.png-folder", clip, cogvideox.Video(clip, 8, torch.zeros(0), {})):
        again = pipe(PROMPT, image=image, steps=1)
        assert equal(again, expected)
        assert again.metadata["inputs"] == expected.metadata["inputs"]


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"source": "no-such-model"}, "no-such-model"),
        ({"dtype": "fp17"}, "fp17"),
        ({"device": "tpu"}, "tpu"),
        ({"offload": "disk"}, "offload"),
        ({"compat": "sat"}, "compat"),
    ],
)
def test_loading_refuses_in_one_line(folder, arguments, word):
    with pytest.raises(InputError, match=word):
        cogvideox.load(**({"source": folder} | arguments))
