"""Training of the judge on renders of Storybook, worn as videos of a model are: blurred, noisy, rescaled.

First its eye learns from stills, then what reads over time learns from clips, more than once from each: the
eye is fixed by then, so that what it makes of a clip is kept.

Shape legend: B clips, T frames, C channels, H W pixels or cells, K characters, Q questions.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

import cogvideox
from cogvideox.checkpoints.folder import write_json
from cogvideox.checkpoints.settings import read_json
from cogvideox.checkpoints.weights import Weights, write_weights
from cogvideox.core import rng
from cogvideox.core.errors import CheckpointError, InputError
from cogvideox.core.files import atomic_path
from cogvideox.data.storybook import Clip, World
from cogvideox.data.storybook.cast import Character, cast
from cogvideox.data.storybook.labels import COUNTS, SHORTEST, UNSURE, Labels, cells, labels, vocabulary
from cogvideox.data.storybook.motion import view
from cogvideox.data.storybook.relations import relate
from cogvideox.data.storybook.render import Box, Renderer, place
from cogvideox.data.storybook.sample import pick_relation, solo
from cogvideox.data.storybook.scenes import Scene, scene
from cogvideox.data.storybook.state import Actor
from cogvideox.data.storybook.world import VERSION, heldout_triples
from cogvideox.data.video import Frames
from cogvideox.generation.generate import Place
from cogvideox.models.judge import STRIDE, Gist, JudgeNet, JudgeSpec, Look, Questions, fit
from cogvideox.training.task import Loss, Metrics, Phase

SHIPPED = Path(cogvideox.__file__).parent / "assets" / "judge"
SIDES = (64, 96, 128, 128)
"""Short sides in pixels of the renders, one drawn for each step."""
ASPECTS = ((1, 1), (1, 1), (9, 16), (16, 9))
"""Their height to width."""
LEARNS = {
    "eye": {"cell": 5.0, "box": 1.0, "characters": 0.02, "scene": 1.0, "style": 1.0},
    "time": {"characters": 0.2, "motion": 1.0, "relation": 1.0, "event": 1.0, "camera": 1.0, "count": 1.0},
}
"""What the two parts of the judge learn, and the weights of its losses. Who is where is learned slowest, and
all else follows from it; who is there at all, a sum over the whole cast, would drown it (docs/log.md); what
is left of that sum when the eye has learned would not."""
SEVERAL = {"characters", "event"}
"""Questions of which several answers may be true."""
WORN = 0.6
"""Share of the clips that are worn."""
PORTRAITS = 8
"""Stills of each place."""
CROWD = 0.5
"""Share of the portraits that show a few at once who have nothing to do with each other."""
TURNED = 0.25
"""Share of those in portraits, but for relations, who are turned by any angle."""
STYLED = {
    "pencil sketch": 0.26,
    "neon": 0.07,
    "black and white": 0.07,
    "watercolor": 0.06,
    "sepia": 0.04,
    "oil painting": 0.04,
}
"""Share of the places that are given a style, beside those that have one: the more, the harder faces are to
tell there (docs/log.md)."""
PARTS = 0.4
"""Share of the steps of clips in which who is there is asked of some frames of them."""
MOMENTS = 2.0
"""Seconds of the clips that stills are moments of."""
TESTS = 96
"""Held-out clips of each validation."""

Film = tuple[Clip, Frames, float]
"""A clip, frames of it at 8 per second, and when the first of them is, in seconds."""
NEW: Mapping[int, np.random.Generator] = {}
"""Nothing is worn."""


@dataclass(frozen=True, kw_only=True)
class JudgeStage:
    """A part of the run: stills, from which the eye learns, or clips, from which all else does."""

    steps: int
    stills: int = 0
    """Per step, if they are square; wider ones are fewer."""
    frames: dict[int, float] = field(default_factory=dict)
    """Frames of the clips of a step -> how often it is drawn; nothing: stills."""
    budget: int = 0
    """Frames of all clips of a step together, if they are square."""
    passes: int = 1
    """How often each clip is learned from: the clips of the first steps come again, in the same order."""

    def __post_init__(self) -> None:
        given = bool(self.stills), bool(self.frames), bool(self.budget)
        if given not in ((True, False, False), (False, True, True)):
            raise InputError("a stage of the judge needs stills, or frames and their budget, not both")
        if self.passes < 1 or self.steps % self.passes or (self.stills and self.passes > 1):
            raise InputError("passes of a stage of the judge: of clips, and all of the same number of steps")
        if any(frames < SHORTEST for frames in self.frames):
            raise InputError(f"clips of the judge need {SHORTEST} frames or more: nobody sees more in fewer")


@dataclass(frozen=True)
class Truth:
    """What is asked about some clips, and the answers."""

    asked: Questions
    """About motion and relation."""
    first: int
    last: int
    """Who is there in frames `first` to `last`, that one not included."""
    answers: dict[str, Tensor]
    """Question -> class (B,), or (Q,) of what is `asked` and UNSURE where it is not; for `SEVERAL`, of each
    (B, classes) whether it is true."""


@dataclass(frozen=True)
class Shown:
    """Clips of one shape with their answers, as tensors."""

    video_BTCHW: Tensor
    """uint8"""
    classes_BTP: Tensor
    targets_BTP4: Tensor
    truth: Truth

    @property
    def frames(self) -> int:
        """Of all clips together."""
        return self.video_BTCHW.shape[0] * self.video_BTCHW.shape[1]


@dataclass(frozen=True)
class Kept:
    """What the eye makes of `Shown`, floats in half precision: all that what reads over time learns from."""

    gist: Gist
    suspects: Questions
    """Who may be there in the frames that the truth tells it of."""
    suspects_QTD: Tensor
    """Their tracks."""
    tracks_QTD: Tensor
    """Those of who is asked about."""
    truth: Truth

    @property
    def frames(self) -> int:
        """Of all clips together."""
        return self.gist.about_BTA.shape[0] * self.gist.about_BTA.shape[1]

    def write(self, path: Path) -> None:
        path.parent.mkdir(exist_ok=True)
        with atomic_path(path) as partial:
            torch.save(asdict(self), partial)

    @classmethod
    def read(cls, path: Path) -> Kept:
        parts = torch.load(path, weights_only=True)
        gist, suspects = Gist(**parts.pop("gist")), Questions(**parts.pop("suspects"))
        truth = parts.pop("truth")
        truth = Truth(**truth | {"asked": Questions(**truth["asked"])})
        return cls(gist=gist, suspects=suspects, truth=truth, **parts)


def moved(parts: Any, to: torch.device | torch.dtype) -> Any:
    """The same on another device, or with floats in another precision, where there are tensors in it."""
    if isinstance(parts, Tensor):
        return parts if isinstance(to, torch.dtype) and not parts.is_floating_point() else parts.to(to)
    if isinstance(parts, dict):
        return {name: moved(part, to) for name, part in parts.items()}
    if is_dataclass(parts) and not isinstance(parts, type):
        return type(parts)(**{name: moved(part, to) for name, part in vars(parts).items()})
    return parts


def worn(video_TCHW: Tensor, draw: np.random.Generator) -> Tensor:
    """A clip in [-1, 1] with the faults of a VAE: lost detail, noise, other colours, mixed neighbours."""
    height, width = video_TCHW.shape[2:]
    share = draw.uniform(0.45, 1.0)
    small = F.interpolate(
        video_TCHW, size=(round(height * share), round(width * share)), mode="bilinear", antialias=True
    )
    video_TCHW = F.interpolate(small, size=(height, width), mode="bilinear")
    if draw.random() < 0.5:
        mix = draw.uniform(0, 0.4)
        video_TCHW = (1 - mix) * video_TCHW + mix * torch.cat([video_TCHW[:1], video_TCHW[:-1]])
    noise = draw.standard_normal(video_TCHW.shape, dtype=np.float32) * draw.uniform(0, 0.08)
    return video_TCHW * draw.uniform(0.85, 1.1) + draw.uniform(-0.08, 0.08) + torch.from_numpy(noise)


def portraits(clip: Clip, count: int, height: int, width: int, draw: np.random.Generator) -> Iterator[Film]:
    """A moment of a clip, then stills of its place at that time with others in it, one or more, in
    compositions that training may show: many faces at the price of one place.
    """
    where, everybody = scene(clip.setting.scene), list(cast().values())
    painted, time = Renderer(clip, height, width), float(draw.uniform(0, clip.duration))
    yield clip, painted.frame(time)[None], time
    while count > 1:
        who = everybody[int(draw.integers(len(everybody)))]
        kind, people = pick_relation(draw, who, where, 0.0)
        if draw.random() < CROWD:
            actors = _crowd(clip, int(draw.integers(3, 6)), height, width, time, draw)
        elif kind and draw.random() < 0.5:
            actors = relate(draw, kind, people, where, 0.0).actors
        else:
            size = who.size * float(draw.uniform(0.2, 0.6))
            actors = (_posing(draw, who, where, clip.duration, size),)
        still = replace(clip, actors=actors, relation=None)
        if heldout_triples().isdisjoint(still.triples()):
            count -= 1
            yield still, painted.with_actors(actors).frame(time)[None], time


def _crowd(
    clip: Clip, count: int, height: int, width: int, time: float, draw: np.random.Generator
) -> tuple[Actor, ...]:
    """So many small ones, fewer where they would hide each other."""
    where, everybody, seen = (
        scene(clip.setting.scene),
        list(cast().values()),
        view(clip.camera, time, clip.duration),
    )
    actors: list[Actor] = []
    boxes: list[Box] = []
    for _ in range(4 * count):
        if len(actors) == count:
            break
        who = everybody[int(draw.integers(len(everybody)))]
        size = who.size * float(draw.uniform(0.18, 0.36))
        actor = _posing(draw, who, where, clip.duration, size)
        box = place(actor, time, seen, height, width).box()
        if not any(_touch(box, other) for other in boxes):
            actors.append(actor)
            boxes.append(box)
    return tuple(actors)


def _posing(draw: np.random.Generator, who: Character, where: Scene, duration: float, size: float) -> Actor:
    """One that stands, or spins, so that it is seen from all sides."""
    return solo(draw, who, where, "spin" if draw.random() < TURNED else "stay", "", duration, size)


def _touch(one: Box, other: Box) -> bool:
    return max(one[0], other[0]) < min(one[2], other[2]) and max(one[1], other[1]) < min(one[3], other[3])


def show(
    films: Iterable[Film],
    spec: JudgeSpec,
    wear: Mapping[int, np.random.Generator] = NEW,
    span: tuple[int, int] | None = None,
) -> Shown:
    """Label clips of one shape; `wear` gives the generator of `worn` for the places of those to be worn. With
    a `span` who is there in these frames is told, by what is seen there, else of whole clips.
    """
    videos, classes, targets, answers = [], [], [], []
    for index, (clip, frames_THWC, start) in enumerate(films):
        frames, video = len(frames_THWC), fit(frames_THWC, spec)
        if index in wear:
            video = worn(video, wear[index])
        rows, columns = (n // STRIDE for n in video.shape[2:])
        names, boxes = cells(clip, frames, 8, rows, columns, start)
        videos.append(((video.clamp(-1, 1) + 1) * 127.5).round().byte())
        classes.append(torch.from_numpy(names).flatten(1))
        targets.append(torch.from_numpy(boxes).flatten(1, 2))
        answers.append(labels(clip, frames))
        if span or frames == 1:  # not all who are in a clip are seen in a part of it
            seen = np.unique(names[slice(*span or (0, 1))])
            there = frozenset(vocabulary()["character"][k] for k in seen if 0 <= k < len(cast()))
            answers[-1] = replace(answers[-1], characters=there)
        if frames == 1:  # no still is asked how many
            answers[-1] = replace(answers[-1], count=min(len(answers[-1].characters), COUNTS - 1))
    return Shown(
        torch.stack(videos), torch.stack(classes), torch.stack(targets), _truth(answers, span or (0, frames))
    )


def _truth(answers: list[Labels], span: tuple[int, int]) -> Truth:
    words = vocabulary()

    def number(question: str, word: str) -> int:
        return words[question].index(word)

    found = {
        name: torch.tensor([number(name, str(getattr(one, name))) for one in answers])
        for name in ("scene", "style", "camera", "count")
    }
    for name, word, sets in (
        ("characters", "character", [one.characters for one in answers]),
        ("event", "event", [one.events for one in answers]),
    ):
        found[name] = torch.tensor([[float(known in true) for known in words[word]] for true in sets])
    rows = []
    for index, one in enumerate(answers):
        for q in one.questions:
            other = number("character", q.other) if q.other else -1
            motion = number("motion", q.motion) if q.motion else UNSURE
            relation = number("relation", q.relation) if q.relation else UNSURE
            rows.append((index, number("character", q.character), other, q.first, q.last, motion, relation))
    # One is always asked, so that all weights have gradients.
    columns = torch.tensor(rows or [(0, 0, -1, 0, 1, UNSURE, UNSURE)]).unbind(1)
    return Truth(Questions(*columns[:5]), *span, found | {"motion": columns[5], "relation": columns[6]})


class JudgeBatches(Dataset[Any]):
    """Step -> clips or stills of one shape, or what was kept of them; a function of its key."""

    def __init__(
        self, stages: tuple[JudgeStage, ...], spec: JudgeSpec, seed: int, folder: Path | None = None
    ) -> None:
        self.stages, self.spec, self.seed, self.folder = stages, spec, seed, folder

    def __len__(self) -> int:
        return sum(stage.steps for stage in self.stages)

    def _stage(self, step: int) -> tuple[JudgeStage, int]:
        """That of a step, and the step at which its clips are shown first."""
        begun = 0
        for stage in self.stages:
            if step < begun + stage.steps:
                return stage, begun + (step - begun) % (stage.steps // stage.passes)
            begun += stage.steps
        raise IndexError(step)

    def path(self, step: int) -> Path | None:
        """Where what the eye makes of a step's clips is kept; None where they are learned from once."""
        stage, first = self._stage(step)
        return self.folder / f"step-{first:08}.pt" if self.folder and stage.passes > 1 else None

    def __getitem__(self, step: int) -> list[Shown | Kept]:
        if (path := self.path(step)) and path.exists():
            return [Kept.read(path)]
        stage, step = self._stage(step)
        draw = rng.generator(self.seed, "judge-batch", step)
        side, (tall, wide) = int(draw.choice(SIDES)), ASPECTS[int(draw.integers(len(ASPECTS)))]
        height, width = (16 * round(side * n / min(tall, wide) / 16) for n in (tall, wide))
        share = min(tall, wide) / max(tall, wide)
        world, films = World(seed=self.seed, split="train"), list[Film]()
        if stage.frames:
            odds = np.asarray(list(stage.frames.values()), float)
            frames = int(draw.choice(list(stage.frames), p=odds / odds.sum()))
            indices = draw.integers(2**31, size=max(1, round(stage.budget * share / frames)))
            clips = (world.clip(int(index), (frames - 1) / 8) for index in indices)
            films = [(clip, clip.render(frames, 8, height, width), 0.0) for clip in clips]
        while (left := round(stage.stills * share) - len(films)) > 0:
            clip = world.clip(int(draw.integers(2**31)), MOMENTS)
            styles, shares = [None, *STYLED], [1 - sum(STYLED.values()), *STYLED.values()]
            if style := styles[int(draw.choice(len(styles), p=shares))]:
                clip = replace(clip, style=style)
            films += portraits(clip, min(PORTRAITS, left), height, width, draw)
        wear, (frames,) = self._wear(films, step, draw), {len(film) for _, film, _ in films}
        first, last = sorted(draw.choice(frames + 1, 2, replace=False).tolist())
        span = (first, last) if frames > 1 and draw.random() < PARTS else None
        return [show(films, self.spec, wear, span)]

    def _wear(
        self, films: list[Film], step: int, draw: np.random.Generator
    ) -> dict[int, np.random.Generator]:
        """Generators for the clips that are to be worn."""
        rough = [k for k in range(len(films)) if draw.random() < WORN]
        return {k: rng.generator(self.seed, "wear", step, k, len(films[0][1])) for k in rough}


def look_at(net: JudgeNet, shown: Shown) -> Look:
    """Clips as the network takes them."""
    return net(shown.video_BTCHW.float() / 127.5 - 1)


@torch.no_grad()
def keep(net: JudgeNet, shown: Shown) -> Kept:
    """Look, and keep what is needed to answer."""
    look = look_at(net, shown)
    suspects = net.suspects(look.gist, shown.truth.first, shown.truth.last)
    tracks = net.tracks(look, suspects), net.tracks(look, shown.truth.asked)
    return moved(Kept(look.gist, suspects, *tracks, shown.truth), torch.float16)


def answer(net: JudgeNet, kept: Kept) -> dict[str, Tensor]:
    """Logits of the answers to everything that the answers are known of."""
    gist, truth = kept.gist, kept.truth
    motion, relation, _ = net.time.follow(gist, truth.asked, kept.tracks_QTD)
    characters = net.time.present(gist, kept.suspects, kept.suspects_QTD, truth.first, truth.last)
    return net.time.whole(gist) | {"characters": characters, "motion": motion, "relation": relation}


def sight_losses(look: Look, shown: Shown) -> dict[str, Tensor]:
    """How wrong the eye is about who is in each cell, and where."""
    logits_BTPK, classes_BTP = look.logits_BTPK, shown.classes_BTP
    nobody = logits_BTPK.shape[-1] - 1
    error_BTP = F.cross_entropy(logits_BTPK.flatten(0, 2), classes_BTP.flatten(), reduction="none")
    error_BTP, seen_BTP = error_BTP.view_as(classes_BTP), (classes_BTP >= 0) & (classes_BTP < nobody)
    scale = look.boxes_BTP4.new_tensor([4.0, 4.0, 1.0, 1.0])
    return {
        "cell": _mean(error_BTP[seen_BTP]) + _mean(error_BTP[classes_BTP == nobody]),
        "box": _mean(((look.boxes_BTP4 - shown.targets_BTP4)[seen_BTP] * scale).abs()),
    }


def losses(said: dict[str, Tensor], truth: Truth) -> dict[str, Tensor]:
    """The loss of each kind of answer, a mean over what it is asked of."""
    found = {}
    for name, logits in said.items():
        true = truth.answers[name]
        if name in SEVERAL:
            wrong = F.binary_cross_entropy_with_logits(logits, true.float(), reduction="none")
            found[name] = wrong.sum(1).mean()
        else:
            found[name] = F.cross_entropy(logits, true, reduction="sum") / max(1, int((true >= 0).sum()))
    return found


def _mean(x: Tensor) -> Tensor:
    return x.sum() / max(1, len(x))


@torch.no_grad()
def right(said: dict[str, Tensor], truth: Truth) -> Metrics:
    """How many answers of each kind are right, and how many were asked: sets count when all of one are."""
    found = {}
    for name, logits in said.items():
        true = truth.answers[name]
        if name in SEVERAL:
            hits = ((logits > 0) == (true > 0)).all(1)
        else:
            hits = (logits.argmax(1) == true)[true >= 0]
        found[name] = float(hits.sum()), float(len(hits))
    return found


def judge_spec() -> JudgeSpec:
    """The judge that knows the words of this Storybook."""
    return JudgeSpec(answers={name: len(words) for name, words in vocabulary().items()})


class JudgeTask:
    """The answers that a phase `LEARNS`; every frame counts the same."""

    def __init__(
        self,
        spec: JudgeSpec,
        stages: tuple[JudgeStage, ...],
        place: Place,
        *,
        seed: int,
        tests: int = TESTS,
        folder: Path | None = None,
    ) -> None:
        """`folder` is where what the eye makes of clips may be kept."""
        torch.manual_seed(seed)
        self.spec, self.place, self.seed, self.tests = spec, place, seed, tests
        self.model = JudgeNet(spec).arrange(place.device, place.dtype)
        self._batches = JudgeBatches(stages, spec, seed, folder)
        self.turn = sum(stage.steps for stage in stages if stage.stills)
        """The first step of what reads over time."""

    def batches(self) -> JudgeBatches:
        return self._batches

    @property
    def phases(self) -> tuple[Phase, ...]:
        """The eye in the stages with stills, which come first; then what reads over time."""
        return (
            Phase("eye", self.model.eye, matrix_blocks=matrix_blocks, ends=self.turn),
            Phase("time", self.model.time, matrix_blocks=matrix_blocks, begins=self.turn),
        )

    def loss(self, phase: str, micro: Shown | Kept, step: int) -> Loss:
        micro = moved(micro, self.place.device)
        if phase == "eye":
            assert isinstance(micro, Shown)
            look = look_at(self.model, micro)
            said = self.model.whole(look) | {"characters": self.model.time.counted(look.gist)}
            parts = sight_losses(look, micro)
        else:
            kept, parts = self._keep(micro, step), {}
            said = answer(self.model, kept)
        said = {name: logits for name, logits in said.items() if name in LEARNS[phase]}
        parts |= losses(said, micro.truth)
        total = torch.stack([LEARNS[phase][name] * part for name, part in parts.items()]).sum()
        frames = float(micro.frames)
        means = {f"loss_{name}": (part.item() * frames, frames) for name, part in parts.items()}
        return Loss(total * frames, frames, {**means, **right(said, micro.truth)})

    def _keep(self, micro: Shown | Kept, step: int) -> Kept:
        if isinstance(micro, Kept):
            return micro
        kept = keep(self.model, micro)
        if path := self._batches.path(step):
            moved(kept, torch.device("cpu")).write(path)
        return kept

    def evaluate(self, weights: Mapping[str, dict[str, Tensor]], folder: Path, step: int) -> dict[str, float]:
        """Shares of right answers about held-out clips of 17 frames of 128x128, as they are and worn."""
        net = JudgeNet(self.spec).arrange(self.place.device, self.place.dtype).eval()
        self.load(net, weights)
        clean, rough = (ceiling(net, seed=self.seed, clips=self.tests, wear=wear) for wear in (False, True))
        return {f"eval_{n}": v for n, v in clean.items()} | {f"worn_{n}": v for n, v in rough.items()}

    @staticmethod
    def load(net: JudgeNet, weights: Mapping[str, dict[str, Tensor]]) -> None:
        """Those of both phases."""
        net.eye.load_state_dict(weights["eye"])
        net.time.load_state_dict(weights["time"])


@torch.no_grad()
def ceiling(
    net: JudgeNet, *, seed: int, clips: int, frames: int = 17, side: int = 128, wear: bool = False
) -> dict[str, float]:
    """Shares of right answers about renders, half of them of compositions that training never shows."""
    sums: dict[str, tuple[float, float]] = {}
    for index in range(0, clips, 8):
        tests = ((clip, clip.render(frames, 8, side, side), 0.0) for clip in _tests(seed, index, 8, frames))
        rough = {k: rng.generator(seed, "wear-test", index, k) for k in range(8 * wear)}
        shown = moved(show(tests, net.spec, rough), net.time.presence.device)
        for name, (hits, asked) in right(answer(net, keep(net, shown)), shown.truth).items():
            before = sums.get(name, (0.0, 0.0))
            sums[name] = before[0] + hits, before[1] + asked
    return {name: round(hits / asked, 4) for name, (hits, asked) in sums.items() if asked}


def _tests(seed: int, first: int, count: int, frames: int) -> Iterator[Clip]:
    for index in range(first, first + count):
        world = World(seed=seed + 1, split=("train", "heldout")[index % 2])
        yield world.clip(index, (frames - 1) / 8)


def write_judge(net: JudgeNet, folder: Path, seed: int, clips: int = 500) -> None:
    """The judge as `evaluation.judge` reads it, with its ceiling: how right it is about real renders."""
    for parameter in net.parameters():
        parameter.data = parameter.data.bfloat16().to(parameter.dtype)  # as it will be read
    with atomic_path(folder) as partial:
        write_weights(net.state_dict().items(), partial, "model", dtype=torch.bfloat16)
        found = ceiling(net, seed=seed, clips=clips)
        config = {"world": VERSION, "spec": asdict(net.spec), "seed": seed, "clips": clips, "ceiling": found}
        write_json(partial / "config.json", config)


def read_judge(folder: Path = SHIPPED) -> tuple[JudgeNet, dict[str, float]]:
    """What `write_judge` wrote: the network and its ceiling. CheckpointError when it is damaged, or was
    trained on another version of the world.
    """
    config = read_json(folder / "config.json")
    spec = judge_spec()
    if config["world"] != VERSION or config["spec"]["answers"] != spec.answers:
        raise CheckpointError(f"the judge in {folder} was trained on another version of Storybook")
    channels = tuple(config["spec"].pop("channels"))
    net = JudgeNet(JudgeSpec(**config["spec"], channels=channels))
    try:
        net.load_state_dict(dict(Weights(folder)))
    except RuntimeError:
        raise CheckpointError(f"the judge in {folder} is of another version: train it again") from None
    return net, config["ceiling"]


def matrix_blocks(name: str, parameter: Tensor) -> int:
    if parameter.ndim < 2 or name.startswith(("stem.0", "name", "box", "about")) or ".leave" in name:
        return 0
    return 3 if "in_proj" in name else 1
