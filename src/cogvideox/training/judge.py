"""What a model makes of fixed prompts, with the sampler that users get: a contact sheet, or clips."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from cogvideox.core.files import atomic_path
from cogvideox.data.samples import Sample
from cogvideox.data.storybook import World
from cogvideox.generation.pipeline import Pipeline

TEXT_WIDTH = 200  # pixels


def contact_sheet(pipe: Pipeline, path: Path, *, seed: int, prompts: int, steps: int) -> None:
    """Write a sheet to `path`, a row a prompt: the prompt, three true frames, five generated ones.

    One prompt in three is a composition that was held out, the others are of the training split.
    """
    spec, rows = pipe.spec, []
    for index in range(prompts):
        world = World(seed=seed, split="heldout" if index % 3 == 2 else "train", level="single")
        clip = world.clip(10_000_000 + index, duration=(spec.frames - 1) / spec.fps)
        prompt = clip.short_caption(0)
        true = clip.render(frames=spec.frames, fps=spec.fps, height=spec.height, width=spec.width)
        made = pipe(prompt, seed=index, steps=steps).frames
        chosen = [true[i] for i in np.linspace(0, len(true) - 1, 3).astype(int)]
        chosen += [made[i] for i in np.linspace(0, len(made) - 1, 5).astype(int)]
        label = Image.new("RGB", (TEXT_WIDTH, spec.height), "white")
        told = "\n".join(textwrap.wrap(f"{index}. {prompt}", 32))
        ImageDraw.Draw(label).text((4, 4), told, fill="black")
        rows.append(np.concatenate([np.asarray(label), *chosen], axis=1))
    with atomic_path(path) as partial:
        Image.fromarray(np.concatenate(rows)).save(partial)


def clips(pipe: Pipeline, samples: Sequence[Sample], folder: Path, *, seed: int, count: int = 4) -> None:
    """Write a clip for the first caption of each of the first `count` samples, in its shape, to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for index, sample in enumerate(samples[:count]):
        _, prompt = sample.captions[0]
        made = pipe(prompt, frames=sample.frames, height=sample.height, width=sample.width, seed=seed)
        made.save(folder / f"{index}{'.png' if sample.frames == 1 else '.mp4'}")
