"""What a model makes of fixed prompts of Storybook, scored by the judge beside three references."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

import cogvideox
from cogvideox.core.errors import InputError, nearest
from cogvideox.core.files import same_source, write_text
from cogvideox.core.rng import generator
from cogvideox.data.video import Frames, read_video
from cogvideox.evaluation.judge.prompts import PROMPTS, SETS, Case, cases
from cogvideox.evaluation.judge.reading import FPS, Judge
from cogvideox.evaluation.judge.scores import Reader, Share, score
from cogvideox.generation.pipeline import Pipeline
from cogvideox.generation.watch import Watch
from cogvideox.training.sheet import row, write_sheet

ROWS = {
    "model": "what the model made",
    "renders": "true renders of the prompts' clips: the ceiling",
    "shuffled": "what the model made, judged by other prompts of the set: the floor",
    "still": "the first frame of what the model made, repeated: what is right without motion",
}
SHEET_FRAMES = 6
HITS = dict[str, dict[str, list[list[bool]]]]
"""Row -> score -> prompt -> seed."""


@dataclass(frozen=True)
class Order:
    """What to evaluate."""

    sets: tuple[str, ...] = tuple(SETS)
    prompts: int = PROMPTS
    """Of each set, the first ones."""
    seeds: int = 5
    """Videos of each prompt."""

    def __post_init__(self) -> None:
        for name in self.sets:
            if name not in SETS:
                raise InputError(f"unknown set of prompts {name!r}{nearest(name, SETS)}")
        if not 1 <= self.prompts <= PROMPTS:
            raise InputError(f"prompts must be 1 to {PROMPTS}, got {self.prompts}")
        if self.seeds < 1:
            raise InputError(f"seeds must be at least 1, got {self.seeds}")

    @property
    def videos(self) -> int:
        return len(self.sets) * self.prompts * self.seeds


def evaluate(pipe: Pipeline, judge: Judge, order: Order, folder: Path) -> Iterator[str]:
    """Make and judge the videos, yielding a word about each; then write `report.json`, `report.md` and a
    contact sheet of each set.

    Videos that are in the folder already, of the same model, are not made again. InputError when they are of
    another one, or the model's rate is not the judge's.
    """
    if pipe.spec.fps != FPS:
        raise InputError(f"{pipe.spec.name} makes {pipe.spec.fps:g} frames a second, the judge sees {FPS}")
    folder.mkdir(parents=True, exist_ok=True)
    if not same_source(folder / "model.json", json.dumps(_model(pipe), indent=2) + "\n"):
        raise InputError(f"{folder} holds an evaluation of another model: take a new --output")
    (folder / "videos").mkdir(exist_ok=True)
    found: dict[str, Any] = {}
    for name in order.sets:
        asked, videos = cases(name)[: order.prompts], list[list[Frames]]()
        for case in asked:
            videos.append([])
            for seed in range(order.seeds):
                videos[-1].append(_video(pipe, case, seed, folder / "videos"))
                yield f"{name} {case.number}, seed {seed}"
        hits = judged(judge.read, asked, videos)
        shares = {r: {s: asdict(Share.of(seeds)) for s, seeds in by.items()} for r, by in hits.items()}
        found[name] = {"frames": SETS[name].frames, "rows": shares}
        _sheet(asked, [seeds[0] for seeds in videos], hits["model"], folder / _sheet_name(name))
    report = {
        "model": _model(pipe),
        "judge": judge.ceiling,
        "prompts": order.prompts,
        "seeds": order.seeds,
        "interval": "Wilson, 95 %, with the prompts as trials",
        "rows": ROWS,
        "sets": found,
    }
    write_text(folder / "report.json", json.dumps(report, indent=2) + "\n")
    write_text(folder / "report.md", markdown(report))


def _model(pipe: Pipeline) -> dict[str, Any]:
    """All that decides what the model makes of a prompt and a seed."""
    return {
        "name": pipe.spec.name,
        "source": pipe.model.source,
        "fingerprint": pipe.model.fingerprint,
        "dtype": str(pipe.place.dtype).removeprefix("torch."),
        "lora": [list(adapter) for adapter in pipe.adapters],
        "cogvideox": cogvideox.__version__,
    }


def _video(pipe: Pipeline, case: Case, seed: int, folder: Path) -> Frames:
    """The video of a prompt and a seed, always as its file shows it."""
    path = folder / f"{_slug(case.of)}-{case.number:02d}-{seed}.mp4"
    if not path.exists():
        pipe(case.prompt, frames=case.frames, seed=seed, watch=Watch()).save(path)
    return read_video(path).frames


def _slug(name: str) -> str:
    return name.replace(" ", "-")


def _sheet_name(name: str) -> str:
    return f"{_slug(name)}.jpg"


def judged(
    read: Callable[[Frames], Reader], asked: Sequence[Case], videos: Sequence[Sequence[Frames]]
) -> HITS:
    """Scores of each row: those of `videos`, by prompt and seed, and of the references."""
    scores = SETS[asked[0].of].scores
    hits: HITS = {name: {s: [[] for _ in asked] for s in scores} for name in ROWS}
    others = shuffled(asked)
    for index, (case, other, seeds) in enumerate(zip(asked, others, videos, strict=True)):
        height, width = seeds[0].shape[1:3]
        true = read(case.clip.render(case.frames, FPS, height, width))
        looks = [("renders", case, true)]
        for frames in seeds:
            seen, still = read(frames), read(np.repeat(frames[:1], len(frames), axis=0))
            looks += [("model", case, seen), ("shuffled", other, seen), ("still", case, still)]
        for name, by, seen in looks:
            for s in scores:
                hits[name][s][index].append(score(s, by, seen))
    return hits


def shuffled(asked: Sequence[Case]) -> list[Case]:
    """For each prompt another one of the set (itself where there is no other), always the same."""
    around = generator(0, "shuffled", len(asked)).permutation(len(asked)).tolist()
    following = dict(zip(around, around[1:] + around[:1], strict=True))
    return [asked[following[index]] for index in range(len(asked))]


def _sheet(
    asked: Sequence[Case], videos: Sequence[Frames], hits: dict[str, list[list[bool]]], to: Path
) -> None:
    """The first video of each prompt, and what is right about it."""
    rows = []
    for case, frames in zip(asked, videos, strict=True):
        marks = ", ".join(f"{name} {'+' if by[case.number][0] else '-'}" for name, by in hits.items())
        rows.append(row(f"{case.number}. {case.prompt}\n{marks}", (frames, SHEET_FRAMES)))
    write_sheet(rows, to)


def markdown(report: dict[str, Any]) -> str:
    """The report as tables, one a set."""
    model, judge = report["model"], report["judge"]
    right = ", ".join(f"{name} {share:.3f}" for name, share in judge.items())
    lines = [
        f"# {model['name']} on Storybook",
        "",
        f"`cogvideox evaluate storybook --model {model['source']}`: {report['prompts']} prompts a set, "
        f"{report['seeds']} seeds each. Shares of videos that are right; in brackets {report['interval']}.",
        "",
        f"The judge is right about these shares of held-out renders: {right}.",
        "",
        *(f"- {name}: {what}" for name, what in report["rows"].items()),
    ]
    for name, found in report["sets"].items():
        scores = list(found["rows"]["model"])
        lines += ["", f"## {name} ({found['frames']} frames)", "", f"[Sheet]({_sheet_name(name)})", ""]
        lines.append(f"| | {' | '.join(scores)} |")
        lines.append("|---" * (len(scores) + 1) + "|")
        for line, by in found["rows"].items():
            cells = [f"{s['mean']:.2f} ({s['low']:.2f} to {s['high']:.2f})" for s in map(by.get, scores)]
            lines.append(f"| {line} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
