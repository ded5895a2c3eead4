"""The manifest: what is written is read, and every mistake is one line that names row and column."""

import json
from dataclasses import replace

import pytest

from cogvideox.core.errors import InputError
from cogvideox.data.manifest import Row, read_manifest, write_manifest

CLIP = Row(
    id="a",
    source="films/a.mp4",
    frames=49,
    height=480,
    width=720,
    fps=23.976,
    span=(1.5, 3.5),
    captions={"short": ("a cat", "one cat"), "dense": ("a grey cat walks",)},
    scores={"aesthetic": 5.25},
    labels=("animals", "outdoors"),
    licence="CC0",
    lineage={"tool": {"version": 2}},
    truth={"boxes": [[0.5, None]]},
)
PICTURE = Row(id="b", source="b.png", frames=1, height=64, width=64, captions={"alt": ("a dög",)})
REJECTED = replace(PICTURE, id="c", captions={}, rejected="static", scores={"flow": 0.0})


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_rows_come_back_as_they_were(tmp_path, suffix):
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    path = tmp_path / f"manifest{suffix}"
    assert write_manifest(path, [CLIP, PICTURE, REJECTED]) == 3
    assert read_manifest(path) == [CLIP, PICTURE, REJECTED]
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_columns_of_parquet_are_typed_for_other_tools(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    write_manifest(tmp_path / "m.parquet", [CLIP])
    schema = parquet.read_schema(tmp_path / "m.parquet")
    assert str(schema.field("fps").type) == "double"
    assert str(schema.field("scores").type.item_type) == "double"


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "m.jsonl"
    write_manifest(path, [CLIP])

    def broken():
        yield PICTURE
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_manifest(path, broken())
    assert read_manifest(path) == [CLIP]


MINIMAL = {
    "id": "x",
    "source": "x.mp4",
    "frames": 9,
    "height": 8,
    "width": 8,
    "fps": 8,
    "captions": {"a": ["b"]},
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"framess": 1}, "row 2: unknown column 'framess' (did you mean 'frames'?)"),
        ({"id": None}, "row 2: column 'id': input should be a valid string"),
        ({"frames": "9"}, "row 2: column 'frames': input should be a valid integer"),
        ({"frames": 0}, "row 2: column 'frames': input should be greater than 0"),
        ({"scores": {"flow": float("nan")}}, "row 2: column 'scores.flow': input should be a finite number"),
        ({"captions": {"a": "b"}}, "row 2: column 'captions.a': input should be a valid"),
        ({"captions": {"a": []}}, "row 2: captions are empty"),
        ({"fps": None}, "row 2: fps is missing for 9 frames"),
        ({"span": [3, 1]}, "row 2: span 3 to 1 is not one"),
        ({}, "row 2: id 'x' is that of row 1 too"),
    ],
)
def test_mistakes_name_row_and_column(tmp_path, change, message):
    path = tmp_path / "m.jsonl"
    rows = [MINIMAL, MINIMAL | ({"id": "y"} if change else {}) | change]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(InputError) as error:
        read_manifest(path)
    assert message in str(error.value)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_column_is_named(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_text(json.dumps({k: v for k, v in MINIMAL.items() if k != "height"}))
    with pytest.raises(InputError, match="row 1: column 'height' is missing"):
        read_manifest(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.jsonl", None, "No such file"),
        ("empty.jsonl", b"", "has no rows"),
        ("table.csv", b"id\n", "a manifest is a .parquet or .jsonl file, not 'table.csv'"),
        ("broken.jsonl", b"{", "row 1: "),
        ("latin.jsonl", b"\xff", "cannot read"),
        ("broken.parquet", b"PAR", "is not a Parquet file"),
    ],
)
def test_what_is_no_manifest_is_one_line(tmp_path, name, content, message):
    if name.endswith(".parquet"):
        pytest.importorskip("pyarrow")
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError) as error:
        read_manifest(tmp_path / name)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
