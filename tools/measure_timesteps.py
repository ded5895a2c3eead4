"""`python -m tools.measure_timesteps`: what explicit uniform sampling does to a step's loss and gradient.

mini's loss of the same pictures and clips of Storybook, with noise and timesteps drawn anew in each of some
steps. Prints for each way to draw timesteps the mean of the steps' losses, their relative deviation, and the
gradient's noise: its variance, summed over all weights, by the squared length of the mean gradient.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from cogvideox.core.rng import generator
from cogvideox.data.storybook.rows import Part
from cogvideox.diffusion.timesteps import iid, per_rank, stratified
from cogvideox.generation.load import load
from cogvideox.training.diffusion import DiffusionTask
from cogvideox.training.encode import Encoder
from cogvideox.training.packs import DiffusionStage, Objective, PackedBatches, PackedRow
from cogvideox.training.stores import encode_storybook

STEPS = 40
RANKS = 8
EACH = 2
"""Samples of a rank: half of all are pictures, half are clips."""
COUNT = RANKS * EACH
PARTS = tuple(Part(frames=n, height=128, width=128, clips=COUNT // 2) for n in (1, 17))
SEED = 5


def _ranks(step: int) -> list[int]:
    """An interval for each rank, which gets other samples in every step."""
    drawn = [t for rank in range(RANKS) for t in per_rank(EACH, SEED, step, rank=rank, ranks=RANKS)]
    return [drawn[place] for place in generator(SEED, "deal", step).permutation(COUNT)]


WAYS: dict[str, Callable[[int], list[int]]] = {
    "iid": lambda step: iid(COUNT, SEED, step),
    "per-rank": _ranks,
    "uniform": lambda step: stratified(COUNT, SEED, step),
}


def measure(task: DiffusionTask, draw: Callable[[int], list[int]]) -> tuple[list[float], float]:
    """Losses of the steps, and the noise of their gradients."""
    batches, weights = task.batches(), list(task.model.parameters())
    total, squares, losses = [torch.zeros_like(w) for w in weights], 0.0, []
    for step in range(STEPS):
        items = [batches.item(0, place, place, t) for place, t in enumerate(draw(step))]
        items.sort(key=lambda item: item.latents_CTHW.shape)
        loss = task.loss("model", PackedRow(items, 0, 0.0), step)
        losses.append(loss.total.item() / loss.weight)
        found = torch.autograd.grad(loss.total / loss.weight, weights)
        squares += sum(g.square().sum().item() for g in found)
        torch._foreach_add_(total, found)
    length = sum((t / STEPS).square().sum().item() for t in total)
    variance = (squares / STEPS - length) * STEPS / (STEPS - 1)
    return losses, variance / (length - variance / STEPS)  # the mean's own noise is part of its length


def main() -> None:
    """Print a row for each way."""
    pipe = load("mini")
    model = pipe.transformer.float().requires_grad_(True)
    with tempfile.TemporaryDirectory() as folder:
        store = encode_storybook(
            PARTS, Path(folder), Encoder(pipe.spec, pipe.vae, None, SEED), "mini", workers=0
        )
        stage = DiffusionStage(steps=STEPS, capacity=10_000)
        batches = PackedBatches(store, pipe.spec, (stage,), Objective(drop_text=0.0), seed=SEED)
        task = DiffusionTask(model, pipe.spec, pipe.text_encoder, batches, pipe.schedule)
        for name, draw in WAYS.items():
            losses, noise = measure(task, draw)
            mean = statistics.mean(losses)
            told = f"loss {mean:.4f}, deviation {statistics.stdev(losses) / mean:.3f}"
            print(f"{name:<9} {told}, gradient noise {noise:.2f}", flush=True)


if __name__ == "__main__":
    main()
