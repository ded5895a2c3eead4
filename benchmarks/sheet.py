"""`python -m benchmarks.sheet MODEL FILE.png`: what a model makes of prompts of single characters.

Prompts, seeds and true clips are those of `training.sheet`; counts in docs/log.md come from this sheet.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from cogvideox import load
from cogvideox.training.sheet import contact_sheet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="mini or a model folder")
    parser.add_argument("output", type=Path)
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--steps", type=int, help="sampling steps; default: the model's own")
    parser.add_argument("--seed", type=int, default=0, help="seed of the world")
    options = parser.parse_args()
    pipe = load(options.model)
    steps = options.steps or pipe.spec.steps
    contact_sheet(pipe, options.output, seed=options.seed, prompts=options.prompts, steps=steps)


if __name__ == "__main__":
    main()
