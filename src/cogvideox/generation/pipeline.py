"""The pipeline: a loaded model, and how to ask it for videos.

pipe = load("mini")
video = pipe("a red racing car drives through the desert", seed=1)
video.save("car.mp4")
"""

from __future__ import annotations

import platform
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

import cogvideox
from cogvideox.checkpoints.configs import Compat
from cogvideox.checkpoints.folder import Model
from cogvideox.core.device import memory
from cogvideox.core.errors import InputError, Note
from cogvideox.core.pages import FilePages
from cogvideox.core.shapes import ClipShape
from cogvideox.data.video import Frames
from cogvideox.diffusion.schedule import Schedule
from cogvideox.generation.decode import decode
from cogvideox.generation.generate import Place, generate
from cogvideox.generation.media import Inputs, Latents, Media, as_latents, previous
from cogvideox.generation.noise import GeneratorNoise, KeyedNoise, Noise
from cogvideox.generation.plan import Plan, Weights, check, make_plan
from cogvideox.generation.quality import Calibration
from cogvideox.generation.request import IN_MEMORY, Request, Settings, decide
from cogvideox.generation.result import Video
from cogvideox.generation.watch import Watch
from cogvideox.models.specs import ModelSpec
from cogvideox.models.text import TextEncoder
from cogvideox.models.transformer.model import Transformer
from cogvideox.models.vae.autoencoder import VAE
from cogvideox.parallel.mesh import World

R = TypeVar("R")
Generators = torch.Generator | Sequence[torch.Generator]


class _Warner(Watch):
    """The onlooker of plain Python calls: notes become warnings."""

    def note(self, text: str) -> None:
        super().note(text)
        warnings.warn(text, Note, stacklevel=2)


@dataclass(frozen=True, repr=False)
class Pipeline:
    """A loaded model. Holds no state between calls; two pipelines never influence each other."""

    model: Model
    place: Place
    compat: Compat | None = None
    """`diffusers`: its conventions where public implementations disagree (unconditional text, noise order,
    steps)."""
    release_text: bool = False
    """Free the text encoder once prompts are encoded: saves memory, and new prompts need a new pipeline."""
    adapters: tuple[tuple[str, float], ...] = field(default=())
    """LoRA files merged into the model, with their weights."""
    allow_partial: bool = False
    """Layers of them that did not fit the model were left out."""
    revision: str | None = None
    """Version of the hub's repository that was asked for."""
    conventions: Mapping[str, str] = field(default_factory=dict)
    """Single conventions that were chosen in `load`."""
    calibration: Calibration | None = None
    """What the presets of `quality` mean."""
    world: World | None = None
    """The processes that share the work. All of them make the same calls and get the same results."""

    def __repr__(self) -> str:
        return f"Pipeline({self.spec.name} on {self.place.device} in {self.place.dtype})"

    @property
    def transformer(self) -> Transformer:
        return self.model.transformer

    @property
    def vae(self) -> VAE:
        """`encode` takes (B, 3, T, H, W) in [-1, 1], `decode` (B, C, T, H, W) in the transformer's scale."""
        return self.model.vae

    @property
    def text_encoder(self) -> TextEncoder:
        return self.model.text

    @property
    def schedule(self) -> Schedule:
        return self.model.schedule

    @property
    def spec(self) -> ModelSpec:
        return self.model.spec

    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        image: Any = None,
        video: Any = None,
        strength: float = 0.8,
        extend: Any = None,
        frames: int | None = None,
        seconds: float | None = None,
        fps: float | None = None,
        height: int | None = None,
        width: int | None = None,
        steps: int | None = None,
        guidance: float | None = None,
        dynamic_guidance: str | bool | None = None,
        negative: str = "",
        seed: int = 0,
        generator: Generators | None = None,
        latents: Tensor | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        output: Literal["video", "latents"] = "video",
        *,
        sampler: str | None = None,
        quality: str = "exact",
        plan: str | None = None,
        aspect: str | None = None,
        watch: Watch | None = None,
    ) -> Any:
        """A `Video` for a prompt, a list of them for a list of prompts; latents with `output="latents"`.

        `image` (path, PIL, uint8 array) is the first frame, `video` a clip to repaint by `strength`,
        `extend` a result, a clip or latents to continue up to `frames` or `seconds` in all. Whatever is
        None is the model's own choice. `quality` "high" or "fast" trades likeness to "exact" for time, as
        measured; `plan` is a step plan. `generator` draws all noise in diffusers' order and ignores `seed`;
        `latents` (1, C, T, H, W) replace the noise to start from; `prompt_embeds` (n, L, dim) replace the
        prompt. Videos of a list equal those made alone. Raises InputError for what cannot be done and
        NonFiniteError when numbers blow up.
        """
        asked = locals()
        if output not in ("video", "latents"):
            raise InputError(f'output is "video" or "latents", not {output!r}')
        prompts, conds, unconds = _texts(prompt, prompt_embeds, negative_prompt_embeds)
        values = {name: asked[name] for name in Request.model_fields if name != "prompt"}
        for name in ("image", "video", "extend"):
            values[name] = _name(values[name])
        if isinstance(dynamic_guidance, bool):
            values["dynamic_guidance"] = "official" if dynamic_guidance else "constant"
        request = Request.parse(values)
        media = Inputs(
            image=None if image is None else Media.first(image),
            video=None if video is None else Media.of(video, getattr(video, "fps", None)),
            extend=None if extend is None else previous(extend, fps or self.spec.fps),
            start_CTHW=None if latents is None else as_latents(latents),
        )
        noises = self._noises(generator, len(prompts))
        if self.release_text:  # after the first clip
            self.text_encoder.keep([*prompts, negative])
        results = []
        for text, cond, uncond, noise in zip(prompts, conds, unconds, noises, strict=True):
            one = Request.parse(request.model_dump() | {"prompt": text})
            inputs = Inputs(media.image, media.video, media.extend, media.start_CTHW, cond, uncond)
            results.append(self._one(one, inputs, noise, output, watch or _Warner()))
        if isinstance(generator, torch.Generator) and isinstance(noises[-1], GeneratorNoise):
            generator.set_state(noises[-1].generator.get_state())
        return results if isinstance(prompt, (list, tuple)) or len(results) > 1 else results[0]

    def _one(self, request: Request, inputs: Inputs, noise: Noise | None, output: str, watch: Watch) -> Any:
        made = self.latents(request, inputs, watch, noise)
        latents = made.latents_CTHW[None]
        if output == "latents":
            return latents
        try:
            frames = self.decode(made, watch)
        except Exception as error:
            error.add_note("the latents are not lost: they are this exception's `latents`")
            error.latents = latents  # type: ignore[attr-defined]
            raise
        return Video(frames, made.fps, latents, made.metadata)

    def prepare(self, request: Request, inputs: Inputs) -> tuple[Settings, Plan]:
        """Decide and plan. InputError when the request is illegal or does not fit the free memory."""
        if not request.prompt.strip() and inputs.cond_LC is None:
            raise InputError("the prompt is empty")
        settings = decide(request, self.spec, inputs.given, self.compat, self.calibration)
        if self.world is not None:
            self.world.check(settings.guided, self.spec.transformer.heads, settings.shape.latents[1])
        plan = self.plan(settings, settings.shape)
        check(plan, self.spec, lambda shape: self.plan(settings, shape))
        return settings, plan

    def plan(self, settings: Settings, shape: ClipShape) -> Plan:
        """What these settings cost at `shape`, with the weights in memory already."""
        return make_plan(
            self.spec,
            shape,
            settings.longest(shape),
            guided=settings.guided,
            encoded=settings.encoded(shape),
            kept=settings.plan is not None,
            world=self.world,
            dtype=self.place.dtype,
            memory=memory(self.place.device),
            weights=self.weights,
            held=0 if self.place.offload else self._held,
            wait=self.place.offload,
            accelerator=self.place.device.type != "cpu",
        )

    @property
    def weights(self) -> Weights:
        """Bytes of the parts; a text encoder that was freed counts nothing."""
        return Weights(*(sum(p.nbytes for p in part.parameters() if not p.is_meta) for part in self._parts))

    @property
    def _held(self) -> int:
        """Bytes of the weights that are in memory for good; the system takes the pages of files back."""
        pages = FilePages()
        return sum(
            p.nbytes for part in self._parts for p in part.parameters() if not (p.is_meta or pages.hold(p))
        )

    @property
    def _parts(self) -> tuple[nn.Module, ...]:
        return self.model.text.model, self.model.transformer, self.model.vae

    def latents(self, request: Request, inputs: Inputs, watch: Watch, noise: Noise | None = None) -> Latents:
        """Carry out a request up to the latents of its clip; `noise` defaults to that of its seed."""
        settings, plan = self.prepare(request, inputs)
        apart = plan.apart if self.world is None else self.world.everyone.any(plan.apart)
        for note in settings.notes:
            watch.note(note)
        clip_CTHW = generate(
            self.model,
            request.prompt,
            settings,
            inputs,
            noise or self.noise(request.seed),
            self.place,
            watch,
            compat=self.compat,
            release_text=self.release_text,
            apart=apart,
            world=self.world,
        )
        return Latents(clip_CTHW, settings.fps, self._record(request, settings, inputs, noise))

    def decode(self, latents: Latents, watch: Watch) -> Frames:
        """All frames of a clip, (T, H, W, 3) uint8."""
        return self.decode_into(lambda chunks: np.concatenate(list(chunks)), latents, watch)

    def decode_into(self, consume: Callable[[Iterator[Frames]], R], latents: Latents, watch: Watch) -> R:
        """`consume` what a clip decodes to, chunk by chunk (again from the start when memory runs out)."""
        with self.place.turn(self.vae):
            return decode(self.vae, latents.latents_CTHW, consume, watch, self.compat, self.world)

    @property
    def first(self) -> bool:
        """Whether this is the process that should write files, of several, or the only one."""
        return self.world is None or self.world.first

    def noise(self, seed: int) -> Noise:
        """The noise of a seed; with compat="diffusers" that of `torch.Generator().manual_seed(seed)`."""
        if self.compat:
            return GeneratorNoise(torch.Generator().manual_seed(seed), self.place.dtype)
        return KeyedNoise(seed)

    def _noises(self, generator: Generators | None, count: int) -> list[GeneratorNoise] | list[None]:
        """Sources for the clips of a call; None: that of the seed."""
        if generator is None:
            return [None] * count
        if isinstance(generator, torch.Generator):
            return GeneratorNoise.batch_of(generator, self.place.dtype, count)
        if len(generator) != count:
            raise InputError(f"{len(generator)} generators for {count} prompts")
        return [GeneratorNoise(one, self.place.dtype) for one in generator]

    def _record(
        self, request: Request, settings: Settings, inputs: Inputs, noise: Noise | None
    ) -> dict[str, Any]:
        """What is needed to repeat a request and to know what it was carried out with."""
        own = {name: getattr(request, name) == IN_MEMORY for name in ("image", "video", "extend")} | {
            "generator": noise is not None,
            "latents": inputs.start_CTHW is not None,
            "prompt_embeds": inputs.cond_LC is not None,
        }
        return {
            "cogvideox": cogvideox.__version__,
            "request": settings.complete(request).brief(),
            "task": settings.task,
            "quality": settings.quality_facts,
            "inputs": inputs.digests(),
            "unrepeatable": [name for name, given in own.items() if given],
            "model": {
                "name": self.spec.name,
                "source": self.model.source,
                "revision": self.revision,
                "conventions": dict(self.conventions),
                "fingerprint": self.model.fingerprint,
                "dtype": str(self.place.dtype).removeprefix("torch."),
                "device": self.place.device.type,
                "compat": self.compat,
                "lora": [list(adapter) for adapter in self.adapters],
                "allow_partial": self.allow_partial,
            },
            "versions": {"torch": torch.__version__, "python": platform.python_version()},
            "threads": torch.get_num_threads(),
        } | ({} if self.world is None else {"parallel": self.world.facts(settings.guided)})


def _texts(
    prompt: str | Sequence[str] | None, embeds: Tensor | None, uncond: Tensor | None
) -> tuple[list[str], list[Tensor | None], list[Tensor | None]]:
    """Prompts and their given embeddings, one for each video."""
    if (prompt is None) == (embeds is None):
        raise InputError("give a prompt or prompt_embeds, one of the two")
    conds: list[Tensor | None]
    if embeds is not None:
        batch = embeds if embeds.ndim == 3 else embeds[None]
        prompts, conds = [""] * len(batch), list(batch)
    else:
        prompts = [prompt] if isinstance(prompt, str) else list(prompt or ())
        conds = [None] * len(prompts)
    if not prompts:
        raise InputError("the list of prompts is empty")
    if uncond is None:
        return prompts, conds, [None] * len(prompts)
    batch = uncond if uncond.ndim == 3 else uncond[None]
    if len(batch) not in (1, len(prompts)):
        raise InputError(f"{len(batch)} negative_prompt_embeds for {len(prompts)} prompts")
    return prompts, conds, list(batch) * (len(prompts) // len(batch))


def _name(value: Any) -> str | None:
    """How a request's record calls an input: by its path, if it has one."""
    if value is None:
        return None
    return str(value) if isinstance(value, (str, Path)) else IN_MEMORY
