"""Images, clips and latents that come with a request. Shape legend: C channels, T H W latent grid."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from cogvideox.core.errors import InputError
from cogvideox.core.files import atomic_path
from cogvideox.core.shapes import PIXELS_PER_LATENT, encode_plan, pixel_frames
from cogvideox.data.video import Frames, Info, cover_crop, is_picture, probe, read_image, read_video, retime
from cogvideox.generation.request import Given, Request
from cogvideox.models.specs import ModelSpec
from cogvideox.models.vae.autoencoder import VAE, Posterior
from cogvideox.parallel.mesh import World
from cogvideox.parallel.vae import encode_stream

LATENTS = ".safetensors"
_KEY = "cogvideox"


@dataclass(frozen=True)
class Media:
    """An image or a clip: a file, or frames in memory."""

    info: Info
    source: Path | Frames

    @classmethod
    def of(cls, value: Any, fps: float | None = None) -> Media:
        """From a path, a PIL image, a list of them, uint8 frames (H, W, 3) or (T, H, W, 3), or a result.

        `fps` of frames in memory, if it is known: they are shown at their own speed then, like files.
        InputError for anything else. Files are only looked at, not read.
        """
        if isinstance(value, (str, Path)):
            return cls(probe(value), Path(value))
        frames = _frames(getattr(value, "frames", value))
        count, height, width = frames.shape[:3]
        return cls(Info(count, height, width, fps if count > 1 else None), frames)

    @classmethod
    def first(cls, value: Any) -> Media:
        """The first frame of anything that `of` takes, read at once: it must not turn out to be damaged only
        when the model is loaded.
        """
        if isinstance(value, (str, Path)):
            value = read_image(value) if is_picture(value) else read_video(value, limit=1).frames
        return cls.of(_frames(getattr(value, "frames", value))[0])

    def clip(self, frames: int, fps: float, height: int, width: int, *, last: bool = False) -> Frames:
        """The first or last frames at `fps`, (frames, height, width, 3), fitted by `cover_crop`."""
        limit = None if last else frames
        if isinstance(self.source, Path):
            everything = read_video(self.source, fps=fps, limit=limit, size=(height, width)).frames
        else:
            rate = self.info.fps or fps
            seen = retime(((index / rate, frame) for index, frame in enumerate(self.source)), fps)
            everything = np.stack([cover_crop(frame, height, width) for frame in islice(seen, limit)])
        if len(everything) < frames:
            raise InputError(f"the clip has {len(everything)} frames at {fps:g} per second, not {frames}")
        return everything[-frames:] if last else everything[:frames]

    def digest(self) -> str:
        """Hash of the file or the frames, for the record."""
        digest = hashlib.blake2b(digest_size=16)
        if not isinstance(self.source, Path):
            digest.update(self.source.tobytes())
            return digest.hexdigest()
        files = sorted(self.source.glob("*")) if self.source.is_dir() else [self.source]
        for file in files:
            digest.update(file.read_bytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class Latents:
    """A clip in the transformer's scale."""

    latents_CTHW: Tensor
    """fp32 on the CPU, without padding."""
    fps: float
    metadata: Mapping[str, Any]

    @property
    def info(self) -> Info:
        _, frames, height, width = self.latents_CTHW.shape
        return Info(pixel_frames(frames), PIXELS_PER_LATENT * height, PIXELS_PER_LATENT * width, self.fps)

    def digest(self) -> str:
        """Hash of the latents, for the record."""
        return hashlib.blake2b(self.latents_CTHW.contiguous().numpy().tobytes(), digest_size=16).hexdigest()

    def save(self, path: str | Path) -> None:
        """Write a latents file, atomically."""
        text = json.dumps({"fps": self.fps} | dict(self.metadata))
        with atomic_path(path) as partial:
            save_file({"latents": self.latents_CTHW.contiguous()}, partial, {_KEY: text})

    @classmethod
    def load(cls, path: str | Path) -> Latents:
        """Read a latents file. InputError when it is none."""
        try:
            with safe_open(str(path), "pt") as file:
                metadata = json.loads((file.metadata() or {}).get(_KEY, "{}"))
                latents = file.get_tensor("latents").float()
        except (SafetensorError, OSError, ValueError) as error:
            raise InputError(f"cannot read the latents {path}: {error}") from None
        if latents.ndim != 4:
            raise InputError(
                f"cannot read the latents {path}: shape {tuple(latents.shape)}, not (C, T, H, W)"
            )
        return cls(latents, float(metadata.get("fps", 8)), metadata)


@dataclass(frozen=True)
class Inputs:
    """What comes with a request beside words and numbers."""

    image: Media | None = None
    video: Media | None = None
    extend: Media | Latents | None = None
    start_CTHW: Tensor | None = None
    """Latents that the sampler starts from, instead of noise."""
    cond_LC: Tensor | None = None
    """Embedding of the prompt, instead of the prompt."""
    uncond_LC: Tensor | None = None

    @classmethod
    def of(cls, request: Request) -> Inputs:
        """The files that a request names. InputError when one is missing or unreadable."""
        extend = request.extend
        return cls(
            image=None if request.image is None else Media.first(request.image),
            video=None if request.video is None else Media.of(request.video),
            extend=None if extend is None else previous(extend),
        )

    @property
    def given(self) -> Given | None:
        """Size and length of what came along."""
        media = self.image or self.video or self.extend
        return None if media is None else Given(media.info, fixed=isinstance(media, Latents))

    def digests(self) -> dict[str, str]:
        """Hashes of files and frames, for the record."""
        named = {"image": self.image, "video": self.video, "extend": self.extend}
        return {name: media.digest() for name, media in named.items() if media is not None}


def previous(value: Any, fps: float = 8) -> Media | Latents:
    """What is to be continued: latents (a result, a latents file, a tensor, which has `fps`) or a clip."""
    if isinstance(value, (str, Path)) and Path(value).suffix == LATENTS:
        return Latents.load(value)
    if isinstance(getattr(value, "latents", None), Tensor):
        return Latents(as_latents(value.latents), value.fps, value.metadata)
    if isinstance(value, Tensor) and value.is_floating_point():
        return Latents(as_latents(value), fps, {})
    return Media.of(value, getattr(value, "fps", None))


def as_latents(value: Tensor) -> Tensor:
    """(C, T, H, W) from that or from a batch of one."""
    latents = value[0] if value.ndim == 5 and len(value) == 1 else value
    if latents.ndim != 4:
        raise InputError(f"latents are (1, C, T, H, W) or (C, T, H, W), not {tuple(value.shape)}")
    return latents.detach().float().cpu()


def to_signed(frames: Frames) -> Tensor:
    """uint8 (T, H, W, 3) -> fp32 (1, 3, T, H, W) in [-1, 1]."""
    return (torch.from_numpy(frames.copy()).permute(3, 0, 1, 2)[None].float() / 255) * 2 - 1


def to_frames(video_BCTHW: Tensor) -> Frames:
    """(1, 3, T, H, W) near [-1, 1] -> uint8 (T, H, W, 3)."""
    unit = (video_BCTHW[0].float() / 2 + 0.5).clamp(0, 1)
    return (unit * 255).round().to(torch.uint8).permute(1, 2, 3, 0).cpu().numpy()


@torch.no_grad()
def encode(
    vae: VAE,
    frames: Frames,
    noise_CTHW: Tensor | None = None,
    *,
    condition: bool = False,
    world: World | None = None,
) -> Tensor:
    """Frames (4k+1, H, W, 3) -> latents (C, T, H, W), fp32 on the CPU. One chunk is in floats at a time.

    The posterior's mode, or a sample with `noise_CTHW`. `condition` applies the scale of image conditions.
    The processes of a `world` share the work, and all of them get the latents.
    """
    plan, device = encode_plan(len(frames)), vae.device
    starts = np.cumsum(plan.sizes)[:-1]
    chunks = (to_signed(part).to(device) for part in np.split(frames, starts))
    if world is None:
        posterior = Posterior.join(vae.encode_stream(chunks, plan))
    else:
        posterior = Posterior.join(encode_stream(vae, chunks, world, plan))
    noise = None if noise_CTHW is None else noise_CTHW[None]
    return vae.latents(posterior, noise, condition=condition)[0].float().cpu()


def check_latents(latents_CTHW: Tensor, spec: ModelSpec) -> None:
    """InputError unless the latents have the model's number of channels."""
    channels = spec.vae.latent_channels
    if latents_CTHW.shape[0] != channels:
        hint = "; diffusers' order is (B, T, C, H, W)" if latents_CTHW.shape[1] == channels else ""
        raise InputError(
            f"the latents have {latents_CTHW.shape[0]} channels, {spec.name} has {channels}{hint}"
        )


def _frames(value: Any) -> Frames:
    if isinstance(value, Image.Image):
        value = np.asarray(value.convert("RGB"))
    elif isinstance(value, (list, tuple)) and value and isinstance(value[0], Image.Image):
        value = np.stack([np.asarray(picture.convert("RGB")) for picture in value])
    elif isinstance(value, Tensor):
        value = value.cpu().numpy()
    if not isinstance(value, np.ndarray):
        raise InputError(f"frames are uint8 (T, H, W, 3), PIL images or a path, not {type(value).__name__}")
    frames = value[None] if value.ndim == 3 else value
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3:
        raise InputError(f"frames are uint8 (T, H, W, 3), not {value.dtype} {value.shape}")
    return frames
