"""The sampling loop, as an iterator over its states: progress, previews and checks live with who consumes it.

Shape legend: C channels, T H W latent grid (padding included), L text tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from cogvideox.core.errors import NonFiniteError
from cogvideox.core.pack import Pack
from cogvideox.diffusion.guidance import combine, guidance_scale
from cogvideox.diffusion.inputs import Sample, build_pack, split_output
from cogvideox.diffusion.samplers import Sampler, SamplerState
from cogvideox.diffusion.stepplan import StepPlan
from cogvideox.generation.noise import Noise
from cogvideox.models.specs import TransformerSpec
from cogvideox.models.transformer.model import Transformer
from cogvideox.parallel.mesh import Mesh
from cogvideox.parallel.sequence import Share, gather_video, share


@dataclass(frozen=True)
class Known:
    """Latent frames in front that are given and stay as they are."""

    latents_CTHW: Tensor
    clean: bool
    """The model was trained to see them clean at every step; else they are noised like all others (Lugmayr
    et al.
    2022), which any model understands."""

    def put(self, x_CTHW: Tensor, front_CTHW: Tensor) -> Tensor:
        """`x_CTHW` with its first frames replaced."""
        return torch.cat([front_CTHW.to(x_CTHW), x_CTHW[:, front_CTHW.shape[1] :]], dim=1)


@dataclass(frozen=True)
class Conditions:
    """What the sampler is told about the clip, on the transformer's device."""

    cond_LC: Tensor
    uncond_LC: Tensor | None
    """None: no guidance, the conditional branch alone."""
    guidance: float = 1.0
    dynamic: str = "constant"
    image_CTHW: Tensor | None = None
    """Latents of the image condition, for models that have channels for it."""
    known: Known | None = None
    apart: bool = False
    """The branches of guidance run one after the other: half the memory, a little slower."""
    mesh: Mesh | None = None
    """The processes that share the work; all of them get all results."""


@dataclass(frozen=True)
class Kept:
    """What a step plan carries from step to step."""

    cond: tuple[tuple[int, Tensor], ...] = ()
    """The last two full steps of the conditional branch: timestep, residual of the block stack (L, D)."""
    uncond: tuple[tuple[int, Tensor], ...] = ()
    """Those of the unconditional branch."""
    gap_CTHW: Tensor | None = None
    """cond - uncond at the last step that ran both."""

    def add(self, t: int, residuals_LD: list[Tensor]) -> Self:
        """With the residuals of a full step: of both branches, the unconditional one first, or of `cond`."""
        cond = (*self.cond[-1:], (t, residuals_LD[-1]))
        uncond = self.uncond if len(residuals_LD) == 1 else (*self.uncond[-1:], (t, residuals_LD[0]))
        return replace(self, cond=cond, uncond=uncond)

    def residual(self, t: int, branch: int, order: int) -> Tensor:
        """Stands for the residual of `branch` (-1 cond, -2 uncond) at t: the last one, or by a line."""
        history = self.cond if branch == -1 else self.uncond
        at, last_LD = history[-1]
        if order == 0:
            return last_LD
        before, first_LD = history[-2]
        return last_LD + (last_LD - first_LD) * ((t - at) / (at - before))


def sample(
    transformer: Transformer,
    sampler: Sampler,
    start: SamplerState,
    conditions: Conditions,
    noise: Noise,
    *,
    window: int = 0,
    loop_dtype: torch.dtype = torch.float32,
    plan: StepPlan | None = None,
) -> Iterator[SamplerState]:
    """The states after each step; the last one's `x` is the clip.

    `plan` leaves out work, None nothing. `loop_dtype` is the precision that latents are rounded to after
    every step. Raises NonFiniteError, naming the step, as soon as latents are not finite.
    """
    begin, known = start.index, conditions.known
    total = len(sampler.timesteps) - begin
    drawer = replace(sampler, compat="diffusers") if noise.exact_draws else sampler
    todo = None if plan is None else plan.resolved(begin, guided=conditions.uncond_LC is not None)
    origin_CTHW, state, kept = start.x, start, Kept()
    while not sampler.done(state):
        t, step = sampler.timestep(state), state.index - begin
        if known is not None:
            state = replace(state, x=known.put(state.x, _front(known, origin_CTHW, sampler, t)))
        scale = guidance_scale(conditions.dynamic, conditions.guidance, step=step, steps=total, timestep=t)
        if todo is None:
            v_CTHW = predict(transformer, state.x, t, conditions, scale)
        else:
            ways = todo.blocks[step], todo.guidance[step]
            v_CTHW, kept = predict_by_plan(transformer, state.x, t, conditions, scale, *ways, kept)
        fresh = None
        if draws := drawer.draws(state):
            c, frames, h, w = state.x.shape
            fresh = noise.step((c, frames, h, w), window, state.index, draws).to(state.x)
        state = sampler.step(state, v_CTHW, fresh)
        state = replace(state, x=state.x.to(loop_dtype).to(state.x.dtype))
        if not torch.isfinite(state.x).all():
            raise NonFiniteError(f"sampling: latents are not finite after step {step + 1} of {total}")
        if known is not None and sampler.done(state):
            state = replace(state, x=known.put(state.x, known.latents_CTHW))
        yield state


def _front(known: Known, origin_CTHW: Tensor, sampler: Sampler, t: int) -> Tensor:
    """What the known frames look like to the transformer at timestep t."""
    if known.clean:
        return known.latents_CTHW
    latents = known.latents_CTHW.to(origin_CTHW)[None]
    noise = origin_CTHW[None, :, : latents.shape[2]]
    return sampler.schedule.add_noise(latents, noise, torch.tensor([t]))[0]


@torch.no_grad()
def predict(transformer: Transformer, x_CTHW: Tensor, t: int, conditions: Conditions, scale: float) -> Tensor:
    """Guided v at (x, t), fp32. With guidance, both branches run as one pack of two segments, or apart."""
    pack = _pack(transformer, x_CTHW, t, conditions, pair=True)
    mine = pack if conditions.mesh is None else share(pack, conditions.mesh)
    packs = mine.alone() if conditions.apart else (mine,)
    outputs = _outputs(torch.cat([transformer(one) for one in packs]), mine, pack, transformer.spec)
    return combine(outputs[0], outputs[1], scale) if len(outputs) == 2 else outputs[0]


@torch.no_grad()
def predict_by_plan(
    transformer: Transformer,
    x_CTHW: Tensor,
    t: int,
    conditions: Conditions,
    scale: float,
    block: str,
    guide: str,
    kept: Kept,
) -> tuple[Tensor, Kept]:
    """`predict` by one step of a resolved plan, and what the next steps need. Equal to it for "f" and "p"."""
    pack = _pack(transformer, x_CTHW, t, conditions, pair=guide == "p")
    mine = pack if conditions.mesh is None else share(pack, conditions.mesh)
    packs = mine.alone() if conditions.apart else (mine,)
    entered = [(*transformer.embed(one), one) for one in packs]
    before_LD = torch.cat([one.video_rows(x_LD) for x_LD, _, one in entered])
    if block == "f":
        after_LD = torch.cat([transformer.stack(*one) for one in entered])
        kept = kept.add(t, list(mine.per_segment(after_LD - before_LD)))
    else:
        branches = range(-len(pack.segments), 0)
        after_LD = before_LD + torch.cat([kept.residual(t, b, "rt".index(block)) for b in branches])
    temb_SC = torch.cat([temb for _, temb, _ in entered])
    outputs = _outputs(transformer.output(after_LD, temb_SC, mine), mine, pack, transformer.spec)
    cond_CTHW = outputs[-1]
    if guide == "c":
        return cond_CTHW, kept
    if guide == "p":
        kept = replace(kept, gap_CTHW=cond_CTHW - outputs[0])
        return combine(outputs[0], cond_CTHW, scale), kept
    assert kept.gap_CTHW is not None
    return cond_CTHW + (scale - 1) * kept.gap_CTHW, kept


def _outputs(v_LP: Tensor, mine: Pack, pack: Pack, spec: TransformerSpec) -> list[Tensor]:
    """v of each segment of `pack`, (C, T, H, W), from the rows that `mine`, it or a share of it, came to."""
    return split_output(gather_video(v_LP, mine) if isinstance(mine, Share) else v_LP, pack, spec)


def _pack(transformer: Transformer, x_CTHW: Tensor, t: int, conditions: Conditions, pair: bool) -> Pack:
    """The unconditional branch, if there is one and `pair`, then the conditional one."""
    texts = [conditions.cond_LC]
    if pair and conditions.uncond_LC is not None:
        texts.insert(0, conditions.uncond_LC)
    samples = [Sample(x_CTHW, text, t, conditions.image_CTHW) for text in texts]
    weight = transformer.patch_embed.weight
    return build_pack(samples, transformer.spec, dtype=weight.dtype, device=weight.device)
