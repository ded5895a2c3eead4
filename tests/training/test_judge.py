"""Training of the judge: batches are pure, answers count right, a tiny one learns and is refused."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from cogvideox.core import rng
from cogvideox.core.errors import CheckpointError, InputError
from cogvideox.data.storybook import World
from cogvideox.data.storybook.labels import vocabulary
from cogvideox.data.storybook.state import ACTIONS
from cogvideox.evaluation.judge.reading import Judge
from cogvideox.generation.generate import Place
from cogvideox.models.judge.eye import JudgeSpec
from cogvideox.models.judge.model import JudgeNet, Look
from cogvideox.training import judge as module
from cogvideox.training import lessons
from cogvideox.training import run as runs
from cogvideox.training.judge import (
    JudgeTask,
    answer,
    judge_spec,
    keep,
    look_at,
    losses,
    read_judge,
    right,
    settled,
    sight_losses,
    write_judge,
)
from cogvideox.training.lessons import (
    SEVERAL,
    JudgeBatches,
    JudgeStage,
    Kept,
    Shown,
    portraits,
    show,
    worn,
)
from cogvideox.training.loop import Rates, train
from cogvideox.training.recipe import JudgeRecipe

SPEC = JudgeSpec(
    answers=judge_spec().answers, side=32, channels=(8, 8, 16, 16), blocks=1, width=16, time_width=16
)
STILLS = JudgeStage(steps=4, stills=12)
CLIPS = JudgeStage(steps=4, frames={9: 1, 17: 1}, budget=34)


def batch(step):
    (micro,) = JudgeBatches((STILLS, CLIPS), SPEC, 0)[step]
    return micro


def test_batches_are_functions_of_their_step():
    for step in (2, 6):
        one, same = batch(step), batch(step)
        assert torch.equal(one.video_BTCHW, same.video_BTCHW)
        assert torch.equal(one.truth.answers["motion"], same.truth.answers["motion"])
    stills = [batch(step).video_BTCHW.shape for step in range(4)]
    assert all(1 <= s[0] <= STILLS.stills and s[1] == 1 for s in stills)
    clips = [batch(step).video_BTCHW.shape for step in range(4, 8)]
    assert len(set(clips)) > 1
    assert all(s[0] * s[1] * s[3] * s[4] <= 1.2 * CLIPS.budget * 32 * 32 for s in clips)


@pytest.mark.parametrize(
    "names", ["", "frames", "budget", "stills frames budget", "stills frames", "stills budget"]
)
def test_a_stage_has_stills_or_clips(names):
    values = {name: {"stills": 3, "frames": {9: 1}, "budget": 9}[name] for name in names.split()}
    with pytest.raises(InputError, match="stills, or frames and their budget"):
        JudgeStage(steps=1, **values)


def test_clips_are_long_enough_to_see_something():
    with pytest.raises(InputError, match="5 frames or more"):
        JudgeStage(steps=1, frames={1: 1, 9: 1}, budget=9)


@pytest.mark.parametrize("values", [{"passes": 0}, {"passes": 3}, {"passes": 2, "stills": 3, "frames": {}}])
def test_passes_are_whole_and_of_clips(values):
    with pytest.raises(InputError, match=r"passes .* of clips, and all of the same number of steps"):
        JudgeStage(
            **{"steps": 4, "frames": {9: 1}, "budget": 9}
            | ({"budget": 0} if "stills" in values else {})
            | values
        )


@pytest.mark.parametrize("stages", [[0], [1], [1, 0], [0, 1, 0], []])
def test_the_eye_learns_first(stages):
    kinds = {"steps": 1, "stills": 3}, {"steps": 1, "frames": {9: 1}, "budget": 9}
    recipe = {"task": "judge", "seed": 0, "optimizer": {"matrix_lr": 0.1, "lr": 0.1}}
    with pytest.raises(ValueError, match="stills first, then clips"):
        JudgeRecipe.model_validate(recipe | {"stages": [kinds[k] for k in stages]})
    JudgeRecipe.model_validate(recipe | {"stages": [kinds[1]], "start": "judge"})


def test_portraits_show_many_in_one_place_in_compositions_of_training(monkeypatch):
    base, draw = World(seed=4).clip(7, 2.0), rng.generator(0, "portraits")
    people = set(vocabulary()["character"])
    hidden = {name for name in people if name < "m"}
    unseen = frozenset((name, action, base.setting.scene) for name in hidden for action in ACTIONS)
    monkeypatch.setattr(lessons, "heldout_triples", lambda: unseen)
    (own, *_), *films = portraits(base, 24, 64, 64, draw)
    assert own == base  # it is in the world's training split, whatever that hides
    assert len(films) == 23
    faces = {actor.character for clip, *_ in films for actor in clip.actors}
    assert len(faces) > 12
    assert faces <= people - hidden
    assert {len(clip.actors) for clip, *_ in films} >= {1, 2, 3}
    for clip, frames, start in films:
        assert clip.setting == base.setting
        assert 0 < start < 2
        assert np.array_equal(frames, clip.render(1, 8, 64, 64, start))


def test_those_of_a_crowd_are_all_seen():
    clip, draw = World(seed=4).clip(7, 2.0), rng.generator(0, "crowd")
    for _ in range(20):
        actors = lessons._crowd(clip, 4, 64, 96, 1.0, draw)
        assert 1 <= len(actors) <= 4
        truth = replace(clip, actors=actors).truth(1, 8, 64, 96, 1.0)
        boxes = [box for (box,) in truth["boxes"] if box]
        for k, (x0, y0, x1, y1) in enumerate(boxes):
            assert all(x1 <= a0 or a1 <= x0 or y1 <= b0 or b1 <= y0 for a0, b0, a1, b1 in boxes[:k])


def test_of_a_moment_only_those_are_told_who_are_in_it():
    clip = World(seed=9).describe("tiger", "leave left", "meadow", duration=10)
    names = vocabulary()["character"]
    for start, want in ((1.0, {"tiger"}), (10.0, set())):
        shown = show([(clip, clip.render(1, 8, 64, 64, start), start)], SPEC)
        assert {names[k] for k in shown.truth.answers["characters"][0].nonzero().flatten()} == want
        assert (shown.classes_BTP == names.index("tiger")).any() == bool(want)


def test_of_a_part_of_a_clip_only_those_are_told_who_are_seen_in_it():
    clip = World(seed=9).describe("tiger", "leave left", "meadow", duration=4)
    film, names = (clip, clip.render(33, 8, 64, 64), 0.0), vocabulary()["character"]
    for span, want in ((None, {"tiger"}), ((0, 5), {"tiger"}), ((32, 33), set())):
        truth = show([film], SPEC, span=span).truth
        assert {names[k] for k in truth.answers["characters"][0].nonzero().flatten()} == want
        assert (truth.first, truth.last) == (span or (0, 33))
        assert truth.answers["count"] == 1


def test_only_the_clips_that_are_named_are_worn():
    films = [(clip, clip.render(1, 8, 32, 32), 0.0) for clip in (World().clip(k, 0.0) for k in range(2))]
    clean, rough = show(films, SPEC), show(films, SPEC, {1: rng.generator(0, "wear")})
    same = [torch.equal(a, b) for a, b in zip(clean.video_BTCHW, rough.video_BTCHW, strict=True)]
    assert same == [True, False]


def test_wear_keeps_the_picture_and_takes_its_detail():
    clip = torch.from_numpy(World().clip(1, 1.0).render(9, 8, 64, 64)).permute(0, 3, 1, 2) / 127.5 - 1
    for seed in range(5):
        rough = worn(clip, rng.generator(seed, "wear"))
        assert rough.shape == clip.shape
        assert 1e-4 < (rough - clip).square().mean() < 0.1
        assert np.corrcoef(rough.flatten(), clip.flatten())[0, 1] > 0.85


def perfect(truth):
    """The logits of one who knows."""
    one_hot = torch.nn.functional.one_hot
    return {
        name: 40 * true - 20 if name in SEVERAL else 20.0 * one_hot(true.clamp(min=0), SPEC.answers[name])
        for name, true in truth.answers.items()
    }


@pytest.fixture(scope="module")
def shown():
    world = World(seed=5)
    clips = [
        world.clip(3, 2.0),
        world.describe("tiger", None, "meadow", relation="chases", other="mouse"),
        world.describe("dog", "jump", "meadow", then="move right"),
    ]
    return show(((clip, clip.render(17, 8, 32, 32), 0.0) for clip in clips), SPEC)


def test_who_knows_all_has_no_loss_and_all_points(shown):
    truth, said = shown.truth, perfect(shown.truth)
    cells = 20.0 * torch.nn.functional.one_hot(shown.classes_BTP.clamp(min=0), SPEC.answers["character"] + 1)
    look = Look(cells, shown.targets_BTP4, *[None] * 3)
    assert all(part < 1e-3 for part in (losses(said, truth) | sight_losses(look, shown)).values())
    points = right(said, truth)
    assert all(hits == asked > 0 for hits, asked in points.values())
    assert points["relation"] == (1, 1)
    assert points["motion"][1] >= 4  # of the pair two, of the sequence two
    said["characters"][0, 0] *= -1
    said["motion"][truth.answers["motion"] >= 0] *= -1
    assert right(said, truth)["characters"] == (2, 3)
    assert right(said, truth)["motion"][0] == 0


@pytest.mark.parametrize(
    ("count", "events", "present", "want"),
    [
        (1, (), (-1.5, -4.0, -6.0), {0}),  # one is there, so it is the likeliest
        (1, (), (6.0, 1.0, -6.0), {0}),
        (2, (), (6.0, -1.0, -6.0), {0, 1}),
        (2, (), (6.0, -9.0, -9.0), {0}),  # two of a kind
        (1, ("transform",), (6.0, -1.0, -6.0), {0, 1}),
        (1, ("rain",), (6.0, -1.0, -6.0), {0}),
        (3, (), (6.0, 1.0, -1.0), {0}),  # they are of one kind
        (2, ("transform",), (6.0, -1.0, -1.0), {0, 1, 2}),
        (1, (), (9.0, 5.0, -6.0), {0, 1}),  # who is seen clearly is there, whatever else is said
        (1, (), (-5.0, -9.5, -9.0), set()),
    ],
)
def test_who_is_there_agrees_with_how_many_there_are(count, events, present, want):
    words, people = vocabulary(), torch.full((1, len(vocabulary()["character"])), -12.0)
    people[0, :3] = torch.tensor(present)
    whole = {
        "count": torch.tensor([[5.0 * (n == count) for n in range(len(words["count"]))]]),
        "event": torch.tensor([[5.0 if word in events else -5.0 for word in words["event"]]]),
    }
    assert set((settled(people, whole)[0] > 0).nonzero().flatten().tolist()) == want


def test_each_phase_moves_its_own_weights_and_all_of_them(shown):
    task = learner(Place.pick("cpu"))
    for phase, other, micro in zip(task.phases, task.phases[::-1], (batch(0), shown), strict=True):
        phase.module.requires_grad_(True)
        other.module.requires_grad_(False)
        task.loss(phase.name, micro, 0).total.backward()
        assert all(parameter.grad is not None for parameter in phase.module.parameters())
        assert all(parameter.grad is None for parameter in other.module.parameters())
        phase.module.zero_grad()
    assert sum(p.numel() for phase in task.phases for p in phase.module.parameters()) == sum(
        p.numel() for p in task.model.parameters()
    )


def test_a_judge_that_is_not_good_enough_judges_nothing(tmp_path):
    torch.manual_seed(0)
    net = JudgeNet(SPEC).bfloat16().eval()
    write_judge(net, tmp_path / "judge", seed=0, clips=8)
    with pytest.raises(InputError, match=r"right about only 0\.\d+ of characters"):
        Judge.load(tmp_path / "judge")
    path = tmp_path / "judge" / "config.json"
    config = json.loads(path.read_text())
    config["ceiling"] |= {"characters": 0.96, "scene": 0.96, "motion": 0.94}
    path.write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"only 0\.940 of motion"):
        Judge.load(tmp_path / "judge")
    config["ceiling"]["motion"] = 0.95
    path.write_text(json.dumps(config))
    reading = Judge.load(tmp_path / "judge").read(np.zeros((17, 64, 112, 3), np.uint8))
    assert reading.about("scene") in vocabulary()["scene"]
    assert reading.motion("cat", "dog") in vocabulary()["motion"]
    assert reading.relation("cat", None) in vocabulary()["relation"]
    assert reading.characters() <= set(vocabulary()["character"])
    path.write_text(json.dumps(config | {"spec": config["spec"] | {"width": 24}}))
    with pytest.raises(CheckpointError, match="train it again"):
        Judge.load(tmp_path / "judge")
    path.write_text(json.dumps(config | {"world": "0"}))
    with pytest.raises(CheckpointError, match="another version"):
        Judge.load(tmp_path / "judge")


def learner(place):
    stages = (JudgeStage(steps=8, stills=12), JudgeStage(steps=8, frames={5: 1}, budget=20))
    return JudgeTask(SPEC, stages, place, seed=0, tests=8)


def test_a_judge_begins_with_another_and_in_one_process(tmp_path, monkeypatch):
    for place in (module, runs):
        monkeypatch.setattr(place, "judge_spec", lambda: SPEC)
    monkeypatch.setattr(module, "ceiling", lambda *_, **__: {"scene": 1.0})
    torch.manual_seed(1)
    write_judge(JudgeNet(SPEC), tmp_path / "old", seed=0)
    stages = ({"steps": 1, "stills": 2}, {"steps": 2, "passes": 2, "frames": {5: 1}, "budget": 5})
    still = {"matrix_lr": 0.0, "lr": 0.0}
    recipe = {
        "task": "judge",
        "seed": 0,
        "stages": stages,
        "optimizer": still,
        "start": str(tmp_path / "old"),
    }
    recipe = JudgeRecipe.model_validate(recipe)
    for name, value in (("WORLD_SIZE", "2"), ("TORCHELASTIC_RUN_ID", "x")):
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match="in one process"):
        runs.run_judge(recipe, None)
    monkeypatch.delenv("TORCHELASTIC_RUN_ID")
    made = runs.run_recipe(recipe, tmp_path / "run", workers=0, place=Place.pick("cpu", "fp32"))
    (old, _), (new, ceiling) = (read_judge(folder) for folder in (tmp_path / "old", made))
    assert ceiling == {"scene": 1.0}
    assert not (tmp_path / "run" / "seen").exists()
    for name, weight in old.state_dict().items():
        assert torch.equal(new.state_dict()[name], weight), name


def test_a_judge_learns_in_the_loop(tmp_path, shown):
    """First its eye, then all else, while the eye stays as it is."""

    def errors(net):
        with torch.no_grad():
            found = losses(answer(net, keep(net, shown)), shown.truth)
            found |= sight_losses(look_at(net, shown), shown)
        parts = {part: set(names) - {"characters"} for part, names in module.LEARNS.items()}  # common to both
        return {part: float(sum(found[name] for name in names)) for part, names in parts.items()}

    task = learner(Place.pick("cpu"))
    before, first = errors(task.model), JudgeNet(SPEC)
    rates = dict.fromkeys(("eye", "time"), Rates(matrix_lr=0.03, lr=4e-3, warmup=1, decay_from=1.0, ema=0.8))
    trained = train(task, tmp_path, rates, steps=16, workers=0)
    task.load(first, {name: optimizer.ema_weights() for name, optimizer in trained.items()})
    after = errors(first)
    assert all(after[phase] < 0.9 * before[phase] for phase in before)
    for one, other in zip(task.model.eye.parameters(), first.eye.parameters(), strict=True):
        assert torch.equal(one, other), "what the others learned with is what is kept"
    assert [optimizer.updates for optimizer in trained.values()] == [8, 8]


def test_a_clip_is_looked_at_once_and_learned_from_again(tmp_path):
    """What is read back gives the very same loss as the clip itself, whether or not it was kept."""
    stages = STILLS, replace(CLIPS, passes=2)
    task, other = (JudgeTask(SPEC, stages, Place.pick("cpu"), seed=0, folder=tmp_path / n) for n in "ab")
    torch.nn.init.normal_(task.model.time.tracks.leave.weight)
    other.model.load_state_dict(task.model.state_dict())
    (first,), (again,) = task.batches()[5], task.batches()[7]
    assert isinstance(again, Shown)
    assert torch.equal(first.video_BTCHW, again.video_BTCHW)
    loss = task.loss("time", first, 5).total
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["step-00000005.pt"]
    (kept,) = task.batches()[7]
    assert isinstance(kept, Kept)
    assert torch.equal(task.loss("time", kept, 7).total, loss)
    assert torch.equal(other.loss("time", again, 7).total, loss)
    assert isinstance(task.batches()[4][0], Shown)  # nobody has seen that
