"""Training on a stream of rows: packed as they come, exact after a stop, by any number of processes."""

from dataclasses import replace
from itertools import islice

import pytest

from cogvideox.core.errors import InputError
from cogvideox.data.manifest import read_manifest, write_manifest
from cogvideox.data.plan import Position
from cogvideox.data.storybook.rows import Part, rows
from cogvideox.data.stream import rows_from, samples_from
from cogvideox.training.checkpoint import Checkpoints
from cogvideox.training.encode import Encoder
from cogvideox.training.loop import Stopped
from cogvideox.training.packs import Objective
from cogvideox.training.recipe import Stage
from cogvideox.training.run import run_recipe
from cogvideox.training.stream import StreamBatches
from tests.tiny import tiny_folder, tiny_model
from tests.training.test_stores import measured, recipe

STAGES = (
    Stage(name="small", steps=3, capacity=60, mix={"image": 1}, largest=(1, 32, 32)),
    Stage(name="all", steps=9, capacity=120, rows=2, mix={"image": 1, "clip": 1}, largest=(9, 32, 48)),
)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    root = tmp_path_factory.mktemp("stream")
    parts = (
        Part(frames=9, height=32, width=48, clips=14, level="single"),
        Part(frames=1, height=32, width=32, clips=14, level="single"),
    )
    both = [list(rows(part, 0)) for part in parts]
    mixed = [row for pair in zip(*both, strict=True) for row in pair]
    mixed[5] = replace(mixed[5], rejected="a logo")
    write_manifest(root / "clips.jsonl", mixed)
    tiny_folder(root / "5b", "5b")
    return root


def batches(home, held=2, **ranks):
    model = tiny_model("5b")
    encoder = Encoder(model.spec, model.vae, None, 0)
    stages = [stage.loaded for stage in STAGES]
    return StreamBatches(home / "clips.jsonl", encoder, stages, Objective(), seed=0, held=held, **ranks)


def names(step):
    return [[item.name for item in row.items] for row in step]


@pytest.mark.parametrize("number", [0, 1, 27, 28, 30, 28 * 5 + 3])
def test_rows_are_counted_on_behind_the_last_one(home, number):
    known = [row.id for row in read_manifest(home / "clips.jsonl")]
    found = [row.id for row in islice(rows_from(home / "clips.jsonl", number), 60)]
    assert found == [known[(number + i) % 28] for i in range(60)]


def test_a_stream_in_which_nothing_can_be_used_ends(home, tmp_path):
    with pytest.raises(InputError, match=r"no row can be used, such as .*: is 48x32, too small"):
        next(samples_from(home / "clips.jsonl", 0, lambda row: "is 48x32, too small"))
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(InputError, match="the manifest has no rows"):
        next(rows_from(tmp_path / "empty.jsonl", 0))
    (tmp_path / "wrong.jsonl").write_text('{"id": 3}\n')
    with pytest.raises(InputError, match=r"wrong.jsonl: row 1: "):
        next(rows_from(tmp_path / "wrong.jsonl", 0))


def test_rows_come_once_or_wait_and_those_of_validation_never(home):
    made, known = batches(home), read_manifest(home / "clips.jsonl")
    held = {item.name.split("@")[0] for item in made.fixed(500)}
    assert len(held) == 2
    begins, waiting = made[2][0].after.next, made[2][0].after.waiting
    seen = [number for step in range(3, 12) for row in made.rows(step)[1] for number in row]
    assert len(set(seen)) == len(seen)
    after = made[11][0].after
    usable = [n for n in range(begins, after.next) if known[n % 28].id not in held and n % 28 != 5]
    assert {*seen, *after.waiting} == {*usable, *waiting}  # those that the first stage left come too


@pytest.mark.parametrize("step", [1, 3, 4, 7])
def test_it_goes_on_from_a_position(home, step):
    """In the middle of a stage, and where one begins."""
    whole, later = batches(home), batches(home)
    expected = [names(whole[n]) for n in range(12)]
    whole[step - 1]
    later.at = step, whole[step - 1][0].after
    assert later.at[1] != Position()
    assert [names(later[n]) for n in range(step, 12)] == expected[step:]
    assert names(later[step]) == expected[step]  # and back


def test_processes_share_the_rows(home):
    alone, parts = batches(home), [batches(home, rank=rank, ranks=2) for rank in range(2)]
    for step in (4, 5):
        mine = [name for part in parts for row in names(part[step]) for name in row]
        assert sorted(mine) == sorted(name for row in names(alone[step]) for name in row)


@pytest.mark.filterwarnings("ignore:the prompt has")
def test_a_stopped_run_goes_on_as_if_nothing_had_happened(home, tmp_path, monkeypatch):
    stages = [stage.model_dump() for stage in STAGES]
    asked = recipe(home, "5b", {"stream": home / "clips.jsonl", "held": 2}, stages=stages, every={"log": 1})
    run_recipe(asked, tmp_path / "whole", workers=0)

    class Stop:
        asked = False

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

    stop = Stop()

    class Fifth:
        def tick(self, step, now):
            stop.asked = step == 5

        def __getattr__(self, name):
            return lambda *_: None

    with monkeypatch.context() as patch:
        patch.setattr("cogvideox.training.loop.Interrupt", lambda: stop)
        with pytest.raises(Stopped):
            run_recipe(asked, tmp_path / "cut", workers=0, writers=[Fifth()])
    _, state = Checkpoints(tmp_path / "cut" / "checkpoints").load()
    assert state["run"]["data"]["stream"]["next"] > 0
    run_recipe(asked, tmp_path / "cut", workers=1)
    losses = [
        [line["loss"] for line in measured(tmp_path / name) if "loss" in line] for name in ("whole", "cut")
    ]
    assert losses[0] == losses[1]
    assert measured(tmp_path / "cut")[-1]["val"] == measured(tmp_path / "whole")[-1]["val"]


def test_what_a_stream_cannot_do_is_refused(home):
    stage = STAGES[1].model_dump()
    for change, said in (
        ({"best": {"quality": 0.2}}, "no `best`"),
        ({"mix": {"cats": 1}}, "no labels"),
        ({"largest": None}, "`largest`"),
    ):
        with pytest.raises(ValueError, match=said):
            recipe(home, "5b", {"stream": home / "clips.jsonl"}, stages=[stage | change])
