"""Small tasks for several processes, whose micro-batches are packs of unequal shapes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from cogvideox.core import rng
from cogvideox.core.pack import Pack, Segment
from cogvideox.models.specs import TransformerSpec
from cogvideox.models.transformer.model import Transformer
from cogvideox.parallel.training import ALONE, Ranks, fit
from cogvideox.training.task import Loss, Phase
from tests.tiny import randomise, tiny_spec

Micro = tuple[Segment, ...]
CLIP, LONG, IMAGE, DROPPED = (
    Segment(5, (2, 2, 3)),
    Segment(6, (3, 3, 5), weight=2.0),
    Segment(4, (1, 2, 3), weight=0.5),
    Segment(1, (2, 3, 3)),  # without text, but for one token
)


def pack_of(micro: Micro, spec: TransformerSpec, *key: int) -> Pack:
    text, video = (sum(getattr(s, f"{kind}_length") for s in micro) for kind in ("text", "video"))
    numbers = spec.in_channels * spec.patch[0] * spec.patch[1] * spec.patch[2]
    return Pack(
        micro,
        rng.normal((text, spec.text_dim), 0, "text", *key),
        rng.normal((video, numbers), 0, "video", *key),
        torch.arange(len(micro)) * 100 + 7,
    )


class Packs:
    """A tiny transformer that learns to say 0.5. `micros(step)` are those of all teams."""

    def __init__(
        self,
        micros: Callable[[int], Sequence[Micro]],
        here: Ranks = ALONE,
        *,
        heads: int = 2,
        fail: Callable[[int], None] = lambda step: None,
        sequence: Callable[[int], int] = lambda step: 1,
    ) -> None:
        spec = tiny_spec("5b", heads=heads).transformer
        self.model = randomise(Transformer(spec), 3).requires_grad_(True)
        self.fail, self.steps = fail, _Steps(micros, here, sequence)

    @property
    def phases(self) -> tuple[Phase, ...]:
        def blocks(name: str, parameter: Tensor) -> int:
            return 0 if parameter.ndim < 2 or "mlp" not in name else 1 + 2 * ("up" in name)

        return (Phase("model", self.model, matrix_blocks=blocks),)

    def batches(self) -> _Steps:
        return self.steps

    def loss(self, phase: str, micro: tuple[int, Micro], step: int) -> Loss:
        self.fail(step)
        number, segments = micro
        pack = pack_of(segments, self.model.spec, step, number)
        out = pack.per_segment(self.model(pack))
        errors = [(one - 0.5).square().mean() * s.weight for one, s in zip(out, segments, strict=True)]
        weight = sum(s.weight for s in segments)
        return Loss(torch.stack(errors).sum(), weight, {"samples": (float(len(segments)), 1.0)})

    def evaluate(self, weights: Mapping[str, dict[str, Tensor]], folder: Path, step: int) -> dict[str, float]:
        return {"judged": float(step), "sum": sum(w.double().sum().item() for w in weights["model"].values())}


class _Steps(torch.utils.data.Dataset):
    def __init__(
        self, micros: Callable[[int], Sequence[Micro]], here: Ranks, sequence: Callable[[int], int]
    ) -> None:
        self.micros, self.here, self.sequence = micros, here, sequence

    def __getitem__(self, step: int) -> list[tuple[int, Micro]]:
        each = fit(self.sequence(step), self.here.size)
        return list(enumerate(self.micros(step)))[self.here.rank // each :: self.here.size // each]
