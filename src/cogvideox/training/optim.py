"""Optimisation with fp32 master weights: Muon for matrices, AdamW for the rest, and an average of the weights
(EMA).

The model may run in bf16; sums of gradients, masters, moments and EMA are fp32. Convolution kernels count as
matrices (out, in*k). Of several processes each keeps and steps the tensors that it owns.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from cogvideox.parallel.weights import Replicas, Weights, assign, local, owned_by
from cogvideox.training.muon import Muon


class MasterOptimizer:
    """Steps fp32 masters of `model`'s parameters and copies them back.

    `matrix_blocks(name, parameter)` says how many matrices a parameter holds, stacked on its first axis (a
    fused QKV holds 3); each goes to Muon by itself, and parameters with 0 go to AdamW. Without `matrix_lr`
    all go to AdamW, and those of one axis (biases, norms) do not decay.

    `weights` says how processes divide the model, which stands in its place already. All of them make the
    same calls.
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
        weights: Weights | None = None,
    ) -> None:
        self.weights = weights or Replicas()
        self.parameters = dict(model.named_parameters())
        self.clip, self.ema_decay, self.updates = clip, ema, 0
        self._sums: dict[str, Tensor] = {}
        group, self._all = self.weights.group, list(self.parameters.values())
        self._owners = assign([p.numel() for p in self._all], group.size if group else 1)
        self.masters: dict[str, list[Tensor]] = {}
        matrices: list[Tensor] = []
        others: list[Tensor] = []
        mine = owned_by(self._owners, group.rank if group else 0)
        names = [list(self.parameters)[index] for index in mine]
        for name, whole in zip(names, self.weights.whole(self._all, self._owners), strict=True):
            blocks = 0 if matrix_lr is None else matrix_blocks(name, whole)
            master = whole.detach().float().contiguous()
            parts = [part.clone() for part in master.flatten(1).chunk(blocks)] if blocks else [master.clone()]
            self.masters[name] = parts
            (matrices if blocks else others).extend(parts)
        self._flat = [part for parts in self.masters.values() for part in parts]
        self._ema = [part.clone() for part in self._flat]
        self.optimizers: list[torch.optim.Optimizer] = []
        # Moments begin as the optimizers begin them in their first step: checkpoints are read into them.
        if matrices:
            assert matrix_lr is not None
            muon = Muon(matrices, lr=matrix_lr, weight_decay=weight_decay)
            muon.state.update({part: {"momentum_buffer": torch.zeros_like(part)} for part in matrices})
            self.optimizers.append(muon)
        if others:
            decays = weight_decay if matrix_lr is None else 0.0
            groups = [
                {"params": [part for part in others if part.ndim > 1], "weight_decay": decays},
                {"params": [part for part in others if part.ndim <= 1], "weight_decay": 0.0},
            ]
            groups = [group for group in groups if group["params"]]
            adam = torch.optim.AdamW(groups, lr=lr, betas=betas, eps=1e-8, foreach=True)
            for part in others:
                adam.state[part] = {name: torch.zeros_like(part) for name in ("exp_avg", "exp_avg_sq")}
                adam.state[part]["step"] = torch.tensor(0.0)
            self.optimizers.append(adam)
        self._base_lr = [[group["lr"] for group in o.param_groups] for o in self.optimizers]

    @torch.no_grad()
    def accumulate(self) -> None:
        """Take the gradients of one micro-batch from the model; those of a step are added up in fp32."""
        for name, parameter in self.parameters.items():
            assert parameter.grad is not None, f"no gradient for {name}"
            gradient = local(parameter.grad)
            if name in self._sums:
                self._sums[name] += gradient
            else:
                self._sums[name] = gradient.float()
            parameter.grad = None

    @torch.no_grad()
    def collect(self, weight: float = 1.0) -> float:
        """Take over the gradients of a step, those that the model still has included, over `weight`; both are
        sums over all processes. Returns the norm of all: it is finite if and only if all of them are.
        """
        if any(parameter.grad is not None for parameter in self._all):
            self.accumulate()
        sums = [self._sums.pop(name, None) for name in self.parameters]  # none: no micro-batches fell to it
        gradients = [
            torch.zeros_like(local(parameter), dtype=torch.float32) if gradient is None else gradient
            for gradient, parameter in zip(sums, self._all, strict=True)
        ]
        mine = self.weights.collect(gradients, self._all, self._owners)
        for parts, whole in zip(self.masters.values(), mine, strict=True):
            gradient = (whole / weight).reshape(-1, *parts[0].shape[1:])
            for part, piece in zip(parts, gradient.chunk(len(parts)), strict=True):
                part.grad = piece.reshape(part.shape)
        return self._norm()

    def _norm(self) -> float:
        """Of all gradients together, the same bits however many processes own them: each is flat, as it comes
        from others, and they are added in one order.
        """
        flat = (cast(Tensor, part.grad).flatten() for part in self._flat)
        norms = [torch.linalg.vector_norm(gradient) for gradient in flat]
        mine = iter(torch.stack(norms).tolist() if norms else ())
        squares = dict.fromkeys(self.parameters, 0.0)
        for name, parts in self.masters.items():
            squares[name] = math.fsum(next(mine) ** 2 for _ in parts)
        group, each = self.weights.group, list(squares.values())
        return math.sqrt(math.fsum(each if group is None else group.sum(each)))

    @torch.no_grad()
    def update(self, lr_scale: float, norm: float) -> None:
        """One update from the gradients that were collected, whose norm this is."""
        torch.nn.utils.clip_grads_with_norm_(self._flat, self.clip, torch.tensor(norm))
        for optimizer, rates in zip(self.optimizers, self._base_lr, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * lr_scale
            optimizer.step()
        if self._flat:
            # A young average must not remember the initial weights.
            decay = min(self.ema_decay, (1 + self.updates) / (10 + self.updates))
            torch._foreach_lerp_(self._ema, self._flat, 1 - decay)
        self.updates += 1
        self._copy_to_model()

    @torch.no_grad()
    def settle(self) -> None:
        """Let the averages be the weights from now on."""
        if self._flat:
            torch._foreach_copy_(self._flat, self._ema)
        self._copy_to_model()

    @torch.no_grad()
    def _copy_to_model(self) -> None:
        self.weights.spread(self._all, self._owners, self._wholes(self._flat))

    def _wholes(self, parts: list[Tensor]) -> list[Tensor]:
        """The tensors that this process owns, in the model's shapes, of their parts."""
        left, wholes = iter(parts), []
        for name, masters in self.masters.items():
            wholes.append(torch.cat([next(left) for _ in masters]).view(self.parameters[name].shape))
        return wholes

    @torch.no_grad()
    def ema_weights(self) -> dict[str, Tensor]:
        """The averaged weights, fp32, in the model's shapes, for the first process. The others get none."""
        averages = self.weights.to_first(self._all, self._owners, self._wholes(self._ema))
        return dict(zip(self.parameters, averages, strict=True)) if averages else {}

    def state_dict(self) -> dict[str, Any]:
        """What this process keeps: `tensors` by name, those that it owns, and `updates`, as all know it."""
        states = {part: state for optimizer in self.optimizers for part, state in optimizer.state.items()}
        averages, tensors = iter(self._ema), {}
        for name, parts in self.masters.items():
            for index, part in enumerate(parts):
                moments = {key: value for key, value in states[part].items() if key != "step"}
                for key, value in {"master": part, "ema": next(averages), **moments}.items():
                    tensors[f"{name}.{index}.{key}"] = value
        return {"tensors": tensors, "updates": self.updates}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore everything, model weights included."""
        for name, tensor in self.state_dict()["tensors"].items():
            tensor.copy_(state["tensors"][name])
        self.updates = state["updates"]
        for optimizer in self.optimizers:
            for moments in optimizer.state.values():
                if "step" in moments:
                    moments["step"].fill_(self.updates)
        self._copy_to_model()


def lr_scale(step: int, total: int, warmup: int, decay_from: float) -> float:
    """Linear warm-up, constant, then from `decay_from` * total on a cosine to 0."""
    if step < warmup:
        return (step + 1) / warmup
    start = decay_from * total
    if step <= start:
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - start) / max(1.0, total - start)))
