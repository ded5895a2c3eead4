"""Storybook clips as VAE latents on disk, so that the transformer's training never runs the VAE.

A bucket holds clips of one shape in files of `CHUNK` clips, with several captions of each. Encoding is
resumable: a file is there whole or not at all.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from cogvideox.core.errors import InputError
from cogvideox.core.files import atomic_path, write_text
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

    @property
    def name(self) -> str:
        return f"{self.level}-{self.frames}f-{self.width}x{self.height}"


class _Rendered(Dataset[Any]):
    """Chunk number -> clips (CHUNK, T, H, W, 3) uint8 and the captions of each."""

    def __init__(self, bucket: Bucket, seed: int, chunks: list[int]) -> None:
        self.bucket, self.seed, self.chunks = bucket, seed, chunks

    def __len__(self) -> int:
        return len(self.chunks)

    def __getitem__(self, item: int) -> tuple[Tensor, list[list[str]]]:
        b, first = self.bucket, self.chunks[item] * CHUNK
        world = World(seed=self.seed, split="train", level=b.level)
        clips = [world.clip(i, duration=(b.frames - 1) / b.fps) for i in range(first, first + CHUNK)]
        pixels = [c.render(frames=b.frames, fps=b.fps, height=b.height, width=b.width) for c in clips]
        captions = [
            [tell(variant) for tell in (c.short_caption, c.dense_caption) for variant in range(CAPTIONS)]
            for c in clips
        ]
        return torch.stack([torch.from_numpy(p) for p in pixels]), captions


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
    if not (home / "source.json").exists():
        write_text(home / "source.json", record)
    elif (home / "source.json").read_text(encoding="utf-8") != record:
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


class LatentStore:
    """Reads single clips of an encoded bucket."""

    def __init__(self, bucket: Bucket, folder: Path) -> None:
        self.home = folder / bucket.name
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

    def _open(self, index: int) -> Any:
        return safe_open(self._path(index // CHUNK), framework="pt")

    def _path(self, chunk: int) -> Path:
        return self.home / f"{chunk:05d}.safetensors"
