"""Which ways to sample faster a model has, and what each costs: measured, never guessed."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cogvideox.core.device import describe
from cogvideox.core.errors import InputError
from cogvideox.data.metrics import feature_distance, psnr, ssim
from cogvideox.diffusion.samplers import Sampler
from cogvideox.diffusion.stepplan import StepPlan, guidance_every, guidance_interval
from cogvideox.diffusion.timesteps import sampling_timesteps
from cogvideox.evaluation.curves import Curves, Recorder
from cogvideox.generation.media import Inputs
from cogvideox.generation.pipeline import Pipeline
from cogvideox.generation.quality import Calibration, Price, Way
from cogvideox.generation.request import Request, Settings
from cogvideox.generation.watch import Watch

PROMPTS = (
    "a red racing car drives through the desert",
    "a frog jumps on a sandy beach",
    "a speedboat glides right on the blue ocean",
    "a tram drives through the town",
    "a penguin walks in the snow",
    "a green frog in the snow",
    "an elephant walks left on a meadow",
    "a rocket flies over the moon",
)
HIGH_PSNR = 35.0
"""In dB, of the worst clip: what `high` must keep to on the clips that choose."""
MARGIN = 2.0
"""In dB, what it must have beyond that on the clips that check: others will be worse than their worst."""
FAST = 2.25
"""What `fast` must gain in the time to sample and decode."""

EQUAL = 99.0
"""In dB, stands for the infinite PSNR of equal frames, which JSON has no number for."""


@dataclass(frozen=True)
class Order:
    """What to measure."""

    request: Request
    """Shape, sampler, steps and guidance; its prompt is replaced."""
    prompts: tuple[str, ...] = PROMPTS

    @property
    def choosing(self) -> list[Request]:
        """The clips that choose among all ways, three at most."""
        return [self._clip(prompt, seed) for seed, prompt in enumerate(self.prompts[:3])]

    @property
    def checking(self) -> list[Request]:
        """Two more of each prompt that tell the price of what was chosen: the best of many ways on a few
        clips looks better than it is.
        """
        return [self._clip(p, seed + k) for seed in (100, 200) for k, p in enumerate(self.prompts)]

    def _clip(self, prompt: str, seed: int) -> Request:
        return self.request.model_copy(update={"prompt": prompt, "seed": seed})


def calibrate(pipe: Pipeline, order: Order) -> Iterator[Way | Calibration]:
    """Every way with its price as soon as it is known, the exact one first; the calibration at last.

    Time is that of sampling and decoding on this machine, of the clip that was least disturbed; likeness is
    that of decoded 8-bit frames to the exact way's.
    """
    settings, _ = pipe.prepare(order.choosing[0], Inputs())
    if settings.plan is not None or not settings.guided:
        raise InputError("calibration compares with the exact result: leave plan, quality and guidance 1 out")
    recorder = Recorder(pipe.transformer)
    recording = replace(pipe, model=replace(pipe.model, transformer=recorder))
    exact = [_run(recording, clip)[0] for clip in order.choosing]
    sampler = Sampler(settings.sampler, pipe.schedule, sampling_timesteps(settings.steps))
    curves = Curves.of(recorder, sampler)
    ways: list[Way] = []
    for name, plan in candidates(curves, settings):
        baseline = ways[0].price.seconds if ways else None
        ways.append(_measure(pipe, order.choosing, name, plan, exact, baseline))
        yield ways[-1]
    yield Calibration(
        model=pipe.spec.name,
        fingerprint=pipe.model.fingerprint,
        sampler=settings.sampler,
        steps=settings.steps,
        guidance=settings.guidance,
        shape=f"{settings.shape.frames} frames of {settings.shape.width}x{settings.shape.height}",
        clips=len(order.checking),
        machine=f"{describe(pipe.place.device)}, {str(pipe.place.dtype).removeprefix('torch.')}",
        presets=presets(pipe, order.checking, ways),
        table=tuple(ways),
    )


def candidates(curves: Curves, settings: Settings) -> Iterator[tuple[str, StepPlan]]:
    """The ways that are worth measuring, the exact one first.

    The published caches at their usual thresholds, guidance where noise is high, the best lists for several
    budgets; then fewer steps of the sampler, alone and with guidance held or every other step by a line.
    """
    steps, times = settings.steps, curves.timesteps
    yield "exact", _full(steps)
    for threshold in (0.1, 0.2, 0.3):
        yield f"teacache {threshold:g}", curves.teacache(threshold)
    for threshold, longest in ((0.06, 2), (0.12, 3), (0.24, 4)):
        yield f"magcache {threshold:g} {longest}", curves.magcache(threshold, longest)
    for threshold in (0.05, 0.1, 0.2):
        yield f"first block {threshold:g}", curves.first_block_cache(threshold)
    for low in (100, 300, 500):
        yield f"guidance from {low}", guidance_interval(_full(steps), times, low, 1000)
    for part in (0.8, 0.65, 0.5, 0.4):
        plan = curves.cheapest(max(2, round(part * steps)))
        yield "cheapest", plan
        yield "cheapest, held", guidance_every(plan, 2, warm=steps // 3)
    for part in (1, 5 / 6, 2 / 3, 1 / 2, 2 / 5, 1 / 3):
        count = max(2, round(steps * part))
        few, line = _full(count), _alternate(count)
        if count < steps:
            yield "fewer steps", few
        yield "held", guidance_every(few, 2, warm=count // 3)
        late = guidance_interval(few, sampling_timesteps(count), 200, 1000)
        yield "held, guidance from 200", guidance_every(late, 2, warm=count // 3)
        yield "line", line
        yield "line, held", guidance_every(line, 2, warm=count // 3)


def presets(pipe: Pipeline, clips: Sequence[Request], ways: Sequence[Way]) -> dict[str, Way]:
    """The best ways of `shortlist`, with their prices on `clips`, which had no part in choosing them.

    `high` is the first that keeps to HIGH_PSNR and MARGIN there. A preset that no way is good enough for is
    left out.
    """
    runs = [_run(pipe, clip) for clip in clips]
    exact, baseline = [frames_TCHW for frames_TCHW, _ in runs], min(spent for _, spent in runs)
    found: dict[str, Way] = {}
    for preset, ranked in shortlist(ways).items():
        for way in ranked:
            plan = StepPlan.parse(way.plan)
            checked = _measure(pipe, clips, way.name, plan, exact, baseline)
            if preset == "fast" or checked.price.worst >= HIGH_PSNR + MARGIN:
                found[preset] = checked
                break
    return found


def shortlist(ways: Sequence[Way]) -> dict[str, list[Way]]:
    """Ways for each preset, the best first: for `high` the fastest of at least HIGH_PSNR, for `fast` those of
    at least FAST times the speed whose worst clip is likest. `ways` start with the exact one.
    """
    high = [way for way in ways[1:] if way.price.worst >= HIGH_PSNR and way.price.faster > 1]
    fast = [way for way in ways[1:] if way.price.faster >= FAST]
    return {
        "high": sorted(high, key=lambda way: way.price.faster, reverse=True),
        "fast": sorted(fast, key=lambda way: way.price.worst, reverse=True),
    }


def _full(steps: int) -> StepPlan:
    return StepPlan("f" * steps, "p" * steps)


def _alternate(steps: int) -> StepPlan:
    """Five steps or a third of them in full, then every other one by a line, the last one in full."""
    warm = max(5, steps // 3)
    blocks = "".join("f" if k < warm or (steps - k) % 2 else "t" for k in range(steps))
    return StepPlan(blocks, "p" * steps)


def _run(pipe: Pipeline, clip: Request, plan: StepPlan | None = None) -> tuple[Tensor, float]:
    """Frames (T, C, H, W) in [0, 1] of one clip, and the seconds to sample and decode it."""
    request = clip if plan is None else clip.model_copy(update={"plan": str(plan), "steps": len(plan)})
    watch = Watch()
    made = pipe.latents(request, Inputs(), watch)
    frames = torch.from_numpy(pipe.decode(made, watch)).permute(0, 3, 1, 2).float() / 255
    return frames, watch.seconds["sample"] + watch.seconds["decode"]


def _measure(
    pipe: Pipeline,
    clips: Sequence[Request],
    name: str,
    plan: StepPlan,
    exact: Sequence[Tensor],
    baseline: float | None,
) -> Way:
    """A way and its price against the `exact` frames of the same clips. `baseline` None: it is the exact
    one.
    """
    runs = [_run(pipe, clip, plan) for clip in clips]
    pairs = [(frames_TCHW, true_TCHW) for (frames_TCHW, _), true_TCHW in zip(runs, exact, strict=True)]
    likeness = [min(psnr(a, b), EQUAL) for a, b in pairs]
    seconds = min(spent for _, spent in runs)
    price = Price(
        psnr=round(statistics.mean(likeness), 2),
        worst=round(min(likeness), 2),
        ssim=round(statistics.mean(ssim(a, b) for a, b in pairs), 4),
        features=round(statistics.mean(feature_distance(a, b) for a, b in pairs), 4),
        seconds=round(seconds, 3),
        faster=round((baseline or seconds) / seconds, 2),
    )
    return Way(name=name, steps=len(plan), plan=str(plan), price=price)
