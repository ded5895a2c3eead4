"""The background of a clip at one picture size: painted once, then moved with the camera frame by frame."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cogvideox.core.rng import generator
from cogvideox.data.storybook.ambient import Effect
from cogvideox.data.storybook.motion import View
from cogvideox.data.storybook.paint import Canvas, Layer
from cogvideox.data.storybook.scenes import scene
from cogvideox.data.storybook.state import Camera, Setting

Frame = NDArray[np.uint8]

LARGE = 800
"""Short side in pixels from which the canvas is no larger than the picture."""


def blend(under: Frame, over: NDArray[np.uint8]) -> None:
    """Put premultiplied pixels (h, w, 4) onto a frame (h, w, 3) in place."""
    alpha = over[..., 3].astype(np.uint16)
    keep = (256 - alpha - (alpha >> 7))[..., None]
    total = ((under * keep) >> 8) + over[..., :3]
    np.minimum(total, 255, out=total)
    under[...] = total


def paint(setting: Setting, height: int, width: int, camera: Camera) -> Canvas:
    """Paint the scene for a picture of `height` x `width` pixels, with the margins that the camera needs."""
    unit = min(height, width)
    over = 2 if unit < LARGE else 1
    moving = camera.kind.startswith(("pan", "follow"))
    vertical = camera.kind in ("pan up", "pan down")
    reach = abs(camera.amount) / 2 + 0.02 if moving else 0.0
    canvas = Canvas(
        width / unit,
        height / unit,
        float(unit * over),
        0.0 if vertical else reach,
        reach if vertical else 0.0,
        generator(setting.seed, "scene", setting.scene, setting.look),
        moving,
    )
    scene(setting.scene).paint(canvas, setting.look)
    canvas.layers = canvas.finish()
    return canvas


def _opaque(colour: NDArray[np.float32]) -> Image.Image:
    return Image.fromarray(np.clip(colour, 0, 255).astype(np.uint8))


def _clear(layer: Layer) -> Image.Image:
    """A transparent layer as an image with premultiplied alpha; only the rows that show something."""
    assert layer.alpha is not None
    pixels = np.concatenate([layer.colour, layer.alpha[..., None] * 255], -1)
    image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8), "RGBA")
    return Image.frombuffer("RGBa", image.size, image.tobytes(), "raw", "RGBa", 0, 1)


def _flatten(layers: list[Layer]) -> NDArray[np.float32]:
    colour = layers[0].colour
    for layer in layers[1:]:
        assert layer.alpha is not None
        colour = layer.colour + colour * (1 - layer.alpha[..., None])
    return colour


@dataclass
class _Sheet:
    """A layer ready for sampling."""

    image: Image.Image
    parallax: float
    drift: float
    """Canvas pixels per second."""


class Backdrop:
    """Backgrounds of one clip; `frame(view, time)` gives a fresh uint8 (H, W, 3)."""

    def __init__(self, setting: Setting, height: int, width: int, camera: Camera) -> None:
        self.canvas = paint(setting, height, width, camera)
        self.height, self.width = height, width
        self.effects: list[Effect] = self.canvas.effects
        self.still = camera.kind == "static"
        self.moving = self.canvas.layered
        layers = self.canvas.layers
        # Without a moving camera only the clouds stay apart: [sky] [clouds] [everything nearer].
        groups: list[list[Layer]] = []
        for layer in layers:
            if self.moving or layer.drift or not groups or groups[-1][0].drift:
                groups.append([layer])
            else:
                groups[-1].append(layer)
        self.sheets = [self._sheet(group, k == 0) for k, group in enumerate(groups)]
        self.whole = _opaque(_flatten([layer for layer in layers if not layer.drift]))
        if self.still:
            self._freeze()

    def _sheet(self, group: list[Layer], first: bool) -> _Sheet:
        if first:
            return _Sheet(_opaque(_flatten(group)), group[0].parallax, 0.0)
        merged = group[0]
        for layer in group[1:]:
            assert merged.alpha is not None
            assert layer.alpha is not None
            colour = layer.colour + merged.colour * (1 - layer.alpha[..., None])
            merged = Layer(colour, layer.alpha + merged.alpha * (1 - layer.alpha), layer.parallax)
        image = _clear(merged)
        if group[0].drift:
            bottom = (image.getbbox() or (0, 0, 1, 2))[3]
            tile = image.crop((0, 0, image.width, bottom))
            image = Image.new("RGBa", (2 * tile.width, bottom))
            image.paste(tile, (0, 0))
            image.paste(tile, (tile.width, 0))
        return _Sheet(image, group[0].parallax, group[0].drift * self.canvas.unit)

    def _freeze(self) -> None:
        """For a still camera: the finished picture, and what lies over and under the clouds."""
        size = (self.width, self.height)
        self.base = np.asarray(self.whole.resize(size, Image.Resampling.BOX))
        self.clouds = next((s for s in self.sheets if s.drift), None)
        if self.clouds:
            rows = self._cloud_rows(self.clouds)
            self.under = np.asarray(self.sheets[0].image.resize(size, Image.Resampling.BOX))[:rows]
            front = self.sheets[-1]
            self.over = np.asarray(front.image.resize(size, Image.Resampling.BOX))[:rows]

    def _cloud_rows(self, clouds: _Sheet) -> int:
        return min(self.height, -(-clouds.image.height * self.height // self.canvas.h))

    def frame(self, view: View, time: float) -> Frame:
        """The background as the camera sees it at `time` seconds."""
        if self.still:
            picture = self.base.copy()
            if self.clouds:
                rows = self._cloud_rows(self.clouds)
                region = self.under.copy()
                blend(region, self._sky(self.clouds, time, rows))
                blend(region, self.over)
                picture[:rows] = region
            return picture
        size = (self.width, self.height)
        if not self.moving and not any(s.drift for s in self.sheets):
            box = self._box(view, 1.0)
            return np.asarray(self.whole.resize(size, Image.Resampling.BILINEAR, box=box)).copy()
        picture = np.asarray(
            self.sheets[0].image.resize(
                size, Image.Resampling.BILINEAR, box=self._box(view, self.sheets[0].parallax)
            )
        ).copy()
        for sheet in self.sheets[1:]:
            blend(picture, self._sample(sheet, view, time))
        return picture

    def _box(self, view: View, parallax: float) -> tuple[float, float, float, float]:
        """Canvas pixels that the frame shows of a layer."""
        canvas = self.canvas
        fx, fy = view.focus
        x0 = fx - fx / view.zoom + view.x * parallax
        y0 = fy - fy / view.zoom + view.y * parallax
        box = (canvas.px(x0), canvas.py(y0), canvas.px(x0 + 1 / view.zoom), canvas.py(y0 + 1 / view.zoom))
        return max(0.0, box[0]), max(0.0, box[1]), min(float(canvas.w), box[2]), min(float(canvas.h), box[3])

    def _sky(self, clouds: _Sheet, time: float, rows: int) -> NDArray[np.uint8]:
        canvas = self.canvas
        offset = (-clouds.drift * time) % canvas.w
        deep = min(float(clouds.image.height), rows * canvas.h / self.height)
        box = (offset, 0.0, offset + canvas.w, deep)
        return np.asarray(clouds.image.resize((self.width, rows), Image.Resampling.BILINEAR, box=box))

    def _sample(self, sheet: _Sheet, view: View, time: float) -> NDArray[np.uint8]:
        box = self._box(view, sheet.parallax)
        size = (self.width, self.height)
        if not sheet.drift:
            return np.asarray(sheet.image.resize(size, Image.Resampling.BILINEAR, box=box))
        offset = (-sheet.drift * time) % self.canvas.w
        left = (box[0] + offset) % self.canvas.w
        wide = box[2] - box[0]
        whole = np.zeros((self.height, self.width, 4), np.uint8)
        # Only the rows above the lowest cloud exist; the rest of the frame stays clear.
        share = (sheet.image.height - box[1]) / (box[3] - box[1])
        rows = min(self.height, max(0, int(share * self.height)))
        if rows:
            bottom = box[1] + rows / self.height * (box[3] - box[1])
            part = (left, box[1], left + wide, bottom)
            whole[:rows] = np.asarray(
                sheet.image.resize((self.width, rows), Image.Resampling.BILINEAR, box=part)
            )
        return whole
