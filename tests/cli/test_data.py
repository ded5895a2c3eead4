"""`cogvideox data`: mistakes in one line. What the commands write is tested with the data itself."""

import numpy as np
import pytest

from cogvideox.data.manifest import read_manifest
from cogvideox.data.video import write_video


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("--split", "tset"), "tset"),
        (("--count", 0), "count must be at least 1"),
        (("--form", "xyz"), "choose one of mp4"),
        (("--form", "png"), "choose one of mp4"),  # a picture holds one frame, a clip has 17
        (("--height", 3), "height"),
        (("--fps", 0), "fps"),
        (("--start", -1), "-1"),
        (("--out", "file"), "cannot make the folder file: File exists"),
        (("--out", "file/clips"), "cannot make the folder file/clips: Not a directory"),
    ],
)
def test_mistakes_are_one_line_and_write_nothing(run, tmp_path, arguments, word):
    (tmp_path / "file").touch()
    done = run("data", "storybook", "--count", 1, "--out", "clips", *arguments)
    assert (done.status, done.out) == (2, "")
    assert len(done.err.splitlines()) == 1
    assert done.err.startswith("cogvideox: ")
    assert word in done.err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("manifest", "shapes", "word"),
    [
        ("none.jsonl", "9", "No such file"),
        ("none.jsonl", "9,17x", "not '17x'"),
        ("none.csv", "9", "a manifest is a .parquet or .jsonl file"),
    ],
)
def test_mistakes_in_encoding_are_one_line_and_write_nothing(run, tmp_path, manifest, shapes, word):
    done = run("train", "encode", manifest, "--model", "mini", "--output", "out", "--shapes", shapes)
    assert (done.status, done.out) == (2, "")
    assert len(done.err.splitlines()) == 1
    assert word in done.err
    assert not list(tmp_path.iterdir())


def test_check_tells_all_faults_and_its_status(run, tmp_path):
    clips = np.random.default_rng(0).integers(0, 255, (3, 9, 32, 32, 3), dtype=np.uint8)
    for number, clip in enumerate(clips):
        write_video(tmp_path / f"{number}.mp4", [clip], 8.0)
    (tmp_path / "1.mp4").write_bytes(b"")
    (tmp_path / "videos.txt").write_text("0.mp4\n1.mp4\n2.mp4\n3.mp4\n")
    (tmp_path / "prompts.txt").write_text("a\nb\nc\nd\n")
    done = run("data", "check", ".", "--shape", "9x32", "--write", "m.jsonl")
    assert done.status == 1
    assert done.out.count("cannot be used: ") == 2
    assert "2 of 9 frames of 32x32 at 8 a second\n2 of 4 can be used" in done.out
    assert [row.rejected is None for row in read_manifest("m.jsonl")] == [True, False, True, False]
    (tmp_path / "videos.txt").write_text("0.mp4\n2.mp4\n")
    (tmp_path / "prompts.txt").write_text("a\nc\n")
    done = run("data", "check", ".", "--shape", "9x32")
    assert (done.status, done.out.splitlines()[-1]) == (0, "2 of 2 can be used")
    assert run("data", "check", "nothing").status == 2
    assert run("data", "check", ".", "--write", "m.csv").status == 2
