"""Rendering Storybook, on one core. Diffusers has no counterpart."""

from __future__ import annotations

from pathlib import Path

import torch

from benchmarks.case import Build, Case, Side
from cogvideox.checkpoints.hub import MINI
from cogvideox.data.storybook import World


def storybook(side: int, clips: int) -> Build:
    """17-frame clips of the full world."""

    def make(folder: Path, dtype: torch.dtype) -> Side:
        torch.set_num_threads(1)
        world = World(seed=0)

        def render(first: int, count: int, frames: int) -> None:
            for index in range(first, first + count):
                world.clip(index, duration=2.0).render(frames=frames, fps=8, height=side, width=side)

        return Side(
            lambda: render(1000, clips, 17),
            warm=lambda: render(0, 4 * clips, 1),  # decodes sprites: steady state
            amount=(17 * clips, "frames"),
        )

    return make


def cases(quick: bool) -> tuple[Case, ...]:
    clips = 2 if quick else 40
    return tuple(
        Case("data", f"storybook {side}x{side}, one core", {"ours": storybook(side, clips)}, MINI)
        for side in ((64,) if quick else (128, 64))
    )
