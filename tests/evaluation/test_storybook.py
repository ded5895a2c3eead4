"""Evaluation on Storybook: fixed prompts, scores by made-up judges, references, resumption."""

import json
from dataclasses import replace

import numpy as np
import pytest

import cogvideox
from cogvideox.core.errors import InputError
from cogvideox.data.storybook.world import heldout_triples
from cogvideox.evaluation.judge.prompts import PROMPTS, SEED, SETS, cases
from cogvideox.evaluation.judge.scores import Share, score, wilson
from cogvideox.evaluation.storybook import Order, evaluate, judged, shuffled
from tests.tiny import tiny_folder


class Told:
    """A judge's reading that gives the true answers about a case, from some frames on a still picture."""

    def __init__(self, case, still=False, **other):
        self.case, self.still, self.truth = case, still, replace(case.labels, **other)
        self.frames = case.frames

    def characters(self, first=0, last=None):
        actor = self.case.clip.actors[0]
        if actor.becomes and (first, last) != (0, None):
            return frozenset({actor.becomes if first else actor.character})
        return self.truth.characters

    def about(self, question):
        return str(getattr(self.truth, question))

    def events(self):
        return self.truth.events

    def motion(self, who, other=None, first=0, last=None):
        if self.still:
            return "stay"
        return next(
            (q.motion for q in self.truth.questions if q.motion and (q.character, q.first) == (who, first)),
            "",
        )

    def relation(self, who, other):
        return next(q.relation for q in self.truth.questions if q.relation)


@pytest.mark.parametrize("name", SETS)
def test_prompts_are_fixed_different_and_tell_what_is_scored(name):
    found = cases(name)
    assert len(found) == PROMPTS == len({case.prompt for case in found})
    for case in found:
        assert case.prompt == case.prompt.strip()
        assert case.clip.seed == SEED
        seen = [triple in heldout_triples() for triple in case.clip.triples()]
        assert any(seen) == (name == "held-out composition")
        assert all(score(s, case, Told(case)) for s in SETS[name].scores), case.prompt
        if "camera" in SETS[name].scores:
            assert "camera" in case.prompt.lower() or "the view" in case.prompt.lower()


def test_the_first_prompts_do_not_change():
    """Numbers of different versions compare: whoever changes the world or the sets must say so."""
    assert [cases(name)[0].prompt for name in SETS] == FIRST


FIRST = [
    "A hero in a red cape gliding toward the right in a city at night.",
    "A dinosaur and a goat come together and meet at a volcano.",
    "A white ghost turns around and around above a cartwheeler in a city at night under a bright moon.",
    "A leopard walks quickly toward the right among tall trees. The camera moves along with it.",
    "A police car coming closer in a city with street lamps in black and white.",
    "A white swan zigzags to the right on a farm. Meanwhile day turns into night.",
    "A llama bounces up and down at a slow pace in a park in autumn.",
    "A hero in a red cape gliding from left to right at a slow pace in a city at night.",
]


def test_all_kinds_come_up():
    assert {case.clip.relation.kind for case in cases("relation")} >= {"chases", "meets", "together", "above"}
    assert len({case.clip.camera.kind for case in cases("camera")}) == 7
    assert len({case.clip.style for case in cases("style")}) == 8
    stories = [case.clip.events[0].kind if case.clip.events else "" for case in cases("narrative")]
    assert set(stories) == {"", "transform", "nightfall", "rain", "snow"}
    assert cases("10 seconds")[0].clip.duration == 10


def test_wrong_answers_are_wrong():
    single, pair, story = cases("single")[0], cases("relation")[0], cases("narrative")
    for name, wrong in (
        ("characters", {"characters": frozenset({"cow", "ghost"})}),
        ("count", {"count": 3}),
        ("scene", {"scene": "nowhere"}),
        ("motion", {"questions": ()}),
        ("motion", {"characters": frozenset()}),
    ):
        assert not score(name, single, Told(single, **wrong)), name
    questions = tuple(replace(q, relation=q.relation and "x") for q in pair.labels.questions)
    assert not score("relation", pair, Told(pair, questions=questions))
    turned = next(case for case in story if case.clip.actors[0].becomes)
    for other in (Told(story[0]), Told(next(c for c in story if c.clip.actors[0].becomes and c != turned))):
        other.frames = turned.frames
        assert not score("order", turned, other)
    sequence = next(case for case in story if len(case.clip.actors[0].moves) > 1)
    one, other = sequence.labels.questions
    backwards = (replace(one, motion=other.motion), replace(other, motion=one.motion))
    assert score("order", sequence, Told(sequence))
    assert not score("order", sequence, Told(sequence, questions=backwards))
    night = next(case for case in story if case.clip.events and not case.clip.actors[0].becomes)
    assert not score("order", night, Told(night, events=frozenset()))


def test_a_character_must_be_there_at_the_end():
    case = cases("10 seconds")[0]
    asked = []

    class Gone(Told):
        def characters(self, first=0, last=None):
            asked.append((first, last))
            return frozenset() if first else self.truth.characters

    assert score("characters", case, Gone(case))
    assert not score("end", case, Gone(case))
    assert asked[-1] == (64, None)


def test_wilson_intervals():
    assert wilson(0.5, 100) == pytest.approx((0.4038, 0.5962), abs=1e-4)  # as in any table
    assert wilson(1.0, 16) == pytest.approx((0.8064, 1.0), abs=1e-4)
    assert wilson(0.0, 16) == pytest.approx((0.0, 0.1936), abs=1e-4)
    share = Share.of([[True, True], [True, False], [False, False], [True, True]])
    assert share.mean == 0.625
    assert (share.low, share.high) == pytest.approx(wilson(0.625, 4), abs=1e-4)  # not of 8 trials


def test_another_prompt_is_never_its_own():
    asked = cases("single")
    assert {case.number for case in shuffled(asked)} == set(range(PROMPTS))
    assert all(a.number != b.number for a, b in zip(asked, shuffled(asked), strict=True))
    assert shuffled(asked) == shuffled(asked)
    assert shuffled(asked[:1]) == [asked[0]]


def test_references_are_of_the_right_videos():
    asked = cases("single")[:4]
    moving = [np.full((17, 16, 16, 3), 10 * case.number, np.uint8) for case in asked]
    for frames in moving:
        frames[1:] += 1
    renders = {case.clip.render(17, 8, 16, 16).tobytes(): case for case in asked}

    def read(frames):
        if frames.tobytes() in renders:
            return Told(renders[frames.tobytes()])
        return Told(asked[frames[0, 0, 0, 0] // 10], still=bool((frames == frames[0]).all()))

    wrong = moving[3]  # the model makes the same video of prompts 2 and 3
    hits = judged(read, asked, [[moving[0]] * 2, [moving[1]] * 2, [wrong, moving[2]], [wrong] * 2])
    assert hits["renders"]["characters"] == [[True]] * 4
    assert hits["renders"]["motion"] == [[True]] * 4
    assert hits["model"]["characters"] == [[True, True], [True, True], [False, True], [True, True]]
    assert hits["model"]["motion"] == [[True, True], [True, True], [False, True], [True, True]]
    stays = [case.labels.questions[0].motion == "stay" for case in asked]
    assert [seeds[0] for seeds in hits["still"]["motion"]] == [stays[0], stays[1], False, stays[3]]
    assert hits["still"]["characters"] == hits["model"]["characters"]
    assert not any(seeds[0] for seeds in hits["shuffled"]["characters"][:2])


@pytest.fixture(scope="module")
def pipe(tmp_path_factory):
    folder = tiny_folder(tmp_path_factory.mktemp("models") / "5b", "5b")
    return cogvideox.load(folder, dtype="fp32", device="cpu")


class Believer:
    """A judge that always sees the first prompt's clip."""

    ceiling = {"characters": 1.0}  # noqa: RUF012

    def read(self, frames):
        assert frames.dtype == np.uint8
        return Told(cases("single")[0])


class Once:
    """A pipeline that stops after some videos."""

    def __init__(self, pipe, calls):
        self.pipe, self.calls = pipe, calls

    def __getattr__(self, name):
        return getattr(self.pipe, name)

    def __call__(self, *args, **options):
        if not self.calls:
            raise KeyboardInterrupt
        self.calls -= 1
        return self.pipe(*args, **options, steps=1)


def test_an_evaluation_goes_on_where_it_stopped_and_reports(pipe, tmp_path):
    order = Order(("single",), prompts=2, seeds=2)
    with pytest.raises(KeyboardInterrupt):
        list(evaluate(Once(pipe, 3), Believer(), order, tmp_path / "out"))
    assert len(list((tmp_path / "out" / "videos").iterdir())) == 3
    assert not (tmp_path / "out" / "report.md").exists()
    steps = list(evaluate(Once(pipe, 1), Believer(), order, tmp_path / "out"))
    assert len(steps) == order.videos == 4
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    shares = report["sets"]["single"]["rows"]
    assert shares["model"]["characters"] == {"mean": 0.5, **interval(0.5, 2)}
    assert shares["renders"]["characters"]["mean"] == 0.5
    assert list(shares) == ["model", "renders", "shuffled", "still"]
    text = (tmp_path / "out" / "report.md").read_text()
    assert "| model | 0.50 (" in text
    assert "characters 1.000" in text
    assert "[Sheet](single.jpg)" in text
    assert (tmp_path / "out" / "single.jpg").exists()
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "model.json",
        "report.json",
        "report.md",
        "single.jpg",
        "videos",
    ]


def interval(share, trials):
    low, high = wilson(share, trials)
    return {"low": round(low, 4), "high": round(high, 4)}


def test_a_folder_of_another_model_and_other_rates_are_refused(pipe, tmp_path):
    (tmp_path / "model.json").write_text("{}")
    with pytest.raises(InputError, match="evaluation of another model"):
        list(evaluate(pipe, Believer(), Order(("single",), 1, 1), tmp_path))
    fast = replace(pipe, model=replace(pipe.model, spec=replace(pipe.spec, fps=16)))
    with pytest.raises(InputError, match="16 frames a second"):
        list(evaluate(fast, Believer(), Order(("single",), 1, 1), tmp_path))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sets": ("singel",)}, "did you mean 'single'"),
        ({"prompts": 17}, "prompts must be 1 to 16, got 17"),
        ({"seeds": 0}, "seeds must be at least 1"),
    ],
)
def test_wrong_orders_are_named(options, message):
    with pytest.raises(InputError, match=message):
        Order(**options)
