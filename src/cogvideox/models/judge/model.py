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

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cogvideox.models.judge.eye import GRID, Eye, JudgeSpec, flow
from cogvideox.models.judge.timeline import CALM, MOMENT, Gist, Questions, Time, most

SUSPECTS = 6
"""Characters of a clip whose being there is judged by their tracks: those of whom there are most."""


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
        who_BN = most(number_BTK.mT).topk(min(SUSPECTS, number_BTK.shape[-1]), dim=1).indices
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
