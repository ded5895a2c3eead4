"""What a model makes of prompts, with the sampler that users get: a contact sheet, or clips."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from cogvideox.core.files import atomic_path
from cogvideox.data.encoded import Store
from cogvideox.data.storybook import World
from cogvideox.data.video import Frames
from cogvideox.generation.media import to_frames
from cogvideox.generation.pipeline import Pipeline

TEXT_WIDTH = 200  # pixels


def row(text: str, *clips: tuple[Frames, int]) -> Frames:
    """A row of a sheet: text, then of each clip so many frames, evenly spread."""
    height = clips[0][0].shape[1]
    label = Image.new("RGB", (TEXT_WIDTH, height), "white")
    lines = [line for part in text.split("\n") for line in textwrap.wrap(part, 32)]
    ImageDraw.Draw(label).text((4, 4), "\n".join(lines), fill="black")
    pictures = [
        frames_THWC[int(k)] for frames_THWC, n in clips for k in np.linspace(0, len(frames_THWC) - 1, n)
    ]
    return np.concatenate([np.asarray(label), *pictures], axis=1)


def write_sheet(rows: Sequence[Frames], path: Path) -> None:
    """Write rows of the same size below each other, atomically."""
    with atomic_path(path) as partial:
        Image.fromarray(np.concatenate(rows)).save(partial)


def contact_sheet(pipe: Pipeline, path: Path, *, seed: int, prompts: int, steps: int) -> None:
    """Write a sheet to `path` of fixed prompts, with the sampler that users get: three true frames, five
    generated ones.

    One prompt in three is a composition that was held out, the others are of the training split.
    """
    spec, rows = pipe.spec, []
    for index in range(prompts):
        world = World(seed=seed, split="heldout" if index % 3 == 2 else "train", level="single")
        clip = world.clip(10_000_000 + index, duration=(spec.frames - 1) / spec.fps)
        prompt = clip.short_caption(0)
        true = clip.render(frames=spec.frames, fps=spec.fps, height=spec.height, width=spec.width)
        made = pipe(prompt, seed=index, steps=steps).frames
        rows.append(row(f"{index}. {prompt}", (true, 3), (made, 5)))
    write_sheet(rows, path)


@torch.no_grad()
def clips(pipe: Pipeline, store: Store, chosen: Sequence[int], folder: Path, *, seed: int) -> None:
    """Write to `folder` a clip for the first caption of each chosen sample, in its shape and, if the model
    goes on from an image, from its first frame as the VAE has it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for number, index in enumerate(chosen):
        sample, image = store.samples[index], None
        if pipe.spec.image_conditioned:
            first = store.read(index, 0).mean_CTHW[None, :, :1]
            image = to_frames(pipe.vae.decode(first.to(pipe.vae.device, pipe.vae.dtype)))[0]
        _, prompt = sample.captions[0]
        frames, height, width = sample.frames, sample.height, sample.width
        made = pipe(prompt, image, frames=frames, height=height, width=width, seed=seed)
        made.save(folder / f"{number}{'.png' if frames == 1 else '.mp4'}")
