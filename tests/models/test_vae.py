"""The VAE against diffusers, and what its folds promise: exact streaming, causality, no hidden state."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cogvideox.core.shapes import (
    DECODE_CHUNK,
    ChunkPlan,
    decode_plan,
    encode_plan,
    parity_plan,
    pixel_frames,
    whole_plan,
)
from cogvideox.models.vae import layers
from cogvideox.models.vae.autoencoder import VAE
from cogvideox.models.vae.layers import Carry, CausalConv3d, Downsample
from tests.models.oracle import SMALL_VAE, relative_error, vae_pair


@pytest.fixture(scope="module")
def pair():
    return vae_pair()


def video(frames: int, seed: int = 0, size: tuple[int, int] = (32, 48)) -> torch.Tensor:
    return torch.randn(1, 3, frames, *size, generator=torch.Generator().manual_seed(seed)).clamp(-1, 1)


def latents(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(1, 16, count, 4, 6, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
@pytest.mark.parametrize("frames", [1, 9, 17, 25, 49])
def test_encode_equals_diffusers(pair, frames):
    ours, reference = pair
    expected = reference.encode(video(frames)).latent_dist
    posterior = ours.posterior(video(frames))
    assert relative_error(posterior.mean, expected.mean) < 1e-5
    assert relative_error(posterior.logvar, expected.logvar) < 1e-5
    noise = torch.randn(expected.mean.shape, generator=torch.Generator().manual_seed(3))
    sample = expected.sample(torch.Generator().manual_seed(3))
    assert relative_error(ours.encode(video(frames), noise=noise), sample * ours.spec.scale) < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("count", [1, 3, 4, 5, 7, 13])
def test_decode_equals_diffusers(pair, count):
    ours, reference = pair
    expected = reference.decode(latents(count)).sample
    decoded = ours.decode(latents(count) * ours.spec.scale, parity_plan(count, DECODE_CHUNK))
    assert relative_error(decoded, expected) < 1e-5


@torch.no_grad()
@pytest.mark.parametrize(("part", "length"), [("encode", 17), ("encode", 1), ("decode", 5), ("decode", 1)])
@pytest.mark.parametrize(("native", "bound"), [(False, 1.05), (True, 1.1)], ids=["plain", "kernels"])
def test_bf16_is_no_farther_from_fp32_than_diffusers(monkeypatch, part, length, native, bound):
    """Averaged over seeds. The requirement is 1.1."""
    if not native:
        monkeypatch.setattr(layers.kernels, "suit", lambda x: False)
    make, mine, theirs = {
        "encode": (video, lambda m, x: m.posterior(x).mean, lambda m, x: m.encode(x).latent_dist.mean),
        "decode": (latents, lambda m, z: m.decode(z.float() * 0.7), lambda m, z: m.decode(z).sample),
    }[part]
    errors = []
    for seed in range(6):
        ours, reference = vae_pair(seed=seed)
        x = make(length, seed)
        exact, half = theirs(reference, x), x.bfloat16()
        errors.append(
            (
                relative_error(mine(ours.bfloat16(), half).float(), exact),
                relative_error(theirs(reference.bfloat16(), half).float(), exact),
            )
        )
    ours_mean, theirs_mean = (sum(e) / len(errors) for e in zip(*errors, strict=True))
    assert ours_mean <= bound * theirs_mean


def fold(step, x: torch.Tensor, sizes: list[int]) -> torch.Tensor:
    """Chunks of x through `chunk, cache -> chunk, cache`, one after the other."""
    outputs, cache, start = [], None, 0
    for size in sizes:
        output, cache = step(x[:, :, start : start + size], cache)
        outputs.append(output)
        start += size
    assert start == x.shape[2]
    return torch.cat(outputs, 2)


@torch.no_grad()
@pytest.mark.parametrize(
    ("count", "sizes"), [(1, [1]), (2, [2]), (3, [3]), (4, [2, 2]), (5, [3, 2]), (7, [3, 2, 2])]
)
def test_streaming_decode_equals_whole_bit_for_bit(pair, count, sizes):
    ours, _ = pair
    whole = ours.decode(latents(count))
    assert whole.shape[2] == pixel_frames(count)
    assert torch.equal(whole, torch.cat(list(ours.decode_stream(latents(count))), dim=2))
    assert torch.equal(whole, fold(ours.decode_chunk, latents(count) / ours.spec.scale, sizes))


@torch.no_grad()
@pytest.mark.parametrize("sizes", [[1], [9], [13], [9, 8], [9, 8, 8]])
def test_streaming_encode_equals_whole_bit_for_bit(pair, sizes):
    ours, _ = pair
    clip = video(sum(sizes))
    moments = fold(ours.encode_chunk, clip, sizes)
    posterior = ours.posterior(clip)
    assert torch.equal(posterior.mean, moments[:, :16])
    assert torch.equal(posterior.logvar, moments[:, 16:])
    stream = list(ours.encode_stream(clip.split(sizes, dim=2), ChunkPlan(tuple(sizes))))
    assert torch.equal(torch.cat([p.mean for p in stream], 2), posterior.mean)


@torch.no_grad()
def test_a_cache_is_a_value_unless_its_owner_spends_it(pair):
    ours, z = pair[0], latents(7) / pair[0].spec.scale
    _, cache = ours.decode_chunk(z[:, :, :3])
    kept = [tail.clone() for tail in cache]
    once, _ = ours.decode_chunk(z[:, :, 3:5], cache)
    assert all(torch.equal(*two) for two in zip(cache, kept, strict=True))
    again, spent = ours.decode_chunk(z[:, :, 3:5], cache, reuse=True)
    assert torch.equal(once, again)
    assert [tail.data_ptr() for tail in spent] == [tail.data_ptr() for tail in cache]
    final, none = ours.decode_chunk(z[:, :, 5:], spent, last=True)
    assert torch.equal(final, ours.decode_chunk(z[:, :, 5:], spent)[0])
    assert none == ()


@torch.no_grad()
@pytest.mark.parametrize("count", range(1, 10))
def test_only_the_norms_see_the_chunks(pair, monkeypatch, count):
    """Without the statistics that GroupNorm pools over a chunk, any cut gives what one chunk gives."""
    monkeypatch.setattr(layers, "group_norm", lambda x, norm: 0.5 * x)
    ours, frames = pair[0], pixel_frames(count)
    z, clip = latents(count)[..., :2, :2], video(frames, size=(16, 16))
    whole = ours.decode(z, whole_plan(count))
    for sizes in (decode_plan(count).sizes, (1,) * count):
        assert relative_error(ours.decode(z, ChunkPlan(sizes)), whole) < 1e-5
    encoded = ours.posterior(clip, whole_plan(frames)).mean
    for sizes in (encode_plan(frames).sizes, (1,) + (4,) * (count - 1)):
        assert relative_error(ours.posterior(clip, ChunkPlan(sizes)).mean, encoded) < 1e-5
    monkeypatch.undo()
    if count > 3:
        assert relative_error(ours.decode(z), ours.decode(z, whole_plan(count))) > 1e-3


@torch.no_grad()
def test_interleaved_decodes_do_not_disturb_each_other(pair):
    ours, _ = pair
    first, second = latents(5, 1), latents(5, 2)
    alone = ours.decode(first), ours.decode(second)
    streams = ours.decode_stream(first), ours.decode_stream(second)
    turns = list(zip(*streams, strict=True))
    assert torch.equal(torch.cat([a for a, _ in turns], 2), alone[0])
    assert torch.equal(torch.cat([b for _, b in turns], 2), alone[1])


@pytest.fixture(scope="module")
def small():
    return VAE(type(SMALL_VAE)(channels=(8, 8, 8, 8), blocks=1, groups=4)).eval()


@torch.no_grad()
@pytest.mark.parametrize("count", range(1, 21))
def test_round_trip_of_every_length(small, count):
    decoded = small.decode(latents(count)[..., :2, :2])
    assert decoded.shape == (1, 3, pixel_frames(count), 16, 16)
    assert small.encode(decoded).shape == (1, 16, count, 2, 2)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 18), st.integers(1, 33), st.integers(1, 33))
def test_only_legal_sizes_are_encoded(small, frames, height, width):
    clip = torch.zeros(1, 3, frames, height, width)
    if (frames % 4, height % 8, width % 8) == (1, 0, 0):
        with torch.no_grad():
            assert small.encode(clip).shape == (1, 16, frames // 4 + 1, height // 8, width // 8)
    else:
        with pytest.raises(ValueError, match="4k\\+1 frames" if frames % 4 != 1 else "multiples of 8"):
            small.encode(clip)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=4), st.booleans())
def test_chunk_plans_encode_every_frame_or_none(small, sizes, lead):
    """A plan is refused, or gives one latent for every four frames and one for a leading frame."""
    first, *rest = sizes
    plan, clip = ChunkPlan(tuple(sizes), lead), torch.zeros(1, 3, sum(sizes), 8, 8)
    if first % 4 == lead and all(n % 4 == 0 for n in rest):
        with torch.no_grad():
            assert small.encode(clip, plan).shape[2] == -(-sum(sizes) // 4)
    else:
        with pytest.raises(ValueError, match="can be encoded"):
            small.encode(clip, plan)


@torch.no_grad()
def test_frames_do_not_depend_on_later_chunks(pair):
    ours, _ = pair
    changed = latents(7).clone()
    changed[:, :, 5:] += 1.0
    before, after = ours.decode(latents(7)), ours.decode(changed)
    assert torch.equal(before[:, :, :17], after[:, :, :17])
    assert not torch.equal(before[:, :, 17:], after[:, :, 17:])
    clip = video(25)
    moved = clip.clone()
    moved[:, :, 17:] += 0.5
    assert torch.equal(ours.encode(clip)[:, :, :5], ours.encode(moved)[:, :, :5])
    assert not torch.equal(ours.encode(clip)[:, :, 5:], ours.encode(moved)[:, :, 5:])


@torch.no_grad()
def test_causal_convolution_is_causal_within_a_chunk():
    conv, x = CausalConv3d(2, 2), torch.randn(1, 2, 6, 4, 4)
    later = x.clone()
    later[:, :, 4:] = 0
    assert torch.equal(conv(x, Carry(None, True))[:, :, :4], conv(later, Carry(None, True))[:, :, :4])


@torch.no_grad()
def test_single_frame_shortcut_equals_the_plain_convolution():
    conv, x = CausalConv3d(4, 4), torch.randn(2, 4, 1, 8, 8)
    plain = torch.nn.Conv3d.forward(conv, x.expand(-1, -1, 3, -1, -1))
    assert relative_error(conv(x, Carry(None, True)), plain) < 1e-6


def test_no_convolution_over_time_has_strides(pair):
    """oneDNN 3.12 with AMX convolves bf16 wrongly in three dimensions where strides leave one column (PyTorch
    issue 169688): what is strided here has two.
    """
    convolutions = [module for module in pair[0].modules() if isinstance(module, torch.nn.Conv3d)]
    assert convolutions
    assert all(module.stride == (1, 1, 1) for module in convolutions)


@torch.no_grad()
@pytest.mark.parametrize("columns", [1, 2, 3])
@pytest.mark.parametrize("channels", [16, 32])
def test_downsampling_to_few_columns_is_right_in_bf16(columns, channels):
    layer = Downsample(channels, time=True).bfloat16()
    x = torch.randn(1, channels, 5, 2, 2 * columns, generator=torch.Generator().manual_seed(0)).bfloat16()
    found = layer(x.contiguous(memory_format=torch.channels_last_3d), None, Carry(None, True))
    assert found.shape == (1, channels, 3, 1, columns)
    expected = layer.double()(x.double(), None, Carry(None, True))
    assert relative_error(found, expected) < 0.01


@torch.no_grad()
def test_scale_is_applied_once_and_inside(pair):
    ours, _ = pair
    posterior = ours.posterior(video(9))
    assert torch.equal(ours.encode(video(9)), posterior.mean * ours.spec.scale)
    unit = VAE(type(ours.spec)(**{**ours.spec.__dict__, "scale": 1.0, "condition_scale": 0.5})).eval()
    unit.load_state_dict(ours.state_dict())
    assert torch.equal(unit.encode(video(9), condition=True), posterior.mean * 0.5)
    assert relative_error(unit.decode(latents(3)), ours.decode(latents(3) * ours.spec.scale)) < 1e-5


def test_illegal_input_is_refused(pair):
    ours, _ = pair
    with pytest.raises(ValueError, match="4k\\+1"):
        ours.encode(video(8))
    with pytest.raises(ValueError, match="multiples of 8"):
        ours.encode(video(1, size=(30, 32)))
    with pytest.raises(ValueError, match="chunk plan"):
        ours.decode(latents(3), ChunkPlan((2,)))
    for plan, legal in (
        (whole_plan(8), "8 frames where only 4k\\+1"),
        (ChunkPlan((2,)), "2 frames where only 4k\\+1"),
        (ChunkPlan((9, 9)), "9 frames where only 4k can"),
        (ChunkPlan((8, 2), lead=False), "2 frames where only 4k can"),
    ):
        with pytest.raises(ValueError, match=legal):
            ours.encode(video(plan.length), plan)
    with pytest.raises(ValueError, match=r"\(B, 16, T, H, W\)"):
        ours.decode(torch.zeros(1, 8, 3, 4, 4))


def test_chunk_plans_of_the_released_weights():
    assert encode_plan(49).sizes == (9, 8, 8, 8, 8, 8)
    assert decode_plan(13).sizes == (3, 2, 2, 2, 2, 2)
    assert decode_plan(1).sizes == (1,)
    assert decode_plan(4) == ChunkPlan((2, 2), lead=True)
    assert parity_plan(4, DECODE_CHUNK) == ChunkPlan((2, 2), lead=False)
    assert whole_plan(5).sizes == (5,)


def test_released_size_has_the_released_number_of_parameters():
    with torch.device("meta"):
        model = VAE(type(SMALL_VAE)())
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 1) == 215.6


def test_training_and_inference_norms_agree(pair):
    ours, _ = pair
    with torch.no_grad():
        plain = ours.decode(latents(3))
    assert torch.equal(ours.decode(latents(3)).detach(), plain)
