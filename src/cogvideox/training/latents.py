"""Storybook clips as VAE latents on disk, so that the transformer's training never runs the VAE.

A bucket holds clips of one shape in files of `CHUNK` clips, with several captions of each. Encoding is
resumable: a file is there whole or not at all.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from cogvideox.core.errors import InputError
from cogvideox.core.files import atomic_path, same_source
from cogvideox.core.shapes import FRAMES_PER_LATENT, latent_frames
from cogvideox.data.storybook.clip import Clip
from cogvideox.data.storybook.world import VERSION, World
from cogvideox.generation.media import to_signed
from cogvideox.models.vae.autoencoder import VAE

CHUNK = 64
CAPTIONS = 4  # short ones per clip, and as many dense ones


@dataclass(frozen=True, kw_only=True)
class Bucket:
    """Clips of one shape."""

    frames: int
    height: int
    width: int
    clips: int
    """How many; rounded up to whole files."""
    level: str = "full"
    """Level of `World`."""
    fps: int = 8
    closeup: bool = False
    """Show the middle of the first character, out of a picture twice as high and wide. A transformer learns
    from them what characters look like, before it knows where in a picture they are.
    """

    def __post_init__(self) -> None:
        if self.closeup and self.frames != 1:
            raise InputError(f"a close-up is a picture, of 1 frame and not {self.frames}")

    @property
    def name(self) -> str:
        return f"{self.level}-{self.frames}f-{self.width}x{self.height}" + "-closeup" * self.closeup

    @property
    def drawn(self) -> tuple[int, int]:
        """Height and width in which clips are drawn."""
        zoom = 1 + self.closeup
        return self.height * zoom, self.width * zoom


def _world(bucket: Bucket, seed: int) -> World:
    return World(seed=seed, split="train", level=bucket.level)


def _clip(world: World, bucket: Bucket, index: int) -> Clip:
    return world.clip(index, duration=(bucket.frames - 1) / bucket.fps)


Boxes = list[list[list[float] | None]]
"""boxes[actor][frame] as in `Clip.truth`."""


def _boxes(clip: Clip, bucket: Bucket) -> Boxes:
    return clip.truth(bucket.frames, bucket.fps, *bucket.drawn)["boxes"]


def _corner(boxes: Boxes, bucket: Bucket) -> tuple[int, int]:
    """Top and left of what the bucket shows of a drawn clip, in pixels: the first character is in the middle,
    as far as the edges allow.
    """
    (height, width), (x0, y0, x1, y1) = bucket.drawn, boxes[0][0] or (0.0, 0.0, 1.0, 1.0)
    top = round((y0 + y1) / 2 * height - bucket.height / 2)
    left = round((x0 + x1) / 2 * width - bucket.width / 2)
    return min(max(top, 0), height - bucket.height), min(max(left, 0), width - bucket.width)


def draw(clip: Clip, bucket: Bucket) -> NDArray[np.uint8]:
    """What the bucket shows of a clip: (T, H, W, 3)"""
    height, width = bucket.drawn
    top, left = _corner(_boxes(clip, bucket), bucket)
    pixels = clip.render(frames=bucket.frames, fps=bucket.fps, height=height, width=width)
    return pixels[:, top : top + bucket.height, left : left + bucket.width]


class _Rendered(Dataset[Any]):
    """Chunk number -> clips (CHUNK, T, H, W, 3) uint8 and the captions of each."""

    def __init__(self, bucket: Bucket, seed: int, chunks: list[int]) -> None:
        self.bucket, self.seed, self.chunks = bucket, seed, chunks

    def __len__(self) -> int:
        return len(self.chunks)

    def __getitem__(self, item: int) -> tuple[Tensor, list[list[str]]]:
        b, first = self.bucket, self.chunks[item] * CHUNK
        world = _world(b, self.seed)
        clips = [_clip(world, b, index) for index in range(first, first + CHUNK)]
        captions = [
            [tell(variant) for tell in (c.short_caption, c.dense_caption) for variant in range(CAPTIONS)]
            for c in clips
        ]
        return torch.from_numpy(np.stack([draw(c, b) for c in clips])), captions


@torch.no_grad()
def encode_bucket(
    vae: VAE, bucket: Bucket, folder: Path, *, seed: int, fingerprint: str, workers: int = 1
) -> None:
    """Encode the clips of `bucket` that `folder` does not hold yet: posterior means, in the transformer's
    scale.

    Raises InputError when the folder was made from something else: other VAE weights, world, seed or rate.
    """
    home = folder / bucket.name
    home.mkdir(parents=True, exist_ok=True)
    record = json.dumps({"vae": fingerprint, "seed": seed, "world": VERSION, "fps": bucket.fps})
    if not same_source(home / "source.json", record):
        raise InputError(
            f"{home} holds latents of another VAE, world, seed or rate; remove it or choose another folder"
        )
    missing = [n for n in range(-(-bucket.clips // CHUNK)) if not (home / f"{n:05d}.safetensors").exists()]
    loader = DataLoader(_Rendered(bucket, seed, missing), batch_size=None, num_workers=workers)
    for number, (clips, captions) in zip(missing, loader, strict=True):
        parts = []
        # Few at a time: the activations of a large batch fall out of the processor's caches.
        for part in clips.split(max(1, 2**20 // clips[0].numel())):
            video = torch.cat([to_signed(clip.numpy()) for clip in part])
            parts.append(vae.encode(video).bfloat16())
        with atomic_path(home / f"{number:05d}.safetensors") as partial:
            told = {"captions": json.dumps(captions)}
            save_file({"latents": torch.cat(parts).contiguous()}, partial, metadata=told)


def _cells(start: float, stop: float) -> slice:
    """Latents that pixels from `start` to `stop` touch, of those inside the picture."""
    return slice(max(0, math.floor(start / 8)), max(0, math.ceil(stop / 8)))


class LatentStore:
    """Reads single clips of an encoded bucket, and knows from the world what is in them."""

    def __init__(self, bucket: Bucket, folder: Path, seed: int) -> None:
        self.bucket, self.seed, self.home = bucket, seed, folder / bucket.name
        self._world: World | None = None
        self.count = -(-bucket.clips // CHUNK) * CHUNK
        self._captions: dict[int, list[list[str]]] = {}
        if missing := [n for n in range(self.count // CHUNK) if not self._path(n).exists()]:
            raise InputError(f"{len(missing)} files of latents are missing in {self.home}; encode them first")

    def __len__(self) -> int:
        return self.count

    def latents(self, index: int) -> Tensor:
        """(C, T, H, W) bf16"""
        with self._open(index) as file:
            return file.get_slice("latents")[index % CHUNK]

    def captions(self, index: int) -> list[str]:
        """`CAPTIONS` short ones, then as many dense ones."""
        chunk = index // CHUNK
        if chunk not in self._captions:
            with self._open(index) as file:
                self._captions[chunk] = json.loads(file.metadata()["captions"])
        return self._captions[chunk][index % CHUNK]

    def subject(self, index: int) -> Tensor:
        """(T, H, W) bool on the latent grid: where a character is, in any of a latent's frames."""
        b = self.bucket
        if self._world is None:
            self._world = _world(b, self.seed)
        boxes = _boxes(_clip(self._world, b, index), b)
        (height, width), (top, left) = b.drawn, _corner(boxes, b)
        mask = torch.zeros(latent_frames(b.frames), b.height // 8, b.width // 8, dtype=torch.bool)
        for frame, (x0, y0, x1, y1) in ((n, box) for actor in boxes for n, box in enumerate(actor) if box):
            rows = _cells(y0 * height - top, y1 * height - top)
            columns = _cells(x0 * width - left, x1 * width - left)
            mask[-(-frame // FRAMES_PER_LATENT), rows, columns] = True
        return mask

    def _open(self, index: int) -> Any:
        return safe_open(self._path(index // CHUNK), framework="pt")

    def _path(self, chunk: int) -> Path:
        return self.home / f"{chunk:05d}.safetensors"
