"""The judge's eye: scene and style of a picture, who is where in it, and how parts of a clip moved.

Shape legend: N pictures, C channels, H W pixels or cells, K characters and the background, D width of the
cells, A answers; of clips B, T frames, G parts along each side, S shifts.
"""

from __future__ import annotations

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
REACH = 4
"""Pixels of a picture of half the judge's size by which a place can be seen to move from frame to frame."""
SHARP = 20.0
"""How much better the best match must be to count alone."""


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
        assert self.name.bias is not None
        with torch.no_grad():
            self.name.bias[-1] = 5.0  # at first nobody is seen anywhere
        self.box = nn.Conv2d(spec.width, 4, 1)
        self.about = nn.Linear(c16, sum(spec.pictures.values()))

    def forward(self, x_NCHW: Tensor) -> Sight:
        x8 = self.blocks8(self.stem(x_NCHW))
        x16 = self.blocks16(x8)
        wide = F.interpolate(self.coarse(x16), scale_factor=2, mode="nearest")
        cells, mean = F.relu(group_norm(self.fine(x8) + wide, self.norm)), x16.mean((2, 3))
        return Sight(x8, mean, cells, self.name(cells), self.box(cells), self.about(mean))


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
