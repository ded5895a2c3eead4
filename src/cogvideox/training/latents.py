"""Storybook clips as VAE latents on disk, so that the transformer's training never runs the VAE.

A bucket holds clips of one shape in files of `CHUNK` clips. Captions are not stored: they follow from the
clip's index. Encoding is resumable: a file is there whole or not at all.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from cogvideox.core.errors import InputError
from cogvideox.core.files import atomic_path, write_text
from cogvideox.data.storybook import Clip, World
from cogvideox.models.vae.autoencoder import VAE

CHUNK = 64


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

    @property
    def name(self) -> str:
        return f"{self.level}-{self.frames}f-{self.width}x{self.height}"

    def world(self, seed: int, split: str = "train") -> World:
        return World(seed=seed, split=split, level=self.level)

    @property
    def duration(self) -> float:
        """Seconds from the first frame to the last; 0 for images."""
        return (self.frames - 1) / self.fps

    def clip(self, world: World, index: int) -> Clip:
        return world.clip(index, duration=self.duration)


class _Rendered(Dataset[Any]):
    """Chunk number -> clips (CHUNK, T, H, W, 3) uint8."""

    def __init__(self, bucket: Bucket, seed: int, chunks: list[int]) -> None:
        self.bucket, self.seed, self.chunks = bucket, seed, chunks

    def __len__(self) -> int:
        return len(self.chunks)

    def __getitem__(self, item: int) -> Tensor:
        b, world = self.bucket, self.bucket.world(self.seed)
        first = self.chunks[item] * CHUNK
        clips = [
            b.clip(world, i).render(frames=b.frames, fps=b.fps, height=b.height, width=b.width)
            for i in range(first, first + CHUNK)
        ]
        return torch.stack([torch.from_numpy(c) for c in clips])


@torch.no_grad()
def encode_bucket(
    vae: VAE, bucket: Bucket, folder: Path, *, seed: int, fingerprint: str, workers: int = 1
) -> None:
    """Encode the clips of `bucket` that `folder` does not hold yet: posterior means, in the transformer's
    scale.

    Raises InputError when the folder was made with other VAE weights.
    """
    home = folder / bucket.name
    home.mkdir(parents=True, exist_ok=True)
    record = json.dumps({"vae": fingerprint, "seed": seed})
    if not (home / "source.json").exists():
        write_text(home / "source.json", record)
    elif (home / "source.json").read_text(encoding="utf-8") != record:
        raise InputError(f"{home} holds latents of another VAE or seed; remove it or choose another folder")
    missing = [n for n in range(-(-bucket.clips // CHUNK)) if not (home / f"{n:05d}.safetensors").exists()]
    loader = DataLoader(_Rendered(bucket, seed, missing), batch_size=None, num_workers=workers)
    for number, clips in zip(missing, loader, strict=True):
        parts = []
        # Few at a time: the activations of a large batch fall out of the processor's caches.
        for part in clips.split(max(1, 2**20 // clips[0].numel())):
            video = (part.permute(0, 4, 1, 2, 3).to(vae.dtype) / 127.5) - 1.0
            parts.append(vae.encode(video).bfloat16())
        with atomic_path(home / f"{number:05d}.safetensors") as partial:
            save_file({"latents": torch.cat(parts).contiguous()}, partial)


class LatentStore:
    """Reads single clips of an encoded bucket."""

    def __init__(self, bucket: Bucket, folder: Path, *, seed: int) -> None:
        self.bucket, self.home, self.seed = bucket, folder / bucket.name, seed
        self.files = sorted(self.home.glob("*.safetensors"))
        if not self.files:
            raise InputError(f"no latents in {self.home}; encode them first")

    def __len__(self) -> int:
        return len(self.files) * CHUNK

    @cached_property
    def _world(self) -> World:
        return self.bucket.world(self.seed)

    def clip(self, index: int) -> Clip:
        return self.bucket.clip(self._world, index)

    def latents(self, index: int) -> Tensor:
        """(C, T, H, W) bf16"""
        with safe_open(self.home / f"{index // CHUNK:05d}.safetensors", framework="pt") as file:
            return file.get_slice("latents")[index % CHUNK]
