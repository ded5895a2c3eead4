"""Optimisation with fp32 master weights: Muon for matrices, AdamW for the rest, and an average of the weights
(EMA).

The model may run in bf16; masters, moments and EMA are fp32. Convolution kernels count as matrices (out,
in*k).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class MasterOptimizer:
    """Steps fp32 masters of `model`'s parameters and copies them back.

    `matrix_blocks(name, parameter)` says how many matrices a parameter holds, stacked on its first axis (a
    fused QKV holds 3); each goes to Muon by itself, and parameters with 0 go to AdamW. A step whose gradients
    are not finite is skipped and counted in `skipped`, with all weights unchanged.
    """

    def __init__(
        self,
        model: nn.Module,
        matrix_blocks: Callable[[str, Tensor], int],
        *,
        matrix_lr: float,
        lr: float,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.95),
        clip: float = 1.0,
        ema: float = 0.999,
    ) -> None:
        self.parameters = dict(model.named_parameters())
        self.clip, self.ema_decay, self.skipped = clip, ema, 0
        self.masters: dict[str, list[Tensor]] = {}
        matrices: list[Tensor] = []
        others: list[Tensor] = []
        for name, parameter in self.parameters.items():
            blocks = matrix_blocks(name, parameter)
            master = parameter.detach().float().contiguous()
            parts = [part.clone() for part in master.flatten(1).chunk(blocks)] if blocks else [master.clone()]
            self.masters[name] = parts
            (matrices if blocks else others).extend(parts)
        self._flat = [part for parts in self.masters.values() for part in parts]
        self._ema = [part.clone() for part in self._flat]
        self.optimizers: list[torch.optim.Optimizer] = []
        if matrices:
            self.optimizers.append(torch.optim.Muon(matrices, lr=matrix_lr, weight_decay=weight_decay))
        if others:
            adam = torch.optim.AdamW(others, lr=lr, betas=betas, eps=1e-8, weight_decay=0.0, foreach=True)
            self.optimizers.append(adam)
        self._base_lr = [optimizer.param_groups[0]["lr"] for optimizer in self.optimizers]

    @torch.no_grad()
    def step(self, lr_scale: float, step: int, weight: float = 1.0) -> float:
        """One update from the model's gradients over `weight`, which are consumed. Returns their norm."""
        for name, parameter in self.parameters.items():
            assert parameter.grad is not None, f"no gradient for {name}"
            parts = self.masters[name]
            gradient = (parameter.grad.float() / weight).reshape(-1, *parts[0].shape[1:])
            for part, piece in zip(parts, gradient.chunk(len(parts)), strict=True):
                part.grad = piece.reshape(part.shape)
            parameter.grad = None
        norm = torch.nn.utils.get_total_norm([part.grad for part in self._flat if part.grad is not None])
        if not torch.isfinite(norm):
            self.skipped += 1
            return float(norm)
        torch.nn.utils.clip_grads_with_norm_(self._flat, self.clip, norm)
        for optimizer, base in zip(self.optimizers, self._base_lr, strict=True):
            optimizer.param_groups[0]["lr"] = base * lr_scale
            optimizer.step()
        # A young average must not remember the initial weights.
        decay = min(self.ema_decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self._ema, self._flat, 1 - decay)
        self._copy_to_model()
        return float(norm)

    @torch.no_grad()
    def _copy_to_model(self) -> None:
        for name, parameter in self.parameters.items():
            parameter.copy_(torch.cat(self.masters[name]).view(parameter.shape))

    def ema_weights(self) -> dict[str, Tensor]:
        """The averaged weights, fp32, in the model's shapes."""
        averages, weights = iter(self._ema), {}
        for name, parameter in self.parameters.items():
            parts = [next(averages) for _ in self.masters[name]]
            weights[name] = torch.cat(parts).view(parameter.shape)
        return weights

    def state_dict(self) -> dict[str, Any]:
        return {
            "masters": self._flat,
            "ema": self._ema,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "skipped": self.skipped,
        }

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore everything, model weights included."""
        for mine, saved in ((self._flat, state["masters"]), (self._ema, state["ema"])):
            for part, value in zip(mine, saved, strict=True):
                part.copy_(value)
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.skipped = state["skipped"]
        self._copy_to_model()
