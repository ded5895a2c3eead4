"""The transformer's input, built in one place for training, sampling and serving.

Shape legend: C channels, T H W latent grid, L tokens, P numbers per patch. Latents are in the transformer's
scale.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cogvideox.core.pack import Pack, Segment, patchify, token_grid, unpatchify
from cogvideox.models.specs import TransformerSpec

OFS = 2.0  # the constant that 1.5-5B-I2V was released with


@dataclass(frozen=True)
class Sample:
    """One clip, image or guidance branch on its way into a pack."""

    latents_CTHW: Tensor
    """Noisy latents, (16, T, H, W)."""
    text_LC: Tensor
    """Text embedding, (text tokens, text_dim)."""
    timestep: int
    condition_CTHW: Tensor | None = None
    """Latents of the image condition as `image_condition` makes them; None fills in zeros where channels ask
    for it.
    """
    weight: float = 1.0
    name: str = ""


def pad_front(latents_CTHW: Tensor, patch: tuple[int, int, int]) -> Tensor:
    """Repeat the first latent frame in front until the temporal patch divides the count (1.5 models)."""
    pad = -latents_CTHW.shape[1] % patch[0]
    return (
        torch.cat([latents_CTHW[:, :1].expand(-1, pad, -1, -1), latents_CTHW], dim=1) if pad else latents_CTHW
    )


def image_condition(image_CHW: Tensor, frames: int) -> Tensor:
    """Image latent (C, H, W) -> condition (C, frames, H, W): the image in slot 0, zeros elsewhere.

    With 1.5 models slot 0 is the padding in front, as they were trained.
    """
    rest = image_CHW.new_zeros(image_CHW.shape[0], frames - 1, *image_CHW.shape[1:])
    return torch.cat([image_CHW.unsqueeze(1), rest], dim=1)


def build_pack(
    samples: Sequence[Sample],
    spec: TransformerSpec,
    *,
    dtype: torch.dtype,
    device: torch.device | None = None,
) -> Pack:
    """Samples of any shapes -> the pack that `Transformer` takes, its tensors in `dtype`.

    Raises ValueError when a latent grid does not fit the patch or a condition does not fit its latents.
    """
    segments, texts, videos = [], [], []
    patches: dict[tuple[int, int], Tensor] = {}  # the branches of guidance have theirs in common
    for sample in samples:
        x = sample.latents_CTHW
        if spec.in_channels > x.shape[0]:
            condition = sample.condition_CTHW
            if condition is None:
                condition = x.new_zeros(spec.in_channels - x.shape[0], *x.shape[1:])
            if condition.shape[1:] != x.shape[1:]:
                have, need = tuple(condition.shape[1:]), tuple(x.shape[1:])
                raise ValueError(f"the image condition has the latent grid {have}, the latents {need}")
            x = torch.cat([x, condition.to(x)])
        elif sample.condition_CTHW is not None:
            raise ValueError("this model has no channels for an image condition")
        if x.shape[0] != spec.in_channels:
            raise ValueError(f"{x.shape[0]} channels in all, the model takes {spec.in_channels}")
        grid = token_grid(x.shape[1:], spec.patch)
        segments.append(Segment(len(sample.text_LC), grid, sample.weight, sample.name))
        texts.append(sample.text_LC)
        key = id(sample.latents_CTHW), id(sample.condition_CTHW)
        if key not in patches:
            patches[key] = patchify(x, spec.patch).to(device=device, dtype=dtype)
        videos.append(patches[key])
    timesteps = torch.tensor([sample.timestep for sample in samples], device=device)
    return Pack(
        segments=tuple(segments),
        text_LC=torch.cat([text.to(device=device, dtype=dtype) for text in texts]),
        video_LP=torch.cat(videos),
        timestep_S=timesteps,
        ofs=OFS if spec.ofs_dim else None,
    )


def split_output(output_LP: Tensor, pack: Pack, spec: TransformerSpec) -> list[Tensor]:
    """The transformer's output -> one latent tensor (C, T, H, W) in fp32 for each segment."""
    parts = pack.per_segment(output_LP)
    return [unpatchify(p.float(), s.grid, spec.patch) for p, s in zip(parts, pack.segments, strict=True)]
