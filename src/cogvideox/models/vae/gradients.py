"""The VAE's kernels in training: norm, modulation, SiLU and the causal convolution with their gradients, in
bf16 on CPUs that multiply it in AVX-512. `layers.py` holds the plain versions, which are the oracle.

A norm keeps its input alone; what its SiLU was is computed again. The gradient of a convolution's input is a
convolution too, of the gradients with mirrored weights, and goes the same fast way; that of its weights is
PyTorch's.

Shape legend: B batch, C channels, T frames, H W pixels, O output channels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from cogvideox.core.device import matrix_units
from cogvideox.models.vae import kernels
from cogvideox.models.vae.kernels import KERNELS, Grid

if TYPE_CHECKING:
    from cogvideox.models.vae.layers import Carry

SMALL = 256
"""Pixels of a frame below which PyTorch convolves faster: weights, packed anew for each step, take longer."""


def suit(x_BCTHW: Tensor) -> bool:
    """Whether the kernels can take an activation that gradients are wanted of."""
    return torch.is_grad_enabled() and x_BCTHW.shape[1] % 32 == 0 and KERNELS.take(x_BCTHW, gradients=True)


def norm_silu_conv(
    x_BCTHW: Tensor,
    grid: Grid | None,
    carry: Carry,
    norm: nn.GroupNorm,
    conv: nn.Conv3d,
    residual_BCTHW: Tensor | None,
) -> Tensor:
    """conv(silu(norm(x) scale + shift)) + residual."""
    modulation, where = (None, None) if grid is None else (grid.modulation, grid)
    weights = norm.weight.float(), norm.bias.float(), modulation
    h = kernels.to_video(
        _NormSilu.apply(kernels.to_rows(x_BCTHW), *weights, where, norm.num_groups, norm.eps)
    )
    # Gradients come from the outputs, which the kernels read in whole vectors.
    if matrix_units() or conv.out_channels % 32 or x_BCTHW.shape[3:].numel() < SMALL:
        out: Tensor = conv(h, carry)
        return out if residual_BCTHW is None else out.add_(residual_BCTHW)
    head = carry.take(h)
    if not carry.last:
        before = h[:, :, :1] if head is None else head[:, :, 1:]
        carry.leave(h[:, :, -2:] if h.shape[2] > 1 else torch.cat([before, h], dim=2), head)
    parts = (None if part is None else kernels.to_rows(part) for part in (h, head, residual_BCTHW))
    return kernels.to_video(_CausalConv.apply(*parts, conv.weight, conv.bias))


# -------------------------------------------------------------------------------------------------- norms


class _NormSilu(Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_BTHWC: Tensor,
        gamma_C: Tensor,
        beta_C: Tensor,
        modulation: Tensor | None,
        grid: Grid | None,
        groups: int,
        eps: float,
    ) -> Tensor:
        moments = _moments(x_BTHWC, groups, eps)
        ctx.save_for_backward(x_BTHWC, *moments, gamma_C, beta_C, modulation)
        ctx.grid, ctx.groups = grid, groups
        out, cells = torch.empty_like(x_BTHWC), kernels.cell_grid(grid, x_BTHWC.shape[2])
        tables = _ordered(*_tables(*moments, gamma_C, beta_C, modulation))
        for x, table, made in zip(x_BTHWC, tables, out, strict=True):
            KERNELS.call("norm_silu", _frames(x, table, grid), *x.shape, cells, made)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BTHWC: Tensor) -> Any:
        x_BTHWC, rstd_BC, mean_BC, *small = ctx.saved_tensors
        with torch.enable_grad():  # the tables are small: PyTorch differentiates what they are made of
            inputs = (part for part in (rstd_BC, mean_BC, *small) if part is not None)
            made_of = [part.detach().requires_grad_() for part in inputs]
            both = _tables(*made_of)
        grid, cells, tables = ctx.grid, kernels.cell_grid(ctx.grid, x_BTHWC.shape[2]), _ordered(*both)
        samples = [
            (_frames(x, table, grid), grad, *x.shape, cells)
            for x, table, grad in zip(x_BTHWC, tables, grad_BTHWC.contiguous(), strict=True)
        ]
        sums = [_sums(x, tables.shape[2], grid, sample) for x, sample in zip(x_BTHWC, samples, strict=True)]
        d_shift, d_scale = torch.stack(sums, dim=1)
        d_rstd, d_mean, *rest = torch.autograd.grad(both, made_of, (d_scale, d_shift))
        moments = rstd_BC, mean_BC, d_rstd, d_mean
        factor, offset = _of_moments(x_BTHWC[0].numel(), ctx.groups, *moments)
        out = torch.empty_like(x_BTHWC)
        for b, sample in enumerate(samples):
            KERNELS.call("norm_silu_grad", *sample, factor[b], offset[b], out[b])
        return out, *rest, *[None] * (6 - len(rest))


def _moments(x_BTHWC: Tensor, groups: int, eps: float) -> tuple[Tensor, Tensor]:
    """1 / standard deviation and mean of every channel's group, (B, C)."""
    batch, *sizes, channels = x_BTHWC.shape
    table, one = x_BTHWC.new_empty(batch, 2, channels, dtype=torch.float32), torch.ones(channels)
    for x, out in zip(x_BTHWC, table, strict=True):
        KERNELS.call("fold_norm", x, *sizes, channels, groups, eps, one, one * 0, None, 1, out)
    rstd, shift = _plain_order(table).unbind(1)
    return rstd, -shift / rstd


def _tables(
    rstd_BC: Tensor, mean_BC: Tensor, gamma_C: Tensor, beta_C: Tensor, modulation: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Norm and modulation as x scale + shift, (B, cells, C) each."""
    factor = rstd_BC * gamma_C
    scale, shift = factor[:, None], (beta_C - mean_BC * factor)[:, None]
    if modulation is None:
        return scale, shift
    by, plus = modulation.chunk(2, dim=2)
    return scale * by, shift * by + plus


def _of_moments(
    numbers: int, groups: int, rstd_BC: Tensor, mean_BC: Tensor, d_rstd_BC: Tensor, d_mean_BC: Tensor
) -> tuple[Tensor, Tensor]:
    """What the moments of a sample of so many numbers add to the gradient of x: x factor + offset, (B, C)."""
    size = rstd_BC.shape[1] // groups
    d_rstd, d_mean = (
        d_BC.unflatten(1, (groups, size)).sum(2).repeat_interleave(size, 1) * (groups / numbers)
        for d_BC in (d_rstd_BC, d_mean_BC)
    )
    factor = -d_rstd * rstd_BC**3
    return _kernel_order(factor), _kernel_order(d_mean - factor * mean_BC)


def _sums(x_THWC: Tensor, cells: int, grid: Grid | None, sample: tuple[Any, ...]) -> Tensor:
    """Gradients of shift and scale in the cells of a sample, (2, cells, C)."""
    frames, height, _, channels = x_THWC.shape
    latents, rows, columns = (1, 1, 1) if grid is None else grid.size
    lines = x_THWC.new_empty(frames, height, columns, 2, channels, dtype=torch.float32)
    KERNELS.call("norm_silu_sums", *sample, lines)
    per_frame = lines.unflatten(1, (rows, -1)).sum(2)
    of = torch.tensor([0 if grid is None else grid.latent_of(t, frames) for t in range(frames)])
    per_latent = per_frame.new_zeros(latents, *per_frame.shape[1:]).index_add_(0, of, per_frame)
    return _plain_order(per_latent.view(cells, 2, channels).transpose(0, 1))


def _ordered(scale: Tensor, shift: Tensor) -> Tensor:
    """Both as the kernels read them, (B, 2, cells, C)."""
    return _kernel_order(torch.stack([scale, shift], dim=1).detach())


def _frames(x_THWC: Tensor, table: Tensor, grid: Grid | None) -> Any:
    """The frames of a sample and where their cells stand in its table, (2, cells, C)."""
    frames, latents = len(x_THWC), 1 if grid is None else grid.size[0]
    each = table.unflatten(1, (latents, -1))
    of = [0 if grid is None else grid.latent_of(t, frames) for t in range(frames)]
    return kernels.frame_list([(x, each[:, latent]) for x, latent in zip(x_THWC, of, strict=True)])


def _kernel_order(x: Tensor) -> Tensor:
    """Of each 32 channels the even ones first, as in the kernels' fp32 tables."""
    return x.unflatten(-1, (-1, 16, 2)).transpose(-1, -2).flatten(-3)


def _plain_order(x: Tensor) -> Tensor:
    return x.unflatten(-1, (-1, 2, 16)).transpose(-1, -2).flatten(-3)


# ------------------------------------------------------------------------------------------- convolutions


class _CausalConv(Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_BTHWC: Tensor,
        head_BTHWC: Tensor | None,
        residual_BTHWC: Tensor | None,
        weight_OCTHW: Tensor,
        bias_O: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(x_BTHWC, head_BTHWC, weight_OCTHW)
        ctx.residual = residual_BTHWC is not None
        padded = [_before(x, None if head_BTHWC is None else head_BTHWC[b]) for b, x in enumerate(x_BTHWC)]
        return _convolve(padded, head_BTHWC is None, weight_OCTHW, bias_O, residual_BTHWC)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BTHWO: Tensor) -> Any:
        x, head, weight = ctx.saved_tensors
        grad, opens, mirrored = grad_BTHWO.contiguous(), head is None, weight.flip(2, 3, 4).transpose(0, 1)
        wanted = ctx.needs_input_grad[3]
        d_weight, d_bias = _weight_grad(x, head, weight, grad) if wanted else (None, None)
        d_head = None
        if opens and x.shape[1] == 1:
            d_x = _convolve([[frame[0]] * 3 for frame in grad], True, mirrored, None, None)
        else:
            d_padded = _convolve(
                [[None] * 2 + list(sample) + [None] * 2 for sample in grad], False, mirrored, None, None
            )
            d_head, d_x = d_padded[:, :2], d_padded[:, 2:]
            if opens:
                d_x[:, 0] += d_head[:, 0] + d_head[:, 1]
                d_head = None
        return d_x, d_head, grad if ctx.residual else None, d_weight, d_bias


def _before(x_THWC: Tensor, head_2HWC: Tensor | None) -> list[Tensor | None]:
    """The frames that a convolution of x sees."""
    return [*([x_THWC[0]] * 2 if head_2HWC is None else head_2HWC), *x_THWC]


def _convolve(
    frames: list[list[Tensor | None]],
    opens: bool,
    weight_OCTHW: Tensor,
    bias_O: Tensor | None,
    residual_BTHWO: Tensor | None,
) -> Tensor:
    """Each sample's frames (None: zeros), two more than come out, under the weights: (B, T, H, W, O)."""
    outputs, channels = weight_OCTHW.shape[:2]
    like = next(frame for frame in frames[0] if frame is not None)
    height, width = like.shape[:2]
    packed = kernels.pack_causal(weight_OCTHW, like.new_empty(kernels.packed_size(channels, outputs)))
    bias = torch.zeros(outputs) if bias_O is None else bias_O.float()
    out = like.new_empty(len(frames), len(frames[0]) - 2, height, width, outputs)
    scratch, cells = kernels.scratch_for(channels), kernels.cell_grid(None, height)
    sizes = out.shape[1], height, width, channels, cells, int(opens)
    for b, sample in enumerate(frames):
        read = kernels.frame_list([(frame, None) for frame in sample])
        residual = None if residual_BTHWO is None else residual_BTHWO[b]
        KERNELS.call("convolve", read, *sizes, packed, bias, residual, outputs, out[b], *scratch)
    return out


def _weight_grad(
    x_BTHWC: Tensor, head_B2HWC: Tensor | None, weight_OCTHW: Tensor, grad_BTHWO: Tensor
) -> tuple[Tensor, Tensor]:
    if head_B2HWC is None and x_BTHWC.shape[1] == 1:  # one frame under three taps: that of each is the same
        grad, x = (part[:, 0].permute(0, 3, 1, 2) for part in (grad_BTHWO, x_BTHWC))
        d_weight, d_bias = _backward(grad, x, weight_OCTHW[:, :, 0], (1, 1))
        return d_weight[:, :, None].expand_as(weight_OCTHW), d_bias
    head = x_BTHWC[:, :1].expand(-1, 2, -1, -1, -1) if head_B2HWC is None else head_B2HWC
    padded = kernels.to_video(torch.cat([head, x_BTHWC], dim=1))
    return _backward(kernels.to_video(grad_BTHWO), padded, weight_OCTHW, (0, 1, 1))


def _backward(grad: Tensor, x: Tensor, weight: Tensor, padding: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """PyTorch's gradients of a convolution's weight and bias."""
    ones, zeros = [1] * len(padding), [0] * len(padding)
    _, d_weight, d_bias = torch.ops.aten.convolution_backward(
        *(grad, x, weight, [len(weight)], ones, padding, ones, False, zeros, 1, [False, True, True])
    )
    return d_weight, d_bias
