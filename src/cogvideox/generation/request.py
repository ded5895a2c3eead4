"""What is asked for, and what will be done: `Request` is the wish, `Settings` the decision.

A request holds only what can be written down, so that it travels in the metadata of its result and can be
repeated. `decide` turns it into settings from the model's spec and the size of what was given, before any
pixel is touched.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from cogvideox.checkpoints.configs import Compat
from cogvideox.core.errors import InputError, nearest
from cogvideox.core.shapes import ClipShape, latent_frames, pixel_frames, plan_shape
from cogvideox.data.video import Info
from cogvideox.diffusion.guidance import MODES
from cogvideox.diffusion.samplers import KINDS, start_index
from cogvideox.diffusion.timesteps import sampling_timesteps
from cogvideox.models.specs import ModelSpec

Task = Literal["text", "image", "video", "extend"]
SEEDS = (-(2**63), 2**64 - 1)  # what torch's generators take
IN_MEMORY = "(in memory)"
"""Stands for the path of an input that is no file."""


class Request(BaseModel):
    """A wish. `None` leaves the choice to the model."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=False)

    prompt: str = ""
    negative: str = ""
    """What to stay away from; empty: the model's unconditional text."""
    image: str | None = None
    """File of the first frame. Paths become absolute."""
    video: str | None = None
    """File of the clip to repaint."""
    strength: float = Field(0.8, gt=0, le=1)
    """How much of `video` is repainted: 1 all of it."""
    extend: str | None = None
    """Clip or latents file to continue."""
    frames: int | None = Field(None, ge=1)
    """Length of the finished clip; or `seconds`."""
    seconds: float | None = Field(None, gt=0, le=3600)
    fps: float | None = Field(None, gt=0, le=240)
    """Frames per second of the result; the model was trained for one rate, others change the speed of
    motion."""
    height: int | None = Field(None, ge=1)
    width: int | None = Field(None, ge=1)
    aspect: str | None = Field(None, pattern=r"^[1-9]\d{0,3}:[1-9]\d{0,3}$")
    """Width to height, such as 16:9, at the model's own short side."""
    steps: int | None = Field(None, ge=1, le=1000)
    guidance: float | None = Field(None, ge=1, le=100)
    """Scale of classifier-free guidance; 1 is none, in half the time."""
    dynamic_guidance: str | None = None
    """How the scale changes over the steps, a mode of `diffusion.guidance`."""
    sampler: str | None = None
    seed: int = Field(0, ge=SEEDS[0], le=SEEDS[1])

    @field_validator("image", "video", "extend")
    @classmethod
    def _absolute(cls, path: str | None) -> str | None:
        """A record must mean the same files in any working folder."""
        return path if path in (None, IN_MEMORY) else str(Path(str(path)).absolute())

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> Self:
        """Request from plain values. InputError, one line that names the field and what is legal."""
        try:
            request = cls(**values)
        except ValidationError as error:
            first = error.errors()[0]
            name = ".".join(str(part) for part in first["loc"])
            if first["type"] == "extra_forbidden":
                raise InputError(f"unknown setting {name!r}{nearest(name, cls.model_fields)}") from None
            reason = first["msg"].removeprefix("Input ").lower()
            raise InputError(f"{name} = {first['input']!r} is illegal: it {reason}") from None
        for name, known in (("sampler", KINDS), ("dynamic_guidance", MODES)):
            value = getattr(request, name)
            if value is not None and value not in known:
                raise InputError(f"unknown {name} {value!r}{nearest(value, known)}")
        if request.frames is not None and request.seconds is not None:
            raise InputError("give frames or seconds, not both")
        if request.aspect is not None and request.height is not None and request.width is not None:
            raise InputError("give a size or an aspect ratio, not both")
        return request

    def brief(self) -> dict[str, Any]:
        """What was asked for, without what was left open."""
        return self.model_dump(exclude_defaults=True) | {"prompt": self.prompt, "seed": self.seed}


@dataclass(frozen=True)
class Given:
    """What is known about the image, clip or latents that came with a request."""

    info: Info
    fixed: bool = False
    """Size and rate cannot be changed any more, because these are latents."""


@dataclass(frozen=True)
class Window:
    """What one run of the sampler makes, in latent frames."""

    known: int
    """Taken over from what is there already."""
    new: int


@dataclass(frozen=True)
class Settings:
    """A decision: everything that `generate` needs to know, legal for the model."""

    task: Task
    shape: ClipShape
    """Of the finished clip."""
    windows: tuple[Window, ...]
    """Runs of the sampler, one after the other; more than one only to continue a clip far."""
    fps: float
    sampler: str
    steps: int
    start: int
    """Steps skipped because `video` gives the start."""
    guidance: float
    dynamic: str
    negative: str
    seed: int
    notes: tuple[str, ...]
    """What the user should know: values that were changed, shapes that the model was not trained for."""

    def longest(self, shape: ClipShape) -> int:
        """Latent frames of the longest window, without padding, if the clip had this shape instead."""
        if len(self.windows) == 1 and self.task != "extend":
            return latent_frames(shape.frames)
        return max(window.known + window.new for window in self.windows)

    def encoded(self, shape: ClipShape) -> int:
        """Frames that the VAE encodes at most, if the clip had this shape."""
        if self.task == "extend":
            return max(1, shape.frames - 4 * sum(window.new for window in self.windows))
        return {"text": 0, "image": 1, "video": shape.frames}[self.task]

    def complete(self, request: Request) -> Request:
        """The request with nothing left open, so that it means the same when defaults change."""
        return request.model_copy(
            update={
                "frames": self.shape.frames,
                "seconds": None,
                "fps": self.fps,
                "height": self.shape.height,
                "width": self.shape.width,
                "aspect": None,
                "steps": self.steps,
                "guidance": self.guidance,
                "dynamic_guidance": self.dynamic,
                "sampler": self.sampler,
            }
        )

    @property
    def guided(self) -> bool:
        """An unconditional branch is computed next to the conditional one."""
        return self.guidance != 1 and self.dynamic != "off"


def decide(
    request: Request, spec: ModelSpec, given: Given | None = None, compat: Compat | None = None
) -> Settings:
    """Everything that the request leaves open, decided; raises InputError for what this model cannot do."""
    task = _task(request, spec)
    fps = _rate(request, spec, given)
    height, width = _size(request, spec, given, compat)
    frames, windows = _length(request, spec, task, fps, given)
    shape = plan_shape(spec.transformer.patch, frames, height, width)
    if task == "image" and shape.frames == 1 and not spec.image_conditioned:
        raise InputError("one frame would be the image itself: ask for 5 or more")
    steps = request.steps or spec.steps
    sampling_timesteps(steps)
    return Settings(
        task=task,
        shape=shape,
        windows=windows or (Window(0, latent_frames(shape.frames)),),
        fps=fps,
        sampler=request.sampler or spec.sampler,
        steps=steps,
        start=start_index(steps, request.strength) if task == "video" else 0,
        guidance=spec.guidance if request.guidance is None else request.guidance,
        # diffusers' pipelines leave dynamic guidance off unless asked.
        dynamic=request.dynamic_guidance or ("constant" if compat else spec.dynamic_guidance),
        negative=request.negative,
        seed=request.seed,
        notes=_notes(shape, spec, fps, windows) + _shortage(request, task, fps, given),
    )


def _task(request: Request, spec: ModelSpec) -> Task:
    asked: list[Task] = [t for t in ("image", "video", "extend") if getattr(request, t) is not None]
    if len(asked) > 1:
        raise InputError(f"give one of image, video and extend, not {' and '.join(asked)}")
    task: Task = asked[0] if asked else "text"
    if task == "image" and not (spec.image_conditioned or spec.first_frame):
        raise InputError(f"{spec.name} makes video from text; an image needs a model such as mini or 5b-i2v")
    if task in ("text", "video") and spec.image_conditioned:
        raise InputError(f"{spec.name} makes video from an image; give one, or use a text model such as 5b")
    return task


def _rate(request: Request, spec: ModelSpec, given: Given | None) -> float:
    """Frames per second of the result: latents keep theirs, for they cannot be retimed."""
    if given is None or not given.fixed or given.info.fps is None:
        return float(request.fps or spec.fps)
    if request.fps not in (None, given.info.fps):
        raise InputError(f"the rate of latents is fixed: {given.info.fps:g} fps, not {request.fps:g}")
    return given.info.fps


def _size(request: Request, spec: ModelSpec, given: Given | None, compat: Compat | None) -> tuple[int, int]:
    """(height, width) before snapping."""
    if given is not None and given.fixed:
        height, width = given.info.height, given.info.width
        if (request.height or height, request.width or width) != (height, width) or request.aspect:
            raise InputError(f"the size of latents is fixed: {width}x{height}")
        return height, width
    if request.height is not None and request.width is not None:
        return request.height, request.width
    ratio = spec.width / spec.height
    if request.aspect is not None:
        across, down = (int(part) for part in request.aspect.split(":"))
        ratio = across / down
    elif given is not None and spec.position_policy == "extrapolate" and not compat:
        # Models with plain positions were trained at several aspect ratios; the others know only their own
        # size.
        ratio = given.info.width / given.info.height
    if request.height is not None:
        return request.height, round(request.height * ratio)
    if request.width is not None:
        return round(request.width / ratio), request.width
    side = min(spec.height, spec.width)
    return (side, round(side * ratio)) if ratio >= 1 else (round(side / ratio), side)


def _length(
    request: Request, spec: ModelSpec, task: Task, fps: float, given: Given | None
) -> tuple[int, tuple[Window, ...]]:
    """(frames, windows); no windows where the whole clip is one."""
    asked = _asked(request, fps)
    if task not in ("video", "extend"):
        return asked or spec.frames, ()
    assert given is not None
    there = given.info.frames if given.fixed else available_frames(given.info, fps)
    if task == "video":
        return min(asked or (spec.trained_frames[1] if given.info.fps else there), there), ()
    have, window = latent_frames(there), latent_frames(spec.frames)
    overlap = max(1, window // 3)
    wanted = asked or pixel_frames(have + window - min(have, overlap))
    total = wanted // 4 + 1  # as `plan_shape` rounds
    if total <= have:
        raise InputError(f"the clip has {there} frames already; ask for more than that, not {wanted}")
    return wanted, _windows(have, total, window, overlap)


def _asked(request: Request, fps: float) -> int | None:
    """Frames asked for, before snapping; None: left to the model."""
    return request.frames if request.seconds is None else max(1, round(request.seconds * fps))


def available_frames(info: Info, fps: float) -> int:
    """Frames of a clip at `fps`, rounded down to 4k+1; all of them if its own rate is not known."""
    count = info.frames if info.fps is None else max(1, math.floor(info.frames * fps / info.fps + 1e-6))
    return pixel_frames(latent_frames(count))


def _windows(have: int, total: int, window: int, overlap: int) -> tuple[Window, ...]:
    windows = []
    while have < total:
        known = min(have, overlap)
        new = min(window - known, total - have)
        windows.append(Window(known, new))
        have += new
    return tuple(windows)


def _notes(shape: ClipShape, spec: ModelSpec, fps: float, windows: tuple[Window, ...]) -> tuple[str, ...]:
    notes = [f"changed {shape.snapped}"] if shape.snapped else []
    few, many = spec.trained_frames
    if not windows and not few <= shape.frames <= many and shape.frames != 1:
        best = min(max(shape.frames, few), many)
        notes.append(f"{spec.name} was trained on {few} to {many} frames: {best} would look better")
    small, large = spec.trained_side
    if not small <= min(shape.height, shape.width) <= large:
        trained = f"{small}" if small == large else f"{small} to {large}"
        notes.append(f"{spec.name} was trained with a short side of {trained} pixels: expect worse pictures")
    if fps != spec.fps:
        notes.append(
            f"{spec.name} was trained at {spec.fps} frames per second: at {fps:g} motion is off speed"
        )
    return tuple(notes)


def _shortage(request: Request, task: Task, fps: float, given: Given | None) -> tuple[str, ...]:
    """A note when a clip to repaint has fewer frames than were asked for."""
    asked = _asked(request, fps)
    if task != "video" or given is None or asked is None:
        return ()
    there = available_frames(given.info, fps)
    short = f"the clip has {there} frames at {fps:g} per second: that many are made, not {asked}"
    return (short,) if asked > there else ()
