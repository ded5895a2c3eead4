"""What a VAE loses. Shape legend: T frames, C channels, H W pixels."""

from __future__ import annotations

import math
import statistics

import torch
from torch import Tensor

from cogvideox.core.errors import InputError
from cogvideox.data.metrics import ssim
from cogvideox.data.storybook import World
from cogvideox.data.storybook.clip import check_picture
from cogvideox.generation.media import to_signed
from cogvideox.models.vae.autoencoder import VAE

SEED = 1_000_033
"""Of the world of the clips; no recipe trains on it."""


@torch.no_grad()
def reconstruct(vae: VAE, clips: int, frames: int, height: int, width: int) -> dict[str, float]:
    """Means over held-out clips of Storybook of `psnr` (dB, the mean over frames), `ssim`, `flicker` and
    `source flicker` (grey levels of 255 by which neighbouring frames differ, of the reconstruction and of the
    clip) and `residual flicker` (the same of the errors: what the VAE adds, which blur cannot hide).
    """
    check_picture(frames, 8, height, width, 0)
    if frames % 4 != 1 or height % 8 or width % 8:
        raise InputError(
            f"the VAE takes 4k+1 frames and sides that divide by 8, not {frames}x{height}x{width}"
        )
    world, dtype = World(seed=SEED, split="heldout"), next(vae.parameters()).dtype
    found = []
    for index in range(clips):
        video = world.clip(index, (frames - 1) / 8).render(frames, 8, height, width)
        signed = to_signed(video)
        decoded = vae.decode(vae.encode(signed.to(dtype))).float().clamp(-1, 1)
        pair = [((x[0].permute(1, 0, 2, 3) + 1) / 2).float() for x in (decoded, signed.float())]
        found.append(losses(*pair))
    return {name: statistics.mean(one[name] for one in found) for name in found[0]}


def losses(a_TCHW: Tensor, b_TCHW: Tensor) -> dict[str, float]:
    """What `reconstruct` tells about one clip and its source; values in [0, 1]."""
    errors = (a_TCHW - b_TCHW).square().mean((1, 2, 3)).clamp(min=1e-10)
    return {
        "psnr": statistics.mean(-10 * math.log10(error) for error in errors.tolist()),
        "ssim": ssim(a_TCHW, b_TCHW),
        "flicker": _flicker(a_TCHW),
        "source flicker": _flicker(b_TCHW),
        "residual flicker": _flicker(a_TCHW - b_TCHW),
    }


def _flicker(x_TCHW: Tensor) -> float:
    return 255 * float(x_TCHW.diff(dim=0).abs().mean()) if len(x_TCHW) > 1 else 0.0
