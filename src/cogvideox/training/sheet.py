"""Contact sheets: a row a prompt, the prompt and some pictures."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from cogvideox.core.files import atomic_path
from cogvideox.data.storybook import World
from cogvideox.data.video import Frames
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
