"""`cogvideox data`: mistakes in one line. What the commands write is tested with the data itself."""

import pytest


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
