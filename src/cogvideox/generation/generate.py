"""From settings to latents: the one function for all tasks.

A task only decides what a window of the sampler starts from, what the transformer is told besides the text,
and which latent frames are known. Shape legend: C channels, T H W latent grid, L text tokens.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor, nn

from cogvideox.checkpoints.configs import Compat
from cogvideox.checkpoints.folder import Model
from cogvideox.core.device import pick_device, pick_dtype
from cogvideox.core.errors import InputError
from cogvideox.data.video import Frames
from cogvideox.diffusion.inputs import image_condition, pad_front
from cogvideox.diffusion.samplers import Sampler
from cogvideox.diffusion.timesteps import sampling_timesteps
from cogvideox.generation.media import Inputs, Latents, check_latents, encode, to_frames
from cogvideox.generation.noise import Noise, Shape
from cogvideox.generation.request import Settings
from cogvideox.generation.sample import Conditions, Known, sample
from cogvideox.generation.watch import Watch
from cogvideox.parallel.mesh import World


@dataclass(frozen=True)
class Place:
    """Where a model computes, and whether its parts wait elsewhere for their turn."""

    device: torch.device
    dtype: torch.dtype
    offload: bool = False
    """Parts wait on the CPU and move to the device only for their stage."""

    @classmethod
    def pick(cls, device: str | torch.device | None = None, dtype: str | torch.dtype | None = None) -> Self:
        """The named device and precision, or the best device there is and what it is fast in."""
        found = pick_device(device)
        return cls(found, pick_dtype(dtype, found))

    @contextlib.contextmanager
    def turn(self, part: nn.Module) -> Iterator[None]:
        """`part` is on the device inside the block."""
        if not self.offload:
            yield
            return
        part.to(self.device)
        try:
            yield
        finally:
            part.to("cpu")


def generate(
    model: Model,
    prompt: str,
    settings: Settings,
    inputs: Inputs,
    noise: Noise,
    place: Place,
    watch: Watch,
    *,
    compat: Compat | None = None,
    release_text: bool = False,
    apart: bool = False,
    world: World | None = None,
) -> Tensor:
    """Latents of the finished clip (C, T, H, W): fp32, on the CPU, padding dropped.

    `release_text` frees the text encoder once the prompt is encoded; prompts that it has seen stay cached.
    With `apart` the branches of guidance run one after the other. The processes of a `world` share the work,
    and all of them get the clip.
    Raises NonFiniteError when numbers blow up, naming the step.
    """
    texts = _embed(model, prompt, settings, inputs, place, watch)
    if release_text:
        model.text.release()
    given_CTHW = _encode(model, settings, inputs, noise, place, watch, world)
    clip_CTHW = given_CTHW if settings.task == "extend" else None
    timesteps = sampling_timesteps(settings.steps)
    sampler = Sampler(settings.sampler, model.schedule, timesteps, compat)
    mesh = None if world is None else world.mesh(settings.guided)
    total = (settings.steps - settings.start) * len(settings.windows)
    with watch.stage("sample", total) as advance, place.turn(model.transformer):
        for index, window in enumerate(settings.windows):
            prefix_CTHW = None if clip_CTHW is None else clip_CTHW[:, -window.known :]
            task = _Window(model, settings, place, noise, index, window.known + window.new)
            x_CTHW, conditions = task.inputs(texts, given_CTHW, prefix_CTHW, inputs.start_CTHW)
            conditions = replace(conditions, apart=apart, mesh=mesh)
            start = sampler.start(x_CTHW.to(place.device), settings.start)
            loop_dtype = place.dtype if compat else torch.float32
            states = sample(
                model.transformer,
                sampler,
                start,
                conditions,
                noise,
                window=index,
                loop_dtype=loop_dtype,
                plan=settings.plan,
            )
            for state in states:
                advance()
                if watch.wants_preview and state.previous_x0 is not None:
                    watch.preview(preview(model, state.previous_x0, place))
            new_CTHW = state.x[:, task.pad + window.known :].cpu()
            clip_CTHW = new_CTHW if clip_CTHW is None else torch.cat([clip_CTHW, new_CTHW], dim=1)
    assert clip_CTHW is not None
    return clip_CTHW


def _embed(
    model: Model,
    prompt: str,
    settings: Settings,
    inputs: Inputs,
    place: Place,
    watch: Watch,
) -> tuple[Tensor, Tensor | None]:
    """(conditional, unconditional) text embeddings, each (L, dim); no unconditional one without guidance."""
    text = model.text
    if inputs.cond_LC is None and (tail := text.cut_tail(prompt)):
        watch.note(f"the prompt has {text.tokens(prompt)} tokens, {text.length} fit; lost: {tail!r}")
    with watch.stage("text"), place.turn(text.model), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the note above says it
        cond = text.encode([prompt])[0] if inputs.cond_LC is None else inputs.cond_LC
        if not settings.guided:
            return cond, None
        if inputs.uncond_LC is not None:
            return cond, inputs.uncond_LC
        if settings.negative or model.spec.unconditional == "empty":
            return cond, text.encode([settings.negative])[0]
        return cond, torch.zeros_like(cond)


def _encode(
    model: Model,
    settings: Settings,
    inputs: Inputs,
    noise: Noise,
    place: Place,
    watch: Watch,
    world: World | None,
) -> Tensor | None:
    """Latents of what was given, (C, t, H, W); None when it is words only."""
    shape, channels = settings.shape, model.spec.vae.latent_channels
    _, h, w = shape.latents
    if isinstance(inputs.extend, Latents):
        check_latents(inputs.extend.latents_CTHW, model.spec)
        return inputs.extend.latents_CTHW
    media = inputs.image or inputs.video or inputs.extend
    if media is None or (settings.task == "video" and inputs.start_CTHW is not None):
        return None
    with watch.stage("encode"), place.turn(model.vae):
        if settings.task == "image":
            frames = media.clip(1, settings.fps, shape.height, shape.width)
            drawn = noise.posterior((channels, 1, h, w))
            return encode(model.vae, frames, drawn, condition=model.spec.image_conditioned, world=world)
        length = shape.frames
        if settings.task == "extend":
            length -= 4 * sum(window.new for window in settings.windows)
        frames = media.clip(length, settings.fps, shape.height, shape.width, last=settings.task == "extend")
        drawn = noise.posterior((channels, (length - 1) // 4 + 1, h, w))
        return encode(model.vae, frames, drawn, world=world)


@dataclass(frozen=True)
class _Window:
    """One run of the sampler."""

    model: Model
    settings: Settings
    place: Place
    noise: Noise
    index: int
    length: int
    """Latent frames without padding."""

    @property
    def patch(self) -> tuple[int, int, int]:
        return self.model.spec.transformer.patch

    @property
    def pad(self) -> int:
        return -self.length % self.patch[0]

    @property
    def shape(self) -> Shape:
        _, h, w = self.settings.shape.latents
        return self.model.spec.vae.latent_channels, self.pad + self.length, h, w

    def inputs(
        self,
        texts: tuple[Tensor, Tensor | None],
        given_CTHW: Tensor | None,
        prefix_CTHW: Tensor | None,
        start_CTHW: Tensor | None,
    ) -> tuple[Tensor, Conditions]:
        """What the window starts from (C, T, H, W), and what the transformer is told."""
        spec, settings = self.model.spec, self.settings
        image_CTHW, known_CTHW = None, prefix_CTHW
        if settings.task == "image":
            assert given_CTHW is not None
            image_CTHW, known_CTHW = (given_CTHW, None) if spec.image_conditioned else (None, given_CTHW)
        elif prefix_CTHW is not None and spec.image_conditioned:
            image_CTHW = prefix_CTHW[:, :1] * (spec.vae.condition_scale / spec.vae.scale)
        device = self.place.device
        cond, uncond = texts
        conditions = Conditions(
            cond_LC=cond.to(device),
            uncond_LC=None if uncond is None else uncond.to(device),
            guidance=settings.guidance,
            dynamic=settings.dynamic,
            image_CTHW=None
            if image_CTHW is None
            else image_condition(image_CTHW[:, 0], self.shape[1]).to(device),
            known=None
            if known_CTHW is None
            else Known(self._padded(known_CTHW).to(device), clean=spec.first_frame),
        )
        if start_CTHW is not None and self.index == 0:
            if tuple(start_CTHW.shape) != self.shape:
                raise InputError(f"latents of shape {tuple(start_CTHW.shape)} given, {self.shape} needed")
            return start_CTHW, conditions
        x_CTHW = self.noise.initial(self.shape, self.index)
        if settings.task == "video":
            assert given_CTHW is not None
            timestep = torch.tensor([sampling_timesteps(settings.steps)[settings.start]])
            clean = pad_front(given_CTHW, self.patch)[None]
            x_CTHW = self.model.schedule.add_noise(clean, x_CTHW[None], timestep)[0]
        return x_CTHW, conditions

    def _padded(self, known_CTHW: Tensor) -> Tensor:
        first = known_CTHW[:, :1].expand(-1, self.pad, -1, -1)
        return torch.cat([first, known_CTHW], dim=1)


@torch.no_grad()
def preview(model: Model, x0_CTHW: Tensor, place: Place) -> Frames:
    """The middle latent frame decoded as if it were an image: uint8 (H, W, 3), cheap and nearly right."""
    middle = x0_CTHW[None, :, x0_CTHW.shape[1] // 2 :][:, :, :1]
    with place.turn(model.vae):
        frames = model.vae.decode(middle)
    return to_frames(frames)[0]
