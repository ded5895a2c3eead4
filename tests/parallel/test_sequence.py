"""Shares of packs: outputs and gradients of several processes are those of one, whatever the lengths."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from cogvideox.core.errors import InputError
from cogvideox.core.pack import Pack, Segment
from cogvideox.models.specs import TransformerSpec
from cogvideox.models.transformer.model import Transformer
from cogvideox.parallel.mesh import Mesh
from cogvideox.parallel.sequence import gather_video, part, share, share_attention, span
from tests.parallel.processes import relative_error, together, world
from tests.tiny import VARIANTS, randomise, tiny_spec

SEGMENTS = (
    Segment(5, (3, 2, 3)),
    Segment(5, (3, 2, 3)),  # two alike, which run as a batch
    Segment(6, (3, 2, 3)),  # another text: equal parts on some ranks, not on all
    Segment(1, (1, 1, 2)),  # fewer tokens than processes
    Segment(2, (3, 3, 5)),
)


def make_pack(spec: TransformerSpec, segments: Sequence[Segment]) -> Pack:
    generator = torch.Generator().manual_seed(1)
    text, video = (sum(getattr(s, f"{kind}_length") for s in segments) for kind in ("text", "video"))
    numbers = spec.in_channels * spec.patch[0] * spec.patch[1] * spec.patch[2]
    return Pack(
        tuple(segments),
        torch.randn(text, spec.text_dim, generator=generator),
        torch.randn(video, numbers, generator=generator),
        torch.tensor([999, 5, 17, 400, 630])[: len(segments)],
        ofs=2.0 if spec.ofs_dim else None,
    )


def make(like: str, policy: str = "extrapolate", **changes: object) -> Transformer:
    spec = tiny_spec(like, **changes).transformer
    return randomise(Transformer(spec, policy), 3).requires_grad_(True)


def gradients(model: Transformer, output: Tensor, target: Tensor) -> list[Tensor]:
    model.zero_grad()
    (output - target).square().sum().backward()
    return [p.grad for p in model.parameters()]


def assert_equal(ours: list[Tensor], expected: list[Tensor]) -> None:
    """Gradients that vanish (attention ignores what all keys share) are compared with a part of the whole."""
    floor = 1e-3 * torch.stack([g.norm() for g in expected]).norm()
    for a, b in zip(ours, expected, strict=True):
        assert (a - b).norm() / b.norm().clamp(min=floor) < 1e-5


def compare(model: Transformer, pack: Pack, mesh: Mesh) -> None:
    """Outputs, gradients from local rows, and gradients through rows that were gathered."""
    expected = model(pack)
    target = torch.linspace(-1, 1, expected.numel()).view_as(expected)
    reference = [g.clone() for g in gradients(model, expected, target)]
    share_attention(model)
    mine = share(pack, mesh)
    assert relative_error(model(pack), expected) == 0  # whole packs go on as before
    output = gather_video(model(mine), mine)
    assert relative_error(output, expected) < 1e-5
    own = share(replace(pack, video_LP=target), mesh).video_LP
    half = slice(dist.get_rank(), None, dist.get_world_size())
    for out, wanted in ((model(mine), own), (output[half], target[half])):
        summed = gradients(model, out, wanted)
        for gradient in summed:
            dist.all_reduce(gradient)
        assert_equal(summed, reference)
    assert len(mine.video_LP) <= sum(-(-s.video_length // mesh.sequence.size) for s in pack.segments)


def variants(way: str, heads: int) -> None:
    mesh = world(way).mesh(guided=False)
    for like in VARIANTS:
        policy = "interpolate" if like == "5b" else "extrapolate"
        base = {"base_grid": (3, 2, 3)} if like == "5b-i2v" else {}
        model = make(like, policy, heads=heads, **base)
        compare(model, make_pack(model.spec, SEGMENTS), mesh)
    for modality in ("shared", "mmdit"):
        model = make("5b", modality=modality, heads=heads)
        compare(model, make_pack(model.spec, SEGMENTS), mesh)


@pytest.mark.parametrize(
    ("size", "way", "heads"),
    [
        (1, "sequence", 2),
        (2, "sequence", 3),
        (5, "sequence", 3),
        (1, "ulysses", 1),
        (2, "ulysses", 2),
        (3, "ulysses", 3),
    ],
)
def test_shares_equal_one_process(size, way, heads):
    together(size, variants, way, heads)


def refuse() -> None:
    model = make("5b", heads=3)
    share_attention(model)
    pack = share(make_pack(model.spec, SEGMENTS), world("ulysses").mesh(guided=False))
    with pytest.raises(InputError, match="cannot divide 3 heads among 2 processes"):
        model(pack)


def test_ulysses_refuses_heads_that_do_not_divide():
    together(2, refuse)


def test_attention_that_cannot_be_shared_is_refused():
    with pytest.raises(InputError, match="2d"):
        share_attention(make("5b", attention="2d+1d"))


def branches(way: str) -> None:
    """Two branches, and one alone as some steps of a plan have it; apart as memory may ask for."""
    mesh = world(way).mesh(guided=True)
    assert mesh.branches == 2
    model = make("5b", heads=2)
    pair = make_pack(model.spec, SEGMENTS[:2])
    for pack in (pair, pair.alone()[1]):
        expected = model(pack)
        mine = share(pack, mesh)
        share_attention(model)
        assert relative_error(gather_video(model(mine), mine), expected) < 1e-6
        rows = [len(x) for x in mine.per_segment(mine.video_LP)]
        whole = SEGMENTS[0].video_length // mesh.sequence.size
        assert rows == [0] * (len(rows) - 1) + [whole] if mesh.branch else rows == [whole, 0][-len(rows) :]


@pytest.mark.parametrize(("size", "way"), [(2, "cfg"), (4, "cfg+sequence"), (4, "cfg+ulysses")])
def test_each_branch_is_held_by_its_half(size, way):
    together(size, branches, way)


# ------------------------------------------------------------------------------------------- in one process


@pytest.mark.parametrize("length", [0, 1, 3, 7, 8, 226])
@pytest.mark.parametrize("size", [1, 2, 3, 4, 7])
def test_spans_cover_everything_once_and_evenly(length, size):
    spans = [span(length, size, rank) for rank in range(size)]
    assert [row for start, end in spans for row in range(start, end)] == list(range(length))
    sizes = [end - start for start, end in spans]
    assert max(sizes) - min(sizes) <= 1


def test_parts_know_their_place():
    parts = [part(Segment(5, (2, 2, 2)), 3, rank) for rank in range(3)]
    assert [(p.text_start, p.text_length) for p in parts] == [(0, 2), (2, 2), (4, 1)]
    assert [(p.rows, p.video_length) for p in parts] == [((0, 3), 3), ((3, 6), 3), ((6, 8), 2)]
