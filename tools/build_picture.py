"""Make docs/mini.webp, the README's picture: what mini makes of eight prompts that go well, all at seed 1.

python tools/build_picture.py [MODEL]
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image

import cogvideox
from cogvideox.core.files import atomic_path

OUTPUT = Path(__file__).parents[1] / "docs" / "mini.webp"
COLUMNS = 4
PROMPTS = (
    "a speedboat glides right on the blue ocean",
    "a red and white tram drives left in an autumn park",
    "an octopus enters from the left under water",
    "a cable car moves in a circle at a waterfall",
    "a peacock stands still among tall trees",
    "a canoe sails left at the seaside",
    "a brown mammoth strolls around in circles among high mountains",
    "a rain cloud drifts to the right on a farm",
)


def main() -> None:
    pipe = cogvideox.load(sys.argv[1] if len(sys.argv) > 1 else "mini")
    videos = pipe(list(PROMPTS), seed=1)
    rows = [videos[i : i + COLUMNS] for i in range(0, len(videos), COLUMNS)]
    frames = np.concatenate([np.concatenate([v.frames for v in row], 2) for row in rows], 1)
    first, *rest = (Image.fromarray(frame) for frame in frames)
    with atomic_path(OUTPUT) as partial:
        first.save(
            partial, "WEBP", save_all=True, append_images=rest, duration=round(1000 / videos[0].fps), loop=0,
            quality=80, method=6,
        )  # fmt: skip


if __name__ == "__main__":
    main()
