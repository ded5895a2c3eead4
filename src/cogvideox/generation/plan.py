"""What a request will cost, from specs alone: memory and time by stage, before anything is loaded."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Self, TypeVar

import torch
from torch import nn

from cogvideox.core.device import Memory
from cogvideox.core.errors import InputError
from cogvideox.core.pack import Pack, Segment
from cogvideox.core.shapes import PIXELS_PER_LATENT, ClipShape, plan_shape
from cogvideox.generation.memory import decoding, encoding, exchanged, residuals, sampling
from cogvideox.generation.request import Settings
from cogvideox.models.specs import ModelSpec, TransformerSpec, VAESpec
from cogvideox.models.transformer.blocks import Block
from cogvideox.models.transformer.model import Transformer
from cogvideox.models.vae.autoencoder import VAE
from cogvideox.models.vae.layers import Carry, ResBlock
from cogvideox.parallel.mesh import World

M = TypeVar("M", bound=nn.Module)
GIB = 2**30
T5_XXL_PARAMETERS = 4_762_310_656


@dataclass(frozen=True)
class Weights:
    """Bytes of a model's parts."""

    text: int
    transformer: int
    vae: int

    @property
    def total(self) -> int:
        return self.text + self.transformer + self.vae


@dataclass(frozen=True)
class Plan:
    """What a run needs and what there is, in bytes."""

    shape: ClipShape
    tokens: int
    """Of one branch in the longest window, text included."""
    weights: Weights
    encoding: int
    """Activations of the VAE's encoder, for one chunk; 0: nothing is encoded."""
    sampling: int
    """Activations of the transformer."""
    decoding: int
    """Activations of the decoder, for one chunk: they do not grow with the length of the clip."""
    peak: int
    """The most that is needed at once, beyond what is in memory already."""
    free: int
    wait: bool
    """The parts wait for their turn, because they do not fit together (or because they were told to)."""
    apart: bool
    """The branches of guidance run one after the other, because they do not fit together."""

    @property
    def fits(self) -> bool:
        return self.peak <= self.free


@dataclass(frozen=True)
class Portion:
    """What one of several processes works on: one part of so many."""

    branches: int = 1
    tokens: int = 1
    heads: bool = False
    """In attention it has all tokens of some heads; else its own and the keys of all."""
    rows: int = 1
    """Of the VAE's frames."""

    @classmethod
    def of(cls, world: World, guided: bool) -> Self:
        mesh = world.mesh(guided)
        return cls(mesh.branches, mesh.sequence.size, mesh.ulysses, world.slabs)


def weights_of(spec: ModelSpec, dtype: torch.dtype, text_bytes: int | None = None) -> Weights:
    """Bytes of a model's parts in `dtype`; `text_bytes` defaults to T5-XXL, the released models' encoder."""
    size = dtype.itemsize
    transformer, vae = _parameters(spec)
    text = T5_XXL_PARAMETERS * size if text_bytes is None else text_bytes
    return Weights(text, transformer * size, vae * size)


@functools.lru_cache(maxsize=32)
def _parameters(spec: ModelSpec) -> tuple[int, int]:
    with torch.device("meta"):
        modules = Transformer(spec.transformer), VAE(spec.vae)
    transformer, vae = (sum(p.numel() for p in module.parameters()) for module in modules)
    return transformer, vae


def make_plan(
    spec: ModelSpec,
    shape: ClipShape,
    longest: int,
    *,
    guided: bool,
    kept: bool = False,
    dtype: torch.dtype,
    memory: Memory,
    weights: Weights,
    encoded: int = 0,
    held: int = 0,
    wait: bool | None = None,
    accelerator: bool = False,
    world: World | None = None,
) -> Plan:
    """The plan for a clip of `shape` whose longest window has `longest` latent frames (padding not counted)
    and of which `encoded` frames are given.

    A step plan has residuals `kept`. `held` bytes of the weights are in memory already. Parts that `wait` for
    their turn are not in memory together: on an `accelerator` only the part at work is, on a CPU the text
    encoder is freed after use. None: only if they must. Branches of guidance run together if they fit. The
    needs are those of each process of a `world`, and so must `memory` be.
    """
    tokens, native = _tokens(spec, shape, longest), not accelerator
    portion = Portion() if world is None else Portion.of(world, guided)
    guided = guided and portion.branches == 1
    own = -(-tokens // portion.tokens)
    rows = -(-shape.latents[1] // portion.rows) + (portion.rows > 1)  # one for borders and their exchange
    # Pieces of frames and shared attention take the plain way.
    clip = rows * PIXELS_PER_LATENT, shape.width, dtype, native and portion.rows == 1
    to_decode = decoding(spec.vae, shape.frames, *clip).bytes()
    to_encode = encoding(spec.vae, encoded, *clip).bytes() if encoded else 0

    to_keep = residuals(spec.transformer, own, 1 + guided, dtype) if kept else 0

    def make(wait: bool, apart: bool) -> Plan:
        step = own, 1 if apart else 1 + guided, dtype, native and portion.tokens == 1
        to_sample = sampling(spec.transformer, *step).bytes() + to_keep
        if portion.tokens > 1:
            to_sample += exchanged(spec.transformer, tokens, own, portion.heads, dtype)
        coding = max(to_encode, to_decode)
        if not wait:
            peak = weights.total - held + max(to_sample, coding)
        elif accelerator:
            peak = max(weights.text, weights.transformer + to_sample, weights.vae + coding)
        else:
            peak = max(weights.text, weights.transformer + weights.vae + max(to_sample, coding))
        needs = to_encode, to_sample, to_decode, peak
        return Plan(shape, tokens, weights, *needs, memory.free, wait, apart and guided)

    waits = (False, True) if wait is None else (wait,)
    plans = [make(wait, apart) for apart in (False, True) for wait in waits]
    return next((plan for plan in plans if plan.fits), plans[-1])


def check(plan: Plan, spec: ModelSpec, replan: Callable[[ClipShape], Plan]) -> None:
    """InputError when the plan does not fit the free memory; says the largest shape that would."""
    if plan.fits:
        return
    shape = plan.shape
    size = f"{shape.frames} frames of {shape.width}x{shape.height}"
    need = f"{size} need {gib(plan.peak)}, {gib(plan.free)} are free"
    for smaller in _smaller(spec, shape):
        if replan(smaller).fits:
            raise InputError(f"{need}; {smaller.frames} frames of {smaller.width}x{smaller.height} would fit")
    floor = plan.weights.transformer + plan.weights.vae
    raise InputError(f"{need}; no shape would fit, {spec.name} alone takes {gib(floor)}: use a smaller model")


def _smaller(spec: ModelSpec, shape: ClipShape) -> Iterator[ClipShape]:
    """Shapes to fall back to, best first: shorter, down to one second or so, then smaller."""
    patch = spec.transformer.patch
    for scale in (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1):
        height, width = int(shape.height * scale), int(shape.width * scale)
        for part in (1.0, 0.75, 0.5, 0.25):
            frames = max(1, int(shape.frames * part))
            if frames >= min(shape.frames, spec.trained_frames[0]):
                yield plan_shape(patch, frames, max(1, height), max(1, width))


def _tokens(spec: ModelSpec, shape: ClipShape, longest: int) -> int:
    patch_t = spec.transformer.patch[0]
    _, h, w = shape.grid
    return spec.transformer.text_length + -(-longest // patch_t) * h * w


def gib(count: int) -> str:
    """Bytes for people."""
    return f"{count / GIB:.1f} GiB" if count >= GIB / 10 else f"{count / 2**20:.0f} MiB"


# ----------------------------------------------------------------------------------------------------- time


@dataclass(frozen=True)
class Speeds:
    """Floating point operations per second of a device."""

    matmul: float
    attention: float
    convolution: float


@torch.no_grad()
def measure(device: torch.device, dtype: torch.dtype) -> Speeds:
    """Speeds of the models' own blocks: of a transformer's on many short segments, where attention is next to
    nothing, and on a long one; of a residual block of the VAE. Takes a few tenths of a second.
    """
    spec = TransformerSpec(layers=1, heads=8, text_length=16)
    with torch.device("meta"):
        block, residual = Block(spec), ResBlock(128, 128, 32, None)
    block, residual = _filled(block, device, dtype), _filled(residual, device, dtype)

    def seconds(count: int, length: int) -> float:
        segments = (Segment(spec.text_length, (1, 1, length - spec.text_length)),) * count
        text = count * spec.text_length
        rows = torch.empty(count * length, 1, device=device)
        pack = Pack(segments, rows[:text], rows[text:], torch.zeros(count, device=device))
        x_LD = torch.ones(count * length, spec.width, dtype=dtype, device=device)
        temb_SC = torch.ones(count, spec.time_dim, dtype=dtype, device=device)
        return _seconds(lambda: block(x_LD, temb_SC, pack, None))

    tokens = 2048
    linear = seconds(tokens // 64, 64)
    attention = max(seconds(1, tokens) - linear, 0.1 * linear)
    x = torch.ones(1, 128, 4, 32, 32, dtype=dtype, device=device)
    x = x.contiguous(memory_format=torch.channels_last_3d)
    convolutions = _seconds(lambda: residual(x.clone(), None, Carry(None, False, last=True)))
    return Speeds(
        2 * tokens * 12 * spec.width**2 / linear,
        4 * tokens**2 * spec.width / attention,
        2 * 2 * 27 * 128**2 * x[0, 0].numel() / convolutions,
    )


def _filled(module: M, device: torch.device, dtype: torch.dtype) -> M:
    """A module on meta tensors with any weights at all; no generator draws them."""
    module = module.to(dtype).to_empty(device=device)
    for parameter in module.parameters():
        parameter.fill_(0.01)
    return module


def _seconds(work: Callable[[], torch.Tensor]) -> float:
    """The fastest of a few runs: others may use the machine meanwhile."""
    times: list[float] = []
    while len(times) < 3 or sum(times) < 0.03:
        start = time.perf_counter()
        float(work().flatten()[0])  # reading a number waits for the device
        times.append(time.perf_counter() - start)
    return min(times)


def seconds_of(
    spec: ModelSpec, settings: Settings, weights: Weights, dtype: torch.dtype, speeds: Speeds
) -> dict[str, float]:
    """Estimated seconds by stage. Small models spend more than this on overheads."""
    t = spec.transformer
    shape = settings.shape
    steps = 0.0
    for window in settings.windows:
        tokens = _tokens(spec, shape, window.known + window.new)
        steps += settings.work * forward_seconds(t, tokens, speeds)
    vae = decoder_operations(spec.vae, shape) / speeds.convolution
    text = 2 * weights.text / dtype.itemsize * t.text_length * (1 + bool(settings.negative)) / speeds.matmul
    stages = {"text": text, "sample": steps, "decode": vae}
    if settings.task in ("video", "extend"):
        stages["encode"] = 0.75 * vae  # one residual block in four less
    return stages


def forward_seconds(spec: TransformerSpec, tokens: int, speeds: Speeds) -> float:
    """Estimated seconds of the transformer for one branch of so many tokens."""
    linear = 2 * tokens * 12 * spec.width**2 * spec.layers / speeds.matmul
    attention = 4 * tokens**2 * spec.width * spec.layers / speeds.attention
    return linear + attention


def decoder_operations(spec: VAESpec, shape: ClipShape) -> float:
    """Floating point operations of the convolutions that decode a clip."""
    widths = spec.channels[::-1]
    height, width = shape.height // PIXELS_PER_LATENT, shape.width // PIXELS_PER_LATENT
    frames, before = math.ceil(shape.frames / 4), widths[0]
    total = 27.0 * (spec.latent_channels * before + 4 * before**2) * frames * height * width
    for level, channels in enumerate(widths):
        voxels = frames * height * width
        total += 27 * voxels * channels * (before + (2 * spec.blocks + 1) * channels)
        if level < len(widths) - 1:
            height, width = 2 * height, 2 * width
            total += 9 * frames * height * width * channels**2
            frames *= 2 if level < 2 else 1
        before = channels
    return 2 * (total + 27 * frames * height * width * before * 3)
