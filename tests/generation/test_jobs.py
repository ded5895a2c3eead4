"""Prompt files, names of results, and repeating a finished file."""

import json

import pytest

from cogvideox.core.errors import InputError
from cogvideox.generation import jobs
from cogvideox.generation.request import Request
from cogvideox.generation.session import Session, adapter


def test_text_files_hold_a_prompt_a_line(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("# animals\na dog\n\n  ein Bär \n", encoding="utf-8")
    assert jobs.read_prompts(file) == [{"prompt": "a dog"}, {"prompt": "ein Bär"}]


def test_prompt_files_of_other_systems(tmp_path):
    (tmp_path / "p.txt").write_text("\ufeffa dog\r\na cat\r\n", encoding="utf-8")
    assert jobs.read_prompts(tmp_path / "p.txt") == [{"prompt": "a dog"}, {"prompt": "a cat"}]
    (tmp_path / "p.JSONL").write_text('\ufeff{"prompt": "a dog", "seed": 7}\n', encoding="utf-8")
    assert jobs.read_prompts(tmp_path / "p.JSONL") == [{"prompt": "a dog", "seed": 7}]


def test_a_row_replaces_the_rivals_of_its_settings():
    base = {"seconds": 2.0, "aspect": "1:1", "video": "v.mp4"}
    row = {"prompt": "a", "frames": 9, "height": 32, "image": "i.png"}
    assert jobs.expand(base, [row], 1)[0] == Request.parse(row)
    with pytest.raises(InputError, match="not both"):
        jobs.expand({}, [{"prompt": "a", "frames": 9, "seconds": 1}], 1)


def test_jsonl_rows_override_the_options(tmp_path):
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "a dog", "seed": 7}\n{"prompt": "a cat", "steps": 3}\n')
    requests = jobs.expand({"seed": 1, "steps": 9}, jobs.read_prompts(file), 2)
    assert [(r.prompt, r.seed, r.steps) for r in requests] == [
        ("a dog", 7, 9),
        ("a dog", 8, 9),
        ("a cat", 1, 3),
        ("a cat", 2, 3),
    ]


@pytest.mark.parametrize(
    ("name", "text", "word"),
    [
        ("a.txt", "# nothing\n", "holds no prompts"),
        ("a.jsonl", "{oops\n", "line 1: not JSON"),
        ("a.jsonl", '{"prompt": "a"}\n[1]\n', "line 2"),
        ("a.jsonl", '{"seed": 1}\n', "line 1"),
        ("a.txt", None, "no such file|No such file"),
    ],
)
def test_bad_prompt_files_are_named(tmp_path, name, text, word):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=word):
        jobs.read_prompts(tmp_path / name)


def test_a_typo_in_a_row_is_refused():
    with pytest.raises(InputError, match="did you mean 'seed'"):
        jobs.expand({}, [{"prompt": "a", "sede": 1}], 1)
    for prompt, count in (("", 1), ("a", 0)):
        with pytest.raises(InputError):
            jobs.expand({}, [{"prompt": prompt}], count)


def test_places(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    dogs = [Request(prompt="A Dog, running!", seed=k) for k in (1, 2)]
    assert [j.output.name for j in jobs.place(dogs, None)] == ["a-dog-running-1.mp4", "a-dog-running-2.mp4"]
    assert [j.output.name for j in jobs.place(dogs, tmp_path / "x.gif")] == ["x-1.gif", "x-2.gif"]
    assert jobs.place(dogs[:1], tmp_path / "x.gif")[0].output.name == "x.gif"
    twins = jobs.place([dogs[0]] * 2, tmp_path)
    assert [j.output.name for j in twins] == ["a-dog-running-1.mp4", "a-dog-running-1-2.mp4"]
    (tmp_path / "a-dog-running-1.mp4").touch()
    assert jobs.place(dogs[:1], None)[0].output.name == "a-dog-running-1-2.mp4"
    (tmp_path / "x.png-folder").mkdir()  # of an earlier run: a result, not a folder for results
    assert jobs.place(dogs[:1], tmp_path / "x.png-folder")[0].output.name == "x.png-folder"


@pytest.mark.parametrize("word", ["狗" * 300, "dog" * 300, "é" * 99 + " 狗狗", "...", ""])
def test_names_of_any_prompt_are_short_and_tell_seeds_apart(tmp_path, word):
    dogs = [Request(prompt=word, seed=-k) for k in (1, 2)]
    names = [job.output.name for job in jobs.place(dogs, tmp_path)]
    assert all(name.endswith(f"{dog.seed}.mp4".lstrip("-")) for name, dog in zip(names, dogs, strict=True))
    for name in names:
        assert len(name.encode()) < 130
        name.encode().decode()
        (tmp_path / f".{name}.12345678").touch()
    assert jobs.name_of(Request(prompt="a dog", seed=2**64 - 1)) == "a-dog-18446744073709551615"


@pytest.mark.parametrize(
    ("output", "word"),
    [
        ("none/x.mp4", "folder none does not exist"),
        ("none/x.safetensors", "folder none does not exist"),
        ("none", "folder none does not exist"),
        ("x.avi", r"nor is .avi one of .mp4"),
    ],
)
def test_places_that_are_none(tmp_path, monkeypatch, output, word):
    monkeypatch.chdir(tmp_path)
    from pathlib import Path

    with pytest.raises(InputError, match=word):
        jobs.place([Request(prompt="a")], Path(output))
    same = [Request(prompt="a"), Request(prompt="b")]
    with pytest.raises(InputError, match="give a folder"):
        jobs.place(same, tmp_path / "x.mp4")


def test_overrides_replace_their_rivals():
    old = {"prompt": "a", "frames": 49, "height": 480, "width": 720, "seed": 1}
    assert jobs.override(old, {"seconds": 2}) == {
        "prompt": "a",
        "height": 480,
        "width": 720,
        "seed": 1,
        "seconds": 2,
    }
    assert jobs.override(old, {"aspect": "1:1"}) == {
        "prompt": "a",
        "frames": 49,
        "seed": 1,
        "aspect": "1:1",
    }
    assert jobs.override(old, {"height": 96, "width": 96})["height"] == 96
    assert jobs.override({"prompt": "a", "image": "i.png"}, {"video": "v.mp4"}) == {
        "prompt": "a",
        "video": "v.mp4",
    }


def test_what_came_from_python_cannot_be_repeated():
    with pytest.raises(InputError, match="generator and latents given in Python"):
        jobs.repeatable({"unrepeatable": ["generator", "latents"], "request": {}}, "x.mp4", {})
    record = {"unrepeatable": ["image"], "request": {"prompt": "a"}}
    for given in ({"image": "i.png"}, {"extend": "x.safetensors"}):
        assert jobs.repeatable(record, "x.mp4", given) == {"prompt": "a"}


def test_inputs_that_are_not_used_any_more_may_have_changed():
    record = {"inputs": {"image": "1"}, "request": {"prompt": "a", "image": "i.png"}}
    jobs.check_inputs(record, {"video": "2"}, {"video": "v.mp4"})
    jobs.check_inputs(record, {"image": "2"}, {"image": "j.png"})
    with pytest.raises(InputError, match=r"image i\.png has changed"):
        jobs.check_inputs(record, {"image": "2"}, {})


def test_records_are_json(pipe):
    metadata = pipe("a dog").metadata
    assert json.loads(json.dumps(metadata)) == metadata


def test_a_record_says_how_to_load_unless_told_otherwise():
    given = dict.fromkeys(("model", "revision", "dtype", "device", "compat", "lora"))
    record = {"model": {"source": "owner/name", "revision": "v2", "dtype": "float32", "lora": [["/a", 0.5]]}}

    def loading(**now):
        made = Session.of(given | now, record, "auto").loading
        return made["source"], made["revision"], made["dtype"], made["lora"]

    assert loading() == ("owner/name", "v2", "float32", [("/a", 0.5)])
    assert loading(model="other/one", lora=["b:2"]) == ("other/one", None, "float32", [("b", 2.0)])
    assert loading(revision="v3")[:2] == ("owner/name", "v3")


def test_adapters_have_weights():
    assert adapter("a.safetensors") == ("a.safetensors", 1.0)
    assert adapter("dir/a.safetensors:0.5") == ("dir/a.safetensors", 0.5)
    assert adapter("C:/a.safetensors") == ("C:/a.safetensors", 1.0)
