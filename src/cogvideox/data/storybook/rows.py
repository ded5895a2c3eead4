"""Storybook as rows of a manifest: no file holds its clips, an address says which one is meant.

An address is `storybook:VERSION/SEED/SPLIT/LEVEL/INDEX`, with `/closeup` behind it for a picture of the first
character alone. Drawing is a function of the address and the row's size, rate and length.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cogvideox.core.errors import InputError
from cogvideox.core.shapes import FRAMES_PER_LATENT, PIXELS_PER_LATENT, latent_frames
from cogvideox.data.manifest import Row
from cogvideox.data.storybook.clip import Clip
from cogvideox.data.storybook.export import LICENCE
from cogvideox.data.storybook.world import VERSION, World
from cogvideox.data.video import Frames

SCHEME = "storybook:"
VARIANTS = 4
"""Captions of each kind."""
Boxes = list[list[list[float] | None]]
"""boxes[actor][frame] as in `Clip.truth`."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """Clips of one shape."""

    frames: int
    height: int
    width: int
    clips: int
    """How many, from index 0 on."""
    level: str = "full"
    """Level of `World`."""
    split: str = "train"
    """Split of `World`."""
    fps: float = 8.0
    closeup: bool = False
    """Show the middle of the first character, out of a picture twice as high and wide. A transformer learns
    from them what characters look like, before it knows where in a picture they are.
    """

    def __post_init__(self) -> None:
        if self.closeup and self.frames != 1:
            raise InputError(f"a close-up is a picture, of 1 frame and not {self.frames}")

    @property
    def name(self) -> str:
        """The label of its rows."""
        return f"{self.level}-{self.frames}f-{self.width}x{self.height}" + "-closeup" * self.closeup


@dataclass(frozen=True)
class Address:
    """Which clip."""

    seed: int
    split: str
    level: str
    index: int
    closeup: bool = False

    def __str__(self) -> str:
        where = f"{SCHEME}{VERSION}/{self.seed}/{self.split}/{self.level}/{self.index}"
        return where + "/closeup" * self.closeup

    @classmethod
    def of(cls, source: str) -> Address:
        """Read an address. InputError for one that this version of Storybook cannot draw."""
        version, *parts = source.removeprefix(SCHEME).split("/")
        if version != VERSION:
            raise InputError(f"{source} is of Storybook version {version}, this one is {VERSION}")
        try:
            seed, split, level, index, *rest = parts
            if rest not in ([], ["closeup"]):
                raise ValueError
            return cls(int(seed), split, level, int(index), bool(rest))
        except ValueError:
            raise InputError(f"{source} is not storybook:VERSION/SEED/SPLIT/LEVEL/INDEX[/closeup]") from None

    def clip(self, duration: float) -> Clip:
        """The clip, its action laid out over so many seconds."""
        return World(self.seed, self.split, self.level).clip(self.index, duration)


def rows(part: Part, seed: int) -> Iterator[Row]:
    """The rows of a part: captions "short" and "dense", its name as the label."""
    for index in range(part.clips):
        address = Address(seed, part.split, part.level, index, part.closeup)
        clip = address.clip((part.frames - 1) / part.fps)
        yield Row(
            id=f"{part.name}/{part.split}/{index}",
            source=str(address),
            frames=part.frames,
            height=part.height,
            width=part.width,
            fps=part.fps if part.frames > 1 else None,
            captions={
                "short": tuple(clip.short_caption(variant) for variant in range(VARIANTS)),
                "dense": tuple(clip.dense_caption(variant) for variant in range(VARIANTS)),
            },
            labels=(part.name,),
            licence=LICENCE,
            lineage={"world": VERSION},
        )


@dataclass(frozen=True)
class Picture:
    """A clip of Storybook as a training sample shows it."""

    address: Address
    duration: float
    """Seconds over which the action is laid out; what is shown may end before."""
    frames: int
    fps: float
    height: int
    width: int

    @property
    def drawn(self) -> tuple[int, int]:
        """Height and width in which the whole clip is drawn."""
        zoom = 1 + self.address.closeup
        return self.height * zoom, self.width * zoom

    def pixels(self) -> Frames:
        """(T, H, W, 3)"""
        clip, (height, width) = self.address.clip(self.duration), self.drawn
        top, left = self._corner(self._boxes(clip))
        whole = clip.render(frames=self.frames, fps=self.fps, height=height, width=width)
        return whole[:, top : top + self.height, left : left + self.width]

    def subject(self) -> NDArray[np.bool_]:
        """(T, H, W) on the latent grid: where a character is, in any of a latent's frames."""
        boxes = self._boxes(self.address.clip(self.duration))
        (height, width), (top, left) = self.drawn, self._corner(boxes)
        grid = latent_frames(self.frames), self.height // PIXELS_PER_LATENT, self.width // PIXELS_PER_LATENT
        mask = np.zeros(grid, dtype=np.bool_)
        for frame, (x0, y0, x1, y1) in ((n, box) for actor in boxes for n, box in enumerate(actor) if box):
            rows = _cells(y0 * height - top, y1 * height - top)
            columns = _cells(x0 * width - left, x1 * width - left)
            mask[-(-frame // FRAMES_PER_LATENT), rows, columns] = True
        return mask

    def _boxes(self, clip: Clip) -> Boxes:
        boxes: Boxes = clip.truth(self.frames, self.fps, *self.drawn)["boxes"]
        return boxes

    def _corner(self, boxes: Boxes) -> tuple[int, int]:
        """Top and left of what is shown of the drawn clip, in pixels: the first character is in the middle,
        as far as the edges allow.
        """
        (height, width), (x0, y0, x1, y1) = self.drawn, boxes[0][0] or (0.0, 0.0, 1.0, 1.0)
        top = round((y0 + y1) / 2 * height - self.height / 2)
        left = round((x0 + x1) / 2 * width - self.width / 2)
        return min(max(top, 0), height - self.height), min(max(left, 0), width - self.width)


def _cells(start: float, stop: float) -> slice:
    """Latents that pixels from `start` to `stop` touch, of those inside the picture."""
    unit = PIXELS_PER_LATENT
    return slice(max(0, math.floor(start / unit)), max(0, math.ceil(stop / unit)))
