"""The training objective: mean squared error of v.

It equals the squared error of x_0 divided by 1 - alpha_bar_t, the form in which the released trainer states
it. Every sample counts by its own mean, so that in a pack a long clip weighs no more than an image.

Shape legend: S segments (samples) of a pack.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor


def v_loss(
    predictions: Sequence[Tensor],
    targets: Sequence[Tensor],
    weights: Sequence[float],
    *,
    per: Literal["sample", "number"] = "sample",
    normaliser: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Weighted loss of the samples of a pack, whose shapes may differ, and the loss (S,) of each.

    Errors are taken in float32. `normaliser` divides the weighted sum: the sum of these weights if None;
    given the sum over the whole global step, gradients summed over packs and ranks do not depend on who
    packed what. `per="number"` gives every latent number the same say: weights are multiplied by the
    samples' sizes first.
    """
    losses_S = torch.stack(
        [(p.float() - v.float()).square().mean() for p, v in zip(predictions, targets, strict=True)]
    )
    sizes = [v.numel() if per == "number" else 1 for v in targets]
    shares = [weight * size for weight, size in zip(weights, sizes, strict=True)]
    total = sum(shares) if normaliser is None else normaliser
    shares_S = torch.tensor([share / total for share in shares], device=losses_S.device)
    return (shares_S * losses_S).sum(), losses_S
