"""Video files: exact size, rate and number of frames, metadata, atomic writing, readable errors."""

import os
from fractions import Fraction

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cogvideox.core.errors import InputError
from cogvideox.data.video import (
    WRITERS,
    check_target,
    cover_crop,
    probe,
    read_image,
    read_metadata,
    read_video,
    write_image,
    write_video,
)

RECORD = {"request": {"prompt": 'a "dog" über 狗'}, "numbers": [1, 2.5, None]}
MOVING = [suffix for suffix in WRITERS if suffix != ".png"]


def noise(frames, height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (frames, height, width, 3), dtype=np.uint8)


def cartoon(frames, height, width):
    """Flat saturated shapes with hard edges that move, and a gradient."""
    y, x = np.mgrid[0:height, 0:width]
    clip = []
    for t in range(frames):
        frame = np.stack([x * 255 // width, y * 255 // height, np.full_like(x, 128)], -1)
        frame[(x - 10 - 2 * t) ** 2 + (y - height // 2) ** 2 < 100] = (230, 20, 30)
        frame[height // 4 : height // 2, width // 2 :] = (20, 60, 220)
        clip.append(frame.astype(np.uint8))
    return np.stack(clip)


def luma_psnr(a, b):
    weights = np.array([0.299, 0.587, 0.114])
    error = ((a @ weights - b @ weights) ** 2).mean()
    return 10 * np.log10(255**2 / max(error, 1e-9))


@pytest.mark.parametrize("suffix", MOVING)
@pytest.mark.parametrize(("fps", "frames"), [(8, 17), (16, 9), (23.976, 9)])
def test_round_trip(tmp_path, suffix, fps, frames):
    clip, path = cartoon(frames, 48, 64), tmp_path / f"clip{suffix}"
    assert write_video(path, iter([clip[:3], clip[3:4], clip[4:]]), fps, RECORD) == frames
    back, info = read_video(path), probe(path)
    assert back.frames.shape == clip.shape
    assert (info.frames, info.height, info.width) == clip.shape[:3]
    assert info.fps == back.fps == pytest.approx(fps, abs=1e-6)
    assert read_metadata(path) == {"fps": fps} | RECORD


@pytest.mark.parametrize("suffix", [s for s in MOVING if s != ".gif"])
@pytest.mark.parametrize("make", [noise, cartoon])
def test_written_files_are_as_good_as_the_frames(tmp_path, suffix, make):
    clip, path = make(9, 64, 96), tmp_path / f"clip{suffix}"
    write_video(path, [clip], 8)
    assert luma_psnr(read_video(path).frames, clip) > 40
    if suffix == ".png-folder":
        assert np.array_equal(read_video(path).frames, clip)


def test_gif_is_as_good_as_256_colours_can_be(tmp_path):
    clip = cartoon(5, 64, 96)
    write_video(tmp_path / "clip.gif", [clip], 8)
    assert luma_psnr(read_video(tmp_path / "clip.gif").frames, clip) > 30


def test_the_stream_says_what_it_is(tmp_path):
    """Players take colours, rate and size from these fields."""
    write_video(tmp_path / "clip.mp4", [cartoon(9, 48, 64)], 8)
    with av.open(str(tmp_path / "clip.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.average_rate, stream.frames) == (Fraction(8), 9)
        assert (stream.codec_context.pix_fmt, stream.codec_context.colorspace) == ("yuv420p", 6)
        times = [frame.time for frame in container.decode(video=0)]
    assert times == pytest.approx([k / 8 for k in range(9)])


@settings(max_examples=8, deadline=None)
@given(
    height=st.integers(16, 41),
    width=st.integers(16, 41),
    frames=st.integers(1, 6),
    suffix=st.sampled_from(MOVING),
)
def test_any_size_is_kept(tmp_path_factory, height, width, frames, suffix):
    path = tmp_path_factory.mktemp("size") / f"clip{suffix}"
    write_video(path, [noise(frames, height, width)], 8)
    assert read_video(path).frames.shape == (frames, height, width, 3)


@pytest.mark.parametrize("suffix", MOVING)
def test_what_fails_leaves_nothing(tmp_path, suffix):
    def chunks():
        yield cartoon(3, 32, 32)
        raise KeyboardInterrupt

    path = tmp_path / f"clip{suffix}"
    with pytest.raises(KeyboardInterrupt):
        write_video(path, chunks(), 8)
    assert list(tmp_path.iterdir()) == []


def test_an_older_file_stays_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "clip.png-folder"
    write_video(path, [noise(2, 16, 16)], 8)
    write_video(path, [noise(3, 16, 16, seed=1)], 8)
    assert np.array_equal(read_video(path).frames, noise(3, 16, 16, seed=1))
    assert [p.name for p in tmp_path.iterdir()] == ["clip.png-folder"]


def test_targets_are_checked_before_the_first_frame(tmp_path, monkeypatch):
    def never():
        raise AssertionError
        yield

    (tmp_path / "file.png-folder").touch()
    (tmp_path / "folder.mp4").mkdir()
    before = sorted(tmp_path.iterdir())
    for name, word in (
        ("clip.avi", "suffix"),
        ("none/clip.mp4", "does not exist"),
        ("file.png-folder/clip.mp4", "does not exist"),
        ("file.png-folder", "there is a file of that name"),
        ("folder.mp4", "there is a folder of that name"),
        (f"{'a' * 300}.mp4", "longer than 200 bytes"),
    ):
        path = tmp_path / name
        with pytest.raises(InputError, match=word):
            write_video(path, never(), 8)
        with pytest.raises(InputError, match=word):
            check_target(path)
    with pytest.raises(InputError, match="one frame"):
        write_video(tmp_path / "clip.png", [noise(2, 16, 16)], 8)
    with pytest.raises(InputError, match="one frame of 2"):
        check_target(tmp_path / "clip.png", frames=2)
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # a superuser may write anywhere
    with pytest.raises(InputError, match="cannot be written to"):
        check_target(tmp_path / "clip.mp4")
    assert sorted(tmp_path.iterdir()) == before


def test_retiming_shows_what_was_on_screen(tmp_path):
    clip = np.stack([np.full((16, 16, 3), 10 * k, np.uint8) for k in range(16)])
    path = tmp_path / "clip.png-folder"
    write_video(path, [clip], 8)
    assert np.array_equal(read_video(path, fps=4).frames, clip[::2])
    assert np.array_equal(read_video(path, fps=16).frames, clip.repeat(2, axis=0))
    assert np.array_equal(read_video(path, fps=8, limit=5).frames, clip[:5])
    third = read_video(path, fps=3).frames[:, 0, 0, 0] // 10
    assert third.tolist() == [0, 2, 5, 8, 10, 13]  # at 0, 1/3, 2/3, ... seconds


def test_varying_frame_rates(tmp_path):
    """Shown for 100, 300 and 200 ms."""
    pictures = [Image.fromarray(np.full((16, 16, 3), 80 * k, np.uint8)) for k in range(3)]
    path = tmp_path / "clip.webp"
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=[100, 300, 200], lossless=True)
    seen = read_video(path, fps=10).frames[:, 0, 0, 0] // 80
    assert seen.tolist() == [0, 1, 1, 1, 2, 2, 2]  # the last lasts as long as the one before


@given(st.integers(1, 90), st.integers(1, 90), st.integers(8, 40), st.integers(8, 40))
@settings(max_examples=25, deadline=None)
def test_cover_crop_gives_the_size_and_takes_the_centre(height, width, to_height, to_width):
    frame = noise(1, height, width)[0]
    out = cover_crop(frame, to_height, to_width)
    assert out.shape == (to_height, to_width, 3)
    mirrored = cover_crop(frame[:, ::-1], to_height, to_width)[:, ::-1]
    assert np.abs(out.astype(int) - mirrored).max() <= 2


def test_a_circle_stays_round():
    y, x = np.mgrid[0:100, 0:200]
    disc = (((x - 100) ** 2 + (y - 50) ** 2 < 30**2)[..., None] * np.uint8(255)).repeat(3, -1)
    out = cover_crop(disc, 48, 48)[..., 0] > 127
    assert out.any(0).sum() == pytest.approx(out.any(1).sum(), abs=1)


def test_pictures(tmp_path):
    picture = noise(1, 20, 30)[0]
    write_image(tmp_path / "a.png", picture, RECORD)
    assert np.array_equal(read_image(tmp_path / "a.png"), picture)
    assert read_metadata(tmp_path / "a.png") == RECORD
    turned = Image.fromarray(picture)
    exif = Image.Exif()
    exif[0x0112] = 6
    turned.save(tmp_path / "b.png", exif=exif)
    assert read_image(tmp_path / "b.png").shape == (30, 20, 3)
    assert (probe(tmp_path / "b.png").height, probe(tmp_path / "b.png").width) == (30, 20)


def test_unreadable_files_are_named_in_one_line(tmp_path):
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "folder").mkdir()
    write_video(tmp_path / "whole.mp4", [cartoon(9, 32, 32)], 8)
    (tmp_path / "cut.mp4").write_bytes((tmp_path / "whole.mp4").read_bytes()[:200])
    for name in ("text.mp4", "empty.mp4", "cut.mp4", "missing.mp4", "folder", "text.png"):
        with pytest.raises(InputError, match=name) as error:
            read_video(tmp_path / name)
        assert "\n" not in str(error.value)
    with pytest.raises(InputError, match=r"text\.png"):
        read_image(tmp_path / "text.png")
    assert read_metadata(tmp_path / "whole.mp4") == {"fps": 8}
