"""Optimisation with fp32 master weights: Muon for matrices, AdamW for the rest, and an average of the weights (EMA).

The model may run in bf16; masters, moments and EMA are fp32. Convolution kernels count as matrices (out, in*k).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class MasterOptimizer:
    """Steps fp32 masters of `model`'s parameters and copies them back.

    `is_matrix(name, parameter)` chooses what Muon gets. A step whose gradients are not finite is skipped and counted
    in `skipped`, with all weights unchanged.
    """

    def __init__(
        self,
        model: nn.Module,
        is_matrix: Callable[[str, Tensor], bool],
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
        self.masters: dict[str, Tensor] = {}
        for name, parameter in self.parameters.items():
            master = parameter.detach().float().clone(memory_format=torch.contiguous_format)
            self.masters[name] = master.flatten(1) if is_matrix(name, parameter) else master
        self.ema = {name: master.clone() for name, master in self.masters.items()}
        matrices = [m for n, m in self.masters.items() if is_matrix(n, self.parameters[n])]
        others = [m for n, m in self.masters.items() if not is_matrix(n, self.parameters[n])]
        self.optimizers: list[torch.optim.Optimizer] = []
        if matrices:
            self.optimizers.append(torch.optim.Muon(matrices, lr=matrix_lr, weight_decay=weight_decay))
        if others:
            adam = torch.optim.AdamW(others, lr=lr, betas=betas, eps=1e-8, weight_decay=0.0, foreach=True)
            self.optimizers.append(adam)
        self.base_lr = [optimizer.param_groups[0]["lr"] for optimizer in self.optimizers]

    @torch.no_grad()
    def step(self, lr_scale: float, step: int) -> float:
        """One update from the model's gradients, which are consumed. Returns their norm."""
        for name, parameter in self.parameters.items():
            assert parameter.grad is not None, f"no gradient for {name}"
            self.masters[name].grad = parameter.grad.float().reshape(self.masters[name].shape)
            parameter.grad = None
        masters = list(self.masters.values())
        norm = torch.nn.utils.get_total_norm([m.grad for m in masters if m.grad is not None])
        if not torch.isfinite(norm):
            self.skipped += 1
            return float(norm)
        torch.nn.utils.clip_grads_with_norm_(masters, self.clip, norm)
        for optimizer, base in zip(self.optimizers, self.base_lr, strict=True):
            optimizer.param_groups[0]["lr"] = base * lr_scale
            optimizer.step()
        # A young average must not remember the initial weights.
        decay = min(self.ema_decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.ema.values()), masters, 1 - decay)
        self._copy_to_model(self.masters)
        return float(norm)

    @torch.no_grad()
    def _copy_to_model(self, source: dict[str, Tensor]) -> None:
        for name, parameter in self.parameters.items():
            parameter.copy_(source[name].view(parameter.shape))

    def ema_weights(self) -> dict[str, Tensor]:
        """The averaged weights, fp32, in the model's shapes."""
        return {name: value.view(self.parameters[name].shape) for name, value in self.ema.items()}

    def state_dict(self) -> dict[str, Any]:
        return {
            "masters": self.masters,
            "ema": self.ema,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "skipped": self.skipped,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore everything, model weights included."""
        with torch.no_grad():
            for mine, saved in ((self.masters, state["masters"]), (self.ema, state["ema"])):
                assert mine.keys() == saved.keys(), "the checkpoint is of another model"
                for name, value in mine.items():
                    value.copy_(saved[name])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.skipped = state["skipped"]
        self._copy_to_model(self.masters)

    def numel(self) -> int:
        return sum(m.numel() for m in itertools.chain(self.masters.values()))
