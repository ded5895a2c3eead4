"""The transformer against diffusers for all released variants, and the pack contract: packed equals alone."""

import itertools
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from diffusers.models.embeddings import get_3d_rotary_pos_embed
from diffusers.pipelines.cogvideo.pipeline_cogvideox import get_resize_crop_region_for_grid
from torch import Tensor

from cogvideox.checkpoints.keymaps import diffusers_transformer, to_ours
from cogvideox.core.pack import Pack, Segment, patchify
from cogvideox.models.specs import SPECS, TransformerSpec
from cogvideox.models.transformer import blocks
from cogvideox.models.transformer.model import Transformer
from cogvideox.models.transformer.positions import AdditivePositions, coordinates, rope_table
from tests.models.oracle import relative_error, run_ours, shapes, transformer_pair
from tests.tiny import randomise

GRID = (3, 4, 6)
TINY = {"layers": 2, "heads": 2, "text_dim": 24, "time_dim": 32, "text_length": 7, "base_grid": GRID}


def tiny(name: str) -> TransformerSpec:
    spec = replace(SPECS[name].transformer, out_norm_eps=1e-5, **TINY)
    return replace(spec, ofs_dim=32) if spec.ofs_dim else spec


def rope_of(spec: TransformerSpec, grid: tuple[int, int, int], policy: str = "extrapolate"):
    if "rope" not in spec.positions:
        return None
    t, h, w = grid
    if policy == "interpolate":
        crop = get_resize_crop_region_for_grid((h, w), spec.base_grid[2], spec.base_grid[1])
        return get_3d_rotary_pos_embed(spec.head_dim, crop, (h, w), t)
    return get_3d_rotary_pos_embed(spec.head_dim, None, (h, w), t, grid_type="slice", max_size=(h, w))


def inputs(spec: TransformerSpec, grid: tuple[int, int, int] | None = None) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    t, h, w = (n * p for n, p in zip(grid or spec.base_grid, spec.patch, strict=True))
    x_BTCHW = torch.randn(2, t, spec.in_channels, h, w, generator=generator)
    return (
        x_BTCHW,
        torch.randn(2, spec.text_length, spec.text_dim, generator=generator),
        torch.tensor([999, 17]),
    )


@torch.no_grad()
def compare(spec: TransformerSpec, grid=None, policy="extrapolate") -> float:
    ours, reference = transformer_pair(spec, policy)
    x, text, t = inputs(spec, grid)
    ofs = torch.tensor([2.0]) if spec.ofs_dim else None
    rope = rope_of(spec, grid or spec.base_grid, policy)
    expected = reference(x, text, t, ofs=ofs, image_rotary_emb=rope).sample
    return relative_error(run_ours(ours, x, text, t), expected)


@pytest.mark.parametrize("name", SPECS)
def test_all_variants_equal_diffusers(name):
    assert compare(tiny(name)) < 1e-5


@pytest.mark.parametrize("name", SPECS)
def test_one_layer_at_real_width_equals_diffusers(name):
    spec = replace(SPECS[name].transformer, out_norm_eps=1e-5, layers=1, text_length=9, base_grid=(1, 2, 3))
    assert compare(spec) < 1e-5


MUTATIONS = {
    "RoPE removed": (blocks, "apply_rope", lambda x, *_: x),
    "uniform attention": (
        blocks.FullAttention,
        "attend",
        lambda self, q, k, v, *_: v.mean(2, keepdim=True).expand_as(v),
    ),
    "exact GELU": (blocks.MLP, "forward", lambda self, x, p: self.down(F.gelu(self.up(x, p)), p)),
    "queries and keys swapped": (
        blocks.FullAttention,
        "attend",
        lambda self, q, k, v, *_: F.scaled_dot_product_attention(k, q, v),
    ),
    "learned positions ignored": (AdditivePositions, "forward", lambda self, text, video, _: (text, video)),
}


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_parity_would_notice_a_wrong_model(monkeypatch, mutation):
    """The random weights are such that nothing cancels out: each mistake is above the tolerance of parity."""
    monkeypatch.setattr(*MUTATIONS[mutation])
    assert compare(tiny("5b-i2v")) > (3e-5 if "GELU" in mutation else 1e-3)


@pytest.mark.parametrize("grid", [(2, 2, 3), (3, 8, 6), (5, 3, 9)])
@pytest.mark.parametrize("name", ["2b", "5b"])
def test_other_sizes_equal_diffusers(name, grid):
    assert compare(tiny(name), grid, policy="interpolate") < 1e-5


@pytest.mark.parametrize("name", SPECS)
def test_gradients_equal_those_of_diffusers(name):
    spec = tiny(name)
    ours, reference = (model.requires_grad_(True) for model in transformer_pair(spec))
    x, text, t = inputs(spec)
    ofs = torch.tensor([2.0]) if spec.ofs_dim else None
    rope = rope_of(spec, spec.base_grid)
    reference(x, text, t, ofs=ofs, image_rotary_emb=rope).sample.square().mean().backward()
    run_ours(ours, x, text, t).square().mean().backward()
    table = [r for r in diffusers_transformer(spec) if "table" not in r.ours]  # a buffer in diffusers
    theirs = {key: p.grad for key, p in reference.named_parameters()}
    sizes = {key: size for key, size in shapes(ours).items() if "table" not in key}
    expected = to_ours(tuple(table), theirs, sizes, "gradients")
    gradients = {key: p.grad for key, p in ours.named_parameters()}
    assert_same_gradients([gradients[key] for key in expected], list(expected.values()))


@torch.no_grad()
@pytest.mark.parametrize("name", SPECS)
def test_bf16_is_no_farther_from_fp32_than_diffusers(name):
    spec = tiny(name)
    ours, reference = transformer_pair(spec)
    x, text, t = inputs(spec)
    ofs, rope = torch.tensor([2.0]) if spec.ofs_dim else None, rope_of(spec, spec.base_grid)
    exact = reference(x, text, t, ofs=ofs, image_rotary_emb=rope).sample
    half = reference.bfloat16()(x.bfloat16(), text.bfloat16(), t, ofs=ofs, image_rotary_emb=rope).sample
    mine = run_ours(ours.bfloat16(), x.bfloat16(), text.bfloat16(), t)
    assert relative_error(mine.float(), exact) <= 1.1 * relative_error(half.float(), exact)


@pytest.mark.parametrize(
    ("name", "millions"), [("2b", 1694), ("5b", 5570), ("5b-i2v", 5625), ("1.5-5b", 5571)]
)
def test_released_sizes_have_the_released_number_of_parameters(name, millions):
    with torch.device("meta"):
        model = Transformer(SPECS[name].transformer)
    assert round(sum(p.numel() for p in model.parameters()) / 1e6) == pytest.approx(millions, abs=1)


VARIANTS = [
    {},
    {"positions": ("sincos",)},
    {"positions": ("rope", "learned")},
    {"positions": ("learned",)},
    {"patch": (2, 2, 2)},
    {"modality": "shared"},
    {"modality": "mmdit"},
    {"attention": "2d+1d"},
    {"patch": (2, 2, 2), "in_channels": 32, "ofs_dim": 32},
]
SHAPES = [(7, (1, 2, 3)), (5, (2, 2, 2)), (7, (1, 2, 3)), (7, (3, 4, 2)), (1, (1, 1, 1))]


def variant(changes: dict) -> Transformer:
    model = Transformer(replace(tiny("5b"), **changes))
    randomise(model, 0)
    return model.requires_grad_(True)


def assert_same_gradients(ours: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    """Relative error of each below 1e-5; those that vanish (attention ignores what all keys share) are
    compared with a thousandth of the whole.
    """
    floor = 1e-3 * torch.stack([g.norm() for g in expected]).norm()
    for a, b in zip(ours, expected, strict=True):
        assert (a - b).norm() / b.norm().clamp(min=floor) < 1e-5


def make_pack(model: Transformer, order: list[int]) -> Pack:
    """The samples of SHAPES in this order; sample i is the same wherever it stands."""
    patch_numbers = model.patch_embed.in_features
    segments, texts, videos = [], [], []
    for i in order:
        generator = torch.Generator().manual_seed(i)
        length, grid = SHAPES[i]
        segment = Segment(length, grid, weight=1.0 + i, sample=str(i))
        segments.append(segment)
        texts.append(torch.randn(length, 24, generator=generator))
        videos.append(torch.randn(segment.video_length, patch_numbers, generator=generator))
    times = torch.tensor([100 * i for i in order])
    ofs = 2.0 if model.spec.ofs_dim else None
    return Pack(tuple(segments), torch.cat(texts), torch.cat(videos), times, ofs)


def run(model: Transformer, order: list[int]) -> tuple[dict[str, Tensor], list[Tensor]]:
    """Output of each sample, and the gradient of the weighted sum of per-sample losses."""
    pack = make_pack(model, order)
    model.zero_grad()
    parts = dict(zip((s.sample for s in pack.segments), pack.per_segment(model(pack)), strict=True))
    loss = sum(s.weight * parts[s.sample].square().mean() for s in pack.segments)
    loss.backward()
    return parts, [p.grad.clone() if p.grad is not None else torch.zeros_like(p) for p in model.parameters()]


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_packed_equals_alone_in_output_loss_and_gradient(changes):
    model = variant(changes)
    alone = [run(model, [i]) for i in range(len(SHAPES))]
    for order in ([0, 1, 2, 3, 4], [3, 4, 1, 2, 0]):
        parts, gradients = run(model, order)
        for i in order:
            assert relative_error(parts[str(i)], alone[i][0][str(i)]) < 1e-5
        assert_same_gradients(gradients, [sum(single) for single in zip(*(g for _, g in alone), strict=True)])


@torch.no_grad()
def test_a_segment_does_not_see_the_others():
    model = variant({})
    pack = make_pack(model, [0, 1, 3])
    noisy = replace(pack, video_LP=torch.cat([pack.video_LP[:-24], torch.randn_like(pack.video_LP[-24:])]))
    before, after = pack.per_segment(model(pack)), pack.per_segment(model(noisy))
    assert torch.equal(before[0], after[0])
    assert torch.equal(before[1], after[1])
    assert not torch.equal(before[2], after[2])


@torch.no_grad()
def test_variants_differ():
    outputs = [variant(c)(make_pack(variant(c), [0])) for c in VARIANTS if "patch" not in c]
    assert all(not torch.allclose(a, b) for a, b in itertools.combinations(outputs, 2))


def test_positions_treat_height_and_width_alike():
    tall, wide = (coordinates(g, "interpolate", (13, 30, 30)) for g in ((2, 6, 4), (2, 4, 6)))
    assert torch.equal(tall[1], wide[2])
    assert torch.equal(tall[2], wide[1])


def test_interpolation_is_the_identity_at_the_base_grid():
    base = (13, 30, 45)
    for a, b in zip(
        coordinates(base, "interpolate", base), coordinates(base, "extrapolate", base), strict=True
    ):
        assert torch.allclose(a, b, atol=1e-5)


def test_extrapolated_positions_do_not_depend_on_the_size():
    small, large = (rope_table(coordinates(g, "extrapolate", GRID), 64) for g in ((2, 3, 4), (4, 9, 12)))
    assert torch.equal(small.view(2, 3, 4, -1), large.view(4, 9, 12, -1)[:2, :3, :4])


def test_learned_positions_fit_any_grid_and_end_with_the_text_table():
    model = variant({"positions": ("learned",)})
    table = model.positions.learned
    assert torch.equal(table.video(GRID), table.table[7:])
    assert torch.equal(table.video((4, 4, 6))[-24:], table.video(GRID)[-24:]), "the last frame goes on"
    assert table.video((2, 3, 9)).shape == (54, model.spec.width)
    with pytest.raises(ValueError, match="8 text tokens, but the learned positions end at 7"):
        table.text(8)


def test_illegal_packs_are_refused():
    with pytest.raises(ValueError, match="multiple of the patch"):
        patchify(torch.zeros(16, 3, 5, 4), (1, 2, 2))
    with pytest.raises(ValueError, match="tokens"):
        Pack((Segment(2, (1, 1, 1)),), torch.zeros(1, 3), torch.zeros(1, 4), torch.zeros(1))
    model = variant(VARIANTS[-1])
    without_ofs = replace(make_pack(model, [0]), ofs=None)
    with pytest.raises(ValueError, match="ofs"):
        model(without_ofs)


def test_attention_in_training_equals_the_fused_kernel():
    q, k, v = (
        torch.randn(2, 3, 40, 16, generator=torch.Generator().manual_seed(i)).requires_grad_()
        for i in range(3)
    )
    plain, fused = blocks.attention(q, k, v), F.scaled_dot_product_attention(q, k, v)
    assert "ScaledDotProduct" not in type(plain.grad_fn).__name__
    torch.testing.assert_close(plain, fused, rtol=1e-5, atol=1e-6)
    weight = torch.randn(plain.shape, generator=torch.Generator().manual_seed(3))
    gradients = zip(
        *(torch.autograd.grad((out * weight).sum(), (q, k, v)) for out in (plain, fused)), strict=True
    )
    for ours, theirs in gradients:
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
