"""The transformer's kernels against the plain blocks; skipped where they cannot run."""

from dataclasses import replace

import pytest
import torch

from cogvideox.core.pack import Pack, Segment
from cogvideox.models.specs import SPECS
from cogvideox.models.transformer import kernels
from cogvideox.models.transformer.blocks import Block
from cogvideox.models.transformer.model import Transformer
from cogvideox.models.transformer.positions import pack_rope
from tests.models.oracle import relative_error, run_ours, transformer_pair
from tests.tiny import randomise

needs_bf16 = pytest.mark.skipif(
    kernels.KERNELS.loaded is None, reason="no AVX-512 with bf16, or no C compiler"
)
needs_avx512 = pytest.mark.skipif(
    kernels.ROWS[torch.float32].loaded is None, reason="no AVX-512, or no C compiler"
)
BF16, FP32 = torch.bfloat16, torch.float32
both = pytest.mark.parametrize(
    "dtype", [pytest.param(BF16, marks=needs_bf16), pytest.param(FP32, marks=needs_avx512)], ids=str
)
ROPE = replace(SPECS["5b"].transformer, heads=2, layers=2, time_dim=32, text_dim=24, text_length=5)
PLAIN = replace(SPECS["2b"].transformer, heads=3, layers=2, time_dim=32, text_dim=24, text_length=5)


def pack(spec, *grids, text=(5,), seed=0, dtype=BF16):
    segments = tuple(Segment(text[i % len(text)], grid) for i, grid in enumerate(grids))
    rng = torch.Generator().manual_seed(seed)
    rows = sum(s.text_length for s in segments), sum(s.video_length for s in segments)
    return Pack(
        segments,
        torch.randn(rows[0], spec.text_dim, generator=rng).to(dtype),
        torch.randn(rows[1], spec.patch_dim, generator=rng).to(dtype),
        torch.randint(1000, (len(segments),), generator=rng),
    )


def go_plain(monkeypatch):
    monkeypatch.setattr(kernels, "suit", lambda x: False)
    monkeypatch.setattr(kernels, "attends", lambda attention, x: False)


@pytest.fixture(autouse=True)
def with_attention(monkeypatch):
    """The kernel for attention is tested on any CPU that can run it."""
    monkeypatch.setattr(kernels, "matrix_units", lambda: False)


@pytest.mark.parametrize("spec", [ROPE, PLAIN], ids=["rope", "sincos"])
@pytest.mark.parametrize(
    ("grids", "text"),
    [
        ([(1, 2, 2)], (5,)),  # fewer keys than a panel
        ([(3, 4, 5), (3, 4, 5)], (5,)),  # a CFG pair
        ([(2, 10, 13)], (7,)),  # one key more than a block
        ([(1, 6, 8), (2, 4, 4), (2, 4, 4)], (3, 9, 9)),  # several shapes in a pack
        ([(3, 9, 10)], (0,)),  # no text
    ],
)
@both
def test_a_model_equals_its_plain_version(monkeypatch, spec, grids, text, dtype):
    model = Transformer(spec).eval()
    randomise(model, 3)
    model, packed = model.to(dtype), pack(spec, *grids, text=text, dtype=dtype)
    like = model.patch_embed.weight.T
    with torch.set_grad_enabled(dtype == FP32):
        assert kernels.suit(like)
        assert all(kernels.attends(block.attention, like) == (dtype == BF16) for block in model.blocks)
        fast = model(packed)
        go_plain(monkeypatch)
        assert relative_error(fast, model(packed)) < {BF16: 0.02, FP32: 2e-6}[dtype]


@needs_bf16
@torch.no_grad()
@pytest.mark.parametrize("spec", [ROPE, PLAIN], ids=["rope", "sincos"])
def test_error_against_fp32_is_no_larger_than_in_diffusers(spec):
    ratios = []
    for seed in range(3):
        ours, reference = transformer_pair(spec, seed=seed)
        for module in (ours, reference):
            for p in module.parameters():
                p.copy_(p.to(BF16))
        rng = torch.Generator().manual_seed(seed)
        x = torch.randn(2, 3, 16, 12, 20, generator=rng).to(BF16)
        text, t = torch.randn(2, 5, 24, generator=rng).to(BF16), torch.tensor([500, 20])
        exact = run_ours(ours, x.float(), text.float(), t)
        mine = run_ours(ours.to(BF16), x, text, t)
        theirs = reference.to(BF16)(x, text, t, image_rotary_emb=rotary(ours, x), return_dict=False)[0]
        ratios.append(relative_error(mine.float(), exact) / relative_error(theirs.float(), exact))
    assert sum(ratios) / 3 <= 1.05


def rotary(model, x_BTCHW):
    grid = (x_BTCHW.shape[1], x_BTCHW.shape[3] // 2, x_BTCHW.shape[4] // 2)
    rope = pack_rope(pack(model.spec, grid), model.spec, model.policy)
    return None if rope is None else tuple(part.repeat_interleave(2, dim=1) for part in rope[0])


@needs_bf16
@torch.no_grad()
def test_scores_that_are_too_large_go_the_plain_way(monkeypatch):
    """Norm weights that allow scores beyond fp32's powers: same result, no infinities."""
    block = Block(ROPE)
    randomise(block, 1)
    for norm in (block.attention.norm_q, block.attention.norm_k):
        norm.weight.fill_(6.0)
    block = block.to(BF16)
    one = pack(ROPE, (2, 4, 4))
    x, temb = torch.randn(37, ROPE.width).to(BF16), torch.randn(1, 32).to(BF16)
    assert not kernels.attends(block.attention, x)
    fast = block(x, temb, one, pack_rope(one, ROPE, "extrapolate"))
    with monkeypatch.context() as plain:
        go_plain(plain)
        assert relative_error(fast, block(x, temb, one, pack_rope(one, ROPE, "extrapolate"))) < 0.03
    block.attention.norm_q.weight.fill_(1.0)  # seen at once
    block.attention.norm_k.weight.fill_(1.0)
    assert kernels.attends(block.attention, x)


@needs_bf16
@torch.no_grad()
def test_heads_of_another_size_attend_the_plain_way(monkeypatch):
    spec = replace(ROPE, heads=4, head_dim=16)
    model = Transformer(spec).eval()
    randomise(model, 3)
    model, packed = model.to(BF16), pack(spec, (2, 4, 4))
    assert not kernels.attends(model.blocks[0].attention, model.patch_embed.weight.T)
    fast = model(packed)
    go_plain(monkeypatch)
    assert relative_error(fast, model(packed)) < 0.02


@needs_bf16
@torch.no_grad()
def test_the_hidden_state_given_stays_as_it_was():
    block, one = Block(ROPE).to(BF16), pack(ROPE, (2, 4, 4))
    x = torch.randn(37, ROPE.width).to(BF16)
    before = x.clone()
    block(x, torch.randn(1, 32).to(BF16), one, pack_rope(one, ROPE, "extrapolate"))
    assert torch.equal(x, before)


@both
def test_what_is_compiled_goes_the_plain_way(monkeypatch, dtype):
    x = torch.zeros(3, 32, dtype=dtype)
    assert kernels.suit(x)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert not kernels.suit(x)


@both
@torch.no_grad()
def test_gelu_over_the_whole_range(dtype):
    x = torch.cat([torch.linspace(-20, 20, 4000), torch.tensor([1e30, -1e30, 0.0, 1e-30, 65000.0, -1e5])])
    x = torch.cat([x, x.new_zeros(-len(x) % 16)]).to(dtype)
    expected, ours = torch.nn.functional.gelu(x.float(), approximate="tanh"), x.clone()
    kernels.ROWS[dtype].call("gelu", ours, kernels.ctypes.c_int64(len(x)), ours)
    assert torch.allclose(ours.float(), expected, rtol={BF16: 0.004, FP32: 2e-5}[dtype], atol=1e-6)


@pytest.mark.parametrize("spec", [ROPE, PLAIN], ids=["rope", "sincos"])
@pytest.mark.parametrize(
    ("grids", "text"),
    [
        ([(1, 2, 2)], (5,)),
        ([(1, 6, 8), (2, 4, 4), (2, 4, 4)], (3, 9, 9)),
        ([(3, 9, 11)], (0,)),  # more queries and keys than a block, both odd
        ([(1, 13, 15)], (6,)),  # a block of keys and 9 more
        ([(1, 6, 10)] * 40, (5,)),  # many rows to sum over
    ],
)
@both
def test_gradients_are_as_exact_as_those_of_plain_blocks(monkeypatch, spec, grids, text, dtype):
    """Of all weights and of what goes in: in bf16 on average no further from fp32 than plain blocks are, in
    fp32 not much further from fp64, as GELU's polynomial lacks its last bits.
    """
    model, packed = Transformer(spec), pack(spec, *grids, text=text, dtype=dtype)
    randomise(model, 3)
    model = model.to(dtype)
    target = torch.randn(packed.video_LP.shape, generator=torch.Generator().manual_seed(1))

    def gradients(dtype):
        twin = Transformer(spec).to(dtype)
        twin.load_state_dict(model.state_dict())
        given = [x.detach().to(dtype, copy=True).requires_grad_() for x in (packed.text_LC, packed.video_LP)]
        one = replace(packed, text_LC=given[0], video_LP=given[1])
        ((twin(one).to(torch.promote_types(dtype, FP32)) * target).sum() / len(target)).backward()
        found = {f"input {i}": x.grad for i, x in enumerate(given)}
        return found | {name: p.grad for name, p in twin.named_parameters()}

    assert kernels.suit(model.patch_embed.weight.T)
    ours, again = gradients(dtype), gradients(dtype)
    assert all(torch.equal(ours[name], again[name]) for name in ours)
    go_plain(monkeypatch)
    exact = gradients({BF16: FP32, FP32: torch.float64}[dtype])
    plain, ratios = gradients(dtype), []
    for name, right in exact.items():
        if not right.any():
            assert not ours[name].any()  # weights of text, where there is none
            continue
        mine, theirs = (relative_error(grads[name].to(right.dtype), right) for grads in (ours, plain))
        assert mine < max(2 * theirs, {BF16: 0.02, FP32: 1e-5}[dtype]), name
        ratios.append(mine / theirs)
    assert sum(ratios) / len(ratios) < {BF16: 1.05, FP32: 1.3}[dtype]
