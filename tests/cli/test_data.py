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
