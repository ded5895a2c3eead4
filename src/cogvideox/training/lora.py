"""LoRA: low-rank updates of a frozen transformer, put in by PEFT (Hu et al. 2022).

    y = W x + (alpha / rank) * up @ down @ x

`up` starts at zero, so that step 0 is the base model. What is trained is kept by `checkpoints.lora`, in the
file that diffusers and `cogvideox generate --lora` load.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cogvideox.checkpoints.lora import Lora, from_modules, places
from cogvideox.core import rng
from cogvideox.core.errors import InputError, nearest
from cogvideox.models.specs import TransformerSpec
from cogvideox.models.transformer.model import Transformer

SIDES = {"down": "lora_A", "up": "lora_B"}
NAME = "default"  # PEFT's for an adapter


@dataclass(frozen=True, kw_only=True)
class LoraSpec:
    """What is updated, and by how much."""

    rank: int = 64
    alpha: float = 64.0
    """The update is scaled by alpha / rank."""
    targets: tuple[str, ...] = ("attention.qkv", "attention.out")
    """Names of matrices, or how they end: `attention.qkv` is that of every block."""

    def __post_init__(self) -> None:
        if self.rank < 1 or not self.alpha > 0:
            raise InputError(f"an adapter has a rank of 1 or more and an alpha above 0, not {self}")

    def modules(self, spec: TransformerSpec) -> list[str]:
        """Names of the linear layers that get an adapter. InputError for a target that is none."""
        known = {rule.ours.removesuffix(".weight") for rule, _ in places(spec).values()}
        ends = {".".join(name.split(".")[i:]) for name in known for i in range(name.count(".") + 1)}
        for target in self.targets:
            if target not in ends:
                raise InputError(f"no matrix is called {target!r}{nearest(target, sorted(ends))}")
        return sorted(n for n in known if any(f".{n}".endswith(f".{t}") for t in self.targets))

    def numbers(self, transformer: Transformer) -> nn.ParameterList:
        """The adapter of a transformer on the meta device, which has sizes but no numbers."""
        found = nn.ParameterList()
        for name in self.modules(transformer.spec):
            rows, columns = transformer.get_parameter(f"{name}.weight").shape
            found += [
                torch.empty(shape, device="meta") for shape in ((self.rank, columns), (rows, self.rank))
            ]
        return found


def find_peft() -> Any:
    """The package that puts adapters in. InputError when it is not installed."""
    try:
        import peft
    except ImportError:
        raise InputError("training adapters needs PEFT: pip install 'cogvideox[train]'") from None
    return peft


class Adapter:
    """The adapters of a transformer while they are trained; its own weights are frozen."""

    def __init__(self, transformer: Transformer, spec: LoraSpec, seed: int) -> None:
        """Puts adapters into `transformer`, in its precision. InputError when PEFT is not installed."""
        peft = find_peft()
        self.transformer, self.spec = transformer.requires_grad_(False), spec
        names = spec.modules(transformer.spec)
        self._plain = {name: transformer.get_submodule(name) for name in names}
        self._matrices = {name: transformer.get_parameter(f"{name}.weight") for name in names}
        config = peft.LoraConfig(r=spec.rank, lora_alpha=spec.alpha, target_modules=names)
        peft.inject_adapter_in_model(config, transformer, NAME)
        self._wrapped = {name: transformer.get_submodule(name) for name in names}
        self.module = nn.ModuleDict({name.replace(".", "/"): self._pair(name) for name in names})
        """What is trained, apart from the transformer: `down` and `up` of each matrix."""
        self._initialise(seed)

    def _pair(self, name: str) -> nn.ModuleDict:
        sides: Any = {side: getattr(self._wrapped[name], theirs)[NAME] for side, theirs in SIDES.items()}
        return nn.ModuleDict(sides).to(self._matrices[name].dtype)

    @torch.no_grad()
    def _initialise(self, seed: int) -> None:
        """`down` as PEFT draws it, with variance 1 / (3 inputs), but keyed; `up` is zero."""
        for name, parameter in self.module.named_parameters():
            if name.endswith(".up.weight"):
                parameter.zero_()
            else:
                drawn = rng.normal(parameter.shape, seed, "lora", name) / math.sqrt(3 * parameter.shape[1])
                parameter.copy_(drawn)

    def lora(self, weights: Mapping[str, Tensor] | None = None, **about: Any) -> Lora:
        """The adapter with `weights`, such as averages, by the names of `module`'s parameters; None: with its
        own. `about` as in `Lora`.
        """
        found = dict(self.module.named_parameters()) if weights is None else weights
        layers = {
            name: tuple(found[f"{name.replace('.', '/')}.{side}.weight"].detach().clone() for side in SIDES)
            for name in self._plain
        }
        return from_modules(self.transformer.spec, layers, self.spec.alpha, **about)  # type: ignore[arg-type]

    def ratio(self) -> float:
        """Mean over the matrices of |update| / |matrix|, Frobenius norms: how far the adapter has moved."""
        found, shares = dict(self.module.named_parameters()), []
        for name, matrix in self._matrices.items():
            down, up = (found[f"{name.replace('.', '/')}.{side}.weight"].detach().float() for side in SIDES)
            update = (up @ down).norm() * (self.spec.alpha / self.spec.rank)
            shares.append(float(update / matrix.float().norm()))
        return sum(shares) / len(shares)

    @contextlib.contextmanager
    def taken_out(self) -> Iterator[None]:
        """The transformer is the base model meanwhile, for merging an adapter as generation does."""
        self._put(self._plain)
        try:
            yield
        finally:
            self._put(self._wrapped)

    def _put(self, modules: Mapping[str, nn.Module]) -> None:
        for name, module in modules.items():
            self.transformer.set_submodule(name, module)
