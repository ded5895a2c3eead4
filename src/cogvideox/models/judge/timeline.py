"""What the judge reads from a series of frames: who was there, what happened, what each one did.

Shape legend: B clips, T frames, K characters and the background, A answers, G of the frames' features, D of
a token; Q questions, M width over time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cogvideox.models.judge.eye import GRID, JudgeSpec

MOMENT = 3
"""Frames in which a character must be seen to have been there."""
CALM = 0.1
"""Features are scaled by this, so that what they say does not drown places and movements."""
CHANGE = 8.0
"""Changes from frame to frame are small; they are scaled by this."""
TRACK = 6
"""Numbers of a track: x, y, log width, log height, log area, and 1."""


class OverTime(nn.Module):
    """From a series of tokens of any length, with their times, to the logits of some questions."""

    def __init__(self, inner: int, width: int, outer: int, layers: int = 2, heads: int = 4) -> None:
        super().__init__()
        self.enter = nn.Linear(2 * inner, width)
        self.near = nn.Conv1d(width, width, 3, padding=1)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, heads, 2 * width, dropout=0.0, batch_first=True, norm_first=True
            )
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width)
        self.leave = nn.Linear(2 * width, outer)

    def forward(self, x_QTD: Tensor, real_QT: Tensor) -> Tensor:
        """`real_QT` is False where a series has ended."""
        here_QT1 = real_QT[..., None].to(x_QTD.dtype)
        change_QTD = CHANGE * x_QTD.diff(dim=1, prepend=x_QTD[:, :1])
        x_QTM = self.enter(torch.cat([x_QTD, change_QTD], dim=-1))
        x_QTM = x_QTM + times(real_QT, x_QTM.shape[-1]).to(x_QTM.dtype)
        x_QTM = x_QTM * here_QT1
        x_QTM = x_QTM + self.near(x_QTM.mT).mT * here_QT1
        for layer in self.layers:
            x_QTM = layer(x_QTM, src_key_padding_mask=~real_QT)
        x_QTM = self.norm(x_QTM)
        mean_QM = (x_QTM * here_QT1).sum(1) / here_QT1.sum(1)
        most_QM = x_QTM.masked_fill(~real_QT[..., None], -1e4).amax(1)
        return self.leave(torch.cat([mean_QM, most_QM], dim=1)).float()


def times(real_QT: Tensor, width: int) -> Tensor:
    """Sines and cosines (Q, T, width) of the frame's number, and of its share of the series."""
    at_T = torch.arange(real_QT.shape[1], device=real_QT.device).float()
    share_QT = at_T / (real_QT.sum(1, keepdim=True) - 1).clamp(min=1)
    quarter = width // 4
    power = torch.arange(quarter, device=real_QT.device) / quarter
    frames_QTM = at_T.expand_as(share_QT)[..., None] * math.pi * 0.5 ** (6 * power)
    shares_QTM = share_QT[..., None] * math.pi * 0.5 * 2 ** (4 * power)
    return torch.cat([f(x) for x in (frames_QTM, shares_QTM) for f in (torch.sin, torch.cos)], dim=-1)


@dataclass(frozen=True)
class Gist:
    """What is kept of looks at clips of the same shape for what is asked over time."""

    frames_BTG: Tensor
    """Features of whole frames: their mean at stride 16, those of the parts at stride 8, how many are there,
    how the parts moved."""
    number_BTK: Tensor
    """How many there are of each character: what its cells show of it, over what one of that size takes."""
    about_BTA: Tensor
    """Logits of the answers about pictures, one question after the other."""


@dataclass(frozen=True)
class Questions:
    """What is asked about characters, one row each."""

    clip_Q: Tensor
    who_Q: Tensor
    other_Q: Tensor
    """-1 for nobody."""
    first_Q: Tensor
    last_Q: Tensor
    """Frames `first` to `last`, that one not included."""

    def numbers(self, end: int) -> tuple[Tensor, Tensor]:
        """Numbers (Q, T) of the frames asked about, below `end`; False where a question has fewer."""
        length = int((self.last_Q - self.first_Q).max())
        at_QT = self.first_Q[:, None] + torch.arange(length, device=self.first_Q.device)
        return at_QT.clamp(max=end - 1), at_QT < self.last_Q[:, None]


class Time(nn.Module):
    """What reads from a series of looks: who was there, what happened, what each one did."""

    def __init__(self, spec: JudgeSpec) -> None:
        super().__init__()
        _, _, c8, c16 = spec.channels
        self.spec = spec
        self.parts = nn.Conv2d(c8, 16, 1)
        self.presence = nn.Parameter(torch.tensor([2.0, 0.5, 1.0, 0.5, 2.0]))  # slopes, and the offset
        frame = c16 + 16 * GRID**2 + 1 + 2 * GRID**2
        self.scenes = OverTime(frame, spec.time_width, sum(spec.clips.values()))
        self.tracks = OverTime(
            2 * TRACK + spec.width + frame,
            spec.time_width,
            spec.answers["motion"] + spec.answers["relation"] + 1,
        )
        with torch.no_grad():
            self.tracks.leave.weight[-1:] = self.tracks.leave.bias[-1:] = 0.0  # at first numbers decide alone

    def read(self, gist: Gist) -> Tensor:
        """What is read of each frame, (B, T, features)."""
        _, _, c8, c16 = self.spec.channels
        sizes = [c16, c8 * GRID**2, 1 + 2 * GRID**2]
        mean, parts, rest = gist.frames_BTG.to(self.parts.weight.dtype).split(sizes, dim=-1)
        parts_NCHW = self.parts(parts.flatten(0, 1).unflatten(1, (-1, GRID, GRID)))
        return torch.cat([CALM * mean, CALM * parts_NCHW.flatten(1).view(*mean.shape[:2], -1), rest], dim=-1)

    def counted(self, gist: Gist, first: int = 0, last: int | None = None) -> Tensor:
        """Logits (B, K - 1) of each character being there at some time of frames `first` to `last`: by how
        many of it there are at most in `MOMENT` frames and on average, and how many to the most of any in
        the whole clip, for who is there is often taken for somebody else too.
        """
        number_BKT = gist.number_BTK.float().mT
        logs_BK2, whole_BK2 = _logs(number_BKT[..., first:last]), _logs(number_BKT)
        slopes, offset = self.presence.float().split([4, 1])
        return torch.cat([logs_BK2, logs_BK2 - whole_BK2.amax(1, keepdim=True)], dim=-1) @ slopes + offset

    def present(
        self, gist: Gist, asked: Questions, tracks_QTD: Tensor, first: int = 0, last: int | None = None
    ) -> Tensor:
        """The same, corrected by the tracks of those who are `asked` about in these frames."""
        there_Q = self.follow(gist, asked, tracks_QTD)[2]
        counted_BK = self.counted(gist, first, last)
        return counted_BK.index_put((asked.clip_Q, asked.who_Q), there_Q, accumulate=True)

    def whole(self, gist: Gist) -> dict[str, Tensor]:
        """Logits (B, classes) of each question about pictures, a mean over them, and about whole clips."""
        real_BT = torch.ones(gist.frames_BTG.shape[:2], dtype=torch.bool, device=gist.frames_BTG.device)
        about_BA = gist.about_BTA.float().mean(1)
        logits_BA = torch.cat([about_BA, self.scenes(self.read(gist), real_BT)], dim=1)
        classes = self.spec.pictures | self.spec.clips
        return dict(zip(classes, logits_BA.split(list(classes.values()), dim=1), strict=True))

    def follow(self, gist: Gist, asked: Questions, tracks_QTD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits (Q, actions) of what each one does, (Q, relations) of its relation to the other, and what to
        add to that of its being there (Q,)."""
        frames_BTG = self.read(gist)
        at_QT, real_QT = asked.numbers(frames_BTG.shape[1])
        frames_QTG = frames_BTG[asked.clip_Q[:, None], at_QT]
        logits = self.tracks(torch.cat([tracks_QTD.to(frames_QTG), frames_QTG], dim=-1), real_QT)
        sizes = [self.spec.answers["motion"], self.spec.answers["relation"], 1]
        motion, relation, there = logits.split(sizes, dim=1)
        return motion, relation, there[:, 0]


def _logs(number_BKT: Tensor) -> Tensor:
    """Of how many there are of each at most and on average, (B, K, 2)."""
    return (torch.stack([most(number_BKT), number_BKT.mean(-1)], dim=-1) + 1e-3).log()


def most(number_BKT: Tensor) -> Tensor:
    """How many there are of each at most in `MOMENT` frames, (B, K)."""
    return F.avg_pool1d(number_BKT, min(MOMENT, number_BKT.shape[-1]), stride=1).amax(-1)
