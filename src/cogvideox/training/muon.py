"""Muon (Jordan et al. 2024) in the precision that the hardware multiplies."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from cogvideox.core.device import native_bfloat16


class Muon(torch.optim.Muon):
    """PyTorch's, which orthogonalises in bf16 everywhere; where hardware has none, the same in fp32. All
    matrices are on one device and have gradients and a `momentum_buffer`.
    """

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One update of all matrices."""
        assert closure is None
        device = self.param_groups[0]["params"][0].device
        if native_bfloat16(device):
            return super().step()
        for group in self.param_groups:
            assert group["adjust_lr_fn"] is None  # the usual one is below
            for matrix in group["params"]:
                momentum = self.state[matrix]["momentum_buffer"]
                momentum.lerp_(matrix.grad, 1 - group["momentum"])
                update = matrix.grad.lerp(momentum, group["momentum"]) if group["nesterov"] else momentum
                update = orthogonal(update, group["ns_coefficients"], group["ns_steps"], group["eps"])
                matrix.mul_(1 - group["lr"] * group["weight_decay"])
                rows, columns = matrix.shape
                matrix.add_(update, alpha=-group["lr"] * math.sqrt(max(1.0, rows / columns)))
        return None


def orthogonal(x_NM: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float) -> Tensor:
    """The matrix with all singular values brought near 1 by Newton-Schulz iterations of degree 5."""
    tall = x_NM.shape[0] > x_NM.shape[1]
    x = x_NM.T if tall else x_NM
    x = x / x.norm().clamp(min=eps)
    a, b, c = coefficients
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x
