"""The VAE's hot spots in C (`kernels.c`), for inference in bf16 on CPUs that multiply it in AVX-512.

`layers.py` holds the plain versions, which are the oracle. Between the bf16 tensor that a residual block
receives and the one that a convolution writes all is fp32, except the operands of the products, so that the
result is rounded less often than that of plain layers. This pays for minimal filtering (Lavin & Gray 2016):
8 multiplications instead of 27 for a number of a 3x3x3 convolution, whose operands are rounded after the
transform. The whole is about as far from fp32 as plain layers are (tests/models/test_vae_kernels.py).

CPUs with matrix units (AMX) multiply faster than operands could be transformed, by arithmetic: there only
norms, modulation and SiLU are fused, and PyTorch convolves. Tested, but not timed: no such CPU was at hand.

Shape legend: B batch, C channels, T frames, H W pixels, O output channels, P products per tile.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cogvideox.core.device import matrix_units
from cogvideox.core.native import Kernels, kept
from cogvideox.models.specs import VAESpec

if TYPE_CHECKING:
    from cogvideox.models.vae.layers import Carry

KERNELS = Kernels(Path(__file__).with_suffix(".c"))
COLUMNS = 32  # output channels per block of weights, as in native.h
SPREAD = torch.tensor([[1.0, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]])
GATHER = torch.tensor([[1.0, 1, 1, 0], [0, 1, -1, -1]])
"""B^T and A^T of F(2, 3): two outputs of a filter with three taps are A^T (G g * B^T d)."""
ACTIVATION = (0.31, 0.04)
"""Variance and squared mean of SiLU of a standard normal number, what convolutions see here."""
TURN = [1, 0, 2, 3]
"""Factors are rounded in this order of time, for reasons given in kernels.c."""
KEPT = 2 * 2**20
"""Bytes up to which a convolution's packed weights are kept. Larger ones would be 0.5 GB of a released
decoder: they are made for each chunk, which takes a few hundredths of a small chunk's time.
"""
TAPS = torch.tensor([[[1.0, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]])
"""What three taps come to on the two pixels that the left and the right half of a doubled pixel see."""


class Grid(NamedTuple):
    """What modulates a SpatialNorm."""

    modulation: Tensor
    """(B, cells, 2C) fp32: scales, then shifts, of every latent."""
    size: torch.Size
    """(T, H, W) of the latents."""
    lead: bool
    """The first latent stands for one frame, all others for as many as there are."""

    def latent_of(self, frame: int, frames: int) -> int:
        """The latent frame that modulates a frame."""
        lead = int(self.lead and self.size[0] > 1)
        if frame < lead:
            return 0
        return lead + (frame - lead) * (self.size[0] - lead) // (frames - lead)


class _Frame(ctypes.Structure):
    _fields_ = (("x", ctypes.c_void_p), ("a", ctypes.c_void_p), ("b", ctypes.c_void_p))


class _Cells(ctypes.Structure):
    _fields_ = (("columns", ctypes.c_int), ("shift", ctypes.c_int))


def serve(spec: VAESpec) -> bool:
    """Whether inference of a VAE in bf16 on this CPU goes through the kernels where it needs most memory: at
    full resolution.
    """
    return spec.channels[0] % 32 == 0 and KERNELS.loaded is not None


def suit(x_BCTHW: Tensor) -> bool:
    """Whether the kernels can take an activation: one for kernels, with channels in whole vectors."""
    return x_BCTHW.shape[1] % 32 == 0 and KERNELS.take(x_BCTHW)


def norm_silu_conv(
    x_BCTHW: Tensor,
    grid: Grid | None,
    carry: Carry,
    norm: nn.GroupNorm,
    conv: nn.Conv3d,
    residual_BCTHW: Tensor | None,
) -> Tensor:
    """conv(silu(norm(x) scale + shift)) + residual, in the memory of the residual if there is one."""
    x_BTHWC = to_rows(x_BCTHW)
    norms = _fold(x_BTHWC, grid, norm)
    if matrix_units():
        return _norm_silu_then_conv(x_BTHWC, norms, grid, carry, conv, residual_BCTHW)
    batch, frames, height, width, channels = x_BTHWC.shape
    cells, tail = cell_grid(grid, height), carry.take(x_BCTHW)
    head = None if tail is None else to_rows(tail)
    residual = None if residual_BCTHW is None else to_rows(residual_BCTHW)
    out = x_BTHWC.new_empty(batch, frames, height, width, conv.out_channels) if residual is None else residual
    weights = _packed(conv, carry)
    assert conv.bias is not None
    bias, scratch = conv.bias.float(), scratch_for(channels)
    for b in range(batch):
        read = list(zip(x_BTHWC[b], norms[b], strict=True))
        before = [read[0]] * 2 if head is None else [(frame, None) for frame in head[b]]
        KERNELS.call(
            *("convolve", frame_list([*before, *read]), frames, height, width, channels, cells),
            *(int(head is None), weights, bias, None if residual is None else residual[b]),
            *(conv.out_channels, out[b], *scratch),
        )
    if not carry.last:
        _leave_tail(x_BTHWC, norms, cells, carry, head)
    return to_video(out)


def _leave_tail(x_BTHWC: Tensor, norms: Tensor, cells: _Cells, carry: Carry, head: Tensor | None) -> None:
    """What the last two frames came to, for the next chunk."""
    batch, frames, *sizes = x_BTHWC.shape
    tail, count = carry.room(x_BTHWC.new_empty(batch, 2, *sizes), head), min(frames, 2)
    if head is not None:
        tail[:, 0] = head[:, 1]
    _activate(x_BTHWC[:, -count:], norms[:, -count:], cells, tail[:, -count:])
    if head is None and count == 1:
        tail[:, 0] = tail[:, 1]
    carry.keep(to_video(tail))


def _norm_silu_then_conv(
    x_BTHWC: Tensor,
    norms: Tensor,
    grid: Grid | None,
    carry: Carry,
    conv: nn.Conv3d,
    residual_BCTHW: Tensor | None,
) -> Tensor:
    batch, frames, height, width, channels = x_BTHWC.shape
    head = carry.take(to_video(x_BTHWC))
    padded = x_BTHWC.new_empty(batch, 2 + frames, height, width, channels)
    _activate(x_BTHWC, norms, cell_grid(grid, height), padded[:, 2:])
    padded[:, :2] = padded[:, 2:3] if head is None else to_rows(head)
    carry.leave(to_video(padded[:, -2:]), head)
    h = F.conv3d(to_video(padded), conv.weight, conv.bias, padding=(0, 1, 1))
    return h if residual_BCTHW is None else h.add_(residual_BCTHW)


def _activate(x_BTHWC: Tensor, norms: Tensor, cells: _Cells, out_BTHWC: Tensor) -> None:
    for x, norm, out in zip(x_BTHWC, norms, out_BTHWC, strict=True):
        KERNELS.call("norm_silu", frame_list(list(zip(x, norm, strict=True))), *x.shape, cells, out)


def _fold(x_BTHWC: Tensor, grid: Grid | None, norm: nn.GroupNorm) -> Tensor:
    """Norm and modulation of every frame as one multiplication and one addition per cell and channel:
    (B, T, 2, cells of a frame, C) fp32.
    """
    batch, frames, height, width, channels = x_BTHWC.shape
    latents = 1 if grid is None else grid.size[0]
    cells = 1 if grid is None else grid.modulation.shape[1]
    tables = torch.empty(batch, 2, cells, channels)
    for b in range(batch):
        KERNELS.call(
            *("fold_norm", x_BTHWC[b], frames, height, width, channels, norm.num_groups, norm.eps),
            *(norm.weight.float(), norm.bias.float(), None if grid is None else grid.modulation[b], cells),
            tables[b],
        )
    of = [0 if grid is None else grid.latent_of(t, frames) for t in range(frames)]
    per_latent = tables.unflatten(2, (latents, -1)).transpose(1, 2)
    return torch.stack([per_latent[:, t] for t in of], dim=1)


def upsample_conv(x_BCTHW: Tensor, conv: nn.Conv2d, time: bool, lead: bool) -> Tensor:
    """Twice the height and width by nearest neighbour, then `conv`; with `time` all frames but a leading one
    are doubled too. Taps that fall on one pixel are added up first: 4 products instead of 9.
    """
    x_BTHWC = to_rows(x_BCTHW)
    batch, frames, height, width, channels = x_BTHWC.shape
    count = 2 * frames - lead if time else frames
    out = x_BTHWC.new_empty(batch, count, 2 * height, 2 * width, conv.out_channels)
    assert conv.bias is not None
    weights, bias = kept(conv, _pack_doubled, conv.weight, conv.bias)
    scratch = scratch_for(channels)
    for b in range(batch):
        read = frame_list([(x, None) for x in x_BTHWC[b]])
        sizes = (frames, height, width, channels, int(time), int(lead))
        KERNELS.call("upsample_convolve", read, *sizes, weights, bias, conv.out_channels, out[b], *scratch)
    return to_video(out)


def project(x_BCTHW: Tensor, conv: nn.Conv3d) -> Tensor:
    """A 1x1x1 convolution to fewer channels in the memory of x, which is spent: results stay behind what is
    still to be read.
    """
    x_BTHWC = to_rows(x_BCTHW)
    rows, width, outputs = x_BTHWC.flatten(0, 1).flatten(1, 2), conv.in_channels, conv.out_channels
    out = rows.view(-1)[: rows.numel() // width * outputs].view(*rows.shape[:2], outputs)
    weight, bias = conv.weight.flatten(1).T, conv.bias
    assert bias is not None
    for frame, x in enumerate(rows):
        apart = (frame + 1) * outputs <= frame * width
        torch.addmm(bias, x if apart else x.clone(), weight, out=out[frame])
    return to_video(out.view(*x_BTHWC.shape[:4], outputs))


# ------------------------------------------------------------------------------------------------- weights


def packed_size(inputs: int, outputs: int) -> int:
    """Numbers that a convolution's weights come to as factors."""
    return 64 * inputs * (outputs + -outputs % COLUMNS)


def _packed(conv: nn.Conv3d, carry: Carry) -> Tensor:
    count = packed_size(conv.in_channels, conv.out_channels)
    if 2 * count <= KEPT:
        return kept(conv, lambda weight: pack_causal(weight, weight.new_empty(count)), conv.weight)
    return pack_causal(conv.weight, carry.workspace(conv.weight, count))


def pack_causal(weight_OCTHW: Tensor, packed: Tensor) -> Tensor:
    sizes = weight_OCTHW.shape[:2]
    KERNELS.call("pack_causal", weight_OCTHW.contiguous(), *sizes, _feedback(), packed)
    return packed


@functools.cache
def _feedback() -> Tensor:
    """How factors make up for each other's rounding errors, (64, 64) fp32, below the diagonal.

    An error e of the factors changes the outputs of a tile by a linear map of e and the inputs. Its mean
    square over inputs with the moments `ACTIVATION` is a quadratic form, written here as the sum over p of
    d_p (e_p + sum of feedback_pq e_q, q < p)^2: rounding factor p so that its bracket is small undoes errors
    made before.
    """
    one = torch.einsum("op,pi->poi", GATHER, SPREAD).double()
    whole = torch.einsum("aoi,bpj,cqk->abcopqijk", one[TURN], one, one).reshape(64, 8, 64)
    variance, squared_mean = ACTIVATION
    form = variance * torch.einsum("poi,qoi->pq", whole, whole)
    form += squared_mean * torch.einsum("po,qo->pq", whole.sum(-1), whole.sum(-1))
    upper = torch.linalg.cholesky(form.flip(0, 1)).flip(0, 1)
    return (upper / upper.diagonal()).T.float().contiguous()


def _pack_doubled(weight_OCHW: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    factors = torch.einsum("ayj,bzk,oxjk->abyzxo", TAPS, TAPS, weight_OCHW.float())
    return _pack(factors.flatten(0, 3).bfloat16()), bias.float()


def _pack(factors_PCO: Tensor) -> Tensor:
    """(P, C, O) -> (P, O/32, C/2, 32, 2), output channels padded."""
    padded = F.pad(factors_PCO, (0, -factors_PCO.shape[2] % COLUMNS))
    blocks = padded.unflatten(2, (-1, COLUMNS)).unflatten(1, (-1, 2))
    return blocks.permute(0, 3, 1, 4, 2).contiguous()


# --------------------------------------------------------------------------------------------------- calls


def to_rows(x_BCTHW: Tensor) -> Tensor:
    """(B, T, H, W, C), contiguous: no copy in channels_last_3d."""
    return x_BCTHW.permute(0, 2, 3, 4, 1).contiguous()


def to_video(x_BTHWC: Tensor) -> Tensor:
    """Inverse of `to_rows`, in channels_last_3d."""
    return x_BTHWC.permute(0, 4, 1, 2, 3)


def cell_grid(grid: Grid | None, height: int) -> _Cells:
    if grid is None:
        return _Cells(1, 30)  # one for all
    return _Cells(grid.size[2], (height // grid.size[1]).bit_length() - 1)


def frame_list(read: Sequence[tuple[Tensor | None, Tensor | None]]) -> ctypes.Array[_Frame]:
    """What the kernels read (None: zeros), and an empty frame behind it that the last pair may reach into."""
    frames = (_Frame * (len(read) + 1))()
    for frame, (x, norm) in zip(frames, read, strict=False):
        if x is not None:
            assert x.is_contiguous()
            frame.x = x.data_ptr()
        if norm is not None:
            frame.a, frame.b = (part.data_ptr() for part in norm)
    return frames


def scratch_for(channels: int) -> tuple[Tensor, int]:
    """Memory for the threads of a convolution, and how many they are."""
    threads = torch.get_num_threads()
    assert KERNELS.loaded is not None
    each = KERNELS.loaded.scratch_bytes
    each.restype = ctypes.c_int64
    return torch.empty(each(channels) * threads, dtype=torch.uint8), threads
