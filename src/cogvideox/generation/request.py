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
from cogvideox.diffusion.stepplan import StepPlan
from cogvideox.diffusion.timesteps import sampling_timesteps
from cogvideox.generation.quality import QUALITIES, Calibration, Price
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
    quality: str = "exact"
    """Preset of the model's calibration: what of the exact result may be given up for time."""
    plan: str | None = None
    """Step plan in text, such as f6rfrf21/p20c10 (`diffusion.stepplan`); overrides the preset's."""
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
        for name, known in (("sampler", KINDS), ("dynamic_guidance", MODES), ("quality", QUALITIES)):
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
    quality: str
    """The preset; "by plan" where a plan was given without one."""
    plan: StepPlan | None
    """None: all steps run in full."""
    price: Price | None
    """What the plan costs, where it was measured."""
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
                "plan": None if self.plan is None else str(self.plan),
            }
        )

    @property
    def guided(self) -> bool:
        """An unconditional branch is computed next to the conditional one."""
        return self.guidance != 1 and self.dynamic != "off"

    @property
    def quality_facts(self) -> dict[str, Any]:
        """The preset and its measured price, as plain values."""
        return {"name": self.quality, "price": None if self.price is None else self.price.model_dump()}

    @property
    def work(self) -> float:
        """Forward passes of one branch that a window costs."""
        if self.plan is None:
            return (self.steps - self.start) * (1 + self.guided)
        return self.plan.resolved(self.start, self.guided).work


def decide(
    request: Request,
    spec: ModelSpec,
    given: Given | None = None,
    compat: Compat | None = None,
    calibration: Calibration | None = None,
) -> Settings:
    """Everything that the request leaves open, decided; raises InputError for what this model cannot do.

    `calibration` says what the presets of `quality` mean for this model.
    """
    task = _task(request, spec)
    fps = _rate(request, spec, given)
    height, width = _size(request, spec, given, compat)
    frames, windows = _length(request, spec, task, fps, given)
    shape = plan_shape(spec.transformer.patch, frames, height, width)
    if task == "image" and shape.frames == 1 and not spec.image_conditioned:
        raise InputError("one frame would be the image itself: ask for 5 or more")
    sampler = request.sampler or spec.sampler
    steps, plan = _way(request, spec, sampler, calibration)
    sampling_timesteps(steps)
    price = None
    if plan is not None and calibration is not None:
        price = calibration.price(steps, sampler, str(plan))
    return Settings(
        task=task,
        shape=shape,
        windows=windows or (Window(0, latent_frames(shape.frames)),),
        fps=fps,
        sampler=sampler,
        steps=steps,
        start=start_index(steps, request.strength) if task == "video" else 0,
        guidance=spec.guidance if request.guidance is None else request.guidance,
        # diffusers' pipelines leave dynamic guidance off unless asked.
        dynamic=request.dynamic_guidance or ("constant" if compat else spec.dynamic_guidance),
        negative=request.negative,
        seed=request.seed,
        quality=request.quality if plan is None or request.quality != "exact" else "by plan",
        plan=plan,
        price=price,
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


def _way(
    request: Request, spec: ModelSpec, sampler: str, calibration: Calibration | None
) -> tuple[int, StepPlan | None]:
    """Steps and plan: those given, else those of the preset."""
    if request.plan is not None:
        plan = StepPlan.parse(request.plan)
        if request.steps not in (None, len(plan)):
            raise InputError(f"the plan {request.plan} is for {len(plan)} steps, not {request.steps}")
        return len(plan), plan
    if request.quality == "exact":
        return request.steps or spec.steps, None
    name = f"quality {request.quality}"
    if calibration is None:
        raise InputError(
            f"{name} was not measured for {spec.name}: run `cogvideox calibrate`, give its file with --plan"
        )
    if calibration.model != spec.name:
        raise InputError(f"the file with {name} was made for {calibration.model}, not for {spec.name}")
    asked, measured = (request.steps or calibration.steps, sampler), (calibration.steps, calibration.sampler)
    if request.quality not in calibration.presets:
        raise InputError(f"nothing that was measured for {spec.name} is good enough for {name}")
    if asked != measured:
        raise InputError(
            f"{name} was measured for {measured[0]} steps of {measured[1]}, not {asked[0]} of {asked[1]}"
        )
    way = calibration.presets[request.quality]
    return way.steps, StepPlan.parse(way.plan)


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
