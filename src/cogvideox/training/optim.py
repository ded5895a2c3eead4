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
    fused QKV holds 3); each goes to Muon by itself, and parameters with 0 go to AdamW. Without `matrix_lr`
    all go to AdamW, and those of one axis (biases, norms) do not decay.
    """

    def __init__(
        self,
        model: nn.Module,
        matrix_blocks: Callable[[str, Tensor], int],
        *,
        matrix_lr: float | None,
        lr: float,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.95),
        clip: float = 1.0,
        ema: float = 0.999,
    ) -> None:
        self.parameters = dict(model.named_parameters())
        self.clip, self.ema_decay = clip, ema
        self.masters: dict[str, list[Tensor]] = {}
        matrices: list[Tensor] = []
        others: list[Tensor] = []
        for name, parameter in self.parameters.items():
            blocks = 0 if matrix_lr is None else matrix_blocks(name, parameter)
            master = parameter.detach().float().contiguous()
            parts = [part.clone() for part in master.flatten(1).chunk(blocks)] if blocks else [master.clone()]
            self.masters[name] = parts
            (matrices if blocks else others).extend(parts)
        self._flat = [part for parts in self.masters.values() for part in parts]
        self._ema = [part.clone() for part in self._flat]
        self.optimizers: list[torch.optim.Optimizer] = []
        if matrices:
            assert matrix_lr is not None
            self.optimizers.append(torch.optim.Muon(matrices, lr=matrix_lr, weight_decay=weight_decay))
        if others:
            decays = weight_decay if matrix_lr is None else 0.0
            groups = [
                {"params": [part for part in others if part.ndim > 1], "weight_decay": decays},
                {"params": [part for part in others if part.ndim <= 1], "weight_decay": 0.0},
            ]
            groups = [group for group in groups if group["params"]]
            self.optimizers.append(torch.optim.AdamW(groups, lr=lr, betas=betas, eps=1e-8, foreach=True))
        self._base_lr = [[group["lr"] for group in o.param_groups] for o in self.optimizers]

    @torch.no_grad()
    def collect(self, weight: float = 1.0) -> float:
        """Take over the model's gradients, divided by `weight`. Returns their norm: it is finite if and only
        if all of them are.
        """
        for name, parameter in self.parameters.items():
            assert parameter.grad is not None, f"no gradient for {name}"
            parts = self.masters[name]
            gradient = (parameter.grad.float() / weight).reshape(-1, *parts[0].shape[1:])
            for part, piece in zip(parts, gradient.chunk(len(parts)), strict=True):
                part.grad = piece.reshape(part.shape)
            parameter.grad = None
        return float(torch.nn.utils.get_total_norm([p.grad for p in self._flat if p.grad is not None]))

    @torch.no_grad()
    def update(self, lr_scale: float, step: int, norm: float) -> None:
        """One update from the gradients that were collected, whose norm this is."""
        torch.nn.utils.clip_grads_with_norm_(self._flat, self.clip, torch.tensor(norm))
        for optimizer, rates in zip(self.optimizers, self._base_lr, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * lr_scale
            optimizer.step()
        # A young average must not remember the initial weights.
        decay = min(self.ema_decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self._ema, self._flat, 1 - decay)
        self._copy_to_model()

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
        }

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore everything, model weights included."""
        for mine, saved in ((self._flat, state["masters"]), (self._ema, state["ema"])):
            for part, value in zip(mine, saved, strict=True):
                part.copy_(value)
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self._copy_to_model()
