"""The trained judge, asked in words. Shape legend: T frames, H W pixels."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from cogvideox.core.device import pick_dtype
from cogvideox.core.errors import InputError
from cogvideox.data.storybook.labels import SHORTEST, vocabulary
from cogvideox.data.video import Frames
from cogvideox.models.judge.eye import fit
from cogvideox.models.judge.model import JudgeNet, Look
from cogvideox.models.judge.timeline import Questions
from cogvideox.training.judge import SHIPPED, read_judge, settled

FPS = 8
"""Frames per second of all that the judge sees."""
CPU = torch.device("cpu")
NEEDED = 0.95
"""Share of right answers about real renders below which nothing is judged."""
KEY_ANSWERS = ("characters", "scene", "motion")


@dataclass(frozen=True)
class Judge:
    """A judge that has shown what it can."""

    net: JudgeNet
    ceiling: dict[str, float]
    """Shares of right answers about real renders, by kind."""

    @classmethod
    def load(cls, folder: Path = SHIPPED) -> Judge:
        """Read what `cogvideox train recipes/mini/judge.yaml` wrote. CheckpointError when it is damaged or of
        another world, InputError when it is not good enough to judge by.
        """
        net, ceiling = read_judge(folder)
        for name in KEY_ANSWERS:
            if not ceiling[name] >= NEEDED:
                raise InputError(
                    f"the judge in {folder} is right about only {ceiling[name]:.3f} of {name} in true "
                    f"renders, {NEEDED} are needed: train it longer (recipes/mini/judge.yaml)"
                )
        return cls(net.arrange(CPU, pick_dtype(None, CPU)).eval(), ceiling)

    @torch.no_grad()
    def read(self, video_THWC: Frames) -> Reading:
        """Look at 1 frame or more, uint8 at 8 per second, of any size."""
        return Reading(self.net, self.net(fit(video_THWC, self.net.spec)[None]), len(video_THWC))


@dataclass(frozen=True)
class Reading:
    """What the judge sees in one video."""

    net: JudgeNet
    look: Look
    frames: int

    @torch.no_grad()
    def characters(self, first: int = 0, last: int | None = None) -> frozenset[str]:
        """All that are there at some time from frame `first` to `last`, that one not included."""
        last = self.frames if last is None else last
        logits_1K = self.net.present(self.look, first, last)
        if last - first == self.frames >= SHORTEST:
            logits_1K = settled(logits_1K, self._whole)
        pairs = zip(vocabulary()["character"], logits_1K[0].tolist(), strict=True)
        return frozenset(word for word, logit in pairs if logit > 0)

    @cached_property
    @torch.no_grad()
    def _whole(self) -> dict[str, Tensor]:
        return self.net.whole(self.look)

    def about(self, question: str) -> str:
        """The answer to "scene", "style", "camera" or "count"."""
        return vocabulary()[question][int(self._whole[question][0].argmax())]

    def events(self) -> frozenset[str]:
        pairs = zip(vocabulary()["event"], self._whole["event"][0].tolist(), strict=True)
        return frozenset(word for word, logit in pairs if logit > 0)

    def motion(self, who: str, other: str | None = None, first: int = 0, last: int | None = None) -> str:
        """What a character does from frame `first` to `last`; `other` is somebody else in the picture."""
        return vocabulary()["motion"][int(self._ask(who, other, first, last)[0].argmax())]

    def relation(self, who: str, other: str | None) -> str:
        """How a character relates to the other; None where all are of one kind."""
        return vocabulary()["relation"][int(self._ask(who, other, 0, None)[1].argmax())]

    @torch.no_grad()
    def _ask(self, who: str, other: str | None, first: int, last: int | None) -> tuple[Tensor, Tensor]:
        names = vocabulary()["character"]
        row = (0, names.index(who), names.index(other) if other else -1, first, last or self.frames)
        return self.net.motion(self.look, Questions(*torch.tensor([row]).unbind(1)))
