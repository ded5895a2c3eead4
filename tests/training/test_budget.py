"""What a step costs: hand arithmetic, and the real model on the meta device."""

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from cogvideox.core.pack import Pack, Segment
from cogvideox.models.specs import SPECS
from cogvideox.models.transformer import blocks
from cogvideox.training import budget
from cogvideox.training.diffusion import matrix_blocks
from tests.tiny import VARIANTS, tiny_spec

GB = 1e9


def pack(spec, segments, dtype=torch.float32):
    """Their pack, without numbers."""
    inputs = spec.in_channels
    for size in spec.patch:
        inputs *= size
    text = torch.empty(sum(s.text_length for s in segments), spec.text_dim, device="meta", dtype=dtype)
    video = torch.empty(sum(s.video_length for s in segments), inputs, device="meta", dtype=dtype)
    timestep = torch.empty(len(segments), device="meta")
    return Pack(tuple(segments), text, video, timestep, ofs=2.0 if spec.ofs_dim else None)


@pytest.mark.parametrize("like", VARIANTS)
def test_operations_are_those_that_the_model_does(like):
    spec = tiny_spec(like).transformer
    segments = [Segment(12, (3, 2, 3)), Segment(12, (3, 2, 3)), Segment(12, (1, 4, 2))]
    with FlopCounterMode(display=False) as counter:
        budget.on_meta(spec)(pack(spec, segments))
    assert budget.forward_flops(spec, segments) == counter.get_total_flops()


def test_operations_of_the_released_models_by_hand():
    """2B, one clip of 17,776 tokens: 24 L D^2 a layer for its linear layers, 4 L^2 D for attention."""
    spec = SPECS["2b"].transformer
    segment = Segment(226, (13, 30, 45))
    linear = 30 * 24 * 17776 * 1920**2
    attention = 30 * 4 * 17776**2 * 1920
    assert attention / (linear + attention) == pytest.approx(0.61, abs=0.01)
    assert budget.forward_flops(spec, [segment]) == pytest.approx(linear + attention, rel=0.002)
    assert budget.train_flops(spec, [segment]) == 3 * budget.forward_flops(spec, [segment])


def test_the_largest_row_holds_whole_clips_and_a_rest():
    spec = SPECS["5b"].transformer
    row = budget.largest_row(spec, 75_000, 49, 480, 720)
    assert [segment.length for segment in row] == [17776] * 4 + [75_000 - 4 * 17776]
    assert sum(s.length for s in budget.largest_row(spec, 2 * 17776 + 100, 49, 480, 720)) == 2 * 17776


def test_bytes_by_hand():
    """2B on 8 processes: 1.69 billion weights, each 2 + 2 bytes in bf16, and 4 + 4 + 8 in fp32."""
    spec = SPECS["2b"].transformer
    block = (
        12 * 1920 * 513  # modulation
        + 3 * 1920 * 1921 + 4 * 64 + 1920 * 1921  # qkv, norms of q and k, out
        + 4 * 1920 * 1921 + 1920 * (4 * 1920 + 1)  # mlp
        + 4 * 1920  # norms
    )  # fmt: skip
    assert budget.block_parameters(spec) == block
    rest = (64 + 1) * 1920 + (4096 + 1) * 1920  # patches and text
    rest += 1921 * 512 + 513 * 512  # time
    rest += 4 * 1920 + 513 * 2 * 1920 + 1921 * 64  # output
    part = -(-(30 * block + rest) // 8)
    kept = budget.activations(spec, 25_000, recompute=True, shards=8)
    assert kept == 25_000 * 1920 * 2 * (30 + budget.SAVED) + 3 * 2 * block
    need = budget.need(budget.on_meta(spec), None, activations=kept, shards=8)
    assert need.weights == need.gradients == 2 * part
    assert need.masters == need.average == 4 * part
    assert need.moments == pytest.approx(8 * part, rel=1e-6)
    assert need.total == pytest.approx(20 * part + kept, rel=1e-6)
    assert 9 * GB < need.total < 10 * GB
    idle = budget.need(budget.on_meta(spec), None, shards=8)
    assert idle.total == pytest.approx(24 * part, rel=1e-6)  # the update's gradients in fp32


def test_muon_keeps_one_moment_where_adamw_keeps_two():
    model = budget.on_meta(SPECS["2b"].transformer)
    matrices = sum(p.numel() for name, p in model.named_parameters() if matrix_blocks(name, p))
    adam, muon = budget.need(model, None), budget.need(model, matrix_blocks)
    assert adam.moments - muon.moments == 4 * matrices


def fused(q, k, v):
    """What a fused kernel keeps is not the scores; the meta device would take the plain way."""
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v)[0]


@pytest.mark.parametrize("name", ["2b", "5b", "1.5-5b"])
def test_blocks_keep_as_much_as_the_budget_says(name, monkeypatch):
    """At real size, on the meta device: the difference of two depths is what a block keeps."""
    monkeypatch.setattr(blocks, "attention", fused)
    spec = replace(SPECS[name].transformer, layers=1)
    tokens = 25_000
    bytes_of = []
    for layers in (1, 3):
        model = budget.on_meta(replace(spec, layers=layers)).to(torch.bfloat16)
        row = [Segment(226, (10, 30, 40)), Segment(226, (1, 1, tokens - 12_000 - 2 * 226))]
        whole = pack(spec, row, torch.bfloat16)
        bytes_of.append(budget.kept(lambda m=model, w=whole: m(w), model))
    measured = (bytes_of[1] - bytes_of[0]) / 2
    assert measured == pytest.approx(budget.activations(spec, tokens, recompute=False), rel=0.05)
