"""How well a VAE gives held-out clips back: what every stage of its training reports.

Shape legend: B clips, T frames, C channels, H W pixels.
"""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from cogvideox.core.errors import InputError
from cogvideox.core.files import atomic_path
from cogvideox.data.metrics import flicker, frame_psnr, ssim
from cogvideox.generation.media import to_frames, to_signed
from cogvideox.models.vae.autoencoder import VAE
from cogvideox.training.footage import Footage

SHOWN = 8
"""Clips on the contact sheet, a row each: every second frame."""


def changing(video_BCTHW: Tensor) -> Tensor:
    """Pixels (B, T, H, W) of which a colour differs by over 5 % of its range from a neighbouring frame's."""
    change = video_BCTHW.float().diff(dim=2).abs().amax(dim=1) > 0.1
    edge = torch.zeros_like(change[:, :1])
    return torch.cat([change, edge], dim=1) | torch.cat([edge, change], dim=1)


class HeldOut:
    """Square clips that training never sees, read when first asked for."""

    def __init__(self, source: Footage, count: int = 16, frames: int = 17, side: int = 128) -> None:
        self.source, self.count, self.frames, self.side = source, count, frames, side
        self._clips: list[Tensor] = []

    def clips(self) -> list[Tensor]:
        """fp32 (1, 3, T, H, W) in [-1, 1], the same at every call."""
        if not self._clips:
            found = self.source.held_out(self.count, self.frames, self.side)
            self._clips = [to_signed(video) for video in found]
            if not self._clips:
                shape = f"{self.frames} frames at 8 per second of {self.side} pixels"
                raise InputError(f"no clip of {shape} is kept for validation; of ten sources one may be")
        return self._clips

    @torch.no_grad()
    def report(self, vae: VAE, sheet: Path) -> dict[str, float]:
        """Means over the clips; writes a contact sheet of true frames beside those that came back.

        eval_psnr: of frames, dB. still, moving: PSNR of all pixels without and with a change to a
        neighbouring frame. ssim. flicker, source_flicker: of what came back and of the clips, grey levels;
        excess is their ratio. residual_flicker: of the difference of both, which blur does not lower.
        """
        scores: list[tuple[float, ...]] = []
        still: list[Tensor] = []
        moving: list[Tensor] = []
        rows: list[Tensor] = []
        for video in self.clips():
            decoded = vae.decode(vae.encode(video.to(vae.device, vae.dtype))).float().clamp(-1, 1).cpu()
            made, true = (x[0].transpose(0, 1) / 2 + 0.5 for x in (decoded, video))
            both = frame_psnr(made, true), ssim(made, true)
            scores.append((*both, flicker(made), flicker(true), flicker(made - true)))
            error, moves = (made - true).square().mean(dim=1), changing(video)[0]
            still.append(error[~moves])
            moving.append(error[moves])
            if len(rows) < SHOWN:
                shown = torch.from_numpy(to_frames(torch.cat([video, decoded], dim=3)))[::2]
                rows.append(shown.transpose(0, 1).flatten(1, 2))
        with atomic_path(sheet) as partial:
            Image.fromarray(torch.cat(rows).numpy()).save(partial)
        psnr, likeness, flickers, source, residual = torch.tensor(scores).mean(0).tolist()
        report = {
            "eval_psnr": psnr,
            "still": _decibels(still),
            "moving": _decibels(moving),
            "ssim": likeness,
            "flicker": flickers,
            "source_flicker": source,
            "excess": flickers / max(source, 1e-9),
            "residual_flicker": residual,
        }
        return {name: round(value, 4) for name, value in report.items()}


def _decibels(errors: list[Tensor]) -> float:
    """PSNR of all pixels of those squared errors together."""
    return float(-10 * torch.cat(errors).mean().clamp_min(1e-10).log10())
