"""What the judge learns from: stills and clips of Storybook with their answers, worn as videos of a model
are: blurred, noisy, rescaled.

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

from cogvideox.core import rng
from cogvideox.core.errors import InputError
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
from cogvideox.data.storybook.world import heldout_triples
from cogvideox.data.video import Frames
from cogvideox.models.judge.eye import STRIDE, JudgeSpec, fit
from cogvideox.models.judge.timeline import MOMENT, Gist, Questions

SIDES = (64, 96, 128, 128)
"""Short sides in pixels of the renders, one drawn for each step."""
ASPECTS = ((1, 1), (1, 1), (9, 16), (16, 9))
"""Their height to width."""
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
        """Write a file that `read` reads, atomically."""
        path.parent.mkdir(exist_ok=True)
        with atomic_path(path) as partial:
            torch.save(asdict(self), partial)

    @classmethod
    def read(cls, path: Path) -> Kept:
        """What `write` wrote, on the CPU."""
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
        span = None
        if stage.frames and draw.random() < PARTS:
            first = int(draw.integers(frames - MOMENT + 1))
            span = first, int(draw.integers(first + MOMENT, frames + 1))
        return [show(films, self.spec, wear, span)]

    def _wear(
        self, films: list[Film], step: int, draw: np.random.Generator
    ) -> dict[int, np.random.Generator]:
        """Generators for the clips that are to be worn."""
        rough = [k for k in range(len(films)) if draw.random() < WORN]
        return {k: rng.generator(self.seed, "wear", step, k, len(films[0][1])) for k in rough}
