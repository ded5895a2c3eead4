"""A block's small operations (`rows.c`) and its attention (`kernels.c`) in C, forward and backward: both in
bf16 on CPUs that multiply it in AVX-512, and to train with the small operations in fp32 on all that have
AVX-512. `blocks.py` holds the plain versions, which are the oracle.

Gate, residual, LayerNorm and modulation are one pass; so are the norms and the rotation of q and k. Attention
needs no running maximum: the LayerNorms bound the scores, and where their weights allow scores too large for
fp32, the plain version is taken. CPUs with matrix units (AMX) keep PyTorch's attention. Gradients are summed
in a fixed order: bit for bit the same again with the same number of threads.

Shape legend: L tokens of the pack, S segments, D width, N heads, K head dim, C width of the timestep
embedding.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from cogvideox.core.device import matrix_units
from cogvideox.core.native import AVX512, Kernels, kept
from cogvideox.core.pack import Pack
from cogvideox.models.specs import TransformerSpec

if TYPE_CHECKING:
    from cogvideox.models.transformer.blocks import Block, FullAttention
    from cogvideox.models.transformer.positions import Rope

KERNELS = Kernels(Path(__file__).with_suffix(".c"))
_ROWS = Path(__file__).with_name("rows.c")
ROWS = {
    torch.bfloat16: Kernels(_ROWS),
    torch.float32: Kernels(_ROWS, AVX512, torch.float32, ("-DFP32",)),
}
"""Small operations, by the precision of what they take."""
HEAD = 64  # numbers per head, as in kernels.c
LARGEST = 80.0
"""Scores up to this, e^80, can be summed in fp32 without a running maximum."""
SHIFT, SCALE, GATE, PARTS = 0, 1, 2, 6
"""Modulation of a row: shift, scale and gate of attention, then of the MLP."""


class _Modulation(ctypes.Structure):
    _fields_ = (
        ("table", ctypes.c_void_p),
        ("kind", ctypes.c_void_p),
        ("parts", ctypes.c_int),
        ("gate", ctypes.c_int),
        ("shift", ctypes.c_int),
        ("scale", ctypes.c_int),
    )


class _Norms(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("q_gamma", "q_beta", "k_gamma", "k_beta")),
        ("eps", ctypes.c_float),
    )


def serve(spec: TransformerSpec) -> bool:
    """Whether inference of a transformer in bf16 on this CPU goes through the kernels, attention included."""
    suits = spec.modality == "expert" and spec.attention == "full" and spec.head_dim == HEAD
    return suits and not matrix_units() and KERNELS.loaded is not None


def suit(x_LD: Tensor) -> bool:
    """Whether the kernels can take the hidden state: one for kernels, its width in whole vectors."""
    if x_LD.dtype == torch.float32 and not torch.is_grad_enabled():
        return False  # the plan of memory for fp32 is that of plain layers
    rows = ROWS.get(x_LD.dtype)
    return rows is not None and x_LD.shape[1] % 16 == 0 and rows.take(x_LD, gradients=True)


def run_block(block: Block, x_LD: Tensor, temb_SC: Tensor, pack: Pack, rope: Rope | None) -> Tensor:
    """What `Block.forward` does, for expert AdaLN and any attention. Leaves `x_LD` as it is."""
    table = block.modulation.linear(F.silu(temb_SC)).float()  # (S, [video, text] x PARTS x D)

    def gate_norm(x: Tensor, h: Tensor | None, gate: int, norm: nn.LayerNorm | None, shift: int) -> Any:
        weights = (None, None, 0.0) if norm is None else (norm.weight, norm.bias, norm.eps)
        return _GateNorm.apply(x, h, table, *weights, pack.kind_L, (gate, shift + SHIFT, shift + SCALE))

    _, normed_LD = gate_norm(x_LD, None, GATE, block.norm1, 0)
    h_LD = block.attention(normed_LD, pack, rope)
    y_LD, normed_LD = gate_norm(x_LD, h_LD, GATE, block.norm2, 3)
    h_LD = block.mlp.down(_Gelu.apply(block.mlp.up(normed_LD, pack), torch.is_grad_enabled()), pack)
    return gate_norm(y_LD, h_LD, 3 + GATE, None, 0)[0]


class _GateNorm(Function):
    """y = x + gate h if there is h, else x; with weights also layer norm(y) (1 + scale) + shift."""

    @staticmethod
    def forward(
        ctx: Any,
        x_LD: Tensor,
        h_LD: Tensor | None,
        table_SE: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
        kind_L: Tensor,
        parts: tuple[int, int, int],
    ) -> tuple[Tensor | None, Tensor | None]:
        y_LD = None if h_LD is None else torch.empty_like(x_LD)
        out_LD = None if weight is None else torch.empty_like(x_LD)
        floats = [None if w is None else w.float() for w in (weight, bias)]
        modulation = _Modulation(table_SE.data_ptr(), kind_L.data_ptr(), PARTS, *parts)
        ROWS[x_LD.dtype].call(
            "gate_norm", x_LD, h_LD, *x_LD.shape, modulation, *floats, ctypes.c_float(eps), y_LD, out_LD
        )
        ctx.save_for_backward(h_LD, table_SE, weight, bias, x_LD if y_LD is None else y_LD)
        ctx.eps, ctx.kind_L, ctx.parts = eps, kind_L, parts
        return y_LD, out_LD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_y_LD: Tensor | None, d_out_LD: Tensor | None) -> Any:
        h_LD, table_SE, weight, bias, y_LD = ctx.saved_tensors
        (rows, width), threads, kinds = y_LD.shape, torch.get_num_threads(), 2 * len(table_SE)
        d_y_LD = torch.zeros_like(y_LD) if d_y_LD is None else d_y_LD.contiguous()
        d_out_LD = None if d_out_LD is None else d_out_LD.contiguous()
        d_x_LD, d_h_LD = torch.empty_like(y_LD), None if h_LD is None else torch.empty_like(y_LD)
        totals = torch.zeros(threads, kinds, 3, width)
        modulation = _Modulation(table_SE.data_ptr(), ctx.kind_L.data_ptr(), PARTS, *ctx.parts)
        normed = weight is not None
        ROWS[y_LD.dtype].call(
            *("gate_norm_backward", d_y_LD, d_out_LD, h_LD, y_LD),
            *(rows, width, kinds, modulation, weight.float() if normed else None, ctypes.c_float(ctx.eps)),
            *(d_x_LD, d_h_LD, totals, threads),
        )
        by_norm, by_out, by_gate = totals.sum(0).unbind(1)  # each (kinds, D)
        d_table, (gate, shift, scale) = torch.zeros(kinds, PARTS, width), ctx.parts
        d_weight = d_bias = None
        if h_LD is not None:
            d_table[:, gate] = by_gate
        if normed:
            d_table[:, shift], d_table[:, scale] = by_out, weight.float() * by_norm + bias.float() * by_out
            factor = 1 + table_SE.view(kinds, PARTS, width)[:, scale]
            d_weight = (factor * by_norm).sum(0).to(weight)
            d_bias = (factor * by_out).sum(0).to(bias)
        return d_x_LD, d_h_LD, d_table.view_as(table_SE), d_weight, d_bias, None, None, None


class _Gelu(Function):
    """The tanh form of GELU; in place unless u is `kept` for the backward."""

    @staticmethod
    def forward(ctx: Any, u_LD: Tensor, kept: bool) -> Tensor:
        out_LD = torch.empty_like(u_LD) if kept else u_LD
        ROWS[u_LD.dtype].call("gelu", u_LD, ctypes.c_int64(u_LD.numel()), out_LD)
        ctx.save_for_backward(u_LD)
        return out_LD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_LD: Tensor) -> Any:
        (u_LD,) = ctx.saved_tensors
        d_u_LD = torch.empty_like(u_LD)
        ROWS[u_LD.dtype].call("gelu_backward", u_LD, d_LD.contiguous(), ctypes.c_int64(u_LD.numel()), d_u_LD)
        return d_u_LD, None


def attends(attention: FullAttention, x_LD: Tensor) -> bool:
    """Whether `attend` can: bf16, heads of its size, scores in its bounds, and no faster matrix units."""
    fits = attention.norm_q.normalized_shape == (HEAD,) and KERNELS.take(x_LD, gradients=True)
    return fits and not matrix_units() and _kept_norms(attention)[1] < LARGEST


def _kept_norms(attention: FullAttention) -> tuple[list[Tensor], float]:
    norm_q, norm_k = attention.norm_q, attention.norm_k
    return kept(attention, _norms, norm_q.weight, norm_q.bias, norm_k.weight, norm_k.bias)


def _norms(*parameters: Tensor) -> tuple[list[Tensor], float]:
    """Weights with even numbers before odd ones, fp32, and the largest score there can be.

    A LayerNorm without weights returns vectors of length sqrt(K) = 8, so that |q| <= 8 max |weight| + |bias|.
    """
    halves = [p.float().unflatten(0, (-1, 2)).T.flatten().contiguous() for p in parameters]
    weight_q, bias_q, weight_k, bias_k = (p.float() for p in parameters)
    q, k = (8 * w.abs().max() + b.norm() for w, b in ((weight_q, bias_q), (weight_k, bias_k)))
    return halves, float(q * k / 8)


def attend(attention: FullAttention, qkv_LD: Tensor, pack: Pack, rope: Rope | None) -> Tensor:
    """Attention inside each segment with the norms and the rotation of q and k: (L, 3D) -> (L, D)."""
    q, k = attention.norm_q, attention.norm_k
    halves, _ = _kept_norms(attention)
    weights = (q.weight, q.bias, k.weight, k.bias)
    out: Tensor = _Attend.apply(
        qkv_LD, *weights, halves, q.eps, attention.heads, pack, rope, torch.is_grad_enabled()
    )
    return out


class _Attend(Function):
    @staticmethod
    def forward(
        ctx: Any,
        qkv_LD: Tensor,
        q_weight: Tensor,
        q_bias: Tensor,
        k_weight: Tensor,
        k_bias: Tensor,
        halves: list[Tensor],
        eps: float,
        heads: int,
        pack: Pack,
        rope: Rope | None,
        kept: bool,
    ) -> Tensor:
        norms = _Norms(*(w.data_ptr() for w in halves), eps)
        logs: list[Tensor | None] = []
        out_LD, start = qkv_LD.new_empty(len(qkv_LD), heads * HEAD), 0
        assert KERNELS.loaded is not None
        for index, group in enumerate(pack.groups):
            end, (cosine, sine) = start + group.length, (None, None) if rope is None else rope[index]
            segment = group.segment
            if start == end:  # another process has its tokens
                logs.append(None)
                continue
            padded = KERNELS.loaded.padded_length(segment.length)
            memory = qkv_LD.new_empty(group.count * heads * 3 * padded * HEAD)
            logs.append(torch.empty(group.length * heads) if kept else None)
            sizes = (group.count, segment.length, heads, segment.text_length)
            where = memory, logs[-1], out_LD[start:end]
            KERNELS.call("attend", qkv_LD[start:end], *sizes, cosine, sine, norms, *where)
            start = end
        ctx.save_for_backward(qkv_LD, out_LD, q_weight)
        ctx.given, ctx.logs = (halves, eps, heads, pack, rope), logs
        return out_LD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out_LD: Tensor) -> Any:
        qkv_LD, out_LD, weight = ctx.saved_tensors
        halves, eps, heads, pack, rope = ctx.given
        norms, threads, start = _Norms(*(w.data_ptr() for w in halves), eps), torch.get_num_threads(), 0
        d_out_LD, d_qkv_LD, d_norms = (
            d_out_LD.contiguous(),
            torch.empty_like(qkv_LD),
            torch.zeros(threads, 4, HEAD),
        )
        assert KERNELS.loaded is not None
        KERNELS.loaded.head_size.restype = ctypes.c_int64
        for index, group in enumerate(pack.groups):
            end, (cosine, sine) = start + group.length, (None, None) if rope is None else rope[index]
            segment = group.segment
            if start == end:
                continue
            memory = torch.empty(threads, KERNELS.loaded.head_size(segment.length))
            sizes = (group.count, segment.length, heads, segment.text_length)
            KERNELS.call(
                *("attend_backward", qkv_LD[start:end], *sizes, cosine, sine, norms, ctx.logs[index]),
                *(out_LD[start:end], d_out_LD[start:end], memory, threads, d_norms, d_qkv_LD[start:end]),
            )
            start = end
        weights = (
            d_norms.sum(0).unflatten(1, (2, -1)).transpose(1, 2).flatten(1).to(weight)
        )  # evens, odds -> order
        return d_qkv_LD, *weights, None, None, None, None, None, None
