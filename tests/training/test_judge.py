"""Training of the judge: batches are pure, answers count right, a tiny one learns and is refused."""

import json

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
from cogvideox.models.judge import JudgeNet, JudgeSpec, Look
from cogvideox.training import judge as module
from cogvideox.training.judge import (
    Answers,
    JudgeBatches,
    JudgeStage,
    JudgeTask,
    answer,
    judge_spec,
    losses,
    portraits,
    right,
    show,
    worn,
    write_judge,
)
from cogvideox.training.loop import Rates, train

SPEC = JudgeSpec(
    answers=judge_spec().answers, side=32, channels=(8, 8, 16, 16), blocks=1, width=16, time_width=16
)
STAGE = JudgeStage(steps=4, stills=3, frames={9: 1, 17: 1}, budget=34)


def test_batches_are_functions_of_their_step():
    (one, stills), (same, _) = (JudgeBatches((STAGE,), SPEC, 0)[2] for _ in range(2))
    assert stills.video_BTCHW.shape[1] == 1
    assert 1 <= len(stills.video_BTCHW) <= STAGE.stills
    assert torch.equal(one.video_BTCHW, same.video_BTCHW)
    assert torch.equal(one.motion_Q, same.motion_Q)
    shapes = [JudgeBatches((STAGE,), SPEC, 0)[step][0].video_BTCHW.shape for step in range(4)]
    assert len(set(shapes)) > 1
    assert all(s[0] * s[1] * s[3] * s[4] <= 1.2 * STAGE.budget * 32 * 32 for s in shapes)


def test_portraits_show_many_in_one_place_in_compositions_of_training(monkeypatch):
    base, draw = World(seed=4).clip(7, 0.0), rng.generator(0, "portraits")
    people = set(vocabulary()["character"])
    hidden = {name for name in people if name < "m"}
    unseen = frozenset((name, action, base.setting.scene) for name in hidden for action in ACTIONS)
    monkeypatch.setattr(module, "heldout_triples", lambda: unseen)
    films = list(portraits(base, 24, 64, 64, draw))
    faces = {actor.character for clip, _ in films for actor in clip.actors}
    assert len(faces) > 12
    assert faces <= people - hidden
    assert {len(clip.actors) for clip, _ in films} >= {1, 2}
    for clip, frames in films:
        assert clip.setting == base.setting
        assert np.array_equal(frames, clip.render(1, 8, 64, 64))


def test_only_the_clips_that_are_named_are_worn():
    films = [(clip, clip.render(1, 8, 32, 32)) for clip in (World().clip(k, 0.0) for k in range(2))]
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


def perfect(shown):
    """The logits of one who knows."""
    whole = {name: 20.0 * torch.nn.functional.one_hot(truth, SPEC.answers[name])
             for name, truth in shown.whole.items() if name != "event"}  # fmt: skip
    whole["event"] = 40 * shown.whole["event"] - 20
    cells = 20.0 * torch.nn.functional.one_hot(shown.classes_BTP.clamp(min=0), SPEC.answers["character"] + 1)
    empty = torch.zeros(0)
    one_hot = [
        20.0 * torch.nn.functional.one_hot(truth.clamp(min=0), SPEC.answers[name])
        for name, truth in (("motion", shown.motion_Q), ("relation", shown.relation_Q))
    ]
    look = Look(cells, shown.targets_BTP4, empty, empty, empty, empty)
    return Answers(look, 40 * shown.present_BK - 20, whole, *one_hot)


@pytest.fixture(scope="module")
def shown():
    world = World(seed=5)
    clips = [
        world.clip(3, 2.0),
        world.describe("tiger", None, "meadow", relation="chases", other="mouse"),
        world.describe("dog", "jump", "meadow", then="move right"),
    ]
    return show(((clip, clip.render(17, 8, 32, 32)) for clip in clips), SPEC)


def test_who_knows_all_has_no_loss_and_all_points(shown):
    said = perfect(shown)
    assert all(part < 1e-3 for part in losses(said, shown).values())
    points = right(said, shown)
    assert all(hits == asked > 0 for hits, asked in points.values())
    assert points["relation"] == (1, 1)
    assert points["motion"][1] >= 4  # of the pair two, of the sequence two
    said.present_BK[0, 0] *= -1
    said.motion_QA[shown.motion_Q >= 0] *= -1
    assert right(said, shown)["characters"] == (2, 3)
    assert right(said, shown)["motion"][0] == 0


def test_every_weight_learns_from_pictures_and_clips(shown):
    torch.manual_seed(0)
    net = JudgeNet(SPEC)
    clip = World().clip(1, 0.0)
    still = show([(clip, clip.render(1, 8, 32, 32))], SPEC)
    for micro in (shown, still):
        torch.stack(list(losses(answer(net, micro), micro).values())).sum().backward()
        for name, parameter in net.named_parameters():
            assert parameter.grad is not None, name
        net.zero_grad()


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
    stages = (JudgeStage(steps=12, stills=8, frames={5: 1}, budget=20),)
    return JudgeTask(SPEC, stages, place, seed=0, tests=8)


def test_a_judge_learns_in_the_loop(tmp_path, shown):
    def error(weights):
        net = JudgeNet(SPEC)
        net.load_state_dict(weights)
        with torch.no_grad():
            return float(sum(losses(answer(net, shown), shown).values()))

    task = learner(Place.pick("cpu"))
    before = error({name: p.detach().float() for name, p in task.model.named_parameters()})
    rates = {"model": Rates(matrix_lr=0.02, lr=2e-3, warmup=1, decay_from=1.0, ema=0.5)}
    weights = train(task, tmp_path, rates, steps=12, workers=0)["model"].ema_weights()
    assert error(weights) < 0.85 * before
