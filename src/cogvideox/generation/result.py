"""What generation gives back."""

from __future__ import annotations

import base64
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from cogvideox.data.video import Frames, check_place, check_target, write_video
from cogvideox.generation.media import LATENTS, Latents


@dataclass(frozen=True, eq=False)
class Video:
    """A finished clip. Shows itself in a notebook."""

    frames: Frames
    """(T, H, W, 3) uint8 RGB."""
    fps: float
    latents: Tensor
    """(1, C, T, H, W) in the transformer's scale, fp32 on the CPU."""
    metadata: Mapping[str, Any]
    """The request and what it was carried out with; goes into every file."""

    def save(self, path: str | Path) -> Path:
        """Write the clip (.mp4 .webm .gif .webp .png-folder .png) or its latents (.safetensors),
        atomically."""
        path = Path(path)
        if path.suffix == LATENTS:
            Latents(self.latents[0], self.fps, self.metadata).save(path)
        else:
            write_video(path, [self.frames], self.fps, dict(self.metadata))
        return path

    def __repr__(self) -> str:
        count, height, width, _ = self.frames.shape
        return f"Video({count} frames of {width}x{height} at {self.fps:g} fps)"

    def _repr_html_(self) -> str:
        with tempfile.TemporaryDirectory() as folder:
            data = base64.b64encode(self.save(Path(folder) / "clip.mp4").read_bytes()).decode()
        return f'<video controls loop autoplay muted src="data:video/mp4;base64,{data}"></video>'


def check_output(path: str | Path, frames: int = 1) -> Path:
    """The path, if a clip of that length or its latents can be written there, else InputError."""
    path = Path(path)
    if path.suffix == LATENTS:
        check_place(path)
    else:
        check_target(path, frames)
    return path
