"""A judge of Storybook videos: who is where in each frame, what each one does, and what happens around it.

Its eye, a convolutional network, looks at every frame by itself: scene and style, and for each cell of a
grid the character that it shows and the box around it, so that every class gives a track of places, sizes
and features. Small attention over time reads the motion of one character, and whether it is there at all,
from its track and the other's, and camera, events and count from all frames. Nothing that is asked over time
changes what the eye sees, so that the eye can learn from stills, and the rest from a gist of clips that is
small enough to keep, much cheaper.

Shape legend: B clips, T frames, C channels, H W pixels or cells, P = H * W cells, K characters and the
background, D width of the cells, G of the frames' features, Q questions, M width over time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from cogvideox.models.vae.layers import group_norm

STRIDE = 8
"""Pixels of a cell."""
GRID = 3
"""Parts of a frame along each side whose features are kept apart: a zoom moves them in different ways."""
MOMENT = 3
"""Frames in which a character must be seen to have been there."""
SUSPECTS = 6
"""Characters of a clip whose being there is judged by their tracks: those of whom there are most."""
REACH = 4
"""Pixels of a picture of half the judge's size by which a place can be seen to move from frame to frame."""
SHARP = 20.0
"""How much better the best match must be to count alone."""
CALM = 0.1
"""Features are scaled by this, so that what they say does not drown places and movements."""
CHANGE = 8.0
"""Changes from frame to frame are small; they are scaled by this."""
TRACK = 6
"""Numbers of a track: x, y, log width, log height, log area, and 1."""


@dataclass(frozen=True, kw_only=True)
class JudgeSpec:
    """Sizes of the judge."""

    answers: dict[str, int]
    """Classes of each question: "character", "motion", "relation", those about pictures and about clips."""
    side: int = 96
    """Short side in pixels to which all videos are brought."""
    channels: tuple[int, int, int, int] = (32, 64, 96, 152)
    """Widths of the eye at strides 2, 4, 8 and 16."""
    blocks: int = 2
    """Residual blocks at strides 8 and 16 each."""
    width: int = 128
    """Of the features of a cell."""
    time_width: int = 96
    """Of the attention over time."""

    @property
    def pictures(self) -> dict[str, int]:
        """Questions about each frame by itself and their classes."""
        return {name: self.answers[name] for name in ("scene", "style")}

    @property
    def clips(self) -> dict[str, int]:
        """Questions about the whole clip and their classes."""
        return {name: self.answers[name] for name in ("camera", "event", "count")}

    def fit(self, height: int, width: int) -> tuple[int, int]:
        """The size to which pictures are brought: the short side is `side`, the long one divides by 16."""
        unit = self.side / min(height, width)
        return 16 * int(height * unit / 16 + 0.5), 16 * int(width * unit / 16 + 0.5)


def fit(video_THWC: NDArray[np.uint8], spec: JudgeSpec) -> Tensor:
    """uint8 frames of any size as float32 (T, C, H, W) in [-1, 1] of the judge's size."""
    x_TCHW = torch.tensor(video_THWC).permute(0, 3, 1, 2).float()
    size = spec.fit(*x_TCHW.shape[2:])
    if size != tuple(x_TCHW.shape[2:]):
        x_TCHW = F.interpolate(x_TCHW, size=size, mode="bilinear", antialias=True, align_corners=False)
    return (x_TCHW / 127.5 - 1).clamp(-1, 1)


class Layer(nn.Module):
    """Convolution, norm, ReLU."""

    def __init__(self, inner: int, outer: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inner, outer, 3, stride, 1, bias=False)
        self.norm = nn.GroupNorm(8, outer)

    def forward(self, x_NCHW: Tensor, skip: Tensor | None = None) -> Tensor:
        """`skip` is added before the ReLU."""
        y_NCHW = group_norm(self.conv(x_NCHW), self.norm)
        return F.relu(y_NCHW if skip is None else y_NCHW + skip)


class Block(nn.Module):
    """Two layers around which the input goes too."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.one, self.two = Layer(channels, channels), Layer(channels, channels)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return self.two(self.one(x_NCHW), skip=x_NCHW)


@dataclass(frozen=True)
class Sight:
    """What the eye makes of N pictures."""

    x8_NCHW: Tensor
    """Features at stride 8."""
    x16_NC: Tensor
    """And at 16, their mean."""
    cells_NDHW: Tensor
    logits_NKHW: Tensor
    boxes_N4HW: Tensor
    about_NA: Tensor
    """Logits of the answers about pictures, one question after the other."""


class Eye(nn.Module):
    """Scene and style of a picture, and who is where in it."""

    def __init__(self, spec: JudgeSpec) -> None:
        super().__init__()
        c2, c4, c8, c16 = spec.channels
        self.stem = nn.Sequential(Layer(3, c2, 2), Layer(c2, c4, 2), Layer(c4, c8, 2))
        self.blocks8 = nn.Sequential(*(Block(c8) for _ in range(spec.blocks)))
        self.blocks16 = nn.Sequential(Layer(c8, c16, 2), *(Block(c16) for _ in range(spec.blocks)))
        self.fine, self.coarse = nn.Conv2d(c8, spec.width, 1), nn.Conv2d(c16, spec.width, 1)
        self.norm = nn.GroupNorm(8, spec.width)
        self.name = nn.Conv2d(spec.width, spec.answers["character"] + 1, 1)
        with torch.no_grad():
            self.name.bias[-1] = 5.0  # type: ignore[index]  # at first nobody is seen anywhere
        self.box = nn.Conv2d(spec.width, 4, 1)
        self.about = nn.Linear(c16, sum(spec.pictures.values()))

    def forward(self, x_NCHW: Tensor) -> Sight:
        x8 = self.blocks8(self.stem(x_NCHW))
        x16 = self.blocks16(x8)
        wide = F.interpolate(self.coarse(x16), scale_factor=2, mode="nearest")
        cells, mean = F.relu(group_norm(self.fine(x8) + wide, self.norm)), x16.mean((2, 3))
        return Sight(x8, mean, cells, self.name(cells), self.box(cells), self.about(mean))


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
class Look:
    """All that is seen in some clips of the same shape."""

    logits_BTPK: Tensor
    """Of the character in each cell, the background last; float32."""
    boxes_BTP4: Tensor
    """Around it: middle x, y from that of the cell, log width, log height, in short sides."""
    cells_BTPD: Tensor
    grid_P2: Tensor
    """Middles x, y of the cells from that of the picture, in short sides."""
    gist: Gist


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


class JudgeNet(nn.Module):
    """The network; `forward` looks, `present`, `whole` and `motion` answer from what was seen."""

    def __init__(self, spec: JudgeSpec) -> None:
        super().__init__()
        self.spec = spec
        self.eye, self.time = Eye(spec), Time(spec)

    def arrange(self, device: torch.device, dtype: torch.dtype) -> JudgeNet:
        """The weights on a device, in a precision and in the layout that convolutions are fast with."""
        for parameter in self.to(device, dtype).parameters():
            if parameter.ndim == 4:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
        return self

    def forward(self, video_BTCHW: Tensor) -> Look:
        """Look at clips in [-1, 1] of a size of `spec.fit`."""
        batch, frames = video_BTCHW.shape[:2]
        dtype = self.eye.name.weight.dtype
        seen = self.eye(video_BTCHW.flatten(0, 1).to(dtype, memory_format=torch.channels_last))

        def per_frame(maps_N: Tensor) -> Tensor:
            return maps_N.unflatten(0, (batch, frames))

        def per_cell(maps_NCHW: Tensor) -> Tensor:
            return per_frame(maps_NCHW.flatten(2).mT)

        logits_BTPK = per_cell(seen.logits_NKHW).float()
        boxes_BTP4 = per_cell(seen.boxes_N4HW).float()
        rows, columns = seen.x8_NCHW.shape[2:]
        taken_BTP = (2 * 0.3 * min(rows, columns)) ** 2 * boxes_BTP4[..., 2:].detach().sum(-1).clamp(
            -6, 1
        ).exp()
        number_BTK = (logits_BTPK.softmax(-1)[..., :-1] / taken_BTP.clamp(min=1)[..., None]).sum(2)
        number_BT1 = number_BTK.detach().sum(-1, keepdim=True)
        parts = F.adaptive_avg_pool2d(seen.x8_NCHW, GRID).flatten(1)
        rest = [part.to(dtype) for part in (number_BT1, flow(video_BTCHW))]
        frames_BTG = torch.cat([per_frame(seen.x16_NC), per_frame(parts), *rest], dim=-1)
        gist = Gist(frames_BTG, number_BTK, per_frame(seen.about_NA).float())
        grid_P2 = _grid(rows, columns).to(logits_BTPK.device)
        return Look(logits_BTPK, boxes_BTP4, per_cell(seen.cells_NDHW), grid_P2, gist)

    @torch.no_grad()
    def tracks(self, look: Look, asked: Questions) -> Tensor:
        """Track and features over time of each one asked about, and the track of the other, (Q, T, D). No
        gradients: the cells have their own labels."""
        at_QT, _ = asked.numbers(look.cells_BTPD.shape[1])
        clip_Q1, shares_BTPK = asked.clip_Q[:, None], look.logits_BTPK.softmax(-1)
        own_QT6, weights_QTP = _track(look, shares_BTPK, clip_Q1, at_QT, asked.who_Q)
        other_QT6, _ = _track(look, shares_BTPK, clip_Q1, at_QT, asked.other_Q.clamp(min=0))
        other_QT6 = other_QT6 * (asked.other_Q >= 0)[:, None, None]
        cells_QTPD = look.cells_BTPD[clip_Q1, at_QT]
        features_QTD = (weights_QTP[:, :, None].to(cells_QTPD) @ cells_QTPD)[:, :, 0]
        return torch.cat([own_QT6.to(features_QTD), other_QT6.to(features_QTD), CALM * features_QTD], dim=-1)

    def suspects(self, gist: Gist, first: int = 0, last: int | None = None) -> Questions:
        """Those of whom there are most, of each clip, in frames `first` to `last`; the other of each is the
        most likely one beside it."""
        number_BTK = gist.number_BTK[:, first:last]
        who_BN = _most(number_BTK.mT).topk(min(SUSPECTS, number_BTK.shape[-1]), dim=1).indices
        clip_BN = torch.arange(len(who_BN), device=who_BN.device)[:, None].expand_as(who_BN)
        other_BN = torch.cat([who_BN[:, 1:2], who_BN[:, :1].expand_as(who_BN[:, 1:])], dim=1)
        first_BN, last_BN = (torch.full_like(who_BN, n) for n in (first, first + number_BTK.shape[1]))
        return Questions(*(x.flatten() for x in (clip_BN, who_BN, other_BN, first_BN, last_BN)))

    def present(self, look: Look, first: int = 0, last: int | None = None) -> Tensor:
        """Logits (B, K - 1) of each character being there at some time of frames `first` to `last`; fewer
        than `MOMENT` of them make no track.
        """
        if look.gist.number_BTK[:, first:last].shape[1] < MOMENT:
            return self.time.counted(look.gist, first, last)
        asked = self.suspects(look.gist, first, last)
        return self.time.present(look.gist, asked, self.tracks(look, asked), first, last)

    def whole(self, look: Look) -> dict[str, Tensor]:
        """Logits (B, classes) of each question about pictures, a mean over them, and about whole clips."""
        return self.time.whole(look.gist)

    def motion(self, look: Look, asked: Questions) -> tuple[Tensor, Tensor]:
        """Logits (Q, actions) of what each one does, and (Q, relations) of its relation to the other."""
        return self.time.follow(look.gist, asked, self.tracks(look, asked))[:2]


def _logs(number_BKT: Tensor) -> Tensor:
    """Of how many there are of each at most and on average, (B, K, 2)."""
    return (torch.stack([_most(number_BKT), number_BKT.mean(-1)], dim=-1) + 1e-3).log()


def _most(number_BKT: Tensor) -> Tensor:
    """How many there are of each at most in `MOMENT` frames, (B, K)."""
    return F.avg_pool1d(number_BKT, min(MOMENT, number_BKT.shape[-1]), stride=1).amax(-1)


def flow(video_BTCHW: Tensor) -> Tensor:
    """How far (x, y) each of GRID x GRID parts moved since the frame before, (B, T, 2 * GRID**2) in pixels
    of half size: the mean of all shifts up to REACH, weighted by how well the frames match when shifted.
    """
    small_BTHW = F.avg_pool2d(video_BTCHW.float().mean(2), 2)
    before_BTHW = torch.cat([small_BTHW[:, :1], small_BTHW[:, :-1]], dim=1)
    before_BTHW = F.pad(before_BTHW, (REACH,) * 4, mode="replicate")
    height, width = small_BTHW.shape[2:]
    reach = range(-REACH, REACH + 1)
    shifts, errors = [(x, y) for y in reach for x in reach], []
    for x, y in shifts:
        top, left = REACH - y, REACH - x
        moved = before_BTHW[:, :, top : top + height, left : left + width]
        errors.append(F.adaptive_avg_pool2d((small_BTHW - moved).abs(), GRID))
    error_BTGGS = torch.stack(errors, dim=-1)
    share_BTGGS = (-SHARP * error_BTGGS / (error_BTGGS.mean(-1, keepdim=True) + 1e-3)).softmax(-1)
    return (share_BTGGS @ torch.tensor(shifts).to(share_BTGGS)).flatten(2)


def _grid(rows: int, columns: int) -> Tensor:
    unit = min(rows, columns)
    y, x = ((torch.arange(n) + 0.5 - n / 2) / unit for n in (rows, columns))
    return torch.stack([x.repeat(rows), y.repeat_interleave(columns)], dim=1)


def _track(
    look: Look, shares_BTPK: Tensor, clip_Q1: Tensor, at_QT: Tensor, who_Q: Tensor
) -> tuple[Tensor, Tensor]:
    """Track (Q, T, 6) of each one asked for, and how much each cell (Q, T, P) shows of it."""
    cells = torch.arange(shares_BTPK.shape[2], device=who_Q.device)
    share_QTP = shares_BTPK[clip_Q1[..., None], at_QT[..., None], cells, who_Q[:, None, None]]
    area_QT1 = share_QTP.sum(-1, keepdim=True)
    weights_QTP = (share_QTP + 1e-6) / (share_QTP + 1e-6).sum(-1, keepdim=True)
    boxes_QTP4 = look.boxes_BTP4[clip_Q1, at_QT]
    middles_QTP2 = boxes_QTP4[..., :2] + look.grid_P2
    place_QT4 = weights_QTP[:, :, None] @ torch.cat([4 * middles_QTP2, boxes_QTP4[..., 2:]], dim=-1)
    parts = [place_QT4[:, :, 0], (area_QT1 + 1e-2).log(), torch.ones_like(area_QT1)]
    return torch.cat(parts, dim=-1), weights_QTP
