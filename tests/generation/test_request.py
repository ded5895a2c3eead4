"""Requests: what is legal, what it becomes, and one line for all that is not."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cogvideox.core.errors import InputError
from cogvideox.core.shapes import latent_frames
from cogvideox.data.video import Info
from cogvideox.generation.request import Given, Request, decide
from cogvideox.models.specs import SPECS
from tests.tiny import VARIANTS, tiny_spec

ANY = st.one_of(st.none(), st.integers(-5, 3000))


def parse(**values):
    return Request.parse({"prompt": "a dog"} | values)


@settings(max_examples=300, deadline=None)
@given(frames=ANY, height=ANY, width=ANY, like=st.sampled_from(sorted(SPECS)))
def test_every_shape_is_made_legal_or_refused(frames, height, width, like):
    spec = SPECS[like]
    extra = {"image": "x.png"} if spec.image_conditioned else {}
    values = {"frames": frames, "height": height, "width": width} | extra
    if any(value is not None and value < 1 for value in (frames, height, width)):
        with pytest.raises(InputError, match="is illegal"):
            parse(**values)
        return
    settings_ = decide(parse(**values), spec)
    shape = settings_.shape
    patch = spec.transformer.patch
    assert shape.frames % 4 == 1
    assert (shape.height % 16, shape.width % 16) == (0, 0)
    assert all(n % p == 0 for n, p in zip(shape.latents, patch, strict=True))
    assert shape.latents[0] == latent_frames(shape.frames) + shape.pad
    assert frames is None or abs(shape.frames - frames) <= 3
    assert None in (height, width) or max(abs(shape.height - height), abs(shape.width - width)) <= 15
    changed = (shape.frames, shape.height, shape.width) != (
        frames or shape.frames,
        height or shape.height,
        width or shape.width,
    )
    assert not changed or any("changed" in note for note in settings_.notes)


@given(st.floats(0.1, 60), st.sampled_from([8.0, 16.0, 23.976]))
def test_seconds_become_the_nearest_frames(seconds, fps):
    made = decide(parse(seconds=seconds, fps=fps), SPECS["5b"])
    assert abs(made.shape.frames - seconds * fps) <= 3.5
    assert made.fps == fps


def test_five_seconds():
    assert decide(parse(seconds=5), SPECS["5b"]).shape.frames == 41
    assert decide(parse(seconds=5), SPECS["1.5-5b"]).shape.frames == 81


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({"frames": 0}, "frames = 0"),
        ({"seconds": -1}, "seconds = -1"),
        ({"frames": 9, "seconds": 1}, "not both"),
        ({"fps": 0}, "fps"),
        ({"height": 0}, "height"),
        ({"width": -16}, "width"),
        ({"steps": -4}, "steps = -4"),
        ({"steps": 0}, "steps"),
        ({"steps": 1001}, "steps"),
        ({"steps": "many"}, "steps"),
        ({"guidance": 0}, "guidance"),
        ({"strength": 0}, "strength"),
        ({"strength": 1.5}, "strength"),
        ({"seed": 2**65}, "seed"),
        ({"aspect": "wide"}, "aspect"),
        ({"aspect": "0:9"}, "aspect"),
        ({"aspect": "1:1", "height": 32, "width": 32}, "not both"),
        ({"sampler": "ddmi"}, "did you mean 'ddim'"),
        ({"dynamic_guidance": "on"}, "dynamic_guidance"),
        ({"framse": 9}, "did you mean 'frames'"),
    ],
)
def test_illegal_values_are_named(values, word):
    with pytest.raises(InputError, match=word) as error:
        parse(**values)
    assert "\n" not in str(error.value)


def test_tasks_need_the_right_model():
    text, image = SPECS["5b"], SPECS["5b-i2v"]
    clip = Given(Info(49, 480, 720, 8))
    with pytest.raises(InputError, match="makes video from text"):
        decide(parse(image="x.png"), text, clip)
    with pytest.raises(InputError, match="makes video from an image"):
        decide(parse(), image)
    with pytest.raises(InputError, match="makes video from an image"):
        decide(parse(video="x.mp4"), image, clip)
    with pytest.raises(InputError, match="one of image, video and extend"):
        decide(parse(image="x.png", video="x.mp4"), text, clip)
    assert decide(parse(image="x.png"), replace(text, first_frame=True), clip).task == "image"


def test_strength_skips_steps_as_diffusers_does():
    clip = Given(Info(49, 480, 720, 8))
    made = decide(parse(video="x.mp4", strength=0.8, steps=50), SPECS["5b"], clip)
    assert (made.start, made.steps) == (10, 50)
    with pytest.raises(InputError, match="strength"):
        decide(parse(video="x.mp4", strength=0.01, steps=50), SPECS["5b"], clip)


def test_size_follows_the_input_only_where_the_model_knows_other_shapes():
    tall = Given(Info(1, 900, 600, None))
    assert _size(decide(parse(image="x"), SPECS["1.5-5b-i2v"], tall)) == (768, 1152)[::-1]
    assert _size(decide(parse(image="x"), SPECS["5b-i2v"], tall)) == (480, 720)
    assert _size(decide(parse(image="x"), SPECS["1.5-5b-i2v"], tall, "diffusers")) == (768, 1360)
    assert _size(decide(parse(aspect="9:16"), SPECS["5b"])) == (848, 480)
    assert _size(decide(parse(aspect="1:1", height=256), SPECS["5b"])) == (256, 256)
    assert _size(decide(parse(width=360), SPECS["5b"])) == (240, 352)


def _size(made):
    return made.shape.height, made.shape.width


def test_untrained_shapes_are_announced():
    notes = decide(parse(frames=97, height=256, width=256), SPECS["5b"]).notes
    assert any("9 to 49 frames" in note for note in notes)
    assert any("short side of 480" in note for note in notes)
    assert any("16 frames per second" in note for note in decide(parse(fps=24), SPECS["1.5-5b"]).notes)
    assert decide(parse(), SPECS["5b"]).notes == ()
    assert decide(parse(frames=1), SPECS["5b"]).notes == ()


def test_a_clip_is_used_as_far_as_it_goes():
    def frames(info, **values):
        return decide(parse(video="x.mp4", **values), SPECS["5b"], Given(info)).shape.frames

    assert frames(Info(100, 480, 720, 25)) == 29  # 4 seconds at 8 per second are 32
    assert frames(Info(1000, 480, 720, 25)) == 49
    assert frames(Info(1000, 480, 720, 25), seconds=2) == 17
    assert frames(Info(23, 480, 720, None)) == 21  # frames in memory are taken as they are


@given(st.integers(1, 60), st.integers(1, 80), st.sampled_from(sorted(VARIANTS)))
def test_windows_of_a_continuation_join_without_gaps(have, more, like):
    spec = tiny_spec(like)
    total = 4 * (have + more - 1) + 1
    info = Info(4 * (have - 1) + 1, 32, 48, 8)
    made = decide(parse(extend="x.safetensors", frames=total), spec, Given(info, fixed=True))
    assert made.shape.frames == total
    assert sum(window.new for window in made.windows) == more
    for window in made.windows:
        assert 1 <= window.known
        assert 1 <= window.new
        assert window.known + window.new <= latent_frames(spec.frames)
    assert made.windows[0].known <= have


def test_a_continuation_must_be_longer_and_keeps_the_size_of_latents():
    latents = Given(Info(17, 32, 48, 8), fixed=True)
    for frames in (9, 17, 19):
        with pytest.raises(InputError, match="has 17 frames already"):
            decide(parse(extend="x.safetensors", frames=frames), tiny_spec(), latents)
    with pytest.raises(InputError, match="size of latents is fixed: 48x32"):
        decide(parse(extend="x.safetensors", height=64), tiny_spec(), latents)


def test_a_clip_that_is_too_short_is_announced():
    def notes(**values):
        return decide(parse(video="x.mp4", **values), SPECS["5b"], Given(Info(12, 480, 720, 8))).notes

    assert notes(frames=49) == ("the clip has 9 frames at 8 per second: that many are made, not 49",)
    assert "not 16" in notes(seconds=2)[0]
    assert notes() == notes(frames=9) == ()


def test_one_frame_from_an_image_would_be_the_image():
    picture = Given(Info(1, 480, 720, None))
    for frames in (1, 3):
        with pytest.raises(InputError, match="the image itself"):
            decide(parse(image="x.png", frames=frames), replace(SPECS["5b"], first_frame=True), picture)
    assert decide(parse(image="x.png", frames=1), SPECS["5b-i2v"], picture).shape.frames == 1


def test_latents_keep_their_rate():
    latents = Given(Info(17, 32, 48, 12), fixed=True)
    made = decide(parse(extend="x.safetensors", frames=33), tiny_spec(), latents)
    assert (made.fps, made.shape.frames, sum(w.new for w in made.windows)) == (12, 33, 4)
    assert decide(parse(extend="x.safetensors", seconds=2), tiny_spec(), latents).shape.frames == 25
    assert decide(parse(extend="x.safetensors", frames=33, fps=12), tiny_spec(), latents) == made
    with pytest.raises(InputError, match="rate of latents is fixed: 12 fps, not 8"):
        decide(parse(extend="x.safetensors", frames=33, fps=8), tiny_spec(), latents)


def test_a_complete_request_decides_the_same_again():
    for values in ({}, {"seconds": 3, "aspect": "1:1"}, {"guidance": 1, "steps": 7, "fps": 12}):
        made = decide(parse(**values), SPECS["5b"])
        again = decide(made.complete(parse(**values)), SPECS["5b"])
        assert replace(again, notes=()) == replace(
            made, notes=(), shape=replace(made.shape, snapped=again.shape.snapped)
        )
