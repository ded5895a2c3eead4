"""Pixel, latent and token shapes, and the chunk plans of the VAE: the only place for these rules.

Units: *frames* and *pixels* describe a video, *latents* what the VAE makes of it (T, H, W), *tokens* what the
transformer sees after patching. Source: paper sections 2.1-2.2; the chunk lengths are those of the released
weights, whose GroupNorm pools over a chunk, so that other lengths give other results.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from cogvideox.core.errors import InputError

FRAMES_PER_LATENT = 4
PIXELS_PER_LATENT = 8
ENCODE_CHUNK = 8  # frames
DECODE_CHUNK = 2  # latents


@dataclass(frozen=True)
class ChunkPlan:
    """How a clip is cut along time before it goes through the VAE, chunk after chunk."""

    sizes: tuple[int, ...]
    """Frames (encode) or latents (decode) per chunk, in order."""
    lead: bool = True
    """True: the clip's first frame stands alone (1 frame <-> 1 latent), all others go 4 to 1. False: all go 4
    to 1.
    """

    @property
    def length(self) -> int:
        """Frames or latents in all."""
        return sum(self.sizes)


def _chunks(length: int, chunk: int) -> tuple[int, ...]:
    count = max(length // chunk, 1)
    return (length - (count - 1) * chunk,) + (chunk,) * (count - 1)


def encode_plan(frames: int) -> ChunkPlan:
    """Plan for encoding `frames` = 4k+1 frames: 9, 8, 8, ... with the remainder in the first chunk."""
    if frames < 1 or frames % FRAMES_PER_LATENT != 1:
        low = max(1, (frames - 1) // FRAMES_PER_LATENT * FRAMES_PER_LATENT + 1)
        raise InputError(
            f"the VAE takes 4k+1 frames, not {frames}; nearest: {low} or {low + FRAMES_PER_LATENT}"
        )
    return ChunkPlan(_chunks(frames, ENCODE_CHUNK))


def decode_plan(latents: int) -> ChunkPlan:
    """Plan for decoding `latents` latent frames into 4(latents-1)+1 frames: 3, 2, 2, ..."""
    if latents < 1:
        raise InputError(f"cannot decode {latents} latent frames; at least 1 is needed")
    return ChunkPlan(_chunks(latents, DECODE_CHUNK))


def parity_plan(length: int, chunk: int) -> ChunkPlan:
    """The plan by which `diffusers` runs any length: the first frame stands alone only if the first chunk is
    odd.

    Equal to `encode_plan` and `decode_plan` for odd lengths; an even number of latents gives 4 frames for
    each.
    """
    sizes = _chunks(length, chunk)
    return ChunkPlan(sizes, lead=sizes[0] % 2 == 1)


def whole_plan(length: int) -> ChunkPlan:
    """The plan of one chunk: no streaming, memory grows with the length."""
    return ChunkPlan((length,))


def latent_frames(frames: int) -> int:
    """Latent frames of a clip of 4k+1 frames."""
    return (frames - 1) // FRAMES_PER_LATENT + 1


def pixel_frames(latents: int) -> int:
    """Frames of a clip of `latents` latent frames."""
    return (latents - 1) * FRAMES_PER_LATENT + 1


@dataclass(frozen=True)
class ClipShape:
    """A legal shape of a clip, in every unit."""

    frames: int
    height: int
    width: int
    latents: tuple[int, int, int]
    """Latent grid (T, H, W) that the transformer works on, `pad` included."""
    pad: int
    """Latent frames in front that fill up the temporal patch; dropped before decoding."""
    grid: tuple[int, int, int]
    """Tokens (t, h, w)."""
    snapped: str = ""
    """What was changed to make the request legal, in words; empty if nothing was."""

    @property
    def tokens(self) -> int:
        return prod(self.grid)


def plan_shape(patch: tuple[int, int, int], frames: int, height: int, width: int) -> ClipShape:
    """The nearest legal shape for a model with this patch (t, h, w): frames 4k+1, sides multiples of 16.

    Ties go down, so that nothing gets bigger than asked for unless it must. Raises InputError for sizes below
    one frame or one pixel.
    """
    if frames < 1 or height < 1 or width < 1:
        raise InputError(f"illegal shape {frames} frames of {width}x{height}: all must be at least 1")
    legal_frames = frames // FRAMES_PER_LATENT * FRAMES_PER_LATENT + 1
    sides = []
    for side, unit in ((height, PIXELS_PER_LATENT * patch[1]), (width, PIXELS_PER_LATENT * patch[2])):
        sides.append(max(unit, -(-(2 * side - unit) // (2 * unit)) * unit))
    t, h, w = latent_frames(legal_frames), sides[0] // PIXELS_PER_LATENT, sides[1] // PIXELS_PER_LATENT
    pad = -t % patch[0]
    changes = []
    if legal_frames != frames:
        changes.append(f"{frames} frames to {legal_frames} (4k+1)")
    if (sides[0], sides[1]) != (height, width):
        changes.append(
            f"{width}x{height} to {sides[1]}x{sides[0]} (multiples of {PIXELS_PER_LATENT * patch[1]})"
        )
    return ClipShape(
        frames=legal_frames,
        height=sides[0],
        width=sides[1],
        latents=(t + pad, h, w),
        pad=pad,
        grid=((t + pad) // patch[0], h // patch[1], w // patch[2]),
        snapped=" and ".join(changes),
    )
