"""Folders of clips with captions: read right or refused, all faults told, no caption moved."""

import numpy as np
import pytest

from cogvideox.core.errors import InputError
from cogvideox.data.check import check, moved
from cogvideox.data.layouts import entries, read_rows, rows
from cogvideox.data.manifest import read_manifest, write_manifest
from cogvideox.data.samples import Rule
from cogvideox.data.video import write_video

PATCH = (1, 2, 2)


def film(path, frames=9, fps=8.0, side=32, seed=0, still=False):
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 255, (frames, side, side, 3), dtype=np.uint8)
    write_video(path, [noise[:1].repeat(frames, axis=0) if still else noise], fps)


@pytest.fixture
def folder(tmp_path):
    """Five faults between three clips that are well."""
    for number in (0, 3, 6):
        film(tmp_path / f"clips/{number}.mp4", seed=number)
    film(tmp_path / "clips/1.mp4", frames=3)
    (tmp_path / "clips/2.mp4").write_bytes((tmp_path / "clips/0.mp4").read_bytes()[:600])
    (tmp_path / "clips/4.mp4").touch()
    film(tmp_path / "clips/7.mp4")
    order = (0, 1, 2, 7, 3, 4, 5, 6)
    names = [f"clips/{number}.mp4" for number in order]  # there is no 5
    (tmp_path / "videos.txt").write_text("\n".join(names) + "\n")
    captions = ["" if number == 7 else f"caption {number}" for number in order]
    (tmp_path / "prompts.txt").write_text("\n".join(captions) + "\n\n")
    return tmp_path


def test_the_report_equals_the_planted_faults(folder):
    report = check(rows(folder), folder, Rule.parse("9x32"), PATCH, 8.0)
    assert [row.source for row in report.rows if row.rejected is None] == [
        f"clips/{n}.mp4" for n in (0, 3, 6)
    ]
    assert report.shapes == {(9, 32, 32): 3}
    told = {row.source[6]: row for row in report.rows}
    for number, word in zip("12457", ("fewer", *["cannot read"] * 3, "no caption"), strict=True):
        assert word in told[number].rejected
    del told["7"]
    assert all(row.captions == {"short": (f"caption {number}",)} for number, row in told.items())


def test_a_manifest_keeps_what_was_found_and_where(folder, tmp_path):
    report = check(rows(folder), folder, Rule.parse("9x32"), PATCH, 8.0)
    (tmp_path / "away").mkdir()
    write_manifest(tmp_path / "away/m.jsonl", moved(report.rows, folder, tmp_path / "away"))
    again, home = read_rows(tmp_path / "away/m.jsonl")
    assert (len(again), sum(row.rejected is None for row in again)) == (8, 3)
    assert check(again, home, Rule.parse("9x32"), PATCH, 8.0).kept == 3


def test_remarks(tmp_path):
    film(tmp_path / "a.mp4", still=True)
    film(tmp_path / "b.mp4", still=True)
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "b.txt").write_text("word " * 300)
    report = check(rows(tmp_path), tmp_path, Rule.parse("9x32"), PATCH, 8.0)
    assert report.kept == 2
    told = "\n".join(report.remarks)
    assert "a.mp4: stands still" in told
    assert "a.mp4, b.mp4 are the same clip" in told
    assert "300 words" in told


LISTS = [
    {"prompts.txt": "a\nb", "videos.txt": "1.mp4\n2.mp4"},
    {"prompt.txt": "a\nb\n\n", "images.txt": "1.mp4\n2.mp4\n"},
    {"metadata.csv": 'file_name,text\n1.mp4,a\n2.mp4,"b"\n'},
    {
        "metadata.jsonl": '{"video": "1.mp4", "prompt": "a"}\n{"file": "2.mp4", "caption": "b"}\n',
    },
    {"1.mp4": "", "1.txt": "a", "2.mp4": "", "2.txt": "b\n", "3.mp4": ""},
]


@pytest.mark.parametrize("files", LISTS)
def test_layouts(tmp_path, files):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert [(entry.file, entry.caption) for entry in entries(tmp_path)] == [("1.mp4", "a"), ("2.mp4", "b")]


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"prompts.txt": "a\nb\nc", "videos.txt": "1.mp4\n2.mp4"}, "3 lines and videos.txt 2"),
        ({"prompts.txt": "a"}, "no videos.txt"),
        ({"metadata.csv": "file_name,txt\n1.mp4,a"}, "no 'caption'"),
        ({"metadata.jsonl": "{"}, "line 1 is not JSON"),
        ({"metadata.jsonl": "[]"}, "not an object"),
        ({"metadata.jsonl": '{"file": 3, "text": ""}'}, "'file' is no text"),
        ({"1.mp4": ""}, "nothing to train on"),
        ({"prompts.txt": "", "videos.txt": ""}, "nothing to train on"),
    ],
)
def test_what_is_no_layout_is_refused(tmp_path, files, said):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=said):
        entries(tmp_path)


def test_a_folder_with_a_manifest_is_that_manifest(folder):
    write_manifest(folder / "manifest.jsonl", rows(folder))
    found, home = read_rows(folder)
    assert (found, home) == (read_manifest(folder / "manifest.jsonl"), folder)
